//! How many core instances a component is made of, told by its structure before it is compiled. Asked by the compile
//! process, which is confined: it parses bytes of an image.

use wasmparser::{
    Chunk, ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef,
    Instance, Parser, Payload,
};

/// How deep components may lie in each other to be counted.
const DEPTH_MAX: usize = 32;

/// The core instances that instantiating the component makes, with those of the components that it instantiates.
///
/// Components that it is given by an import or an instance's export count as none: their number is not in its
/// structure, and the store's own limit bounds them. So do malformed modules, which the compiler refuses.
pub fn count(wasm: &[u8]) -> u64 {
    let mut scopes = Vec::new();
    count_in(wasm, &mut scopes)
}

/// The core instances of each component in a scope's index space; 0 if they are not known.
type Scope = Vec<u64>;

fn count_in(wasm: &[u8], scopes: &mut Vec<Scope>) -> u64 {
    if scopes.len() == DEPTH_MAX {
        return 0;
    }
    scopes.push(Scope::new());
    let own = count_sections(wasm, scopes);
    scopes.pop();
    own
}

fn count_sections(wasm: &[u8], scopes: &mut Vec<Scope>) -> u64 {
    let mut own: u64 = 0;
    let (mut parser, mut rest) = (Parser::new(0), wasm);
    loop {
        let Ok(Chunk::Parsed { consumed, payload }) = parser.parse(rest, true) else { return own };
        let mut length = consumed;
        let here = scopes.len() - 1;
        match payload {
            Payload::ModuleSection { unchecked_range, .. } => length += unchecked_range.len(),
            Payload::ComponentSection { unchecked_range, .. } => {
                length += unchecked_range.len();
                let inner = rest.get(consumed..length).map_or(0, |inner| count_in(inner, scopes));
                scopes[here].push(inner);
            }
            Payload::InstanceSection(instances) => {
                let made = instances.into_iter().flatten().filter(|each| matches!(each, Instance::Instantiate { .. }));
                own = own.saturating_add(made.count() as u64);
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances.into_iter().flatten() {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance {
                        own = own.saturating_add(scopes[here].get(component_index as usize).copied().unwrap_or(0));
                    }
                }
            }
            Payload::ComponentImportSection(imports) => {
                let components = imports.into_iter().flatten();
                let components = components.filter(|each| matches!(each.ty, ComponentTypeRef::Component(_)));
                scopes[here].extend(components.map(|_| 0));
            }
            Payload::ComponentAliasSection(aliases) => {
                let components = aliases.into_iter().flatten().filter_map(|alias| aliased(&alias, scopes));
                let components: Vec<_> = components.collect();
                scopes[here].extend(components);
            }
            Payload::ComponentExportSection(exports) => {
                // What is exported has one more index.
                for export in exports.into_iter().flatten() {
                    if export.kind == ComponentExternalKind::Component {
                        let same = scopes[here].get(export.index as usize).copied().unwrap_or(0);
                        scopes[here].push(same);
                    }
                }
            }
            Payload::End(_) => return own,
            _ => {}
        }
        let Some(after) = rest.get(length..) else { return own };
        rest = after;
    }
}

/// The core instances of a component that an alias names; `None` if it names something else.
fn aliased(alias: &ComponentAlias<'_>, scopes: &[Scope]) -> Option<u64> {
    match alias {
        ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, count, index } => {
            let scope = scopes.len().checked_sub(1 + *count as usize).and_then(|at| scopes.get(at));
            Some(scope.and_then(|scope| scope.get(*index as usize)).copied().unwrap_or(0))
        }
        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::samples;

    fn of(text: &str) -> u64 {
        count(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn each_instantiation_counts_through_components_and_aliases() {
        assert_eq!(of("(component)"), 0);
        assert_eq!(
            of("(component (core module $m) (core instance (instantiate $m)) (core instance (instantiate $m)))"),
            2
        );
        let nested = "(component
            (component $three (core module $m)
                (core instance (instantiate $m)) (core instance (instantiate $m)) (core instance (instantiate $m)))
            (component $twice (alias outer 1 $three (component $t)) (instance (instantiate $t)) (instance (instantiate $t)))
            (instance (instantiate $twice))
            (instance (instantiate $three)))";
        assert_eq!(of(nested), 9);
    }

    #[test]
    fn what_its_structure_does_not_tell_counts_as_none() {
        assert_eq!(of("(component (import \"c\" (component $c)) (instance (instantiate $c)))"), 0);
        let wasm = wat::parse_str("(component (core module $m) (core instance (instantiate $m)))").unwrap();
        for length in 0..wasm.len() {
            assert!(count(&wasm[..length]) <= 1);
        }
        assert_eq!(count(&samples::command(1)), 0);
        assert_eq!(count(b"#!/bin/sh"), 0);
    }

    #[test]
    fn counting_takes_time_and_stack_by_the_size_and_not_by_the_number() {
        // Each level instantiates the one inside it twice: 2^20 core instances in a kilobyte.
        let mut text = "(core module $m) (core instance (instantiate $m))".to_string();
        for _ in 0..20 {
            text = format!("(component $c {text}) (instance (instantiate $c)) (instance (instantiate $c))");
        }
        assert_eq!(of(&format!("(component {text})")), 1 << 20);
        let mut deep = "(core module $m) (core instance (instantiate $m))".to_string();
        for _ in 0..2 * DEPTH_MAX {
            deep = format!("(component $c {deep}) (instance (instantiate $c))");
        }
        assert_eq!(of(&format!("(component {deep})")), 0);
    }
}
