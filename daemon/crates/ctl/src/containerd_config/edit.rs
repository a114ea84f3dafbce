//! The runtime handler in the text of a containerd configuration. What is the user's stays as it is, byte for
//! byte: comments, order, quotes.

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// What is put into a configuration.
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

    /// What the `version` line says.
    pub fn number(self) -> i64 {
        match self {
            ConfigVersion::One => 1,
            ConfigVersion::Two => 2,
            ConfigVersion::Three => 3,
        }
    }

    /// What a configuration says it is; none if there is nothing in it.
    ///
    /// # Errors
    /// It is not TOML, or of a version that this release does not know.
    pub fn of(text: &str) -> Result<Option<ConfigVersion>, String> {
        let document = parse(text)?;
        match document.get("version").and_then(Item::as_integer) {
            Some(1) => Ok(Some(ConfigVersion::One)),
            Some(2) => Ok(Some(ConfigVersion::Two)),
            Some(3) => Ok(Some(ConfigVersion::Three)),
            Some(other) => Err(format!("is of version {other}, and this hearthctl knows 1 to 3: use a later one")),
            None if document.is_empty() => Ok(None),
            // containerd takes it for that.
            None => Ok(Some(ConfigVersion::One)),
        }
    }
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

/// `text` with the handler in it, and where it named no runtime (which leaves containerd 1.x with its own
/// runc), with runc. The rest stays as it was, but that a key written with two kinds of quotes gets one.
///
/// # Errors
/// It is not TOML, or something else stands where the handler has to be.
pub fn with_handler(text: &str, version: ConfigVersion, handler: &Handler) -> Result<String, String> {
    let mut document = parse(text)?;
    if text.trim().is_empty() {
        document.insert("version", toml_edit::value(version.number()));
    }
    let path = ["plugins", version.plugin(), "containerd", "runtimes"];
    let runtimes = find(document.as_table(), &path);
    if let Some(wrong) = first_that_is_no_table(document.as_table(), &path) {
        return Err(format!("has something else than a table at {wrong}"));
    }
    if runtimes.is_none_or(TableLike::is_empty) {
        let mut runc = Table::new();
        runc.insert("runtime_type", toml_edit::value(RUNC.1));
        insert(&mut document, &path, RUNC.0, runc);
    }
    add_handler(&mut document, version, handler);
    Ok(document.to_string())
}

/// `text` without the handler.
///
/// # Errors
/// It is not TOML.
pub fn without_handler(text: &str, version: ConfigVersion, name: &str) -> Result<String, String> {
    let mut document = parse(text)?;
    remove(document.as_table_mut(), &["plugins", version.plugin(), "containerd", "runtimes", name]);
    remove(document.as_table_mut(), &["proxy_plugins", SANDBOXER]);
    Ok(document.to_string())
}

/// `text` with `path` among its imports; a pattern that matches is enough.
///
/// # Errors
/// It is not TOML, or its imports are no list.
pub fn with_import(text: &str, version: ConfigVersion, path: &str) -> Result<String, String> {
    let mut document = parse(text)?;
    if document.is_empty() {
        document.insert("version", toml_edit::value(version.number()));
    }
    let imports = document.entry("imports").or_insert_with(|| toml_edit::value(Array::new()));
    let imports = imports.as_array_mut().ok_or("has imports that are no list")?;
    if !imports.iter().filter_map(Value::as_str).any(|import| matches(import, path)) {
        imports.push(path);
    }
    Ok(document.to_string())
}

/// `text` without `path` among its imports.
///
/// # Errors
/// It is not TOML.
pub fn without_import(text: &str, path: &str) -> Result<String, String> {
    let mut document = parse(text)?;
    if let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) {
        imports.retain(|import| import.as_str() != Some(path));
        if imports.is_empty() {
            document.remove("imports");
        }
    }
    Ok(document.to_string())
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

/// Puts a table in a place, making what is missing on the way. One that is there already and equal stays.
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

/// Removes a table, and those above it that are left with nothing and have no head of their own.
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
mod tests {
    use super::*;

    fn handler() -> Handler {
        Handler { name: "hearth".into(), runtime_path: None, sandboxer: None }
    }

