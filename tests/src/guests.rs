//! The programs the stories run, built from source when first needed.
//!
//! The result lies in `target/guests` under a name with the digest of all it is made from, so a changed
//! source is built again and an unchanged one never, by whatever process comes first.
//!
//! Failure paths: a missing compiler names the Debian packages to install; a compiler's complaint is
//! shown as it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::world::Runtime;
use crate::{components, paths};

/// What `make deps` installs for C guests.
const PACKAGES: &str = "clang lld wasi-libc libclang-rt-dev-wasm32";

/// Flags of every C guest, for Wasm. wasi-libc is Debian's, under `/usr`.
const WASM_FLAGS: &[&str] = &["--target=wasm32-wasi", "--sysroot=/usr", "-O2", "-Wall", "-Werror", "-Wl,--strip-all"];

/// Flags of every C guest, for the stock runtime: static, as there is no libc in the image.
const NATIVE_FLAGS: &[&str] = &["-static", "-O2", "-Wall", "-Werror"];

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
    /// C that calls what a world imports: WIT and the world. It becomes a component.
    CInWorld(&'static str, &'static str, &'static str),
    /// The same for what is not started but called: it exports what the world does.
    CService(&'static str, &'static str, &'static str),
    Wat(&'static str),
    /// WIT and the world to export.
    Wit(&'static str, &'static str),
    Generated(fn() -> Vec<u8>),
    /// A bash script that writes to the path it is given: a real program, whose source is not ours.
    Script(&'static str),
    /// In a language that `componentize.sh` knows by this name.
    Componentized(&'static str),
}

macro_rules! c {
    ($name:literal $(, $flag:literal)*) => {
        Guest { name: $name, source: Source::C(include_str!(concat!("../guests/", $name, ".c")), &[$($flag),*]) }
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
    /// Native only: a pod's sandbox.
    pub const PAUSE: Self = c!("pause");
    /// Greets who connects to the TCP port given as argument.
    pub const TCP: Self = Self {
        name: "tcp",
        source: Source::CInWorld(include_str!("../guests/tcp.c"), include_str!("../guests/tcp.wit"), "server"),
    };
    /// Recurses until the stack ends.
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
    /// A component of a world that is no command.
    pub const CALCULATOR: Self = wit!("calculator", "calculator");
    /// An HTTP service: see its source for what it does by path.
    pub const HTTP: Self = Self {
        name: "http",
        source: Source::CService(include_str!("../guests/http.c"), include_str!("../guests/http.wit"), "service"),
    };
    /// A client of HTTP: see its source for its arguments and what it prints.
    pub const FETCH: Self = Self {
        name: "fetch",
        source: Source::CInWorld(include_str!("../guests/fetch.c"), include_str!("../guests/http.wit"), "client"),
    };
    /// A command of WASI 0.3: see its source for the verbs.
    pub const COMMAND_P3: Self = Self {
        name: "command-p3",
        source: Source::CService(
            include_str!("../guests/command-p3.c"),
            include_str!("../guests/command-p3.wit"),
            "command",
        ),
    };
    /// An HTTP service in JavaScript (componentize-js, 13 MB): see `componentize/service.js`.
    pub const JAVASCRIPT: Self = Self { name: "javascript", source: Source::Componentized("javascript") };
    /// An HTTP service in Python (componentize-py, 18 MB): see `componentize/service.py`.
    pub const PYTHON: Self = Self { name: "python", source: Source::Componentized("python") };
    /// An HTTP service of WASI 0.3 in Python (componentize-py, 22 MB): see `componentize/service_p3.py`.
    pub const PYTHON_P3: Self = Self { name: "python-p3", source: Source::Componentized("python-p3") };
    /// A native program only: what is around it in a pod.
    pub const PEER: Self = c!("peer");
    /// A TCP server, a client, and look-ups of names: see its source for the verbs.
    pub const NET: Self = Self {
        name: "net",
        source: Source::CInWorld(include_str!("../guests/net.c"), include_str!("../guests/net.wit"), "net"),
    };
    /// The Lua interpreter, from Debian's source package (without coroutines and `pcall`).
    pub const LUA: Self = Self { name: "lua", source: Source::Script(include_str!("../guests/lua.sh")) };
    /// Over 1 MB of code; ends with [`BIG_CODE`] if all of it computed what it should.
    pub const BIG: Self = Self { name: "big", source: Source::Generated(big) };

    /// Its name, without extension.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Wasm file: a core module, or a component for those that are one.
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
            Source::Wat(source) => built(self.name, "wasm", &[source], || {
                wat::parse_str(source).unwrap_or_else(|error| panic!("{}: {error}", self.name))
            }),
            Source::Wit(source, world) => {
                built(self.name, "wasm", &[source, world], || components::from_wit(source, world))
            }
            Source::Componentized(language) => componentized(language),
            Source::Script(script) => built(self.name, "wasm", &[script], || run_script(self.name, script)),
            Source::Generated(make) => built(self.name, "wasm", &[include_str!("guests.rs")], make),
        }
    }

    /// The bytes of [`Self::wasm`].
    pub fn wasm_bytes(&self) -> Vec<u8> {
        read(&self.wasm())
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

    /// What a runtime runs.
    pub fn bytes_for(&self, runtime: Runtime) -> Vec<u8> {
        match runtime {
            Runtime::Hearth => self.wasm_bytes(),
            Runtime::Runc => self.native_bytes(),
        }
    }
}

/// Builds a C source with clang.
fn compiled(name: &str, extension: &str, source: &str, flags: &[&str]) -> PathBuf {
    let key = flags.join(" ");
    built(name, extension, &[source, &key], || {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let (input, output) = (directory.path().join("guest.c"), directory.path().join("guest"));
        fs::write(&input, source).expect("it is writable");
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

/// What `componentize.sh` makes; it keeps that by itself, outside of the repository.
fn componentized(language: &str) -> PathBuf {
    let script = paths::repository().join("tests/guests/componentize.sh");
    let run = Command::new(&script).arg(language).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{} {language} (does `make deps` install all it needs?):\n{log}", script.display());
    PathBuf::from(String::from_utf8_lossy(&run.stdout).trim_end())
}

/// Runs a script that builds a guest.
fn run_script(name: &str, script: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let output = directory.path().join("guest");
    let run = Command::new("bash").args(["-c", script, name]).arg(&output).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "guests/{name}.sh (needs {PACKAGES}, dpkg-dev and Debian's mirror):\n{log}");
    read(&output)
}

/// The file made from `inputs`; `make` is called if there is none yet, once on the whole machine.
fn built(name: &str, extension: &str, inputs: &[&str], make: impl FnOnce() -> Vec<u8>) -> PathBuf {
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

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// How [`Guest::BIG`] ends when it computed right.
pub const BIG_CODE: i32 = 42;

/// A module of many functions, each a chain of arithmetic on its argument; `_start` calls one after
/// another and compares the result with the one computed here.
fn big() -> Vec<u8> {
    const FUNCTIONS: u32 = 3000;
    const STEPS: u32 = 80;
    let mut random = 0x9e37_79b9_u32;
    let mut next = || {
        // xorshift: any fixed sequence does.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let mut value = 1_u32;
    let mut text = String::from(
        "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))\n\
         (memory (export \"memory\") 1)\n",
    );
    for index in 0..FUNCTIONS {
        text += &format!("(func $f{index} (param i32) (result i32) (local.get 0)\n");
        for _ in 0..STEPS {
            let constant = next();
            let (instruction, result) = match next() % 4 {
                0 => ("i32.add", value.wrapping_add(constant)),
                1 => ("i32.xor", value ^ constant),
                2 => ("i32.mul", value.wrapping_mul(constant)),
                _ => ("i32.rotl", value.rotate_left(constant % 32)),
            };
            text += &format!("(i32.const {}) {instruction}\n", constant as i32);
            value = result;
        }
        text += ")\n";
    }
    text += "(func (export \"_start\") (i32.const 1)\n";
    for index in 0..FUNCTIONS {
        text += &format!("(call $f{index})\n");
    }
    text += &format!(
        "(if (i32.eq (i32.const {})) (then (call $exit (i32.const {BIG_CODE}))))\n\
         (call $exit (i32.const 1))))",
        value as i32
    );
    wat::parse_str(&text).expect("the text is well-formed")
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
    fn what_is_built_once_is_not_built_again() {
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
