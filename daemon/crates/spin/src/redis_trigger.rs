//! Triggers of type `redis`: the channels of Redis servers whose messages components take.

use std::collections::BTreeMap;

use serde::Deserialize;

use hearth_base::error::{Error, Result};

use crate::application::invalid;
use crate::template::Template;

/// A trigger of type `redis`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisTrigger {
    /// The component that takes the messages.
    pub component: String,
    /// The server, as `redis://host:port`.
    pub address: Template,
    /// The channel.
    pub channel: Template,
}

/// A trigger with the values of variables in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The component that takes the messages.
    pub component: String,
    /// The server. It may have a password.
    pub address: String,
    /// The channel.
    pub channel: String,
}

/// The settings of a trigger, in both forms of an application.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedisConfig {
    component: String,
    channel: String,
    address: Option<String>,
}

impl RedisTrigger {
    /// A trigger from its settings. `default`: the address of triggers without one.
    ///
    /// # Errors
    /// `InvalidArgument` for a trigger without a server, or a text that is no template.
    pub(crate) fn new(id: &str, config: RedisConfig, default: Option<&str>) -> Result<RedisTrigger> {
        let within = |error: Error| error.context(format!("the trigger {id:?}"));
        let RedisConfig { component, channel, address } = config;
        let address = address.as_deref().or(default).ok_or_else(|| {
            invalid(format!(
                "the redis trigger {id:?} has no address; give it one, or the application's redis trigger ([application.trigger.redis])"
            ))
        })?;
        if channel.is_empty() {
            return Err(invalid(format!("the redis trigger {id:?} has an empty channel; name one")));
        }
        let (address, channel) = (Template::parse(address), Template::parse(&channel));
        Ok(RedisTrigger { component, address: address.map_err(within)?, channel: channel.map_err(within)? })
    }

    /// The trigger with the values of the application's variables in it.
    ///
    /// # Errors
    /// `InvalidArgument` naming a variable that the application does not declare.
    pub fn subscription(&self, values: &BTreeMap<String, String>) -> Result<Subscription> {
        let within = |error: Error| error.context(format!("the redis trigger of the component {:?}", self.component));
        Ok(Subscription {
            component: self.component.clone(),
            address: self.address.render(values).map_err(within)?,
            channel: self.channel.render(values).map_err(within)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(address: Option<&str>, channel: &str, default: Option<&str>) -> Result<RedisTrigger> {
        let config =
            RedisConfig { component: "c".into(), channel: channel.into(), address: address.map(str::to_owned) };
        RedisTrigger::new("t", config, default)
    }

    #[test]
    fn a_trigger_has_its_own_address_or_that_of_the_application() {
        let values = BTreeMap::from([("host".to_owned(), "cache".to_owned()), ("topic".to_owned(), "news".to_owned())]);
        for (own, default, address) in [
            (None, Some("redis://{{ host }}"), "redis://cache"),
            (Some("redis://own:7000"), Some("redis://{{ host }}"), "redis://own:7000"),
        ] {
            let subscription = trigger(own, "all/{{ topic }}", default).unwrap().subscription(&values).unwrap();
            let wanted = ("c", address, "all/news");
            assert_eq!((&*subscription.component, &*subscription.address, &*subscription.channel), wanted);
        }
    }

    #[test]
    fn a_trigger_that_cannot_be_subscribed_is_refused() {
        let error = trigger(None, "a", None).unwrap_err().to_string();
        assert!(error.starts_with("the redis trigger \"t\" has no address; give it one"), "{error}");
        let error = trigger(Some("redis://a"), "", None).unwrap_err().to_string();
        assert!(error.contains("has an empty channel"), "{error}");
        let undeclared = trigger(Some("redis://a"), "{{ none }}", None).unwrap().subscription(&BTreeMap::new());
        let error = undeclared.unwrap_err().to_string();
        assert!(error.starts_with("the redis trigger of the component \"c\": "), "{error}");
    }
}
