//! Compiles the protocol without protoc.

const FILES: [&str; 4] = [
    "proto/pmu/v1/common.proto",
    "proto/pmu/v1/admin.proto",
    "proto/pmu/v1/session.proto",
    "proto/pmu/v1/distributor.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        // They carry secrets: their Debug is written by hand, in src/redacted.rs.
        .skip_debug([
            "pmu.v1.OpenRegionResponse",
            "pmu.v1.Window",
            "pmu.v1.DistributeStaging",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
