//! Fuzz targets: parsers that read bytes which a tenant, an image, a client or another process wrote.
//!
//! `make fuzz MINUTES=10` runs each target under libFuzzer for a share of the time. `cargo test -p hearth-fuzz` runs each
//! target on its seeds and on deterministic changes of them, as CI does: it takes a second.
//!
//! A target fails by a panic: of the parser, or of an assertion about its result. Slow inputs are found by libFuzzer's
//! own time-out. All these parsers are code without `unsafe`, so no address sanitizer is needed, and stable Rust is
//! enough.
//!
//! Not here: wasmtime's own parsers and hyper's, which their projects fuzz; the headers of compiled modules, which have a
//! keyed hash over them before they are parsed; the small parsers of hearth-http and of the module store, whose crates bring
//! wasmtime with them, which takes half an hour to instrument.
//!
//! * `lib.rs`: the list of targets.
//! * [`targets`] (`targets.rs`): what each target runs and asserts.
//! * [`seeds`] (`seeds.rs`): valid inputs of each target, which libFuzzer and the test begin with.
//! * [`changes`] (`changes.rs`): deterministic changes of an input.
//!
//! The directory `targets/` has the programs of libFuzzer, one line each; `examples/seeds.rs` writes the seeds.
#![forbid(unsafe_code)]

pub mod changes;
pub mod seeds;
pub mod targets;

/// A parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its program in `targets/`.
    pub name: &'static str,
    /// Parses an input. Panics if the parser is wrong.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "allowed_hosts", run: targets::allowed_hosts, seeds: seeds::allowed_hosts },
    Target { name: "bundle", run: targets::bundle, seeds: seeds::bundle },
    Target { name: "config", run: targets::config, seeds: seeds::config },
    Target { name: "containerd_config", run: targets::containerd_config, seeds: seeds::containerd_config },
    Target { name: "frames", run: targets::frames, seeds: seeds::frames },
    Target { name: "image", run: targets::image, seeds: seeds::image },
    Target { name: "names", run: targets::names, seeds: seeds::names },
    Target { name: "reply", run: targets::reply, seeds: seeds::reply },
    Target { name: "shim_arguments", run: targets::shim_arguments, seeds: seeds::shim_arguments },
    Target { name: "spin_application", run: targets::spin_application, seeds: seeds::spin_application },
    Target { name: "spin_configuration", run: targets::spin_configuration, seeds: seeds::spin_configuration },
    Target { name: "spin_route", run: targets::spin_route, seeds: seeds::spin_route },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// How many changes of its seeds each target is run on.
    const CHANGES: u64 = 2000;

    #[test]
    fn no_change_of_a_seed_makes_a_parser_panic() {
        std::thread::scope(|scope| {
            for target in TARGETS {
                scope.spawn(move || {
                    let seeds = (target.seeds)();
                    assert!(!seeds.is_empty(), "{} has no seed", target.name);
                    seeds.iter().for_each(|seed| (target.run)(seed));
                    for number in 0..CHANGES {
                        let input = changes::change(&seeds, number);
                        let outcome = std::panic::catch_unwind(|| (target.run)(&input));
                        assert!(outcome.is_ok(), "{}, change {number}: {}", target.name, input.escape_ascii());
                    }
                });
            }
        });
    }

    #[test]
    fn every_target_has_a_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("targets");
        let programs = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let programs: BTreeSet<_> = programs.map(|name| name.trim_end_matches(".rs").to_owned()).collect();
        assert_eq!(programs, TARGETS.iter().map(|target| target.name.to_owned()).collect());
    }
}
