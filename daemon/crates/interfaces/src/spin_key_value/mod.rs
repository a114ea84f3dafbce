//! Spin's key-value stores: `fermyon:spin/key-value@2.0.0` and `spin:key-value/key-value@3.0.0`.
//!
//! * `v1.rs`: the same without a version.

mod v1;

use std::sync::Arc;

use wasmtime::component::{Accessor, FutureReader, HasSelf, Linker, Resource, StreamReader};

use hearth_wasm::access::Access;
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::handles::HostResult;
use crate::spin_v1;
use crate::storage::Caller;
use crate::stores::{self, Bucket, Store, StoreError, Stores};

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["fermyon:spin/key-value", "spin:key-value/"],
    is_granted: Access::has::<Stores>,
    setting: crate::key_value::INTERFACE.setting,
    add_to_linker,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "src/spin_key_value/spin_key_value.wit",
        world: "hearth:spin-key-value/host",
        imports: { default: async | trappable },
        with: {
            "fermyon:spin/key-value.store": crate::stores::Bucket,
            "spin:key-value/key-value.store": crate::stores::Bucket,
        },
    });
}

use generated::fermyon::spin::key_value as v2;
use generated::spin::key_value::key_value as v3;

macro_rules! error {
    ($version:ident) => {
        impl From<StoreError> for $version::Error {
            fn from(error: StoreError) -> Self {
                match error {
                    StoreError::Missing => $version::Error::NoSuchStore,
                    StoreError::Denied => $version::Error::AccessDenied,
                    StoreError::Full => $version::Error::StoreTableFull,
                    StoreError::Other(text) => $version::Error::Other(text),
                }
            }
        }
    };
}

error!(v2);
error!(v3);

/// All keys: no more than an answer may have.
async fn all_keys(store: &Arc<dyn Store>, caller: &Caller) -> Result<Vec<String>, StoreError> {
    let mut keys = Vec::new();
    let mut bytes = 0;
    let mut held = caller.memory.hold();
    let mut from = 0;
    loop {
        let (part, next) = store.keys(caller, from).await?;
        let more: usize = part.iter().map(String::len).sum();
        bytes += more as u64;
        if bytes > caller.answer_bytes_max {
            return Err(StoreError::Other("the keys are larger than interfaces.answer_bytes_max".into()));
        }
        if !held.grow(more as u64) {
            return Err(StoreError::Other("the container has no memory left for the keys".into()));
        }
        keys.extend(part);
        match next {
            Some(next) => from = next,
            None => return Ok(keys),
        }
    }
}

impl v2::Host for ComponentState {}

impl v2::HostStore for ComponentState {
    async fn open(&mut self, label: String) -> HostResult<Resource<Bucket>, v2::Error> {
        Ok(stores::open(self, &label)?.map_err(Into::into))
    }

    async fn get(&mut self, store: Resource<Bucket>, key: String) -> HostResult<Option<Vec<u8>>, v2::Error> {
        let (store, caller) = stores::of_handle(self, &store)?;
        Ok(store.get(&caller, key).await.map_err(Into::into))
    }

    async fn set(&mut self, store: Resource<Bucket>, key: String, value: Vec<u8>) -> HostResult<(), v2::Error> {
        let (store, caller) = stores::of_handle(self, &store)?;
        Ok(store.set_many(&caller, vec![(key, value)]).await.map_err(Into::into))
    }

    async fn delete(&mut self, store: Resource<Bucket>, key: String) -> HostResult<(), v2::Error> {
        let (store, caller) = stores::of_handle(self, &store)?;
        Ok(store.delete_many(&caller, vec![key]).await.map_err(Into::into))
    }

    async fn exists(&mut self, store: Resource<Bucket>, key: String) -> HostResult<bool, v2::Error> {
        let (store, caller) = stores::of_handle(self, &store)?;
        Ok(store.exists(&caller, key).await.map_err(Into::into))
    }

    async fn get_keys(&mut self, store: Resource<Bucket>) -> HostResult<Vec<String>, v2::Error> {
        let (store, caller) = stores::of_handle(self, &store)?;
        Ok(all_keys(&store, &caller).await.map_err(Into::into))
    }

    async fn drop(&mut self, store: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(store)?;
        Ok(())
    }
}

impl v3::Host for ComponentState {}

impl v3::HostStore for ComponentState {
    async fn drop(&mut self, store: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(store)?;
        Ok(())
    }
}

type Keys = (StreamReader<String>, FutureReader<Result<(), v3::Error>>);

impl<T: Send> v3::HostStoreWithStore<T> for HasSelf<ComponentState> {
    async fn open(store: &Accessor<T, Self>, label: String) -> HostResult<Resource<Bucket>, v3::Error> {
        Ok(store.with(|mut store| stores::open(store.get(), &label))?.map_err(Into::into))
    }

    async fn get(
        store: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
    ) -> HostResult<Option<Vec<u8>>, v3::Error> {
        let (store, caller) = store.with(|mut store| stores::of_handle(store.get(), &handle))?;
        Ok(store.get(&caller, key).await.map_err(Into::into))
    }

    async fn set(
        store: &Accessor<T, Self>,
        handle: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> HostResult<(), v3::Error> {
        let (store, caller) = store.with(|mut store| stores::of_handle(store.get(), &handle))?;
        Ok(store.set_many(&caller, vec![(key, value)]).await.map_err(Into::into))
    }

    async fn delete(store: &Accessor<T, Self>, handle: Resource<Bucket>, key: String) -> HostResult<(), v3::Error> {
        let (store, caller) = store.with(|mut store| stores::of_handle(store.get(), &handle))?;
        Ok(store.delete_many(&caller, vec![key]).await.map_err(Into::into))
    }

    async fn exists(store: &Accessor<T, Self>, handle: Resource<Bucket>, key: String) -> HostResult<bool, v3::Error> {
        let (store, caller) = store.with(|mut store| stores::of_handle(store.get(), &handle))?;
        Ok(store.exists(&caller, key).await.map_err(Into::into))
    }

    async fn get_keys(store: &Accessor<T, Self>, handle: Resource<Bucket>) -> wasmtime::Result<Keys> {
        let (bucket, caller) = store.with(|mut store| stores::of_handle(store.get(), &handle))?;
        let (keys, result) = match all_keys(&bucket, &caller).await {
            Ok(keys) => (keys, Ok(())),
            Err(error) => (Vec::new(), Err(v3::Error::from(error))),
        };
        store.with(|mut store| {
            let keys = StreamReader::new(&mut store, keys)?;
            let result = FutureReader::new(&mut store, async move { wasmtime::error::Ok(result) })?;
            Ok((keys, result))
        })
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    spin_v1::key_value::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v2::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v3::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
