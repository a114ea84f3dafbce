//! Tests of [`super`], and the check of this package.

use super::*;
use crate::paths::repository;

#[test]
fn each_file_of_the_tests_is_listed_with_its_purpose() {
    let tests = repository().join("tests");
    let pages = [
        (".", "README.md"),
        ("src", "lib.rs"),
        ("src/bin", "README.md"),
        ("src/daemons", "../daemons.rs"),
        ("src/guests", "../guests.rs"),
        ("src/pods", "../pods.rs"),
        ("src/world", "../world.rs"),
        ("it", "main.rs"),
        ("it/http", "../http.rs"),
        ("it/spin", "../spin.rs"),
        ("it/watch", "../watch.rs"),
        ("guests", "README.md"),
        ("guests/componentize", "README.md"),
        ("e2e", "main.rs"),
        ("e2e/stories", "mod.rs"),
    ];
    let faults: Vec<_> = pages.iter().flat_map(|(folder, page)| faults(&tests.join(folder), page)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_file_without_an_entry_and_an_entry_without_a_file_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("main.rs"), "//! * `main.rs`: this page.\n//! * `gone.rs`: none.\n//! * `new.rs`: \n")
        .unwrap();
    fs::write(folder.path().join("new.rs"), "").unwrap();
    fs::create_dir(folder.path().join("more")).unwrap();
    let found = faults(folder.path(), "main.rs").join("\n");
    for fault in ["more/ is not listed", "new.rs is not listed", "there is no gone.rs"] {
        assert!(found.contains(fault), "{found}");
    }
    assert_eq!(found.lines().count(), 3, "{found}");
}
