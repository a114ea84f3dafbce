//! An application as both of its forms describe it: the locked application of an artifact, and `spin.toml`.

use std::collections::BTreeMap;

use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};

use crate::redis_trigger::RedisTrigger;
use crate::routes::RoutePattern;
use crate::template::Template;

/// A Spin application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Its version, if it has one.
    pub version: Option<String>,
    /// Its variables.
    pub variables: BTreeMap<String, Variable>,
    /// The triggers that start its components, in the order of the manifest.
    pub triggers: Vec<Trigger>,
    /// Its components, in the order of the manifest.
    pub components: Vec<Component>,
}

/// A variable of an application. Without default it needs a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variable {
    /// The value if no provider has one.
    pub default: Option<String>,
}

/// A trigger: the event that starts a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// An HTTP request.
    Http(HttpTrigger),
    /// A message of a Redis channel.
    Redis(RedisTrigger),
    /// The start of the container.
    Command {
        /// The component.
        component: String,
    },
}

/// A trigger of type `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTrigger {
    /// Which requests it takes; `None`: those of other components of the application only.
    pub route: Option<RoutePattern>,
    /// The component or the fixed response that answers them.
    pub answer: HttpAnswer,
}

/// The component or the fixed response that answers the requests of an HTTP trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAnswer {
    /// The component with this id.
    Component(String),
    /// Always the same response.
    Static(StaticResponse),
}

/// A response that needs no component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticResponse {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// A component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its id.
    pub id: String,
    /// Its WebAssembly.
    pub source: Source,
    /// Its environment, which is its own and not the container's.
    pub environment: Vec<(String, String)>,
    /// Its files.
    pub files: Files,
    /// The values of its configuration, by key.
    pub variables: BTreeMap<String, Template>,
    /// The hosts that it may connect to.
    pub allowed_outbound_hosts: Vec<Template>,
    /// Labels of the key-value stores that it may open.
    pub key_value_stores: Vec<String>,
    /// Labels of the SQLite databases that it may open.
    pub databases: Vec<String>,
}

/// Where a component's WebAssembly is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The layer of this digest.
    Layer(Digest),
    /// In the manifest itself.
    Inline(Vec<u8>),
    /// A file of the container's root, by its path from there.
    File(String),
}

/// The files of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// Single files, which lie in the artifact.
    Contents(Vec<FileContent>),
    /// Directories of the container's root.
    Directories(Vec<Directory>),
}

/// A file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// Its path from the component's `/`, without a slash at the start.
    pub path: String,
    /// Its bytes.
    pub bytes: FileBytes,
}

/// The bytes of a file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileBytes {
    /// In the locked application itself.
    Inline(Vec<u8>),
    /// A layer of this digest, or a file with this digest in an archive layer.
    Digest(Digest),
}

/// A directory of the container's root that a component sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its path from the root, without a slash at the start; empty for the root itself.
    pub source: String,
    /// Where the component sees it: an absolute path.
    pub destination: String,
}

impl Application {
    /// The component with this id.
    pub fn component(&self, id: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.id == id)
    }

    /// An application of one component, which takes every request: an image that is a Wasm binary alone.
    pub fn of_one(name: &str, digest: Digest) -> Application {
        const ID: &str = "main";
        let component = Component {
            id: ID.into(),
            source: Source::Layer(digest),
            environment: Vec::new(),
            files: Files::Contents(Vec::new()),
            variables: BTreeMap::new(),
            allowed_outbound_hosts: Vec::new(),
            key_value_stores: Vec::new(),
            databases: Vec::new(),
        };
        let everything =
            HttpTrigger { route: Some(RoutePattern::everything()), answer: HttpAnswer::Component(ID.into()) };
        Application {
            name: name.into(),
            version: None,
            variables: BTreeMap::new(),
            triggers: vec![Trigger::Http(everything)],
            components: vec![component],
        }
    }

    /// Checks what neither form can say by itself: that ids are unique, that triggers name components, and that there
    /// is something to start.
    ///
    /// # Errors
    /// `InvalidArgument` naming the entry.
    pub(crate) fn checked(self) -> Result<Application> {
        for (index, component) in self.components.iter().enumerate() {
            if self.components[..index].iter().any(|other| other.id == component.id) {
                return Err(invalid(format!("two components have the id {:?}; give each its own", component.id)));
            }
        }
        let missing = self.triggers.iter().filter_map(Trigger::component).find(|id| self.component(id).is_none());
        if let Some(id) = missing {
            return Err(invalid(format!(
                "a trigger names the component {id:?}, which the application does not have; correct the trigger or add the component"
            )));
        }
        if self.triggers.is_empty() {
            return Err(invalid("the application has no trigger, so that nothing would start; add one".into()));
        }
        Ok(self)
    }
}

impl Trigger {
    /// The component that it starts; none for a static response.
    pub fn component(&self) -> Option<&str> {
        match self {
            Trigger::Http(HttpTrigger { answer: HttpAnswer::Component(id), .. }) => Some(id),
            Trigger::Http(HttpTrigger { answer: HttpAnswer::Static(_), .. }) => None,
            Trigger::Redis(RedisTrigger { component, .. }) | Trigger::Command { component } => Some(component),
        }
    }
}

impl Files {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        match self {
            Files::Contents(files) => files.is_empty(),
            Files::Directories(directories) => directories.is_empty(),
        }
    }
}

/// An error of the application.
pub(crate) fn invalid(text: String) -> Error {
    Error::InvalidArgument(text)
}

/// The parts of a path that stays below the directory that it starts at, joined by slashes.
///
/// # Errors
/// `InvalidArgument` for a path that is empty, absolute, or has `..` in it.
pub(crate) fn path_below(component: &str, path: &str) -> Result<String> {
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if path.starts_with('/') || path.contains('\0') || parts.is_empty() || parts.contains(&"..") {
        return Err(invalid(format!(
            "the component {component:?} has a file at {path:?}: a path of a file names no parent directory (`..`) and does not start at `/`"
        )));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(id: &str) -> Component {
        Component {
            id: id.into(),
            source: Source::File("a.wasm".into()),
            environment: Vec::new(),
            files: Files::Contents(Vec::new()),
            variables: BTreeMap::new(),
            allowed_outbound_hosts: Vec::new(),
            key_value_stores: Vec::new(),
            databases: Vec::new(),
        }
    }

    fn application(components: &[&str], triggers: &[&str]) -> Result<Application> {
        let trigger = |id: &&str| Trigger::Command { component: id.to_string() };
        let application = Application {
            name: "a".into(),
            version: None,
            variables: BTreeMap::new(),
            triggers: triggers.iter().map(trigger).collect(),
            components: components.iter().map(|id| component(id)).collect(),
        };
        application.checked()
    }

    #[test]
    fn an_application_starts_components_that_it_has() {
        assert!(application(&["a", "b"], &["b"]).is_ok());
        for (components, triggers, text) in [
            (&["a", "a"][..], &["a"][..], "two components have the id \"a\""),
            (&["a"], &["b"], "names the component \"b\", which the application does not have"),
            (&["a"], &[], "has no trigger"),
        ] {
            let error = application(components, triggers).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_file_stays_below_its_component() {
        for (path, below) in [("a", "a"), ("a/b.txt", "a/b.txt"), ("./a//b/", "a/b")] {
            assert_eq!(path_below("c", path).unwrap(), below);
        }
        for path in ["", "/", "/etc/passwd", "../a", "a/../../b", "a/..", ".", "a\0b"] {
            let error = path_below("c", path).unwrap_err().to_string();
            assert!(error.contains("names no parent directory"), "{error}");
        }
    }
}
