//! An application whose components are loaded, ready for Start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use hearth_base::digest::Digest;
use hearth_base::error::Result;
use hearth_base::operator::{ApplicationInfo, ComponentInfo, TriggerInfo};
use hearth_spin::application::{Application, Component, Files, HttpAnswer, HttpTrigger, Trigger};
use hearth_spin::environment::Environment;
use hearth_spin::grants::{self, Grants};
use hearth_spin::redis_trigger::Subscription;
use hearth_spin::routes::RoutePattern;
use hearth_spin::runtime_config::{KeyValueStore, RuntimeConfig};
use hearth_spin::variables;
use hearth_wasm::modules::Loaded;

use super::files::{ComponentContents, directory_of};

/// An application with its configuration.
pub struct ConfiguredApplication {
    /// The application, with the components that the container keeps.
    pub application: Application,
    /// Its settings in the container's environment.
    pub environment: Environment,
    /// The grants of each component.
    pub grants: BTreeMap<String, Grants>,
    /// The channels whose messages its components take.
    pub subscriptions: Vec<Subscription>,
    /// The most memory of one instance, in bytes.
    pub instance_memory: Option<u64>,
}

/// An application whose components are loaded.
pub struct LoadedApplication {
    /// The application with its configuration.
    pub configured: ConfiguredApplication,
    /// The components that its triggers start, by id.
    pub components: BTreeMap<Arc<str>, Loaded>,
    /// The digest of the document that describes it.
    pub digest: Digest,
    /// The digest of the image's manifest, where the application was pushed.
    pub image: Option<String>,
}

impl ConfiguredApplication {
    /// An application in a container with this environment. `config`: its `/runtime-config.toml`.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is wrong or missing.
    pub fn new(application: Application, env: &[(String, String)], config: &RuntimeConfig) -> Result<Self> {
        let environment = Environment::of(env)?;
        let application = match &environment.retain {
            Some(ids) => application.retaining(ids)?,
            None => application,
        };
        let values = variables::values(&application, &config.variables_providers, env)?;
        let grants = grants::all(&application, config, &values)?;
        let triggers = application.triggers.iter().filter_map(|trigger| match trigger {
            Trigger::Redis(trigger) => Some(trigger.subscription(&values)),
            Trigger::Http(_) | Trigger::Command { .. } => None,
        });
        let subscriptions = triggers.collect::<Result<_>>()?;
        let instance_memory = environment.instance_memory.or(config.instance_memory);
        Ok(ConfiguredApplication { application, environment, grants, subscriptions, instance_memory })
    }

    /// The components that a trigger starts, with their places in the application.
    pub fn started(&self) -> Vec<(usize, &Component)> {
        let triggers = &self.application.triggers;
        let is_started = |component: &Component| triggers.iter().any(|one| one.component() == Some(&component.id));
        self.application.components.iter().enumerate().filter(|(_, component)| is_started(component)).collect()
    }

