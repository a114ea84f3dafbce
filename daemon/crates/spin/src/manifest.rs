//! `spin.toml`: the manifest of an application whose image was built by a Dockerfile. This file reads version 2;
//! [`parse`] takes both versions.
//!
//! Sources of WebAssembly and directories of files are paths of the container's root. What Spin would download, and
//! what its shim cannot mount directly (single files, patterns), is refused.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use hearth_base::error::{Error, Result};

use crate::application::{Application, Component, Directory, Files, Source, Trigger, Variable, invalid};
use crate::legacy_hosts::outbound_hosts;
use crate::locked::{no_base, trigger_of};
use crate::manifest_v1;
use crate::template::Template;
use crate::variables::check_name;

/// Its path in the container's root.
pub const PATH: &str = "/spin.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "spin_manifest_version")]
    _version: Value,
    application: ApplicationTable,
    #[serde(default)]
    variables: BTreeMap<String, VariableTable>,
    #[serde(default)]
    trigger: BTreeMap<String, Vec<Table>>,
    #[serde(default)]
    component: BTreeMap<String, ComponentTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationTable {
    name: String,
    version: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "authors", default)]
    _authors: Vec<String>,
    #[serde(default)]
    trigger: BTreeMap<String, Table>,
    #[serde(rename = "tool", default)]
    _tool: Table,
}

/// A variable of the application, in both versions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VariableTable {
    default: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(rename = "secret", default)]
    _secret: bool,
    #[serde(rename = "description")]
    _description: Option<String>,
}

/// `[component.ID]`. Build instructions and settings of other tools mean nothing to a host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ComponentTable {
    source: SourceValue,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<FilesValue>,
    #[serde(default)]
    exclude_files: Vec<String>,
    #[serde(default)]
    allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    allowed_http_hosts: Vec<String>,
    #[serde(default)]
    key_value_stores: Vec<String>,
    #[serde(default)]
    sqlite_databases: Vec<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    dependencies: Table,
    #[serde(rename = "dependencies_inherit_configuration", default)]
    _inherit: Option<Value>,
    #[serde(rename = "ai_models", default)]
    _ai_models: Vec<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(rename = "targets", default)]
    _targets: Option<Value>,
    #[serde(rename = "build")]
    _build: Option<Value>,
    #[serde(rename = "tool", default)]
    _tool: Table,
    #[serde(rename = "profile", default)]
    _profile: Table,
}

/// The source of a component, in both versions.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum SourceValue {
    /// A path from the root.
    Path(String),
    /// Something that Spin downloads.
    Remote {},
}

/// An entry of `files`, in both versions.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum FilesValue {
    /// A path that the component sees at the same place.
    Pattern(String),
    /// A path that it sees elsewhere.
    Placed { source: String, destination: String },
}

/// Reads a manifest of either version.
///
/// # Errors
/// `InvalidArgument` naming the file, and what is wrong or not supported.
pub fn parse(text: &str) -> Result<Application> {
    let table: Table = toml::from_str(text).map_err(|error| wrong(error.message()))?;
    let version = table.get("spin_manifest_version").or_else(|| table.get("spin_version"));
    let parsed = match version {
        Some(Value::Integer(2)) => parse_v2(table),
        Some(Value::String(version)) if version == "1" => manifest_v1::parse(table),
        Some(Value::Integer(1)) => manifest_v1::parse(table),
        Some(Value::Integer(other)) => Err(unknown_version(&other.to_string())),
        Some(Value::String(other)) => Err(unknown_version(other)),
        Some(_) => Err(unknown_version("that is neither a number nor a text")),
        None => Err(invalid("the key spin_manifest_version is missing".into())),
    };
    parsed.map_err(|error| error.context(PATH))
}

fn unknown_version(version: &str) -> Error {
    invalid(format!("the manifest has version {version}; Hearth knows versions 1 and 2"))
}

fn parse_v2(table: Table) -> Result<Application> {
    let manifest: Manifest = read(table.into())?;
    if let Some(base) = manifest.application.trigger.get("http").and_then(|http| http.get("base")?.as_str())
        && base != "/"
    {
        return Err(no_base(base));
    }
    let mut components = Vec::new();
    for (id, table) in manifest.component {
        if !is_kebab(&id) {
            return Err(invalid(format!("the component {id:?}: an id is lower-case words with `-` between them")));
        }
        components.push(component(&id, table)?);
    }
    let redis_address = manifest.application.trigger.get("redis").and_then(|redis| redis.get("address")?.as_str());
    let mut triggers = Vec::new();
    for (kind, tables) in manifest.trigger {
        for table in tables {
            triggers.push(trigger(&kind, triggers.len(), table, redis_address, &mut components)?);
        }
    }
    let ApplicationTable { name, version, .. } = manifest.application;
    Application { name, version, variables: variables(manifest.variables)?, triggers, components }.checked()
}

