//! The check that a folder's page lists every file of the folder, each with its purpose.
//!
//! A page is a `README.md`, or the `//!` text of a crate or module. A file is listed by a line that begins with
//! `` * `NAME`: `` and its purpose; such lines may have a blank before the star, and may be indented. The entry of a
//! folder is `` * `NAME/`: ``.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The faults of a page: files of `folder` that it does not list, and entries that are no file of `folder`. `page` is a
/// path below `folder`, and lists itself only if it is not a `README.md`.
///
/// # Panics
/// If the folder or the page cannot be read.
pub fn faults(folder: &Path, page: &str) -> Vec<String> {
    let path = folder.join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let listed: BTreeSet<_> = text.lines().filter_map(entry).collect();
    let mut files: BTreeSet<_> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.expect("the folder can be read"))
        .map(|file| {
            let is_folder = file.file_type().expect("the folder can be read").is_dir();
            file.file_name().to_string_lossy().into_owned() + if is_folder { "/" } else { "" }
        })
        .filter(|name| !name.starts_with('.') && name != "target/" && name != "__pycache__/")
        .collect();
    if page.ends_with(".md") {
        files.remove(page);
    }
    let missing = files.iter().filter(|name| !listed.contains(name.as_str()));
    let missing = missing.map(|name| format!("{}: {name} is not listed", path.display()));
    let unknown = listed.iter().filter(|name| !files.contains(**name));
    missing.chain(unknown.map(|name| format!("{}: there is no {name}", path.display()))).collect()
}

/// The file that a line of a page lists, if it lists one with a purpose.
fn entry(line: &str) -> Option<&str> {
    let line = line.trim_start().trim_start_matches("//!").trim_start();
    let (name, purpose) = line.strip_prefix("* `")?.split_once("`: ")?;
    (!purpose.trim().is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
