//! Spin applications, and the rights of their components. Pure: no file, no socket, no engine.
//!
//! ```text
//!  pushed artifact ─▶ locked ───┐                               ┌─▶ routes: which component answers a path
//!                               ├─▶ application ─▶ retained ────┤
//!  /spin.toml ──────▶ manifest ─┘                               └─▶ grants: variables, hosts, stores of a component
//!                                   runtime_config, variables ──────▲
//! ```
//!
//! Every refusal is an [`InvalidArgument`](hearth_base::error::Error::InvalidArgument) of one line that names the entry
//! of the manifest, and says what to do.
//!
//! * `application.rs`: the application as both of its forms describe it.
//! * `locked.rs`: the locked application of a pushed artifact.
//! * `manifest.rs`: `spin.toml`, version 2.
//! * `manifest_v1.rs`: `spin.toml`, version 1.
//! * `legacy_hosts.rs`: `allowed_http_hosts`, the older form of `allowed_outbound_hosts`.
//! * `routes.rs`: the syntax and the precedence of HTTP routes.
//! * `headers.rs`: the `spin-*` headers of a request.
//! * `redis_trigger.rs`: the channels of Redis servers whose messages components take.
//! * `template.rs`: texts with `{{ variable }}` in them.
//! * `variables.rs`: the values of the application's variables, and where they come from.
//! * `runtime_config.rs`: `/runtime-config.toml`: providers of variables, stores, limits.
//! * `environment.rs`: the container's environment variables that concern the application.
//! * `grants.rs`: the values, hosts and stores that one component may use.
//! * `retain.rs`: the components that a container keeps of an application.

#![forbid(unsafe_code)]

pub mod application;
pub mod environment;
pub mod grants;
pub mod headers;
mod legacy_hosts;
pub mod locked;
pub mod manifest;
mod manifest_v1;
pub mod redis_trigger;
pub mod retain;
pub mod routes;
pub mod runtime_config;
pub mod template;
pub mod variables;

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }
}
