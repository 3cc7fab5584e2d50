//! The words for what travels as a number. A number that this version does not know is `unknown`.

use pmu_format::{Medium, Mode, Need, RegionState, Rights};
use pmu_proto::v1;

const UNKNOWN: &str = "unknown";

/// The mode of a region.
pub fn mode(number: i32) -> &'static str {
    u8::try_from(number)
        .ok()
        .and_then(Mode::from_number)
        .map_or(UNKNOWN, Mode::as_str)
}

/// The state of a region.
pub fn state(number: i32) -> &'static str {
    u8::try_from(number)
        .ok()
        .and_then(RegionState::from_number)
        .map_or(UNKNOWN, RegionState::as_str)
}

/// What a region needs.
pub fn need(number: i32) -> &'static str {
    match u8::try_from(number).ok().and_then(Need::from_number) {
        Some(Need::Durable) => "durable",
        Some(Need::VolatileAllowed) => "volatile",
        None => UNKNOWN,
    }
}

/// What a pool is made of.
pub fn medium(number: i32) -> &'static str {
    u32::try_from(number)
        .ok()
        .and_then(Medium::from_number)
        .map_or(UNKNOWN, Medium::as_str)
}

/// The provider of a data connection.
pub fn provider(number: i32) -> &'static str {
    match v1::Provider::try_from(number) {
        Ok(v1::Provider::SoftTcp) => "soft-tcp",
        Ok(v1::Provider::SoftUnix) => "soft-unix",
        Ok(v1::Provider::Verbs) => "verbs",
        Ok(v1::Provider::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// How durability is proved.
pub fn persistence(number: i32) -> &'static str {
    match v1::PersistenceMethod::try_from(number) {
        Ok(v1::PersistenceMethod::NativeFlush) => "native-flush",
        Ok(v1::PersistenceMethod::ReadAfterWrite) => "read-after-write",
        Ok(v1::PersistenceMethod::ServerPersist) => "server-persist",
        Ok(v1::PersistenceMethod::Volatile) => "volatile",
        Ok(v1::PersistenceMethod::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// What a session is for.
pub fn session_role(number: i32) -> &'static str {
    match v1::SessionRole::try_from(number) {
        Ok(v1::SessionRole::Primary) => "primary",
        Ok(v1::SessionRole::Backup) => "backup",
        Ok(v1::SessionRole::Reader) => "reader",
        Ok(v1::SessionRole::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// How bad a finding is.
pub fn severity(number: i32) -> &'static str {
    match v1::Severity::try_from(number) {
        Ok(v1::Severity::Note) => "note",
        Ok(v1::Severity::Degraded) => "degraded",
        Ok(v1::Severity::Damaged) => "damaged",
        Ok(v1::Severity::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// Where in a pool a finding is.
pub fn pool_part(number: i32) -> &'static str {
    match v1::PoolPart::try_from(number) {
        Ok(v1::PoolPart::SuperblockA) => "superblock A",
        Ok(v1::PoolPart::SuperblockB) => "superblock B",
        Ok(v1::PoolPart::TableA) => "region table A",
        Ok(v1::PoolPart::TableB) => "region table B",
        Ok(v1::PoolPart::Translation) => "translation table",
        Ok(v1::PoolPart::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// Rights, one word each, in the order of their bits. Bits without meaning are left out.
pub fn rights(bits: u32) -> Vec<String> {
    Rights::from_bits_truncate(bits)
        .iter_names()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_words() {
        assert_eq!(mode(v1::Mode::Overwrite.into()), "overwrite");
        assert_eq!(state(v1::RegionState::Erasing.into()), "erasing");
        assert_eq!(need(v1::Need::Volatile.into()), "volatile");
        assert_eq!(medium(v1::Medium::Hugetlbfs.into()), "hugetlbfs");
        assert_eq!(provider(v1::Provider::SoftUnix.into()), "soft-unix");
        assert_eq!(
            persistence(v1::PersistenceMethod::ServerPersist.into()),
            "server-persist"
        );
        assert_eq!(rights(1 | 16 | 1 << 30), ["read", "manage"]);
        for word in [
            mode,
            state,
            need,
            medium,
            provider,
            persistence,
            session_role,
            severity,
        ] {
            assert_eq!((word(0), word(-1), word(77)), (UNKNOWN, UNKNOWN, UNKNOWN));
        }
    }
}
