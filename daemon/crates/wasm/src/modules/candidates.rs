//! Components of a release candidate of WASI 0.3 whose interfaces are those of the release: the names of their imports and
//! exports become those of the release, before they are compiled. Asked by the compile process, which is confined: it
//! parses bytes of an image.
//!
//! The candidate is the one of Spin 4.0 and its Rust SDK 6. Its interfaces have the same functions and types as those of
//! 0.3.0; the texts differ in their form only. A component that imports both (componentize-py makes such ones) keeps its
//! names: the two would be one import.

use std::borrow::Cow;
use std::collections::BTreeSet;

use wasmparser::{BinaryReader, ComponentExportSectionReader, ComponentImportSectionReader};

/// What the names of the candidate's interfaces have more than those of the release.
const CANDIDATE: &str = "-rc-2026-03-15";

/// The version of the release in the names of its interfaces.
const RELEASE: &str = "@0.3.0";

/// The first bytes of a component: the magic number, then version 13 of layer 1.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Ids of a component's sections, by the component model's binary format.
const IMPORTS: u8 = 10;
const EXPORTS: u8 = 11;

/// The component with the names of the release; as it is if it has no other names. A malformed component stays as it
/// is: the compiler tells the fault.
pub fn released(wasm: &[u8]) -> Cow<'_, [u8]> {
    renamed(wasm).ok().flatten().map_or(Cow::Borrowed(wasm), Cow::Owned)
}

fn renamed(wasm: &[u8]) -> wasmparser::Result<Option<Vec<u8>>> {
    let Some(sections) = wasm.strip_prefix(COMPONENT) else { return Ok(None) };
    let mut reader = BinaryReader::new(sections, 0);
    let (mut changed, mut names) = (None, BTreeSet::new());
    while !reader.eof() {
        let begin = reader.current_position();
        let id = reader.read_u8()?;
        let length = reader.read_var_u32()? as usize;
        let content = reader.read_bytes(length)?;
        let new = match id {
            IMPORTS => {
                let entries = ComponentImportSectionReader::new(BinaryReader::new(content, 0))?;
                let offsets = entries.into_iter_with_offsets().map(|entry| Ok(entry?.0));
                let Ok(new) = with_names_of_release(content, offsets, Some(&mut names))? else { return Ok(None) };
                new
            }
            EXPORTS => {
                let entries = ComponentExportSectionReader::new(BinaryReader::new(content, 0))?;
                let offsets = entries.into_iter_with_offsets().map(|entry| Ok(entry?.0));
                with_names_of_release(content, offsets, None)?.ok().flatten()
            }
            _ => None,
        };
        match new {
            Some(content) => {
                let output = changed.get_or_insert_with(|| [COMPONENT, &sections[..begin]].concat());
                output.push(id);
                push_number(output, content.len());
                output.extend(content);
            }
            None => {
                if let Some(output) = &mut changed {
                    output.extend(&sections[begin..reader.current_position()]);
                }
            }
        }
    }
    Ok(changed)
}

/// Two entries would have one name.
struct Twice;

/// The content of a section whose entries begin at these offsets, each with its name; none if no name changes. `names`:
/// those of the entries before, none of which may come again.
fn with_names_of_release(
    content: &[u8],
    offsets: impl Iterator<Item = wasmparser::Result<usize>>,
    mut names: Option<&mut BTreeSet<String>>,
) -> wasmparser::Result<Result<Option<Vec<u8>>, Twice>> {
    let mut offsets = offsets.collect::<wasmparser::Result<Vec<usize>>>()?;
    let Some(first) = offsets.first().copied() else { return Ok(Ok(None)) };
    let mut output = content[..first].to_vec();
    offsets.push(content.len());
    let mut changed = false;
    for entry in offsets.windows(2) {
        let entry = &content[entry[0]..entry[1]];
        let mut reader = BinaryReader::new(entry, 0);
        // How the name is written, then the name.
        output.push(reader.read_u8()?);
        let name = reader.read_string()?;
        let released = match name.strip_suffix(CANDIDATE) {
            Some(released) if name.starts_with("wasi:") && released.ends_with(RELEASE) => released,
            _ => name,
        };
        if names.as_mut().is_some_and(|names| !names.insert(released.to_owned())) {
            return Ok(Err(Twice));
        }
        changed |= released != name;
        push_number(&mut output, released.len());
        output.extend(released.as_bytes());
        output.extend(&entry[reader.current_position()..]);
    }
    Ok(Ok(changed.then_some(output)))
}

/// Appends a number as WebAssembly writes lengths (LEB128).
fn push_number(output: &mut Vec<u8>, mut number: usize) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        output.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(import: &str, export: &str) -> Vec<u8> {
        let text = format!(
            "(component (core module) (import \"x:y/z@1.0.0\" (instance)) (import \"{import}\" (instance $i))
               (component (import \"wasi:a/b@0.3.0-rc-2026-03-15\" (instance))) (export \"{export}\" (instance $i)))"
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn names_of_the_candidate_become_those_of_the_release() {
        let candidate = component("wasi:http/types@0.3.0-rc-2026-03-15", "wasi:http/handler@0.3.0-rc-2026-03-15");
        let release = component("wasi:http/types@0.3.0", "wasi:http/handler@0.3.0");
        assert_eq!(*released(&candidate), release);
        assert!(matches!(released(&release), Cow::Borrowed(_)));
    }

    #[test]
    fn other_names_stay() {
        for name in ["wasi:http/types@0.3.0-rc-2026-01-06", "other:http/types@0.3.0-rc-2026-03-15", "wasi:a/b@0.4.0"] {
            assert!(matches!(released(&component(name, "a:b/c@1.0.0")), Cow::Borrowed(_)), "{name}");
        }
    }

    #[test]
    fn a_component_of_both_keeps_its_names() {
        let both = "(component (import \"wasi:cli/exit@0.3.0\" (instance)) (core module)
                      (import \"wasi:cli/exit@0.3.0-rc-2026-03-15\" (instance)))";
        let both = wat::parse_str(both).unwrap();
        assert!(matches!(released(&both), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_malformed_stays_as_it_is() {
        let candidate = component("wasi:http/types@0.3.0-rc-2026-03-15", "wasi:http/handler@0.3.0-rc-2026-03-15");
        for length in 0..candidate.len() {
            released(&candidate[..length]);
        }
        assert!(matches!(released(b"\0asm\x01\0\0\0"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_length_has_seven_bits_in_each_byte() {
        let written = |number| {
            let mut output = Vec::new();
            push_number(&mut output, number);
            output
        };
        assert_eq!((written(0), written(127), written(128)), (vec![0], vec![127], vec![0x80, 1]));
    }
}
