//! Any bytes as input of `pmu_format::fuzz_entry::snapshot`.
#![no_main]

use pmu_format::fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::both_ways(data, fuzz_entry::snapshot));
