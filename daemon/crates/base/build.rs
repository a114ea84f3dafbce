//! Tells the daemon which wasmtime it is built with: the crate itself has no constant for it.

use std::path::Path;

fn main() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = std::fs::read_to_string(&lock).expect("the workspace has a Cargo.lock");
    let version = text
        .split_once("name = \"wasmtime\"\nversion = \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map(|(version, _)| version)
        .expect("Cargo.lock names wasmtime");
    println!("cargo::rustc-env=WASMTIME_VERSION={version}");
    println!("cargo::rerun-if-changed=build.rs");
}
