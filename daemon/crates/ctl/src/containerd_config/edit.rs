//! The runtime handler in the text of a containerd configuration. What is the user's stays as it is, byte for
//! byte: comments, order, quotes.

use super::lines::apply_edit;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// The runtime handler that is put into a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// Its name, as a RuntimeClass says it.
    pub name: String,
    /// Where the shim is, if containerd's `PATH` does not have it.
    pub runtime_path: Option<String>,
    /// The socket of hearthd's sandbox controller, if pods are to be made by it.
    pub sandboxer: Option<String>,
}

/// containerd's name of the runtime.
const RUNTIME_TYPE: &str = "io.containerd.hearth.v1";

/// The sandbox controller's name in containerd's configuration.
const SANDBOXER: &str = "hearth";

/// The runtime that containerd 1.x no longer has as soon as a configuration names another.
const RUNC: (&str, &str) = ("runc", "io.containerd.runc.v2");

/// A configuration's version, and where it has the runtimes of CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigVersion {
    /// containerd 1.0 on.
    One,
    /// containerd 1.3 on.
    Two,
    /// containerd 2.0 on.
    Three,
}

impl ConfigVersion {
    /// The table below `plugins`.
    fn plugin(self) -> &'static str {
        match self {
            ConfigVersion::One => "cri",
            ConfigVersion::Two => "io.containerd.grpc.v1.cri",
            ConfigVersion::Three => "io.containerd.cri.v1.runtime",
        }
    }

    /// The number in the `version` line.
    pub fn number(self) -> i64 {
        match self {
            ConfigVersion::One => 1,
            ConfigVersion::Two => 2,
            ConfigVersion::Three => 3,
        }
    }

    /// The version for a file that has none: the newest that this containerd reads.
    pub fn newest_for(major: u32) -> ConfigVersion {
        if major >= 2 { ConfigVersion::Three } else { ConfigVersion::Two }
    }

    /// The version of a configuration; none if nothing in it depends on the version: it has no `version` line and
    /// names no plugin. containerd reads a file without the line as version 1.
    ///
    /// # Errors
    /// It is not TOML, or of a version that this release does not know.
    pub fn of(text: &str) -> Result<Option<ConfigVersion>, String> {
        let document = parse(text)?;
        match document.get("version").map(Item::as_integer) {
            Some(Some(1)) => Ok(Some(ConfigVersion::One)),
            Some(Some(2)) => Ok(Some(ConfigVersion::Two)),
            Some(Some(3)) => Ok(Some(ConfigVersion::Three)),
            Some(Some(other)) => {
                Err(format!("is of version {other}, and this hearthctl knows 1 to 3: use a later hearthctl"))
            }
            Some(None) => Err("has a version that is no number: write `version = 2`".into()),
            None if names_no_plugin(&document) => Ok(None),
            None => Ok(Some(ConfigVersion::One)),
        }
    }
}

/// Whether a configuration means the same in each version.
fn names_no_plugin(document: &DocumentMut) -> bool {
    let is_empty = |key: &str| match document.get(key) {
        None => true,
        Some(item) => {
            item.as_array().map(Array::is_empty).or(item.as_table_like().map(TableLike::is_empty)) == Some(true)
        }
    };
    ["plugins", "disabled_plugins", "required_plugins"].into_iter().all(is_empty)
}

/// The names by which containerd 1.0 to 2.x let `disabled_plugins` turn CRI off. Without CRI no runtime handler is
/// used: kubelet has nothing to ask.
const CRI_PLUGINS: [&str; 4] =
    ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"];

/// The first name of CRI in `disabled_plugins`.
///
/// # Errors
/// It is not TOML.
pub fn disabled_cri(text: &str) -> Result<Option<String>, String> {
    let document = parse(text)?;
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let mut names = disabled.into_iter().flatten().filter_map(Value::as_str);
    Ok(names.find(|name| CRI_PLUGINS.contains(name)).map(str::to_owned))
}

/// Whether a configuration that containerd has printed (`containerd config dump`) has the handler, in the table of any
/// version.
///
/// # Errors
/// It is not TOML.
pub fn dump_has_handler(dump: &str, name: &str) -> Result<bool, String> {
    let document = parse(dump)?;
    let runtime_type = |version: ConfigVersion| {
        find(document.as_table(), &["plugins", version.plugin(), "containerd", "runtimes", name])?
            .get("runtime_type")?
            .as_str()
    };
    let versions = [ConfigVersion::One, ConfigVersion::Two, ConfigVersion::Three];
    Ok(versions.into_iter().any(|version| runtime_type(version) == Some(RUNTIME_TYPE)))
}

