//! `Debug` for messages that carry secrets, so that no log ever holds one.

use std::fmt;

use crate::v1::{DistributeStaging, OpenRegionResponse, Window};

impl fmt::Debug for OpenRegionResponse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OpenRegionResponse")
            .field("session_id", &self.session_id)
            .field("connect_token", &"(secret)")
            .field("token_valid_ms", &self.token_valid_ms)
            .field("addresses", &self.addresses)
            .field("region", &self.region)
            .field("persistence", &self.persistence)
            .finish()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Window")
            .field("virtual_address", &self.virtual_address)
            .field("length_bytes", &self.length_bytes)
            .field("access", &self.access)
            .field("access_key", &"(secret)")
            .field("flush_key", &self.flush_key.map(|_| "(secret)"))
            .finish()
    }
}

impl fmt::Debug for DistributeStaging {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DistributeStaging")
            .field("connect_token", &"(secret)")
            .field("token_valid_ms", &self.token_valid_ms)
            .field("address", &self.address)
            .field("persistence", &self.persistence)
            .field("length_bytes", &self.length_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let response = OpenRegionResponse {
            connect_token: vec![77; 32],
            ..Default::default()
        };
        assert!(!format!("{response:?}").contains("77"));
        let staging = DistributeStaging {
            connect_token: vec![77; 32],
            ..Default::default()
        };
        assert!(!format!("{staging:?}").contains("77"));
        let window = Window {
            access_key: 4242,
            flush_key: Some(4343),
            ..Default::default()
        };
        let text = format!("{window:?}");
        assert!(!text.contains("4242") && !text.contains("4343"), "{text}");
    }
}
