//! Whether the kernel's limits leave room for as many guests as the configuration allows: found out at the
//! daemon's start, where it can be put right, and not by the guest that is one too many.

use std::fs;

use rustix::process::{Resource, getrlimit};

use hearth_base::config::Config;

/// Mappings that a guest's stack takes in the pool from the start: itself and its guard page.
const MAPPINGS_PER_STACK: u64 = 2;

/// Mappings of a running guest's memory: its image, what it has beyond that, and what it may still have.
const MAPPINGS_PER_MEMORY: u64 = 3;

/// Mappings of a prepared module.
const MAPPINGS_PER_MODULE: u64 = 3;

/// Mappings of everything else: libraries, threads, the heap.
const MAPPINGS_SPARE: u64 = 1_000;

/// Descriptors of a running guest: its root, and FIFOs for stdout and stderr.
const DESCRIPTORS_PER_GUEST: u64 = 3;

/// Descriptors of everything else: sockets, prepared modules.
const DESCRIPTORS_SPARE: u64 = 500;

/// The resources that so many guests need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    guests: u64,
    mappings: u64,
    descriptors: u64,
}

/// The kernel's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    mappings: u64,
    descriptors: u64,
}

impl Needs {
    fn of(config: &Config) -> Needs {
        let pooled = u64::from(config.engine.pool_slots);
        // Guests beyond the pool map their memory when they start; a tenth more stacks than slots are made.
        let guests = pooled + u64::from(config.engine.on_demand_max);
        let modules = config.modules.prepared_max as u64;
        Needs {
            guests,
            mappings: (pooled + pooled / 10) * MAPPINGS_PER_STACK
                + guests * MAPPINGS_PER_MEMORY
                + modules * MAPPINGS_PER_MODULE
                + MAPPINGS_SPARE,
            descriptors: guests * DESCRIPTORS_PER_GUEST + modules + DESCRIPTORS_SPARE,
        }
    }
}

/// The changes on this node that give room to all guests the configuration allows; one line each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mappings = fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| text.trim().parse().ok());
    let limits = Limits {
        mappings: mappings.unwrap_or(u64::MAX),
        descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
    };
    lacking(Needs::of(config), limits)
}

fn lacking(needs: Needs, limits: Limits) -> Vec<String> {
    let mut lines = Vec::new();
    let Needs { guests, mappings, descriptors } = needs;
    if mappings > limits.mappings {
        lines.push(format!(
            "{guests} guests (engine.pool_slots and engine.on_demand_max) can need {mappings} memory mappings and vm.max_map_count is {}: sysctl -w vm.max_map_count={}",
            limits.mappings,
            mappings.next_power_of_two()
        ));
    }
    if descriptors > limits.descriptors {
        lines.push(format!(
            "{guests} guests (engine.pool_slots and engine.on_demand_max) can need {descriptors} file descriptors and hearthd may have {}: set LimitNOFILE={} in hearthd.service",
            limits.descriptors,
            descriptors.next_power_of_two()
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_with_what_to_set() {
        let needs = Needs { guests: 20_000, mappings: 70_000, descriptors: 60_000 };
        assert_eq!(lacking(needs, Limits { mappings: 70_000, descriptors: 60_000 }), Vec::<String>::new());
        let lines = lacking(needs, Limits { mappings: 65_530, descriptors: 1_024 });
        assert!(
            lines[0].contains("70000 memory mappings") && lines[0].ends_with("vm.max_map_count=131072"),
            "{lines:?}"
        );
        assert!(lines[1].contains("60000 file descriptors") && lines[1].contains("LimitNOFILE=65536"), "{lines:?}");
    }

    #[test]
    fn the_default_fits_a_kernels_defaults() {
        let needs = Needs::of(&Config::default());
        // vm.max_map_count of Linux, LimitNOFILE of the unit.
        assert_eq!(lacking(needs, Limits { mappings: 65_530, descriptors: 1_048_576 }), Vec::<String>::new());
    }
}
