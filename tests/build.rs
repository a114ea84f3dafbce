//! Makes the client of CRI from `proto/cri.proto`, with the `protoc` that containerd's API needs too.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto/cri.proto");
    tonic_prost_build::configure()
        .build_server(false)
        .compile_protos(&["proto/cri.proto"], &["proto"])
        .expect("protoc is installed (`make deps` does that) and takes proto/cri.proto");
}
