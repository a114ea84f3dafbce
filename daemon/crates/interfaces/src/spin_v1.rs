//! The interfaces of Spin's first SDKs, which have no version: names and types. The folder of each interface implements its
//! functions.

mod generated {
    wasmtime::component::bindgen!({
        path: "../wasm/src/spin_handlers/v1.wit",
        world: "host",
        imports: { default: async },
    });
}

pub(crate) use generated::fermyon::spin::{config, http, http_types, key_value, redis, redis_types};