    /// The ids of the components that answer HTTP requests.
    pub fn serving(&self) -> Vec<&str> {
        let mut ids: Vec<_> = self.http_triggers().filter_map(|trigger| answering(&trigger.answer)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The ids of the components that take messages.
    pub fn subscribers(&self) -> Vec<&str> {
        let mut ids: Vec<_> = self.subscriptions.iter().map(|one| one.component.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Its routes.
    pub fn routes(&self) -> Vec<(RoutePattern, HttpAnswer)> {
        let routes = self.http_triggers().filter_map(|trigger| Some((trigger.route.clone()?, trigger.answer.clone())));
        routes.collect()
    }

    /// Whether it serves HTTP.
    pub fn serves(&self) -> bool {
        self.http_triggers().next().is_some()
    }

    /// Whether its components have an instance for each request or message, which a drain waits for.
    pub fn answers(&self) -> bool {
        self.serves() || !self.subscriptions.is_empty()
    }

    /// The ids of the components that run as commands.
    pub fn commands(&self) -> Vec<&str> {
        let commands = self.application.triggers.iter().filter_map(|trigger| match trigger {
            Trigger::Command { component } => Some(component.as_str()),
            Trigger::Http(_) | Trigger::Redis(_) => None,
        });
        commands.collect()
    }

    fn http_triggers(&self) -> impl Iterator<Item = &HttpTrigger> {
        self.application.triggers.iter().filter_map(|trigger| match trigger {
            Trigger::Http(trigger) => Some(trigger),
            Trigger::Redis(_) | Trigger::Command { .. } => None,
        })
    }

    /// What operators see of it.
    pub fn described(&self) -> ApplicationInfo {
        let Application { name, version, triggers, .. } = &self.application;
        let triggers = triggers.iter().enumerate().map(|(index, trigger)| self.trigger_info(index, trigger));
        let components = self.started().into_iter().map(|(_, component)| self.component_info(&component.id));
        ApplicationInfo {
            name: name.clone(),
            version: version.clone(),
            triggers: triggers.collect(),
            components: components.collect(),
        }
    }

    fn trigger_info(&self, index: usize, trigger: &Trigger) -> TriggerInfo {
        let (kind, of) = match trigger {
            Trigger::Http(HttpTrigger { route, .. }) => {
                ("http", route.as_ref().map(|route| route.as_written().to_string()).unwrap_or_default())
            }
            Trigger::Redis(_) => {
                let before = &self.application.triggers[..index];
                let place = before.iter().filter(|trigger| matches!(trigger, Trigger::Redis(_))).count();
                ("redis", self.subscriptions[place].channel.clone())
            }
            Trigger::Command { .. } => ("command", String::new()),
        };
        let answer = match trigger {
            Trigger::Http(HttpTrigger { answer: HttpAnswer::Static(response), .. }) => response.status.to_string(),
            other => other.component().unwrap_or_default().to_owned(),
        };
        TriggerInfo { kind: kind.into(), of, answer }
    }

    fn component_info(&self, id: &str) -> ComponentInfo {
        let Some(grants) = self.grants.get(id) else { return ComponentInfo { id: id.into(), ..Default::default() } };
        let in_file = |path: &Option<String>| path.clone().unwrap_or_else(|| "in the container".into());
        let stores = grants.key_value_stores.iter().map(|(label, store)| match store {
            KeyValueStore::File { path } => format!("{label} ({})", in_file(path)),
            KeyValueStore::Redis { .. } => format!("{label} (redis)"),
        });
        let databases =
            grants.databases.iter().map(|(label, database)| format!("{label} ({})", in_file(&database.path)));
        ComponentInfo {
            id: id.into(),
            key_value_stores: stores.collect(),
            databases: databases.collect(),
            allowed_outbound_hosts: grants.allowed_outbound_hosts.clone(),
        }
    }

    /// The files of its components that have to be written into the container's root.
    pub fn contents(&self) -> Vec<ComponentContents> {
        let contents = self.started().into_iter().filter_map(|(index, component)| match &component.files {
            Files::Contents(files) => Some(ComponentContents { directory: directory_of(index), files: files.clone() }),
            Files::Directories(_) => None,
        });
        contents.collect()
    }

    /// The directories that a component sees: each with its path in the container's root, and where it is seen.
    pub fn directories(&self, id: &str) -> Vec<(String, String)> {
        let components = &self.application.components;
        let Some(index) = components.iter().position(|component| component.id == id) else { return Vec::new() };
        match &components[index].files {
            Files::Contents(_) => vec![(directory_of(index), "/".into())],
            Files::Directories(directories) => {
                directories.iter().map(|directory| (directory.source.clone(), directory.destination.clone())).collect()
            }
        }
    }
}

impl LoadedApplication {
    /// The body of `/.well-known/spin/info`.
    pub fn info(&self) -> String {
        let application = &self.configured.application;
        let mut info = json!({ "name": application.name });
        if let Some(version) = &application.version {
            info["version"] = version.as_str().into();
        }
        if let Some(image) = &self.image {
            info["oci_image_digest"] = image.as_str().into();
        }
        info.to_string()
    }
}

fn answering(answer: &HttpAnswer) -> Option<&str> {
    match answer {
        HttpAnswer::Component(id) => Some(id),
        HttpAnswer::Static(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_spin::manifest::parse;

    const MANIFEST: &str = r#"
        spin_manifest_version = 2
        [application]
        name = "shop"
        version = "1.2.3"
        [[trigger.http]]
        route = "/..."
        component = "front"
        [[trigger.http]]
        route = "/old"
        static_response = { status_code = 301 }
        [[trigger.http]]
        route = { private = true }
        component = "back"
        [[trigger.command]]
        component = "job"
        [[trigger.redis]]
        component = "back"
        channel = "orders"
        address = "redis://{{ cache }}"
        [variables]
        cache = { default = "c:1" }
        [component.front]
        source = "front.wasm"
        files = [{ source = "static", destination = "/www" }]
        [component.back]
        source = "back.wasm"
        [component.job]
        source = "job.wasm"
        [component.unused]
        source = "unused.wasm"
    "#;

    #[test]
    fn triggers_say_what_is_started_and_how() {
        let application = parse(MANIFEST).unwrap();
        let configured = ConfiguredApplication::new(application, &[], &RuntimeConfig::default()).unwrap();
        let started: Vec<_> = configured.started().iter().map(|(_, component)| component.id.clone()).collect();
        assert_eq!(started, ["back", "front", "job"]);
        let subscription = &configured.subscriptions[0];
        assert_eq!((subscription.address.as_str(), subscription.channel.as_str()), ("redis://c:1", "orders"));
        assert_eq!(configured.subscribers(), ["back"]);
        assert_eq!((configured.serving(), configured.commands()), (vec!["back", "front"], vec!["job"]));
        let routes: Vec<_> = configured.routes().iter().map(|(route, _)| route.as_written().to_string()).collect();
        assert_eq!(routes, ["/...", "/old"]);
        assert_eq!(configured.directories("front"), [("static".to_string(), "/www".to_string())]);
        assert!(configured.serves() && configured.directories("back").is_empty());
        let loaded = LoadedApplication {
            configured,
            components: BTreeMap::new(),
            digest: Digest([0; 32]),
            image: Some("sha256:1".into()),
        };
        assert_eq!(loaded.info(), r#"{"name":"shop","oci_image_digest":"sha256:1","version":"1.2.3"}"#);
    }
}