/// The handler as a configuration has it, with its options.
///
/// # Errors
/// It is not TOML.
pub fn handler_in(text: &str, version: ConfigVersion, name: &str) -> Result<Option<Handler>, String> {
    let document = parse(text)?;
    let path = ["plugins", version.plugin(), "containerd", "runtimes", name];
    let Some(table) = find(document.as_table(), &path) else { return Ok(None) };
    let text = |table: &dyn TableLike, key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
    // A controller that the handler does not name is of another installation.
    let plugin = find(document.as_table(), &["proxy_plugins", SANDBOXER]);
    let plugin = plugin.filter(|_| text(table, "sandboxer").as_deref() == Some(SANDBOXER));
    let sandboxer = plugin.and_then(|plugin| text(plugin, "address"));
    Ok(Some(Handler { name: name.to_owned(), runtime_path: text(table, "runtime_path"), sandboxer }))
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse::<DocumentMut>().map_err(|e| format!("is not TOML: {}", e.to_string().trim().replace('\n', " ")))
}

/// A configuration of nothing but the handler: for an import.
pub fn drop_in(version: ConfigVersion, handler: &Handler) -> String {
    let mut document = DocumentMut::new();
    document.insert("version", toml_edit::value(version.number()));
    add_handler(&mut document, version, handler);
    format!("# Made by hearthctl install containerd, and removed by hearthctl uninstall containerd.\n{document}")
}

/// `text` with the handler in it. If `text` names no runtime, runc is added too: containerd 1.x then has no built-in
/// runc any more. If nothing in `text` depends on the version, a `version` line is added.
///
/// # Errors
/// It is not TOML, another value stands where a table has to be, or its tables are in two forms that do not mix.
pub fn with_handler(text: &str, version: ConfigVersion, handler: &Handler) -> Result<String, String> {
    let edited = put_handler(text, version, handler)?;
    // Dotted keys below the head of one table and a head of its own for a part of it cannot be edited in place.
    if put_handler(&edited, version, handler).as_ref() != Ok(&edited) {
        return Err("has tables by dotted keys and by heads in each other: write them in one form first".into());
    }
    Ok(edited)
}

fn put_handler(text: &str, version: ConfigVersion, handler: &Handler) -> Result<String, String> {
    edit(text, |document| {
        add_version(document, version);
        let path = ["plugins", version.plugin(), "containerd", "runtimes"];
        let runtimes = find(document.as_table(), &path);
        let plugins: &[&str] = if handler.sandboxer.is_some() { &["proxy_plugins"] } else { &[] };
        let wrong = first_that_is_no_table(document.as_table(), &path);
        if let Some(wrong) = wrong.or_else(|| first_that_is_no_table(document.as_table(), plugins)) {
            return Err(format!("has a value that is no table at {wrong}"));
        }
        if runtimes.is_none_or(TableLike::is_empty) {
            insert(document, &path, RUNC.0, runc());
        }
        add_handler(document, version, handler);
        Ok(())
    })
}

/// `text` without the handler, and without the runc that [`with_handler`] added to `saved`, the text before the
/// installation, unless another runtime was added since.
///
/// # Errors
/// It is not TOML.
pub fn without_handler(text: &str, version: ConfigVersion, name: &str, saved: Option<&str>) -> Result<String, String> {
    let runtimes = ["plugins", version.plugin(), "containerd", "runtimes"];
    let named_none = match saved {
        Some(saved) => find(parse(saved)?.as_table(), &runtimes).is_none_or(TableLike::is_empty),
        None => false,
    };
    edit(text, |document| {
        remove(document.as_table_mut(), &[&runtimes[..], &[name]].concat());
        remove(document.as_table_mut(), &["proxy_plugins", SANDBOXER]);
        let left = find(document.as_table(), &runtimes);
        let is_ours =
            left.is_some_and(|left| left.len() == 1 && left.get(RUNC.0).is_some_and(|there| same(there, &runc())));
        if named_none && is_ours {
            remove(document.as_table_mut(), &[&runtimes[..], &[RUNC.0]].concat());
        }
        Ok(())
    })
}

/// `text` with `path` among its imports; a pattern that matches is enough. If nothing in `text` depends on the
/// version, a `version` line is added.
///
/// # Errors
/// It is not TOML, or its imports are no list.
pub fn with_import(text: &str, version: ConfigVersion, path: &str) -> Result<String, String> {
    edit(text, |document| {
        add_version(document, version);
        let imports = document.entry("imports").or_insert_with(|| toml_edit::value(Array::new()));
        let imports = imports.as_array_mut().ok_or("has imports that are no list")?;
        if !imports.iter().filter_map(Value::as_str).any(|import| matches(import, path)) {
            imports.push(path);
        }
        Ok(())
    })
}

/// `text` without `path` among its imports.
///
/// # Errors
/// It is not TOML.
pub fn without_import(text: &str, path: &str) -> Result<String, String> {
    edit(text, |document| {
        if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
            let before = imports.len();
            imports.retain(|import| import.as_str() != Some(path));
            if imports.is_empty() && before > 0 {
                document.remove("imports");
            }
        }
        Ok(())
    })
}

/// Edits the TOML of a text; the lines that the edit does not touch stay byte for byte.
fn edit(text: &str, change: impl FnOnce(&mut DocumentMut) -> Result<(), String>) -> Result<String, String> {
    let mut document = parse(text)?;
    let before = document.to_string();
    change(&mut document)?;
    Ok(apply_edit(text, &before, &document.to_string()))
}

