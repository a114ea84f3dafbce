//! Isolation levels: which process runs a pod's guests, and the settings that decide it.
//!
//! Three parties have a say, and the strictest of them wins: the operator by `isolation.level` and
//! `isolation.pod_namespaces`, the RuntimeClass by its handler's option [`OPTION`], the author of a pod by the annotation
//! [`ANNOTATION`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bundle::TaskSpec;
use crate::config::Isolation;
use crate::error::{Error, Result};

/// The annotation of a pod that asks for a level.
pub const ANNOTATION: &str = "hearth.io/isolation";

/// The prefix of a handler's `ConfigPath` that asks for a level, in containerd's runtime options. (containerd 1.6
/// passes on no other option, and does not look at the value.)
pub const OPTION: &str = "isolation=";

/// Which process runs a guest. The order is from the weaker to the stronger wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The node's daemon, which runs all such guests.
    #[default]
    Node,
    /// A process of the pod's own, a cell.
    Pod,
}

impl Level {
    /// The word for it in the configuration, in annotations and on screens.
    pub fn word(self) -> &'static str {
        match self {
            Level::Node => "node",
            Level::Pod => "pod",
        }
    }

    fn parse(word: &str, from: &str) -> Result<Level> {
        match word {
            "node" => Ok(Level::Node),
            "pod" => Ok(Level::Pod),
            other => Err(Error::InvalidArgument(format!(
                "{from}: {other:?} is no level of isolation; the levels are node and pod"
            ))),
        }
    }

    /// The level that a handler asks for by its `ConfigPath`. Any other path has no meaning here and asks for nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for a level that does not exist.
    pub fn of_option(config_path: &str) -> Result<Level> {
        match config_path.strip_prefix(OPTION) {
            Some(word) => Level::parse(word, "the runtime's ConfigPath"),
            None => Ok(Level::Node),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The level of a pod, or of a container that belongs to none. `option`: its handler's.
///
/// # Errors
/// `InvalidArgument` for an annotation with a level that does not exist.
pub fn level(config: &Isolation, option: Level, spec: &TaskSpec) -> Result<Level> {
    level_of(config, option, spec.names.namespace.as_deref(), spec.isolation.as_deref())
}

/// As [`level`], for a pod of this Kubernetes namespace and with this annotation.
///
/// # Errors
/// As [`level`].
pub fn level_of(config: &Isolation, option: Level, namespace: Option<&str>, annotation: Option<&str>) -> Result<Level> {
    let annotated = match annotation {
        Some(word) => Level::parse(word, ANNOTATION)?,
        None => Level::Node,
    };
    let configured = match namespace.is_some_and(|name| config.pod_namespaces.iter().any(|of| of == name)) {
        true => Level::Pod,
        false => config.level,
    };
    Ok(annotated.max(configured).max(option))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn spec(annotations: &str) -> TaskSpec {
        let json = format!(r#"{{"process":{{"args":["a"]}},"annotations":{{{annotations}}}}}"#);
        TaskSpec::parse(json.as_bytes(), Path::new("/b")).unwrap()
    }

    #[test]
    fn the_strictest_of_all_who_have_a_say_wins() {
        let config = Isolation { pod_namespaces: vec!["team".into()], ..Isolation::default() };
        let of = |option, annotations: &str| level(&config, option, &spec(annotations));
        assert_eq!(of(Level::Node, ""), Ok(Level::Node));
        assert_eq!(of(Level::Pod, ""), Ok(Level::Pod));
        assert_eq!(of(Level::Node, r#""io.kubernetes.cri.sandbox-namespace":"team""#), Ok(Level::Pod));
        assert_eq!(of(Level::Node, r#""io.kubernetes.cri.sandbox-namespace":"other""#), Ok(Level::Node));
        assert_eq!(of(Level::Node, r#""hearth.io/isolation":"pod""#), Ok(Level::Pod));
        // An annotation never weakens what another party has asked for.
        assert_eq!(of(Level::Pod, r#""hearth.io/isolation":"node""#), Ok(Level::Pod));
        let strict = Isolation { level: Level::Pod, ..Isolation::default() };
        assert_eq!(level(&strict, Level::Node, &spec(r#""hearth.io/isolation":"node""#)), Ok(Level::Pod));
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused_and_not_weakened() {
        for error in [
            level(&Isolation::default(), Level::Pod, &spec(r#""hearth.io/isolation":"vm""#)).unwrap_err(),
            Level::of_option("isolation=vm").unwrap_err(),
        ] {
            assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("\"vm\"")), "{error}");
        }
        assert_eq!(Level::of_option("isolation=pod"), Ok(Level::Pod));
        assert_eq!(Level::of_option("/etc/other.toml"), Ok(Level::Node));
        assert_eq!(Level::of_option(""), Ok(Level::Node));
    }
}
