//! The measurements: the scenarios, and how often each is run. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the daemon finds the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Prepared in the daemon's memory by earlier starts.
    Warm,
    /// Compiled by an earlier daemon; this daemon has not used it yet.
    Disk,
    /// Nowhere: each start brings a module never seen before.
    Cold,
}

/// The parts of the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleKind {
    /// A rootfs directory with the module: no mounts, no stdio.
    Bare,
    /// Bare, with FIFOs: the guest's first act is visible.
    Stdio,
    /// As CRI makes it for a pod's container: overlay, volumes, FIFOs, namespaces.
    Cri,
}

/// One line of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Where the module is.
    pub stage: Stage,
    /// Clients that start a task at the same moment, each on a connection of its own.
    pub clients: usize,
    /// The bundle that they start.
    pub bundle: BundleKind,
}

/// How often a scenario is run. A *round* is one start by each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Rounds before the first batch, not counted.
    pub warm_up_rounds: usize,
    /// Batches at hearthd, each followed by one at the floor.
    pub batches: usize,
    /// Rounds of a batch at hearthd.
    pub rounds: usize,
    /// Rounds of a batch at the floor.
    pub floor_rounds: usize,
}

/// The numbers of clients measured.
const CLIENTS: [usize; 2] = [1, 16];

impl Scenario {
    /// Every scenario, in the report's order.
    pub fn all() -> Vec<Scenario> {
        let mut all = Vec::new();
        for stage in [Stage::Warm, Stage::Disk, Stage::Cold] {
            for clients in CLIENTS {
                for bundle in [BundleKind::Bare, BundleKind::Stdio, BundleKind::Cri] {
                    all.push(Scenario { stage, clients, bundle });
                }
            }
        }
        all
    }

    /// The scenarios that a filter such as `warm`, `16/cri` or `cold/1/bare` names: each of its parts, in any order, is
    /// a part of the scenario's name.
    ///
    /// # Errors
    /// If it names none: one line with the names there are.
    pub fn matching(filters: &[String]) -> Result<Vec<Scenario>, String> {
        let mut chosen = Scenario::all();
        if filters.is_empty() {
            return Ok(chosen);
        }
        for filter in filters {
            if !Scenario::all().iter().any(|scenario| scenario.has(filter)) {
                return Err(format!(
                    "no scenario is named {filter:?}; name parts of STAGE/CLIENTS/BUNDLE with stage \
                     warm, disk or cold, 1 or 16 clients, and bundle bare, stdio or cri, such as warm/1/bare"
                ));
            }
        }
        chosen.retain(|scenario| filters.iter().any(|filter| scenario.has(filter)));
        Ok(chosen)
    }

    fn has(&self, filter: &str) -> bool {
        let name = self.to_string();
        filter.split('/').all(|part| name.split('/').any(|own| own == part))
    }

    /// How often to run it. `quick` is for a look: its tails mean nothing.
    pub fn plan(&self, quick: bool) -> Plan {
        let alone = self.clients == 1;
        match (self.stage, quick) {
            (Stage::Warm, false) => Plan {
                warm_up_rounds: 20,
                batches: 20,
                rounds: if alone { 50 } else { 6 },
                floor_rounds: if alone { 50 } else { 6 },
            },
            (Stage::Warm, true) => Plan {
                warm_up_rounds: 5,
                batches: 4,
                rounds: if alone { 25 } else { 3 },
                floor_rounds: if alone { 25 } else { 3 },
            },
            (Stage::Disk | Stage::Cold, false) => Plan {
                warm_up_rounds: 1,
                batches: if alone { 12 } else { 6 },
                rounds: if alone { 5 } else { 1 },
                floor_rounds: if alone { 25 } else { 6 },
            },
            (Stage::Disk | Stage::Cold, true) => Plan {
                warm_up_rounds: 1,
                batches: if alone { 3 } else { 2 },
                rounds: if alone { 3 } else { 1 },
                floor_rounds: if alone { 25 } else { 3 },
            },
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Warm => "warm",
            Stage::Disk => "disk",
            Stage::Cold => "cold",
        };
        let bundle = match self.bundle {
            BundleKind::Bare => "bare",
            BundleKind::Stdio => "stdio",
            BundleKind::Cri => "cri",
        };
        write!(f, "{stage}/{}/{bundle}", self.clients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filters: &[&str]) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|filter| filter.to_string()).collect();
        Scenario::matching(&filters).unwrap().iter().map(Scenario::to_string).collect()
    }

    #[test]
    fn no_filter_means_all_scenarios_with_names_of_their_own() {
        let mut all = names(&[]);
        assert_eq!(all.len(), 18);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 18);
    }

    #[test]
    fn filters_name_parts_and_add_up() {
        assert_eq!(names(&["warm/1/bare"]), ["warm/1/bare"]);
        assert_eq!(names(&["16/cri"]), ["warm/16/cri", "disk/16/cri", "cold/16/cri"]);
        assert_eq!(
            names(&["warm/bare", "cold/1"]),
            ["warm/1/bare", "warm/16/bare", "cold/1/bare", "cold/1/stdio", "cold/1/cri"]
        );
    }

    #[test]
    fn a_filter_that_names_nothing_is_refused_even_beside_one_that_does() {
        let filters = ["warm".to_owned(), "worm".to_owned()];
        assert!(Scenario::matching(&filters).unwrap_err().contains("\"worm\""));
        assert!(Scenario::matching(&["6/bare".to_owned()]).is_err(), "parts match whole");
    }

    #[test]
    fn quick_runs_less_of_everything() {
        for scenario in Scenario::all() {
            let (full, quick) = (scenario.plan(false), scenario.plan(true));
            assert!(quick.batches * quick.rounds < full.batches * full.rounds, "{scenario}");
            assert!(quick.batches > 1, "{scenario}: interleaving needs two batches");
        }
    }
}
