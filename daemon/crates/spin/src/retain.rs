//! The components that a container keeps of its application (`SPIN_COMPONENTS_TO_RETAIN`): one application, several
//! pods, each with some of the components.

use hearth_base::error::Result;

use crate::application::{Application, invalid};
use crate::environment::RETAIN;

/// The suffix of a component's name as the host of a request to it.
pub const INTERNAL: &str = ".spin.internal";

impl Application {
    /// The application with these components and their triggers only.
    ///
    /// # Errors
    /// `InvalidArgument` for an id that it does not have, or a component that calls one that is not kept.
    pub fn retaining(mut self, ids: &[String]) -> Result<Application> {
        if let Some(unknown) = ids.iter().find(|id| self.component(id).is_none()) {
            let known: Vec<_> = self.components.iter().map(|component| component.id.as_str()).collect();
            return Err(invalid(format!(
                "{RETAIN} names the component {unknown:?}, which the application does not have; it has {}",
                known.join(", ")
            )));
        }
        let kept = |id: &str| ids.iter().any(|kept| kept == id);
        self.components.retain(|component| kept(&component.id));
        // A response without a component belongs to none that could be dropped.
        self.triggers.retain(|trigger| trigger.component().is_none_or(kept));
        for component in &self.components {
            for host in &component.allowed_outbound_hosts {
                let Some(called) = called_component(host.as_written()) else { continue };
                if called == "*" || !kept(called) {
                    return Err(invalid(format!(
                        "the component {:?} may call {:?}, and {RETAIN} does not keep the component called: keep it, or remove the host from allowed_outbound_hosts",
                        component.id,
                        host.as_written()
                    )));
                }
            }
        }
        self.checked()
    }
}

/// The component that an entry of `allowed_outbound_hosts` allows calls to; `*` for all.
fn called_component(host: &str) -> Option<&str> {
    let (_, host) = host.split_once("://")?;
    let host = host.split(['/', ':']).next()?;
    host.strip_suffix(INTERNAL)
}

#[cfg(test)]
mod tests {
    use crate::application::Application;
    use crate::locked::parse;
    use hearth_base::error::Result;

    fn retaining(hosts: &str, ids: &[&str]) -> Result<Application> {
        let component = |id: &str, hosts: &str| {
            format!(
                r#"{{"id":"{id}","metadata":{{"allowed_outbound_hosts":[{hosts}]}},"source":{{"content_type":"application/wasm","inline":"AGFzbQ=="}}}}"#
            )
        };
        let trigger = |id: &str| {
            format!(
                r#"{{"id":"t-{id}","trigger_type":"http","trigger_config":{{"component":"{id}","route":"/{id}"}}}}"#
            )
        };
        let locked = format!(
            r#"{{"spin_lock_version":1,"metadata":{{"name":"a"}},"triggers":[{},{}],"components":[{},{}]}}"#,
            trigger("a"),
            trigger("b"),
            component("a", hosts),
            component("b", "")
        );
        let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
        parse(locked.as_bytes())?.retaining(&ids)
    }

    #[test]
    fn components_are_kept_with_their_triggers() {
        let kept = retaining("", &["a"]).unwrap();
        assert_eq!((kept.components.len(), kept.triggers.len()), (1, 1));
        assert_eq!(kept.triggers[0].component(), Some("a"));
        assert!(retaining(r#""http://b.spin.internal""#, &["a", "b"]).is_ok());
        assert!(retaining(r#""http://a.spin.internal""#, &["a"]).is_ok(), "it calls itself");
        assert!(retaining(r#""https://b.example.org""#, &["a"]).is_ok());
    }

    #[test]
    fn what_cannot_be_kept_is_named() {
        let error = retaining("", &["a", "c"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "SPIN_COMPONENTS_TO_RETAIN names the component \"c\", which the application does not have; it has a, b"
        );
        for host in ["http://b.spin.internal", "http://*.spin.internal", "http://b.spin.internal/"] {
            let error = retaining(&format!("{host:?}"), &["a"]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("the component \"a\" may call {host:?}, and SPIN_COMPONENTS")),
                "{error}"
            );
        }
    }
}
