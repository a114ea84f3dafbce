//! Tells HTTP services from other components before they are compiled. Called by the compile process, which is confined:
//! it parses bytes of an image.

use wasmparser::{Chunk, Parser, Payload};

/// The start of the name of the interface that an HTTP service of WASI 0.2 exports; a version of 0.2 follows.
const INCOMING_HANDLER: &str = "wasi:http/incoming-handler@0.2.";

/// The name of the interface that an HTTP component of Spin's first SDKs exports.
const INBOUND_HTTP: &str = "fermyon:spin/inbound-http";

/// The start of the name of the interface that a command exports.
const RUN: &str = "wasi:cli/run@";

/// Whether it is a component that has an instance for each request: it exports `wasi:http/incoming-handler`
/// or Spin's `inbound-http`, and is no command as well. Skips over modules and components inside it. A malformed component is none: the compiler
/// tells the fault.
pub fn has_an_instance_per_request(wasm: &[u8]) -> bool {
    let mut serves = false;
    let mut parser = Parser::new(0);
    let mut rest = wasm;
    loop {
        let Ok(Chunk::Parsed { consumed, payload }) = parser.parse(rest, true) else { return false };
        let mut length = consumed;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } => {
                length += unchecked_range.len();
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    let Ok(export) = export else { return false };
                    if export.name.name.starts_with(RUN) {
                        return false;
                    }
                    let name = export.name.name;
                    serves |= name.starts_with(INCOMING_HANDLER) || name == INBOUND_HTTP;
                }
            }
            Payload::End(_) => return serves,
            _ => {}
        }
        let Some(after) = rest.get(length..) else { return false };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::samples;

    /// A component with these exports, each an instance, and a component inside with others.
    fn exporting(names: &[&str]) -> Vec<u8> {
        let each = names.iter().map(|name| format!("(export \"{name}\" (instance $nothing))"));
        let text = format!(
            "(component (component (component $c) (instance $i (instantiate $c)) (export \"{RUN}0.2.0\" (instance $i)))
               (core module (func)) (component $c) (instance $nothing (instantiate $c)) {})",
            each.collect::<String>()
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn only_a_service_of_wasi_0_2_that_is_no_command_has_an_instance_per_request() {
        let is = |names: &[&str]| has_an_instance_per_request(&exporting(names));
        assert!(is(&["wasi:http/incoming-handler@0.2.10"]));
        assert!(is(&["some:other/thing@1.0.0", "wasi:http/incoming-handler@0.2.0"]));
        assert!(is(&[INBOUND_HTTP]));
        assert!(!is(&["wasi:http/handler@0.3.0"]));
        assert!(!is(&["wasi:cli/run@0.2.3"]));
        assert!(!is(&["wasi:http/incoming-handler@0.2.10", "wasi:cli/run@0.2.10"]));
        assert!(!is(&[]));
    }

    #[test]
    fn what_is_no_component_has_none() {
        let service = exporting(&["wasi:http/incoming-handler@0.2.10"]);
        for length in 0..service.len() {
            has_an_instance_per_request(&service[..length]);
        }
        assert!(!has_an_instance_per_request(&service[..service.len() - 1]));
        assert!(!has_an_instance_per_request(&samples::command(1)));
        assert!(!has_an_instance_per_request(b"#!/bin/sh"));
    }
}
