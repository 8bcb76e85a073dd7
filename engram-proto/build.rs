//! Generates the code from the `.proto` files without a system `protoc`.

use std::path::PathBuf;

const FILES: &[&str] = &[
    "engram/v1/engram.proto",
    "engram/log/v1/log.proto",
    "engram/control/v1/control.proto",
    "engram/peer/v1/cluster.proto",
    "engram/peer/v1/forward.proto",
    "engram/peer/v1/overlay.proto",
    "engram/peer/v1/raft.proto",
    "engram/peer/v1/spread.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("engram.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    // Maps of log entries are ordered, so that a command has one encoding.
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".engram.log.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
