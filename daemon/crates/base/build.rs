//! Tells the daemon which wasmtime it is built with: the crate itself has no constant for it.

use std::path::Path;

fn main() {
    // Read when the script runs: compiled in, the path of a checkout that has moved since would stay.
    let crate_directory = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let lock = Path::new(&crate_directory).join("../../../Cargo.lock");
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
