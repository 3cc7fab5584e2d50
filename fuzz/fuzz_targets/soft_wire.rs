//! Any bytes as input of every decoder of the soft protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pmu_fabric::soft::wire::fuzz_decode(data));
