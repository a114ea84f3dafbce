//! Host interfaces beyond WASI's own: configuration, key-value stores, databases and messages.
//!
//! ```text
//!  Create ─▶ settings (Hearth's own components) or spin (a Spin application) ─▶ Access: a state for each interface
//!                                                                                │ carried in each guest's store
//!  guest ──▶ interface (a folder): finds its state ─▶ storage: SQLite, on the container's own thread
//!                                                  └▶ network: a server, in the container's network
//! ```
//!
//! Each interface is one folder with its definition (`.wit`), its host functions and one entry in [`ALL`]. A call never
//! waits on a guest's worker: databases have a thread for each container, servers are waited for asynchronously. What a
//! container can hold is bounded: connections count as open files, answers and databases in memory count as its memory,
//! and calls have a deadline (`[interfaces]` of the configuration).
//!
//! * `container.rs`: the container that interfaces act for, and the context that all containers share.
//! * `settings.rs`: environment variables that turn interfaces on for Hearth's own components.
//! * `spin.rs`: the interfaces of a component of a Spin application.
//! * `network.rs`: connections by the container's names and network, to allowed destinations only.
//! * `metered.rs`: bounds of a server's answers.
//! * `handles.rs`: handles on connections, which count as open files.
//! * `storage.rs`: SQLite databases, on a thread with the container's root and user.
//! * `redis_client.rs`: connections to Redis, for stores and for guests.
//! * `redis_subscription.rs`: messages of the channels of a Redis server.
//! * `stores/`: key-value stores: SQLite files, memory, Redis.
//! * `config/`: configuration of a component, as `wasi:config` has it.
//! * `variables/`: the same as variables of Spin.
//! * `key_value/`: the stores as `wasi:keyvalue` has them.
//! * `spin_key_value/`: Spin's key-value stores.
//! * `sqlite/`: Spin's SQLite databases.
//! * `spin_http/`: requests to servers as Spin's first SDKs send them.
//! * `spin_v1.rs`: names and types of the interfaces of Spin's first SDKs.
//! * `outgoing_redis/`: Spin's outgoing Redis.
//! * `postgres/`: Spin's outgoing PostgreSQL.

#![forbid(unsafe_code)]

pub mod config;
pub mod container;
mod handles;
pub mod key_value;
mod metered;
pub mod network;
pub mod outgoing_redis;
pub mod postgres;
mod redis_client;
pub mod redis_subscription;
pub mod settings;
pub mod spin;
pub mod spin_http;
pub mod spin_key_value;
mod spin_v1;
pub mod sqlite;
pub mod storage;
pub mod stores;
pub mod variables;

use hearth_wasm::host_interface::HostInterface;

/// All interfaces.
pub static ALL: &[HostInterface] = &[
    config::INTERFACE,
    variables::INTERFACE,
    key_value::INTERFACE,
    spin_key_value::INTERFACE,
    spin_http::INTERFACE,
    sqlite::INTERFACE,
    outgoing_redis::INTERFACE,
    postgres::INTERFACE,
];

#[cfg(test)]
mod tests {
    use super::*;
    use wasmtime::{Config, Engine};

    #[test]
    fn the_page_names_every_file() {
        hearth_testing::page_names_every_file(env!("CARGO_MANIFEST_DIR"));
    }

    #[test]
    fn each_interface_can_be_linked_once() {
        let engine = Engine::new(Config::new().wasm_component_model_async(true)).unwrap();
        hearth_wasm::wasi::linkers::component_linker(&engine, ALL).unwrap();
    }
}
