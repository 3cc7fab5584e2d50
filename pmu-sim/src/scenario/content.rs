//! Bytes that tell where they come from.

use pmu_format::Label;

use crate::random::mix;

/// The bytes that attempt `id` stores: they differ at every place and for every id.
pub(crate) fn content(id: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut index = 0;
    while bytes.len() < length {
        bytes.extend_from_slice(&mix((id << 32) ^ index ^ 0x5eed).to_le_bytes());
        index += 1;
    }
    bytes.truncate(length);
    bytes
}

/// The label that names attempt `id`.
pub(crate) fn label(id: u64) -> Label {
    Label::new(&id.to_string()).unwrap_or_default()
}

/// The id in a label.
pub(crate) fn id_of(label: &Label) -> Option<u64> {
    label.to_string().parse().ok()
}
