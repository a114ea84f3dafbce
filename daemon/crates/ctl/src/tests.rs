//! The command line, the page and the dependencies of the crate.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn the_page_names_every_file() {
    hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
}

/// Follows the resolved dependencies from this crate, those of tests left out.
#[test]
fn no_wasmtime_is_linked() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path"];
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = std::process::Command::new(cargo).args(arguments).arg(manifest).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let is_linked = |dependency: &serde_json::Value| {
        list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].as_str() != Some("dev"))
    };
    let dependencies: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let linked = list(&node["deps"]).into_iter().filter(is_linked);
            (text(&node["id"]), linked.map(|dependency| text(&dependency["pkg"])).collect())
        })
        .collect();
    let root = names.iter().find(|(_, name)| *name == "hearth-ctl").expect("the crate").0.clone();
    let (mut waiting, mut linked) = (vec![root], BTreeSet::new());
    while let Some(package) = waiting.pop() {
        if linked.insert(names[&package].clone()) {
            waiting.extend(dependencies[&package].iter().cloned());
        }
    }
    assert!(linked.contains("hearth-base") && linked.contains("tonic"), "{linked:?}");
    let wrong: Vec<_> =
        linked.iter().filter(|name| name.starts_with("wasmtime") || name.starts_with("cranelift")).collect();
    assert!(wrong.is_empty(), "hearthctl links {wrong:?}");
}
