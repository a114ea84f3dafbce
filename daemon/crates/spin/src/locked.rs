//! The locked application: the JSON that `spin registry push` puts into an artifact's last layer.
//!
//! Its fields are those of Spin's `locked-app` crate. Fields that Hearth does not know are ignored, as Spin does, unless
//! the document says that they have to be understood.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};

use crate::application::{
    Application, Component, FileBytes, FileContent, Files, HttpAnswer, HttpTrigger, Source, StaticResponse, Trigger,
    Variable, invalid, path_below,
};
use crate::legacy_hosts::outbound_hosts;
use crate::redis_trigger::RedisTrigger;
use crate::routes::RoutePattern;
use crate::template::Template;
use crate::variables::check_name;

/// The greatest version of the document that is known.
const VERSION_MAX: u64 = 1;

/// The fields that a document may ask the host to understand.
const UNDERSTOOD: [&str; 2] = ["host_requirements", "component_host_requirements"];

/// The host features that a document may require and that Hearth has.
const OFFERED: [&str; 1] = ["local_service_chaining"];

#[derive(Deserialize)]
struct Document {
    spin_lock_version: u64,
    #[serde(default)]
    must_understand: Vec<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    host_requirements: BTreeMap<String, Value>,
    #[serde(default)]
    variables: BTreeMap<String, LockedVariable>,
    #[serde(default)]
    triggers: Vec<LockedTrigger>,
    #[serde(default)]
    components: Vec<LockedComponent>,
}