/// A trigger. Its component may be written into it, and is added to the others then.
fn trigger(
    kind: &str,
    index: usize,
    mut table: Table,
    redis_address: Option<&str>,
    components: &mut Vec<Component>,
) -> Result<Trigger> {
    let id = match table.remove("id") {
        Some(Value::String(id)) => id,
        _ => format!("{kind}-{index}"),
    };
    if let Some(Value::Table(inline)) = table.get("component").cloned() {
        let written_in = format!("{id}-component");
        components.push(component(&written_in, read(inline.into())?)?);
        table.insert("component".into(), Value::String(written_in));
    }
    let config = serde_json::to_value(&table).map_err(|error| invalid(format!("the trigger {id:?}: {error}")))?;
    trigger_of(&id, kind, config, redis_address)
}

/// The variables of an application.
///
/// # Errors
/// `InvalidArgument` for a bad name, or a variable that is neither required nor has a default.
pub(crate) fn variables(tables: BTreeMap<String, VariableTable>) -> Result<BTreeMap<String, Variable>> {
    let mut variables = BTreeMap::new();
    for (name, table) in tables {
        check_name(&name)?;
        if table.default.is_none() && !table.required {
            return Err(invalid(format!(
                "the variable {name:?} is neither required nor has a default; write `required = true` or a default"
            )));
        }
        variables.insert(name, Variable { default: table.default });
    }
    Ok(variables)
}

fn component(id: &str, table: ComponentTable) -> Result<Component> {
    if !table.dependencies.is_empty() {
        return Err(invalid(format!(
            "the component {id:?} has dependencies, which Hearth does not compose; push the application with `spin registry push`"
        )));
    }
    let within = |error: Error| error.context(format!("the component {id:?}"));
    let ComponentTable { source, environment, files, exclude_files, variables, .. } = table;
    let mut hosts = table.allowed_outbound_hosts;
    hosts.extend(outbound_hosts(&table.allowed_http_hosts));
    Ok(Component {
        id: id.into(),
        source: source_of(source).map_err(within)?,
        environment: environment.into_iter().collect(),
        files: directories(files, &exclude_files).map_err(within)?,
        variables: Template::parse_values(variables).map_err(within)?,
        allowed_outbound_hosts: Template::parse_list(&hosts).map_err(within)?,
        key_value_stores: table.key_value_stores,
        databases: table.sqlite_databases,
    })
}

/// The file of a component's WebAssembly.
///
/// # Errors
/// `InvalidArgument` for a source that Spin would download.
pub(crate) fn source_of(source: SourceValue) -> Result<Source> {
    match source {
        SourceValue::Path(path) => Ok(Source::File(relative(&path)?)),
        SourceValue::Remote {} => Err(invalid(
            "its source would have to be downloaded, which Hearth does not do; put the file into the image, or push the application with `spin registry push`".into(),
        )),
    }
}

/// The directories that a component sees.
///
/// # Errors
/// `InvalidArgument` for a pattern, for `exclude_files`, and for a path outside of the root.
pub(crate) fn directories(files: Vec<FilesValue>, excluded: &[String]) -> Result<Files> {
    if !excluded.is_empty() {
        return Err(invalid("exclude_files needs a copy of the files; leave them out of the image instead".into()));
    }
    let mut directories = Vec::new();
    for entry in files {
        let (source, destination) = match &entry {
            FilesValue::Pattern(path) => (path, path),
            FilesValue::Placed { source, destination } => (source, destination),
        };
        if source.contains(['*', '?', '[', '{']) {
            return Err(invalid(format!(
                "the pattern {source:?} in files is not supported; name a directory of the image"
            )));
        }
        directories.push(Directory { source: relative(source)?, destination: format!("/{}", relative(destination)?) });
    }
    Ok(Files::Directories(directories))
}

/// A path from the root without a slash at its start, and without `.` and `..`.
fn relative(path: &str) -> Result<String> {
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    match parts.contains(&"..") || path.contains('\0') {
        true => {
            Err(invalid(format!("the path {path:?} names a parent directory (`..`), which is outside of the root")))
        }
        false => Ok(parts.join("/")),
    }
}

fn is_kebab(id: &str) -> bool {
    let word = |word: &str| {
        word.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
            && (word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                || word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()))
    };
    !id.is_empty() && id.split('-').all(word)
}

/// A table as its type.
///
/// # Errors
/// `InvalidArgument` naming the key.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    value.try_into().map_err(|error: toml::de::Error| invalid(error.to_string().trim().replace('\n', " ")))
}

fn wrong(text: &str) -> Error {
    invalid(format!("{PATH}: {}", text.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests;
