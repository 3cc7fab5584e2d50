//! Identities: certificates, principals and the TLS settings made of them, for unit, client and manager alike.
//! It never decides what a principal may do with a region: that is the unit's region table.
//!
//! * [`Authority`] makes a site's certificates; [`Identity`] is a directory with one of them.
//! * [`Principal`] is who a certificate names, and the [`Role`] that it gives.
//! * [`server_tls`] and [`client_tls`] make TLS 1.3 settings, with certificates required on both sides.
//! * [`service_tls`] reads what is needed to speak TLS with a service that isn't ours.
//! * [`incoming`] and [`connect`] put gRPC on top of them, and say in an administrator's words why a peer was refused.
//!
//! The trust model is in `docs/security.md`.

#![forbid(unsafe_code)]

mod authority;
mod connect;
mod error;
mod files;
mod identity;
mod incoming;
mod peer;
mod principal;
mod problem;
mod service;
mod tls;

pub use authority::{Authority, HostName, Validity};
pub use connect::{UnitAddress, auth_error_in, connect};
pub use error::AuthError;
pub use identity::{
    CA_FILE, CERTIFICATE_FILE, IDENTITY_VARIABLE, Identity, KEY_FILE, MANAGER_IDENTITY_VARIABLE,
    REVOKED_FILE,
};
pub use incoming::{Incoming, incoming};
pub use peer::{PeerTls, peer_tls};
pub use principal::{Principal, Role};
pub use problem::CertificateProblem;
pub use service::{ServiceClient, ServiceTls, service_password, service_tls};
pub use tls::{client_tls, server_tls};

pub use pmu_format::PrincipalName;
