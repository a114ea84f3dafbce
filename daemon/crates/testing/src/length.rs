//! The check that source files are short: a file beyond the limit is split by what changes together.

use std::path::{Path, PathBuf};

/// The most lines of a file, without its tests.
const LINES_MAX: usize = 500;

/// The lines of a source file before its tests, which come last.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{');
    lines.windows(2).position(is_tests).unwrap_or(lines.len())
}

/// The source files below a folder, without files of tests.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with("tests") || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_source_file_is_longer_than_the_limit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let mut files = Vec::new();
    for package in ["daemon", "shim-proxy", "bench", "tests/src"] {
        collect(&root.join(package), &mut files);
    }
    assert!(files.len() > 300, "{} files were found", files.len());
    let lines = |file: &PathBuf| lines_without_tests(&std::fs::read_to_string(file).unwrap());
    let long: Vec<_> = files.iter().map(|file| (file, lines(file))).filter(|(_, lines)| *lines > LINES_MAX).collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines without tests: {long:?}");
}

#[test]
fn tests_do_not_count() {
    assert_eq!(lines_without_tests("a\nb\n"), 2);
    assert_eq!(lines_without_tests("a\n\n#[cfg(test)]\nmod tests {\n    b\n}\n"), 2);
    assert_eq!(lines_without_tests("a\n#[cfg(test)]\npub(super) mod tests {\n}\n"), 1);
    assert_eq!(lines_without_tests("#[cfg(test)]\nmod tests;\na\n"), 3);
}