    #[test]
    fn the_users_text_stays_byte_for_byte() {
        let users = "# Mine.\nversion = 2 # two\n\n[plugins]\n  [plugins.'io.containerd.grpc.v1.cri']\n    # pause\n    \
                     sandbox_image = 'my/pause:1'\n    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.mine]\n      \
                     runtime_type = \"io.containerd.runc.v2\"\n# The end.\n";
        let with = with_handler(users, ConfigVersion::Two, &handler()).unwrap();
        for line in users.lines() {
            assert!(with.contains(line), "{line:?} is not in\n{with}");
        }
        assert!(with.contains("runtimes.hearth]\nruntime_type = \"io.containerd.hearth.v1\"\n"), "{with}");
        assert!(!with.contains("runtimes.runc"), "{with}");
        assert_eq!(with_handler(&with, ConfigVersion::Two, &handler()).unwrap(), with, "once more changes nothing");
        assert_eq!(without_handler(&with, ConfigVersion::Two, "hearth").unwrap(), users);
    }

    #[test]
    fn where_no_runtime_was_named_runc_is_named_too() {
        for (version, users) in
            [(ConfigVersion::One, "oom_score = 1\n"), (ConfigVersion::Two, "version = 2\n"), (ConfigVersion::Two, "")]
        {
            let with = with_handler(users, version, &handler()).unwrap();
            assert!(with.contains("io.containerd.runc.v2") && with.contains("io.containerd.hearth.v1"), "{with}");
            assert_eq!(ConfigVersion::of(&with).unwrap(), Some(version), "{with}");
        }
    }

    #[test]
    fn options_are_told_and_told_anew() {
        let elsewhere = Handler { runtime_path: Some("/opt/hearth/bin/shim".into()), ..handler() };
        let first = with_handler("version = 2\n", ConfigVersion::Two, &handler()).unwrap();
        let second = with_handler(&first, ConfigVersion::Two, &elsewhere).unwrap();
        assert!(second.contains("runtime_path = \"/opt/hearth/bin/shim\""), "{second}");
        assert_eq!(with_handler(&second, ConfigVersion::Two, &handler()).unwrap(), first);
        let controller = Handler { sandboxer: Some("/run/hearth/sandboxer.sock".into()), ..handler() };
        let text = drop_in(ConfigVersion::Three, &controller);
        for line in ["version = 3", "[proxy_plugins.hearth]", "type = \"sandbox\"", "sandboxer = \"hearth\""] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        parse(&text).unwrap();
    }

    #[test]
    fn inline_tables_are_added_to() {
        let users = "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = { containerd = { runtimes = { mine = { runtime_type = 'x' } } } } }\n";
        let with = with_handler(users, ConfigVersion::Two, &handler()).unwrap();
        let parsed = parse(&with).unwrap();
        let runtimes = &parsed["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"];
        assert_eq!(runtimes["mine"]["runtime_type"].as_str(), Some("x"), "{with}");
        assert_eq!(runtimes["hearth"]["runtime_type"].as_str(), Some(RUNTIME_TYPE), "{with}");
    }

    #[test]
    fn imports_are_added_before_the_first_table_and_taken_away() {
        let users = "version = 3\n# mine\n[grpc]\naddress = '/x'\n";
        let with = with_import(users, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap();
        assert!(with.find("imports").unwrap() < with.find("[grpc]").unwrap(), "{with}");
        assert_eq!(with_import(&with, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap(), with);
        assert_eq!(without_import(&with, "/etc/containerd/conf.d/hearth.toml").unwrap(), users);
        let pattern = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        assert_eq!(with_import(pattern, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap(), pattern);
        assert_eq!(without_import(pattern, "/etc/containerd/conf.d/hearth.toml").unwrap(), pattern);
        assert_eq!(with_import("", ConfigVersion::Three, "/x").unwrap(), "version = 3\nimports = [\"/x\"]\n");
    }

    #[test]
    fn what_cannot_be_edited_is_named() {
        assert!(ConfigVersion::of("version = 9\n").unwrap_err().contains("version 9"));
        assert!(ConfigVersion::of("version = \n").unwrap_err().contains("not TOML"));
        assert_eq!(ConfigVersion::of("# nothing\n").unwrap(), None);
        assert_eq!(ConfigVersion::of("oom_score = 1\n").unwrap(), Some(ConfigVersion::One));
        let error =
            with_handler("version = 2\n[plugins]\n'io.containerd.grpc.v1.cri' = 3\n", ConfigVersion::Two, &handler());
        assert!(error.unwrap_err().contains("plugins.io.containerd.grpc.v1.cri"));
    }
}
