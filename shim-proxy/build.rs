//! Linker options that bring the static shim under its size limit of 1 MB.
//!
//! A static Rust program that does nothing at all has over 1.1 MB, two thirds of it glibc. Two
//! things go that the shim never uses, about 200 kB together:
//!
//! * The unwind tables. The shim aborts on a panic; only a backtrace would read them.
//! * glibc's `pthread_getattr_np`, which reads `/proc/self/maps` with `scanf`, so much of glibc's
//!   number parsing comes with it. Rust's start-up code calls it to tell a stack overflow from
//!   another crash, and does without where it fails. It gets `getpid`, which is never zero: a
//!   failure. That also spares each start the reading.
//!
//! A dynamically linked shim, as `cargo build` and `cargo test` make it, is left as it is.

use std::env;
use std::path::Path;

const BINARY: &str = "containerd-shim-hearth-v1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=no-unwind-tables.ld");
    let cfg = |name: &str| env::var(format!("CARGO_CFG_{name}")).unwrap_or_default();
    let is_static = cfg("TARGET_FEATURE").split(',').any(|f| f == "crt-static");
    if !is_static || cfg("TARGET_OS") != "linux" || cfg("TARGET_ENV") != "gnu" {
        return;
    }
    let directory = env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the package's directory");
    let script = Path::new(&directory).join("no-unwind-tables.ld");
    for argument in ["-Wl,--defsym=pthread_getattr_np=getpid".to_owned(), format!("-Wl,-T,{}", script.display())] {
        println!("cargo::rustc-link-arg-bin={BINARY}={argument}");
    }
}