/// Adds the `version` line to a document in which nothing depends on it, below the comments of a file that has nothing
/// else.
fn add_version(document: &mut DocumentMut, version: ConfigVersion) {
    if document.contains_key("version") || !names_no_plugin(document) {
        return;
    }
    let comments = document.trailing().as_str().unwrap_or_default().to_owned();
    let has_only_comments = document.is_empty();
    document.insert("version", toml_edit::value(version.number()));
    if has_only_comments && let Some(mut key) = document.key_mut("version") {
        let end = if comments.is_empty() || comments.ends_with('\n') { "" } else { "\n" };
        key.leaf_decor_mut().set_prefix(format!("{comments}{end}"));
        document.set_trailing("");
    }
}

fn runc() -> Table {
    let mut runc = Table::new();
    runc.insert("runtime_type", toml_edit::value(RUNC.1));
    runc
}

/// Go's filepath.Match, as far as imports use it: `*` stands for any characters of the last part.
fn matches(pattern: &str, path: &str) -> bool {
    let (Some((place, pattern)), Some((directory, name))) = (pattern.rsplit_once('/'), path.rsplit_once('/')) else {
        return pattern == path;
    };
    let Some((before, after)) = pattern.split_once('*') else { return place == directory && pattern == name };
    place == directory && name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
}

fn add_handler(document: &mut DocumentMut, version: ConfigVersion, handler: &Handler) {
    let mut table = Table::new();
    table.insert("runtime_type", toml_edit::value(RUNTIME_TYPE));
    if let Some(path) = &handler.runtime_path {
        table.insert("runtime_path", toml_edit::value(path));
    }
    if let Some(address) = &handler.sandboxer {
        table.insert("sandboxer", toml_edit::value(SANDBOXER));
        let mut plugin = Table::new();
        plugin.insert("type", toml_edit::value("sandbox"));
        plugin.insert("address", toml_edit::value(address));
        insert(document, &["proxy_plugins"], SANDBOXER, plugin);
    }
    insert(document, &["plugins", version.plugin(), "containerd", "runtimes"], &handler.name, table);
}

/// Inserts a table, with the missing tables above it. An equal table that is there already stays.
fn insert(document: &mut DocumentMut, path: &[&str], name: &str, table: Table) {
    if find(document.as_table(), path).and_then(|place| place.get(name)).is_some_and(|there| same(there, &table)) {
        return;
    }
    let mut place: &mut dyn TableLike = document.as_table_mut();
    for (depth, part) in path.iter().enumerate() {
        let is_inline = place.get(part).is_some_and(Item::is_inline_table);
        let next = place.entry(part).or_insert_with(|| {
            let mut table = Table::new();
            // A head of its own only where something is in it.
            table.set_implicit(true);
            Item::Table(table)
        });
        let Some(next) = next.as_table_like_mut() else { return };
        place = next;
        if is_inline {
            let mut inline = InlineTable::new();
            for (key, value) in table.iter() {
                if let Some(value) = value.as_value() {
                    inline.insert(key, value.clone());
                }
            }
            let mut rest: &mut dyn TableLike = place;
            for part in &path[depth + 1..] {
                let next = rest.entry(part).or_insert_with(|| toml_edit::value(InlineTable::new()));
                let Some(next) = next.as_table_like_mut() else { return };
                rest = next;
            }
            rest.insert(name, toml_edit::value(inline));
            return;
        }
    }
    let mut table = table;
    table.decor_mut().set_prefix("\n");
    place.insert(name, Item::Table(table));
}

fn same(there: &Item, wanted: &Table) -> bool {
    let Some(there) = there.as_table_like() else { return false };
    there.len() == wanted.len()
        && wanted.iter().all(|(key, value)| {
            there.get(key).and_then(Item::as_str).is_some_and(|there| Some(there) == value.as_str())
        })
}

fn find<'a>(table: &'a Table, path: &[&str]) -> Option<&'a dyn TableLike> {
    let mut place: &dyn TableLike = table;
    for part in path {
        place = place.get(part)?.as_table_like()?;
    }
    Some(place)
}

fn first_that_is_no_table(table: &Table, path: &[&str]) -> Option<String> {
    let mut place: &dyn TableLike = table;
    for (depth, part) in path.iter().enumerate() {
        match place.get(part) {
            None => return None,
            Some(item) => match item.as_table_like() {
                Some(next) => place = next,
                None => return Some(path[..=depth].join(".")),
            },
        }
    }
    None
}

/// Removes a table, and the tables above it that are left empty and have no header of their own.
fn remove(table: &mut dyn TableLike, path: &[&str]) {
    match path {
        [] => {}
        [last] => {
            table.remove(last);
        }
        [first, rest @ ..] => {
            let Some(next) = table.get_mut(first) else { return };
            let is_implicit = next.as_table().is_some_and(Table::is_implicit);
            let Some(below) = next.as_table_like_mut() else { return };
            remove(below, rest);
            if is_implicit && below.is_empty() {
                table.remove(first);
            }
        }
    }
}

#[cfg(test)]
mod tests;
