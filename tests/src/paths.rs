//! The paths of programs that the build makes.

use std::path::{Path, PathBuf};

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a package of the workspace")
}

/// cargo's target directory: `CARGO_TARGET_DIR`, else `target` in the repository.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => repository().join(directory),
        None => repository().join("target"),
    }
}

/// The daemon as `make build` leaves it.
///
/// # Panics
/// If it has not been built.
pub fn hearthd() -> PathBuf {
    built(target().join("release/hearthd"), "make build")
}

/// The operator's tool as `make build` leaves it.
///
/// # Panics
/// If it has not been built.
pub fn hearthctl() -> PathBuf {
    built(target().join("release/hearthctl"), "make build")
}

/// The daemon with fault points, as `make faults` leaves it.
///
/// # Panics
/// If it has not been built.
pub fn hearthd_with_faults() -> PathBuf {
    built(target().join("release/hearthd-faults"), "make faults")
}

/// The directory of `containerd-shim-hearth-v1` as `make shim` leaves it, for containerd's `PATH`.
///
/// # Panics
/// If it has not been built.
pub fn shim_directory() -> PathBuf {
    let directory = target().join("x86_64-unknown-linux-gnu/shim");
    built(directory.join("containerd-shim-hearth-v1"), "make shim");
    directory
}

/// A program of containerd's: on `PATH`, or in the directory that `HEARTH_TEST_CONTAINERD` names.
pub fn containerd(program: &str) -> PathBuf {
    containerd_directory().unwrap_or_default().join(program)
}

/// The directory that `HEARTH_TEST_CONTAINERD` names; `deploy/fetch-containerd.sh` makes such directories.
pub fn containerd_directory() -> Option<PathBuf> {
    std::env::var_os("HEARTH_TEST_CONTAINERD").map(PathBuf::from)
}

fn built(path: PathBuf, verb: &str) -> PathBuf {
    assert!(path.exists(), "{} is missing: run `{verb}` first", path.display());
    path
}
