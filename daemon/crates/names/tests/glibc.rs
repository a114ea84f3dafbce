//! The same names, files and servers for getaddrinfo(3) of this machine's glibc and for this crate: both have to find
//! the same addresses in the same order, and to ask the same questions of the same servers in the same order.
//!
//! Needs root: each row has a network, an `/etc` and a host name of its own, which end with the row's thread.

#![allow(clippy::disallowed_methods, reason = "the test starts programs and makes networks and mounts")]

#[path = "glibc/row.rs"]
mod row;
#[path = "glibc/server.rs"]
mod server;
#[path = "glibc/table.rs"]
mod table;
#[path = "glibc/world.rs"]
mod world;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use row::Row;
use world::Seen;

/// How many rows run at once. Most of a row is waiting, but a server that answers late is one that is silent.
const ROWS_AT_ONCE: usize = 16;

#[test]
fn names_are_looked_up_as_glibc_does() {
    let place = tempfile::tempdir().unwrap();
    let helper = place.path().join("getaddrinfo");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/glibc/getaddrinfo.c");
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(&helper).arg(source).status().unwrap();
    assert!(compiled.success());
    let rows: Vec<&Row> = table::TABLES.iter().copied().flatten().collect();
    assert!(rows.len() >= 60, "only {} rows", rows.len());
    let queue = Mutex::new(rows.into_iter());
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..ROWS_AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(row) = queue.lock().unwrap().next() else { return };
                    // A thread cannot leave its namespaces.
                    let checked = scope.spawn(|| check(row, &helper)).join();
                    let fault = checked.unwrap_or_else(|_| Err("panicked".into()));
                    if let Err(fault) = fault {
                        faults.lock().unwrap().push(format!("{}: {fault}", row.story));
                    }
                }
            });
        }
    });
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} rows:\n{}", faults.len(), faults.join("\n"));
}

fn check(row: &Row, helper: &Path) -> Result<(), String> {
    let (found, ours, glibc) = world::run(row, helper).map_err(|error| error.to_string())?;
    let text = match found {
        Ok(addresses) => addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(" "),
        Err(why) => format!("!{why:?}"),
    };
    let seen = format!("found {text}\n  ours  {ours:?}\n  glibc {glibc:?}");
    if text != row.found {
        return Err(format!("{:?} was expected, {seen}", row.found));
    }
    let are_same = if row.rotates { rotated(&ours) == rotated(&glibc) } else { ours == glibc };
    match row.differs {
        None if !are_same => Err(seen),
        Some(why) if are_same => Err(format!("glibc does the same, so this is no reason: {why}\n  {seen}")),
        _ => Ok(()),
    }
}

/// The questions, with servers numbered in the order in which they were asked first.
fn rotated(seen: &Seen) -> Seen {
    let mut numbers = HashMap::new();
    let renumbered = seen.questions.iter().map(|line| {
        let (server, rest) = line.split_once(' ').unwrap();
        let next = numbers.len() + 1;
        format!("{} {rest}", numbers.entry(server).or_insert(next))
    });
    Seen { answer: seen.answer.clone(), questions: renumbered.collect() }
}
