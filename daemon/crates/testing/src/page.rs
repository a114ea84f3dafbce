//! The check that a crate's page has a purpose line for each of its source files.
//!
//! A reader who looks for a behaviour starts at the crate's page (`src/lib.rs`) and goes on to the page of a folder
//! (`src/folder/mod.rs`, or `src/folder.rs` beside the folder). A file without a line is not found that way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Words that a purpose has at the least: fewer only repeat the file's name.
const PURPOSE_WORDS_MIN: usize = 3;

/// Panics with a list of problems if a file below `src/` of the crate at `manifest_dir` (pass
/// `env!("CARGO_MANIFEST_DIR")`) has no purpose line on the crate's page nor on the page of a folder that holds it.
///
/// A purpose line is a list item of a page's documentation, indented or not. It begins with the file's name and has at
/// least `PURPOSE_WORDS_MIN` more words. The name is a path relative to the page's folder
/// (`` * `folder/file.rs`: purpose ``), a folder for its page (`` * `folder/`: purpose ``), or a link to the module
/// (`` * [`folder::file`]: purpose ``).
///
/// The crate's page itself needs no line, and neither do files of tests: `tests.rs`, `NAME_tests.rs`, and all below a
/// folder `tests`.
///
/// # Panics
/// A file has no line, or a line names a path `*.rs` that does not exist.
pub fn page_names_every_file(manifest_dir: &str) {
    let src = Path::new(manifest_dir).join("src");
    let problems = problems(&src);
    assert!(problems.is_empty(), "the pages and the files of {} differ:\n{}", src.display(), problems.join("\n"));
}

fn problems(src: &Path) -> Vec<String> {
    let mut files = BTreeSet::new();
    collect(src, Path::new(""), &mut files);
    let crate_page = Path::new(if src.join("lib.rs").exists() { "lib.rs" } else { "main.rs" });
    let mut named = BTreeSet::new();
    let mut problems = Vec::new();
    for page in &files {
        let Some(folder) = folder_of(page, crate_page, &files) else { continue };
        let text = fs::read_to_string(src.join(page)).unwrap();
        for (name, purpose_words) in text.lines().filter_map(purpose_line) {
            match find(&folder, name, &files) {
                Some(_) if purpose_words < PURPOSE_WORDS_MIN => {
                    problems.push(format!("{}: {name} has no purpose", page.display()));
                }
                Some(file) => {
                    named.insert(file);
                }
                None if name.ends_with(".rs") => {
                    problems.push(format!("{}: {name} does not exist", page.display()));
                }
                // A line about something else than a file.
                None => {}
            }
        }
    }
    let unnamed = files.iter().filter(|file| *file != crate_page && !is_test(file) && !named.contains(*file));
    problems.extend(unnamed.map(|file| format!("{}: no page has a purpose line for it", file.display())));
    problems
}

/// The Rust files below `src`/`folder`, relative to `src`.
fn collect(src: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(src.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            collect(src, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
}

/// The folder that a page describes; none for a file that is no page.
fn folder_of(file: &Path, crate_page: &Path, files: &BTreeSet<PathBuf>) -> Option<PathBuf> {
    if file == crate_page {
        return Some(PathBuf::new());
    }
    if file.file_name()? == "mod.rs" {
        return file.parent().map(Path::to_owned);
    }
    let beside = file.with_extension("");
    files.iter().any(|other| other.starts_with(&beside)).then_some(beside)
}

fn is_test(file: &Path) -> bool {
    let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    name == "tests"
        || name.ends_with("_tests")
        || file.parent().is_some_and(|parent| parent.iter().any(|f| f == "tests"))
}

/// The name with which a list item of a page begins, and the number of words that follow it.
fn purpose_line(line: &str) -> Option<(&str, usize)> {
    let text = line.strip_prefix("//!")?.trim_start();
    let item = text.strip_prefix("* ").or_else(|| text.strip_prefix("- "))?;
    let item = item.trim_start_matches(['*', '[']).strip_prefix('`')?;
    let (name, purpose) = item.split_once('`')?;
    // A link may go on with its target, which is no purpose.
    let purpose = purpose.strip_prefix("](").and_then(|link| Some(link.split_once(')')?.1)).unwrap_or(purpose);
    let words = purpose.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count();
    Some((name, words))
}

/// The file that a name on the page of `folder` stands for.
fn find(folder: &Path, name: &str, files: &BTreeSet<PathBuf>) -> Option<PathBuf> {
    let existing = |path: PathBuf| files.contains(&path).then_some(path);
    if name.ends_with(".rs") {
        return existing(folder.join(name));
    }
    // The prefix tells rustdoc a module from a macro of the same name.
    let name = name.strip_prefix("mod@").unwrap_or(name);
    let (base, module) = match name.strip_prefix("crate::") {
        Some(module) => (Path::new(""), module),
        None => (folder, name.strip_prefix("self::").unwrap_or(name)),
    };
    let path = base.join(module.trim_end_matches('/').replace("::", "/"));
    existing(path.with_extension("rs")).or_else(|| existing(path.join("mod.rs")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn lines_of_all_forms_name_their_files() {
        let page = "\
//! A crate.
//!
//! * `units.rs`: parses sizes such as 64 MiB.
//! * [`server`]: answers containerd's calls.
//! * `wire/`: the frames of sockets.
//!   * `wire/frame.rs`: reads and writes one frame.
//! * [`wire::message`](crate::wire::message): the messages in a frame.
//! * [`mod@env`]: the variables of an environment.
//! * An item about no file.
";
        let server = "//! Answers.\n//!\n//! - `task.rs`: the Task API for a container.\n";
        let dir = crate_of(&[
            ("lib.rs", page),
            ("units.rs", ""),
            ("env.rs", ""),
            ("server.rs", server),
            ("server/task.rs", ""),
            ("server/tests.rs", ""),
            ("tests/world.rs", ""),
            ("wire/mod.rs", ""),
            ("wire/frame.rs", ""),
            ("wire/message.rs", ""),
        ]);
        assert_eq!(problems(dir.path()), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_listed() {
        let page = "//! * `old.rs`: a file that was moved.\n//! * `bare.rs`: bare.\n// * `plain.rs`: no documentation at all.\n";
        let dir = crate_of(&[
            ("lib.rs", page),
            ("bare.rs", ""),
            ("plain.rs", ""),
            ("folder/mod.rs", ""),
            ("folder/file.rs", "//! * `bare.rs`: not in this folder's page, for it is none.\n"),
        ]);
        let expected = [
            "lib.rs: old.rs does not exist",
            "lib.rs: bare.rs has no purpose",
            "bare.rs: no page has a purpose line for it",
            "folder/file.rs: no page has a purpose line for it",
            "folder/mod.rs: no page has a purpose line for it",
            "plain.rs: no page has a purpose line for it",
        ];
        assert_eq!(problems(dir.path()), expected);
    }

    #[test]
    fn this_crates_page_names_every_file() {
        page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
