//! `pmm ca`: the site's certificate authority. No unit is asked.

use std::path::PathBuf;

use pmu_auth::{Authority, Validity};

use crate::cli::{CaInitArguments, CaIssueArguments, CaRevokeArguments, Common};
use crate::config::Home;
use crate::confirm::{Ask, confirm};
use crate::error::ManagerError;
use crate::report::{AuthorityReport, IdentityReport, RevocationReport};

fn directory(home: &Home, given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(|| home.authority())
}

/// `ca init`
///
/// # Errors
/// [`ManagerError::Auth`]; an authority that exists is not overwritten.
pub fn init(home: &Home, init: &CaInitArguments) -> Result<AuthorityReport, ManagerError> {
    let directory = directory(home, init.ca.as_ref());
    Authority::create(&directory, &init.name)?;
    let directory = directory.display().to_string();
    Ok(AuthorityReport {
        name: init.name.to_string(),
        directory,
    })
}

/// `ca issue`
///
/// # Errors
/// [`ManagerError::Auth`]; an identity that exists is not overwritten.
pub fn issue(home: &Home, issue: &CaIssueArguments) -> Result<IdentityReport, ManagerError> {
    let authority = Authority::open(&directory(home, issue.ca.as_ref()))?;
    let out = issue
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(issue.name.as_str()));
    let validity = Validity::days(issue.days);
    let identity = authority.issue(&issue.name, issue.role, &issue.hosts, validity)?;
    identity.save(&out)?;
    Ok(IdentityReport {
        name: issue.name.to_string(),
        role: issue.role.as_str(),
        directory: out.display().to_string(),
        expires_at_s: identity.not_after().unix_timestamp(),
    })
}

/// `ca revoke`
///
/// # Errors
/// [`ManagerError::Usage`] if it is not confirmed; [`ManagerError::Auth`].
pub fn revoke(
    home: &Home,
    common: &Common,
    revoke: &CaRevokeArguments,
    ask: &dyn Ask,
) -> Result<RevocationReport, ManagerError> {
    let question = format!("Revoke all certificates of {}?", revoke.name);
    confirm(ask, common.yes, &question)?;
    let authority = Authority::open(&directory(home, revoke.ca.as_ref()))?;
    let revoked = authority.revoke(&revoke.name)?;
    let list = authority.revoked_path().display().to_string();
    Ok(RevocationReport {
        name: revoke.name.to_string(),
        revoked,
        list,
    })
}