#[derive(Deserialize, Default)]
struct Metadata {
    name: Option<String>,
    version: Option<String>,
    #[serde(default)]
    triggers: BTreeMap<String, BTreeMap<String, Value>>,
    trigger: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct LockedVariable {
    default: Option<String>,
}

#[derive(Deserialize)]
struct LockedTrigger {
    #[serde(default)]
    id: String,
    trigger_type: String,
    trigger_config: Value,
    #[serde(default)]
    trigger_dependencies: Option<Value>,
}

#[derive(Deserialize)]
struct LockedComponent {
    id: String,
    #[serde(default)]
    metadata: ComponentMetadata,
    source: Content,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<LockedFile>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    dependencies: Option<Value>,
    #[serde(default)]
    trigger_dependencies: Option<Value>,
    #[serde(default)]
    host_requirements: BTreeMap<String, Value>,
}

#[derive(Deserialize, Default)]
struct ComponentMetadata {
    #[serde(default)]
    allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    allowed_http_hosts: Vec<String>,
    #[serde(default)]
    key_value_stores: Vec<String>,
    #[serde(default)]
    databases: Vec<String>,
}

#[derive(Deserialize)]
struct Content {
    inline: Option<String>,
    digest: Option<String>,
}

#[derive(Deserialize)]
struct LockedFile {
    path: String,
    #[serde(flatten)]
    content: Content,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpConfig {
    component: Option<String>,
    route: Option<RouteConfig>,
    executor: Option<Executor>,
    static_response: Option<StaticConfig>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RouteConfig {
    Text(String),
    Private { private: bool },
}

#[derive(Deserialize)]
struct Executor {
    #[serde(rename = "type")]
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StaticConfig {
    #[serde(default = "ok")]
    status_code: u16,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<String>,
}

fn ok() -> u16 {
    200
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandConfig {
    component: String,
}

/// Reads the document.
///
/// # Errors
/// `InvalidArgument` naming what is wrong, or what Hearth does not support.
pub fn parse(bytes: &[u8]) -> Result<Application> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("the locked application: {error}")))?;
    if document.spin_lock_version > VERSION_MAX {
        return Err(invalid(format!(
            "the locked application has version {}; Hearth knows versions up to {VERSION_MAX}: push it with an older Spin, or update Hearth",
            document.spin_lock_version
        )));
    }
    if let Some(unknown) = document.must_understand.iter().find(|field| !UNDERSTOOD.contains(&field.as_str())) {
        return Err(invalid(format!(
            "the application asks for {unknown:?} to be understood, and Hearth does not know it"
        )));
    }
    check_requirements("the application", &document.host_requirements)?;
    check_bases(&document.metadata)?;
    let mut variables = BTreeMap::new();
    for (name, variable) in document.variables {
        check_name(&name)?;
        variables.insert(name, Variable { default: variable.default });
    }
    let redis = redis_address(&document.metadata).map(str::to_owned);
    let triggers =
        document.triggers.into_iter().map(|locked| trigger(locked, redis.as_deref())).collect::<Result<_>>()?;
    let components = document.components.into_iter().map(component).collect::<Result<_>>()?;
    let name = document.metadata.name.unwrap_or_default();
    Application { name, version: document.metadata.version, variables, triggers, components }.checked()
}

/// Refuses a required host feature that Hearth does not have.
fn check_requirements(of: &str, requirements: &BTreeMap<String, Value>) -> Result<()> {
    let needed = requirements.iter().filter(|(_, value)| value.as_str() != Some("optional"));
    match needed.map(|(name, _)| name).find(|name| !OFFERED.contains(&name.as_str())) {
        Some(name) => Err(invalid(format!("{of} requires {name:?} of its host, which Hearth does not offer"))),
        None => Ok(()),
    }
}

/// Refuses a base path, which Spin 4 refuses, too.
fn check_bases(metadata: &Metadata) -> Result<()> {
    let http = metadata.triggers.get("http").into_iter().chain(&metadata.trigger);
    let base = http.filter_map(|settings| settings.get("base")?.as_str()).find(|base| *base != "/");
    match base {
        Some(base) => Err(no_base(base)),
        None => Ok(()),
    }
}

/// The server of redis triggers that name none.
fn redis_address(metadata: &Metadata) -> Option<&str> {
    let mut redis = metadata.triggers.get("redis").into_iter().chain(&metadata.trigger);
    redis.find_map(|settings| settings.get("address")?.as_str())
}

/// The error of a base path.
pub(crate) fn no_base(base: &str) -> Error {
    invalid(format!("the http trigger has the base path {base:?}; remove it and write it into each route"))
}

fn trigger(locked: LockedTrigger, redis_address: Option<&str>) -> Result<Trigger> {
    let id = &locked.id;
    if is_given(locked.trigger_dependencies.as_ref()) {
        return Err(invalid(format!(
            "the trigger {id:?} has trigger_dependencies (middleware), which Hearth does not run"
        )));
    }
    trigger_of(id, &locked.trigger_type, locked.trigger_config, redis_address)
}

/// A trigger from its type and its settings. `redis_address`: the server of redis triggers that name none.
pub(crate) fn trigger_of(id: &str, kind: &str, config: Value, redis_address: Option<&str>) -> Result<Trigger> {
    match kind {
        "http" => http_trigger(id, settings_of(id, config)?),
        "redis" => Ok(Trigger::Redis(RedisTrigger::new(id, settings_of(id, config)?, redis_address)?)),
        "command" => Ok(Trigger::Command { component: settings_of::<CommandConfig>(id, config)?.component }),
        other => Err(invalid(format!(
            "the trigger type {other:?} is not supported; Hearth supports http, redis and command"
        ))),
    }
}

fn settings_of<T: DeserializeOwned>(id: &str, config: Value) -> Result<T> {
    serde_json::from_value(config).map_err(|error| invalid(format!("the trigger {id:?}: {error}")))
}

fn http_trigger(id: &str, config: HttpConfig) -> Result<Trigger> {
    if let Some(Executor { name }) = config.executor
        && !matches!(name.as_str(), "http" | "spin" | "wasip3-unstable")
    {
        return Err(invalid(format!(
            "the trigger {id:?} has the executor {name:?}, which Hearth does not support; build the component for wasi:http"
        )));
    }
    let route = match config.route {
        Some(RouteConfig::Text(text)) => Some(RoutePattern::parse(&text)?),
        Some(RouteConfig::Private { private: true }) => None,
        Some(RouteConfig::Private { private: false }) => {
            return Err(invalid(format!(
                "the trigger {id:?} has the route {{ private = false }}; give it a path instead"
            )));
        }
        None => return Err(invalid(format!("the http trigger {id:?} has no route"))),
    };
    let answer = match (config.component, config.static_response) {
        (Some(component), None) => HttpAnswer::Component(component),
        (None, Some(StaticConfig { status_code, headers, body })) => {
            if !(100..600).contains(&status_code) {
                return Err(invalid(format!("the trigger {id:?} has the status code {status_code}")));
            }
            let (headers, body) = (headers.into_iter().collect(), body.unwrap_or_default());
            HttpAnswer::Static(StaticResponse { status: status_code, headers, body })
        }
        _ => {
            return Err(invalid(format!("the http trigger {id:?} needs either a component or a static_response")));
        }
    };
    Ok(Trigger::Http(HttpTrigger { route, answer }))
}

fn component(locked: LockedComponent) -> Result<Component> {
    let id = locked.id;
    if is_given(locked.dependencies.as_ref()) {
        return Err(invalid(format!(
            "the component {id:?} has dependencies that are not composed into it; push the application without --compose=false"
        )));
    }
    if is_given(locked.trigger_dependencies.as_ref()) {
        return Err(invalid(format!(
            "the component {id:?} has trigger_dependencies (middleware), which Hearth does not run"
        )));
    }
    check_requirements(&format!("the component {id:?}"), &locked.host_requirements)?;
    let ComponentMetadata { mut allowed_outbound_hosts, allowed_http_hosts, key_value_stores, databases } =
        locked.metadata;
    allowed_outbound_hosts.extend(outbound_hosts(&allowed_http_hosts));
    let within = |error: Error| error.context(format!("the component {id:?}"));
    let source = match bytes_of(locked.source).map_err(within)? {
        FileBytes::Inline(bytes) => Source::Inline(bytes),
        FileBytes::Digest(digest) => Source::Layer(digest),
    };
    let mut files = Vec::new();
    for file in locked.files {
        let path = path_below(&id, &file.path)?;
        let bytes =
            bytes_of(file.content).map_err(|error| error.context(format!("the component {id:?}, file {path:?}")))?;
        files.push(FileContent { path, bytes });
    }
    Ok(Component {
        source,
        environment: locked.env.into_iter().collect(),
        files: Files::Contents(files),
        variables: Template::parse_values(locked.config).map_err(within)?,
        allowed_outbound_hosts: Template::parse_list(&allowed_outbound_hosts).map_err(within)?,
        key_value_stores,
        databases,
        id,
    })
}

/// The bytes of a content: given with the document, or known by their digest.
fn bytes_of(content: Content) -> Result<FileBytes> {
    if let Some(text) = content.inline {
        let bytes =
            STANDARD.decode(&text).map_err(|error| invalid(format!("its inline content is no base64: {error}")))?;
        return Ok(FileBytes::Inline(bytes));
    }
    let text = content.digest.ok_or_else(|| {
        invalid("its content is neither in the document nor named by a digest; push the application with `spin registry push`".into())
    })?;
    let digest = Digest::required(&text)?;
    Ok(FileBytes::Digest(digest))
}

/// Whether a value says anything.
fn is_given(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Object(entries)) => !entries.is_empty(),
        Some(Value::Array(entries)) => !entries.is_empty(),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests;
