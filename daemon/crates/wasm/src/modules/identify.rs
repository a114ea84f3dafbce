//! Tells WebAssembly from other files by their first bytes; the remedy for the others.
//!
//! Nothing here parses a module: the compile process does that. A precompiled module is refused like
//! any other native program: machine code from an image would run inside the daemon.

use std::fmt::Write as _;

use crate::engine::ModuleKind;
use hearth_base::error::Error;
use hearth_base::text::shown;

/// How many of a file's first bytes decide, at most.
pub const HEAD_BYTES: usize = 512;

/// The eight bytes a core module starts with: magic, version 1, layer 0.
const CORE: [u8; 8] = *b"\0asm\x01\0\0\0";
/// The eight bytes a component starts with: magic, version 13, layer 1.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

/// ELF's `EI_OSABI` of wasmtime's precompiled artifacts.
const ELFOSABI_WASMTIME: u8 = 200;

/// The kind of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileIdentity {
    /// A WebAssembly program.
    Wasm(ModuleKind),
    /// Something else.
    NotWasm(NotWasm),
}

/// The kind of a file that is not a binary WebAssembly program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWasm {
    /// No bytes at all.
    Empty,
    /// Starts like a WebAssembly binary and ends before its header does.
    Truncated,
    /// A WebAssembly binary of a version or layer that does not exist yet, or no longer.
    Version {
        /// The version field.
        version: u16,
        /// The layer field: 0 core, 1 component.
        layer: u16,
    },
    /// WebAssembly's text format.
    Text,
    /// A module already compiled by wasmtime.
    Precompiled,
    /// A program for this or another operating system, as `os/architecture`.
    Native(&'static str, &'static str),
    /// A script; the interpreter in its first line.
    Script(String),
    /// A compressed file or an archive, by name.
    Archive(&'static str),
    /// Anything else; its first bytes.
    Unknown(Vec<u8>),
}

