//! Handlers that components of Spin export beside those of WASI: for HTTP, as Spin's first SDKs have it, and for the
//! messages of a Redis channel.
//!
//! * `v1.wit`: the interfaces of the first SDKs, which have no version. The daemon's own crates implement the imports.
//! * `redis_v3.wit`: the handler of messages in version 3.0.0.

use wasmtime::component::InstancePre;

use crate::state::ComponentState;

#[allow(missing_docs, reason = "generated code")]
mod http {
    wasmtime::component::bindgen!({
        path: "src/spin_handlers/v1.wit",
        world: "http-component",
        exports: { default: async },
    });
}

#[allow(missing_docs, reason = "generated code")]
mod redis {
    wasmtime::component::bindgen!({
        path: "src/spin_handlers/v1.wit",
        world: "redis-component",
        exports: { default: async },
    });
}

#[allow(missing_docs, reason = "generated code")]
mod redis_v3 {
    wasmtime::component::bindgen!({
        path: "src/spin_handlers/redis_v3.wit",
        world: "redis-component",
        exports: { default: async },
    });
}

pub use http::fermyon::spin::http_types::{Method, Request, Response};
pub use http::{HttpComponent, HttpComponentPre};

/// The text of the interfaces of the first SDKs.
pub const V1: &str = include_str!("v1.wit");

/// A component that takes the messages of a Redis channel.
pub enum SubscriberPre {
    /// It exports `fermyon:spin/inbound-redis`.
    V1(redis::RedisComponentPre<ComponentState>),
    /// It exports `spin:redis/inbound-redis@3.0.0`.
    V3(redis_v3::RedisComponentPre<ComponentState>),
}

impl SubscriberPre {
    pub(crate) fn new(pre: &InstancePre<ComponentState>) -> Option<SubscriberPre> {
        let newer = redis_v3::RedisComponentPre::new(pre.clone()).ok().map(SubscriberPre::V3);
        newer.or_else(|| redis::RedisComponentPre::new(pre.clone()).ok().map(SubscriberPre::V1))
    }

    /// Makes an instance.
    pub(crate) async fn instantiate(
        &self,
        store: &mut wasmtime::Store<ComponentState>,
    ) -> wasmtime::Result<Subscriber> {
        Ok(match self {
            SubscriberPre::V1(pre) => Subscriber::V1(pre.instantiate_async(store).await?),
            SubscriberPre::V3(pre) => Subscriber::V3(pre.instantiate_async(store).await?),
        })
    }
}

/// An instance that takes a message.
pub enum Subscriber {
    /// Of `fermyon:spin/inbound-redis`.
    V1(redis::RedisComponent),
    /// Of `spin:redis/inbound-redis@3.0.0`.
    V3(redis_v3::RedisComponent),
}

impl Subscriber {
    /// Gives it a message. The inner error is the component's own.
    ///
    /// # Errors
    /// The guest trapped or exited.
    pub async fn take(
        &self,
        store: &mut wasmtime::Store<ComponentState>,
        message: Vec<u8>,
    ) -> wasmtime::Result<Result<(), String>> {
        match self {
            Subscriber::V1(component) => {
                let taken = component.fermyon_spin_inbound_redis().call_handle_message(store, &message).await?;
                Ok(taken.map_err(|error| error.name().into()))
            }
            Subscriber::V3(component) => {
                let handler = component.spin_redis_inbound_redis();
                let taken = store.run_concurrent(async |store| handler.call_handle_message(store, message).await);
                Ok(taken.await??.map_err(|error| format!("{error:?}")))
            }
        }
    }
}
