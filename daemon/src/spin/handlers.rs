//! Which of its handlers a component has to export for its triggers: one for HTTP, `wasi:cli/run` for a command.

use hearth_base::error::{Error, Result};
use hearth_base::text::{NAME_BYTES_MAX, shown};

/// The starts of the names of HTTP handlers.
const HTTP: [&str; 3] = ["wasi:http/handler@", "wasi:http/incoming-handler@", "fermyon:spin/inbound-http"];

/// The starts of those that Hearth serves.
const SERVED: [&str; 3] = ["wasi:http/handler@0.3.0", "wasi:http/incoming-handler@0.2.", "fermyon:spin/inbound-http"];

/// Handlers of messages of Redis.
const REDIS: [&str; 2] = ["fermyon:spin/inbound-redis", "spin:redis/inbound-redis@3.0.0"];

/// The start of the name of a command's entry point.
const RUN: &str = "wasi:cli/run@";

/// Checks the exports of a component with an HTTP trigger.
///
/// # Errors
/// `InvalidArgument` for none, two, or one that Hearth does not serve.
pub fn check_http(id: &str, exports: &[String]) -> Result<()> {
    let is_handler = |name: &&String| HTTP.iter().any(|start| name.starts_with(start));
    let handlers: Vec<_> = exports.iter().filter(is_handler).collect();
    match handlers[..] {
        [one] if SERVED.iter().any(|start| one.starts_with(start)) && !is_candidate(one) => Ok(()),
        [one] => Err(Error::InvalidArgument(format!(
            "the component {id:?} exports the HTTP handler {}, which Hearth does not serve; build it with a current Spin SDK",
            quoted(one)
        ))),
        [one, other, ..] => Err(Error::InvalidArgument(format!(
            "the component {id:?} exports two HTTP handlers, {} and {}; an HTTP trigger needs one",
            quoted(one),
            quoted(other)
        ))),
        [] => Err(Error::InvalidArgument(format!(
            "the component {id:?} has an http trigger, and exports no HTTP handler (wasi:http/incoming-handler or wasi:http/handler): it exports {}",
            listed(exports)
        ))),
    }
}

/// Checks the exports of a component with a redis trigger.
///
/// # Errors
/// `InvalidArgument` if it takes no messages.
pub fn check_redis(id: &str, exports: &[String]) -> Result<()> {
    match exports.iter().any(|name| REDIS.contains(&name.as_str())) {
        true => Ok(()),
        false => Err(Error::InvalidArgument(format!(
            "the component {id:?} has a redis trigger, and exports no handler of messages ({} or {}): it exports {}",
            REDIS[0],
            REDIS[1],
            listed(exports)
        ))),
    }
}

/// Checks the exports of a component with a command trigger.
///
/// # Errors
/// `InvalidArgument` if it has no entry point.
pub fn check_command(id: &str, exports: &[String]) -> Result<()> {
    match exports.iter().any(|name| name.starts_with(RUN)) {
        true => Ok(()),
        false => Err(Error::InvalidArgument(format!(
            "the component {id:?} has a command trigger, and does not export wasi:cli/run: it exports {}",
            listed(exports)
        ))),
    }
}

/// Whether it is an interface of a release candidate. The one that Hearth serves has been renamed by now.
fn is_candidate(name: &str) -> bool {
    name.split_once('@').is_some_and(|(_, version)| version.contains('-'))
}

fn quoted(name: &str) -> String {
    shown(name, NAME_BYTES_MAX).into_owned()
}

fn listed(exports: &[String]) -> String {
    match exports {
        [] => "nothing".into(),
        exports => shown(&exports.join(", "), NAME_BYTES_MAX).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(exports: &[&str]) -> Result<()> {
        check_http("a", &exports.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn an_http_trigger_needs_one_handler() {
        assert!(http(&["wasi:http/incoming-handler@0.2.0", "other:x/y"]).is_ok());
        assert!(http(&["wasi:http/handler@0.3.0"]).is_ok());
        assert!(http(&["fermyon:spin/inbound-http"]).is_ok());
        for (exports, text) in [
            (
                &["wasi:http/handler@0.3.0", "wasi:http/incoming-handler@0.2.3"][..],
                "the component \"a\" exports two HTTP handlers, wasi:http/handler@0.3.0 and wasi:http/incoming-handler@0.2.3; an HTTP trigger needs one",
            ),
            (&["x:y/z"], "exports no HTTP handler (wasi:http/incoming-handler or wasi:http/handler): it exports x:y/z"),
            (&[], "it exports nothing"),
            (
                &["wasi:http/handler@0.3.0-rc-2026-01-06"],
                "wasi:http/handler@0.3.0-rc-2026-01-06, which Hearth does not serve",
            ),
            (
                &["wasi:http/incoming-handler@0.2.0-rc-2023-10-18"],
                "wasi:http/incoming-handler@0.2.0-rc-2023-10-18, which Hearth does not serve",
            ),
        ] {
            let error = http(exports).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_redis_trigger_needs_a_handler_of_messages() {
        for handler in REDIS {
            assert!(check_redis("a", &[handler.into()]).is_ok());
        }
        let error = check_redis("a", &["x:y/z".into()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the component \"a\" has a redis trigger, and exports no handler of messages (fermyon:spin/inbound-redis or spin:redis/inbound-redis@3.0.0): it exports x:y/z"
        );
    }

    #[test]
    fn a_command_trigger_needs_an_entry_point() {
        assert!(check_command("a", &["wasi:cli/run@0.2.3".into()]).is_ok());
        let error = check_command("a", &[]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the component \"a\" has a command trigger, and does not export wasi:cli/run: it exports nothing"
        );
    }
}