/// Identifies a file by its first [`HEAD_BYTES`] bytes, or all of them if it has fewer.
pub fn identify(head: &[u8]) -> FileIdentity {
    let other = match head {
        [] => NotWasm::Empty,
        _ if head.starts_with(&CORE) => return FileIdentity::Wasm(ModuleKind::Core),
        _ if head.starts_with(&COMPONENT) => return FileIdentity::Wasm(ModuleKind::Component),
        [0, b'a', b's', b'm', v0, v1, l0, l1, ..] => {
            NotWasm::Version { version: u16::from_le_bytes([*v0, *v1]), layer: u16::from_le_bytes([*l0, *l1]) }
        }
        _ if head.len() < 8 && (CORE.starts_with(head) || COMPONENT.starts_with(head)) => NotWasm::Truncated,
        [0x7f, b'E', b'L', b'F', ..] => elf(head),
        [b'#', b'!', line @ ..] => NotWasm::Script(first_line(line)),
        [0x1f, 0x8b, ..] => NotWasm::Archive("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => NotWasm::Archive("zstd"),
        [b'P', b'K', 3, 4, ..] => NotWasm::Archive("zip"),
        [b'M', b'Z', ..] => NotWasm::Native("windows", "unknown"),
        [0xcf, 0xfa, 0xed, 0xfe, ..] => NotWasm::Native("darwin", "unknown"),
        _ if is_text_format(head) => NotWasm::Text,
        _ => NotWasm::Unknown(head[..head.len().min(4)].to_vec()),
    };
    FileIdentity::NotWasm(other)
}

/// An ELF file: Linux's own, or an artifact of wasmtime's.
fn elf(head: &[u8]) -> NotWasm {
    if head.get(7) == Some(&ELFOSABI_WASMTIME) {
        return NotWasm::Precompiled;
    }
    let (Some(class), Some(order), Some(&[m0, m1])) =
        (head.get(4), head.get(5), head.get(18..20).and_then(|m| m.first_chunk()))
    else {
        return NotWasm::Native("linux", "unknown");
    };
    let little = *order == 1;
    let machine = if little { u16::from_le_bytes([m0, m1]) } else { u16::from_be_bytes([m0, m1]) };
    // Go's names, which images use too. https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
    let architecture = match (machine, class, little) {
        (3, ..) => "386",
        (8, _, true) => "mipsle",
        (8, ..) => "mips",
        (21, _, true) => "ppc64le",
        (21, ..) => "ppc64",
        (22, ..) => "s390x",
        (40, ..) => "arm",
        (62, ..) => "amd64",
        (183, ..) => "arm64",
        (243, ..) => "riscv64",
        (258, ..) => "loong64",
        _ => "unknown",
    };
    NotWasm::Native("linux", architecture)
}

/// Whether the first thing that is neither space nor comment opens a module or component in text.
fn is_text_format(head: &[u8]) -> bool {
    let mut rest = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    loop {
        rest = rest.trim_ascii_start();
        if let Some(comment) = rest.strip_prefix(b";;") {
            let Some(end) = comment.iter().position(|b| *b == b'\n') else { return true };
            rest = &comment[end..];
        } else if let Some(comment) = rest.strip_prefix(b"(;") {
            let Some(end) = comment.windows(2).position(|pair| pair == b";)") else { return true };
            rest = &comment[end + 2..];
        } else {
            break;
        }
    }
    let Some(form) = rest.strip_prefix(b"(") else { return false };
    let form = form.trim_ascii_start();
    form.starts_with(b"module") || form.starts_with(b"component")
}

/// The most bytes of a script's first line that an error quotes.
const SCRIPT_BYTES_MAX: usize = 64;

/// The first line, for an error.
fn first_line(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    shown(String::from_utf8_lossy(line).trim(), SCRIPT_BYTES_MAX).into_owned()
}

impl NotWasm {
    /// The error that says the file's kind and the remedy. The caller adds the program's name.
    pub fn error(&self) -> Error {
        let text = format!("it {}", self.fault());
        match self {
            NotWasm::Native("linux", _) | NotWasm::Script(_) => Error::Native(text),
            _ => Error::InvalidArgument(text),
        }
    }

    fn fault(&self) -> String {
        const BUILD: &str = "build it for wasm32-wasip1 or wasm32-wasip2";
        match self {
            NotWasm::Empty => format!("is an empty file, not WebAssembly: {BUILD} and check how the image is built"),
            NotWasm::Truncated => "is cut off inside its WebAssembly header: build or copy it again".into(),
            NotWasm::Version { version, layer } => format!(
                "is a WebAssembly binary of version {version}, layer {layer}, which Hearth does not know (it runs modules of version 1 and components of version 13): {BUILD} with current tools"
            ),
            NotWasm::Text => "is WebAssembly in text form (WAT): turn it into a binary first, for example with `wasm-tools parse`".into(),
            NotWasm::Precompiled => "is a module already compiled by wasmtime, which is machine code and never run from an image: put the .wasm file into the image, Hearth compiles it once per node".into(),
            NotWasm::Native(os, architecture) => {
                let of = if *architecture == "unknown" { format!("{os} program") } else { format!("{os}/{architecture} program") };
                format!("is a native {of} (an ELF, PE or Mach-O file), not WebAssembly: {BUILD}, or run this image with another runtime class")
            }
            NotWasm::Script(interpreter) => format!(
                "is a script for {interpreter:?}, not WebAssembly: name the .wasm file itself as the image's entry point"
            ),
            NotWasm::Archive(format) => format!("is a {format} file, not WebAssembly: unpack it when the image is built"),
            NotWasm::Unknown(bytes) => {
                let mut hex = String::new();
                for byte in bytes {
                    let _ = write!(hex, " {byte:02x}");
                }
                format!("is not WebAssembly: it starts with{hex}, a module starts with 00 61 73 6d; {BUILD}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf_head(class: u8, order: u8, abi: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut head = vec![0x7f, b'E', b'L', b'F', class, order, 1, abi];
        head.extend([0; 8]);
        head.extend([2, 0]);
        head.extend(machine);
        head
    }

    #[test]
    fn programs_for_us_are_told_apart_by_layer() {
        assert_eq!(identify(b"\0asm\x01\0\0\0\x01"), FileIdentity::Wasm(ModuleKind::Core));
        assert_eq!(identify(b"\0asm\x01\0\0\0"), FileIdentity::Wasm(ModuleKind::Core));
        assert_eq!(identify(b"\0asm\x0d\0\x01\0"), FileIdentity::Wasm(ModuleKind::Component));
    }

    #[test]
    fn everything_else_gets_one_line_with_its_remedy() {
        let table: &[(&[u8], NotWasm, &str)] = &[
            (b"", NotWasm::Empty, "is an empty file"),
            (b"\0", NotWasm::Truncated, "cut off"),
            (b"\0asm", NotWasm::Truncated, "cut off"),
            (b"\0asm\x0d\0\x01", NotWasm::Truncated, "cut off"),
            (b"\0asm\x0a\0\x01\0", NotWasm::Version { version: 10, layer: 1 }, "version 10, layer 1"),
            (b"\0asm\x02\0\0\0", NotWasm::Version { version: 2, layer: 0 }, "version 2, layer 0"),
            (b"(module)", NotWasm::Text, "wasm-tools parse"),
            (b"\xef\xbb\xbf \n;; hi\n(; a ;) ( component $x", NotWasm::Text, "text form"),
            (b";; (module)", NotWasm::Text, "text form"),
            (b"#!/bin/sh\nexit", NotWasm::Script("/bin/sh".into()), "script for \"/bin/sh\""),
            (b"#!", NotWasm::Script(String::new()), "script"),
            (b"\x1f\x8b\x08", NotWasm::Archive("gzip"), "gzip"),
            (b"\x28\xb5\x2f\xfd\0", NotWasm::Archive("zstd"), "zstd"),
            (b"PK\x03\x04", NotWasm::Archive("zip"), "zip"),
            (b"MZ\x90", NotWasm::Native("windows", "unknown"), "native windows program"),
            (b"\x7fELF", NotWasm::Native("linux", "unknown"), "native linux program"),
            (b"hello", NotWasm::Unknown(b"hell".to_vec()), "starts with 68 65 6c 6c,"),
            (b"\xff", NotWasm::Unknown(vec![0xff]), "starts with ff,"),
            (b"(memory", NotWasm::Unknown(b"(mem".to_vec()), "starts with 28 6d 65 6d"),
        ];
        for (head, want, words) in table {
            let FileIdentity::NotWasm(other) = identify(head) else { panic!("{head:?} taken for WebAssembly") };
            assert_eq!(other, *want, "{head:?}");
            let error = other.error();
            let native = matches!(other, NotWasm::Native("linux", _) | NotWasm::Script(_));
            assert_eq!(matches!(error, Error::Native(_)), native, "{head:?}");
            let text = error.to_string();
            assert!(text.starts_with("it is ") && text.contains(words), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn native_programs_are_named_by_platform() {
        let table = [
            (elf_head(2, 1, 0, [62, 0]), "linux/amd64"),
            (elf_head(2, 1, 3, [183, 0]), "linux/arm64"),
            (elf_head(1, 1, 0, [40, 0]), "linux/arm"),
            (elf_head(2, 2, 0, [0, 22]), "linux/s390x"),
            (elf_head(2, 1, 0, [21, 0]), "linux/ppc64le"),
            (elf_head(2, 1, 0, [0xff, 0xff]), "native linux program"),
        ];
        for (head, want) in table {
            let FileIdentity::NotWasm(other) = identify(&head) else { panic!("taken for WebAssembly") };
            let text = other.error().to_string();
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn machine_code_for_wasmtime_is_refused() {
        assert_eq!(identify(&elf_head(2, 1, 200, [62, 0])), FileIdentity::NotWasm(NotWasm::Precompiled));
    }

    #[test]
    fn a_script_line_cannot_forge_the_log() {
        let FileIdentity::NotWasm(NotWasm::Script(line)) = identify(b"#!/bin/\x1b[31m\r\x07sh -e\nrm") else {
            panic!()
        };
        assert_eq!(line, r"/bin/\u{1b}[31m\r\u{7}sh -e");
    }
}
