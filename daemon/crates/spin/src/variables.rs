//! The values of an application's variables.
//!
//! A value comes from the first of these that has one: the providers of `/runtime-config.toml` in their order, the
//! environment variable `SPIN_VARIABLE_NAME` of the container, its environment variable `NAME`, the default.

use std::collections::BTreeMap;

use hearth_base::env::last;
use hearth_base::error::Result;

use crate::application::{Application, invalid};
use crate::runtime_config::VariablesProvider;

/// The prefix of the environment variables that set variables of the application.
pub const PREFIX: &str = "SPIN_VARIABLE";

/// Checks the name of a variable: `a` to `z`, `0` to `9` and `_`; it begins with a letter, ends with a letter or a
/// digit, and has no two underscores in a row.
///
/// # Errors
/// `InvalidArgument` naming it.
pub fn check_name(name: &str) -> Result<()> {
    let only = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    match only && begins && !name.ends_with('_') && !name.contains("__") {
        true => Ok(()),
        false => Err(invalid(format!(
            "{name:?} is not a name of a variable: it has lower-case letters, digits and single underscores between them, and begins with a letter"
        ))),
    }
}

/// The values of all variables.
///
/// # Errors
/// `InvalidArgument` naming a variable without a value, and how to give it one.
pub fn values(
    application: &Application,
    providers: &[VariablesProvider],
    env: &[(String, String)],
) -> Result<BTreeMap<String, String>> {
    let from_env = |key: &str| last(env, key).map(str::to_owned);
    let value = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let provided = providers.iter().find_map(|provider| match provider {
            VariablesProvider::Static(values) => values.get(name).cloned(),
            VariablesProvider::Env { prefix } => from_env(&format!("{prefix}_{upper}")),
        });
        provided.or_else(|| from_env(&format!("{PREFIX}_{upper}"))).or_else(|| from_env(&upper))
    };
    let mut values = BTreeMap::new();
    for (name, variable) in &application.variables {
        let found = value(name).or_else(|| variable.default.clone()).ok_or_else(|| {
            invalid(format!(
                "the variable {name:?} has no value: set {PREFIX}_{} in the container's environment, or give the variable a default",
                name.to_ascii_uppercase()
            ))
        })?;
        values.insert(name.clone(), found);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::application::Variable;

    fn application(variables: &[(&str, Option<&str>)]) -> Application {
        let variable = |(name, default): &(&str, Option<&str>)| {
            (name.to_string(), Variable { default: default.map(str::to_string) })
        };
        Application {
            name: "a".into(),
            version: None,
            variables: variables.iter().map(variable).collect(),
            triggers: Vec::new(),
            components: Vec::new(),
        }
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn names_are_lower_snake() {
        for name in ["a", "a1", "api_host", "a_1", "x2_y"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "A", "1a", "_a", "a_", "a__b", "a-b", "ä", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_first_source_with_a_value_counts() {
        let of = |values: &[(&str, &str)]| VariablesProvider::Static(env(values).into_iter().collect());
        let prefixed = VariablesProvider::Env { prefix: "APP".into() };
        let application = application(&[("host", Some("default"))]);
        let value = |providers: &[VariablesProvider], environment: &[(&str, &str)]| {
            values(&application, providers, &env(environment)).unwrap()["host"].clone()
        };
        let own = [("HOST", "own")];
        let spin = [("SPIN_VARIABLE_HOST", "spin"), ("HOST", "own")];
        let all = [("APP_HOST", "prefixed"), ("SPIN_VARIABLE_HOST", "spin"), ("HOST", "own")];
        assert_eq!(value(&[], &[]), "default");
        assert_eq!(value(&[], &own), "own");
        assert_eq!(value(&[], &spin), "spin");
        assert_eq!(value(std::slice::from_ref(&prefixed), &all), "prefixed");
        assert_eq!(value(&[of(&[("host", "static")]), prefixed.clone()], &all), "static");
        assert_eq!(value(&[prefixed, of(&[("host", "static")])], &all), "prefixed");
        assert_eq!(value(&[of(&[("other", "x")])], &own), "own");
        assert_eq!(value(&[], &[("HOST", "1"), ("HOST", "2")]), "2");
    }

    #[test]
    fn a_variable_without_a_value_is_named() {
        let error = values(&application(&[("api_key", None)]), &[], &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the variable \"api_key\" has no value: set SPIN_VARIABLE_API_KEY in the container's environment, or give the variable a default"
        );
    }
}
