//! What can go wrong, in words that an administrator can act on.

use std::io;

/// Why a verbs call did not do what was asked.
///
/// A failed *completion* isn't one of these: it is a [`WorkCompletion`](crate::WorkCompletion) with
/// a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// The library or the kernel refused a call.
    #[error("{verb}: {}{}", io::Error::from_raw_os_error(*errno), Hint(hint))]
    Call {
        /// The C function.
        verb: &'static str,
        /// What it reported, as in `errno.h`.
        errno: i32,
        /// What usually causes this, or nothing.
        hint: &'static str,
    },
    /// A list of work requests was taken by the device in part. The queue pair's state is then
    /// unknown to the caller: close the connection.
    #[error("{verb}: {} after {posted} work requests", io::Error::from_raw_os_error(*errno))]
    PostedInPart {
        /// The C function.
        verb: &'static str,
        /// What it reported.
        errno: i32,
        /// How many requests of the batch the device has.
        posted: u32,
    },
    /// The device, its provider library or this queue pair doesn't offer what was asked.
    #[error("{what} is not offered by this {by}")]
    Unsupported {
        /// What was asked.
        what: &'static str,
        /// Device, provider or queue pair.
        by: &'static str,
    },
    /// A range lies outside of its memory.
    #[error("{length} bytes at {offset} lie outside of a range of {available} bytes")]
    OutOfBounds {
        /// First byte, counted from the start of the memory.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// A handle of a region was used with a queue pair that it isn't attached to, or after it was
    /// detached.
    #[error("the memory region is not attached to this queue pair")]
    NotAttached,
    /// Objects of different protection domains or devices were named together.
    #[error("{what} belong to different {owner}")]
    Mixed {
        /// Which objects.
        what: &'static str,
        /// What they would have to share.
        owner: &'static str,
    },
    /// A count or a length is over a limit.
    #[error("{given} {what}, the limit is {limit}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many were given.
        given: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
}

impl VerbsError {
    /// The C function that failed, if one was called.
    pub const fn verb(&self) -> Option<&'static str> {
        match self {
            Self::Call { verb, .. } | Self::PostedInPart { verb, .. } => Some(verb),
            _ => None,
        }
    }

    /// The errno that it reported, if one was called.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { errno, .. } | Self::PostedInPart { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(crate) const fn call(verb: &'static str, errno: i32) -> Self {
        Self::Call {
            verb,
            errno,
            hint: usual_cause(errno),
        }
    }

    pub(crate) const fn with_hint(self, better: &'static str) -> Self {
        match self {
            Self::Call { verb, errno, .. } if !better.is_empty() => Self::Call {
                verb,
                errno,
                hint: better,
            },
            other => other,
        }
    }

    /// The error of a call that has just failed and left its reason in errno.
    pub(crate) fn last(verb: &'static str) -> Self {
        Self::call(verb, last_errno())
    }
}

/// This thread's errno.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Turns what most verbs return (0, or a positive errno, or -1 with errno set) into a result.
pub(crate) fn check(verb: &'static str, result: i32) -> Result<(), VerbsError> {
    match result {
        0 => Ok(()),
        1.. => Err(VerbsError::call(verb, result)),
        -1 => Err(VerbsError::last(verb)),
        _ => Err(VerbsError::call(verb, result.saturating_neg())),
    }
}

const fn usual_cause(errno: i32) -> &'static str {
    match errno {
        libc::ENOMEM => {
            "the limit of locked memory (ulimit -l, LimitMEMLOCK=) or of the device is reached"
        }
        libc::EPERM | libc::EACCES => "the process may not open or use the RDMA device",
        libc::ENODEV => "the RDMA device is gone",
        libc::ENOSYS | libc::EOPNOTSUPP => "the device or its driver doesn't offer this",
        _ => "",
    }
}

struct Hint<'a>(&'a str);

impl std::fmt::Display for Hint<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(formatter, " ({})", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_names_the_verb_the_reason_and_the_usual_cause() {
        let text = VerbsError::call("ibv_reg_mr", libc::ENOMEM).to_string();
        assert!(
            text.starts_with("ibv_reg_mr: Cannot allocate memory"),
            "{text}"
        );
        assert!(text.contains("ulimit -l"), "{text}");
        let bare = VerbsError::call("ibv_poll_cq", libc::EIO).to_string();
        assert!(!bare.contains("()"), "{bare}");
    }

    #[test]
    fn results_of_all_conventions_are_understood() {
        assert_eq!(check("v", 0), Ok(()));
        assert_eq!(
            check("v", libc::EINVAL),
            Err(VerbsError::call("v", libc::EINVAL))
        );
        assert_eq!(
            check("v", -libc::EINVAL),
            Err(VerbsError::call("v", libc::EINVAL))
        );
        assert!(check("v", -1).is_err());
    }

    #[test]
    fn a_better_hint_replaces_the_usual_one() {
        let error = VerbsError::call("ibv_reg_mr", libc::EINVAL).with_hint("not persistent");
        assert!(error.to_string().ends_with("(not persistent)"));
        assert_eq!(error.errno(), Some(libc::EINVAL));
        assert_eq!(error.verb(), Some("ibv_reg_mr"));
    }
}
