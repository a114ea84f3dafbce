//! `wasi:keyvalue/{store,batch,atomics}`: 0.2.0-draft (wasmtime's) and 0.2.0-draft2 (Spin's).

use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker, Resource};

use hearth_wasm::access::Access;
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::stores::{self, Bucket, Store, StoreError, Stores};

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["wasi:keyvalue/"],
    is_granted: Access::has::<Stores>,
    setting: "the environment variable HEARTH_KEYVALUE: \"memory:\", \"file:/path/in/the/container\" or \"redis://host:port\"",
    add_to_linker,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "src/key_value/key_value.wit",
        world: "hearth:key-value/host",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::stores::Bucket,
            "wasi:keyvalue/atomics.cas": super::Cas,
        },
    });
}

use generated::wasi::{keyvalue0_2_0_draft as draft, keyvalue0_2_0_draft2 as draft2};

/// A value that is to be replaced if it has not changed until then.
pub struct Cas {
    store: Arc<dyn Store>,
    key: String,
    current: Option<Vec<u8>>,
}

macro_rules! implement {
    ($version:ident) => {
        impl From<StoreError> for $version::store::Error {
            fn from(error: StoreError) -> Self {
                match error {
                    StoreError::Missing => $version::store::Error::NoSuchStore,
                    StoreError::Denied => $version::store::Error::AccessDenied,
                    StoreError::Full => $version::store::Error::Other("the store has no room left".into()),
                    StoreError::Other(text) => $version::store::Error::Other(text),
                }
            }
        }

        impl $version::store::Host for ComponentState {
            async fn open(
                &mut self,
                identifier: String,
            ) -> wasmtime::Result<Result<Resource<Bucket>, $version::store::Error>> {
                Ok(stores::open(self, &identifier)?.map_err(Into::into))
            }
        }

        impl $version::store::HostBucket for ComponentState {
            async fn get(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
            ) -> wasmtime::Result<Result<Option<Vec<u8>>, $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.get(&caller, key).await.map_err(Into::into))
            }

            async fn set(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
                value: Vec<u8>,
            ) -> wasmtime::Result<Result<(), $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.set_many(&caller, vec![(key, value)]).await.map_err(Into::into))
            }

            async fn delete(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
            ) -> wasmtime::Result<Result<(), $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.delete_many(&caller, vec![key]).await.map_err(Into::into))
            }

            async fn exists(
                &mut self,
                bucket: Resource<Bucket>,
                key: String,
            ) -> wasmtime::Result<Result<bool, $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.exists(&caller, key).await.map_err(Into::into))
            }

            async fn list_keys(
                &mut self,
                bucket: Resource<Bucket>,
                cursor: Option<<$version::store::KeyResponse as Part>::Cursor>,
            ) -> wasmtime::Result<Result<$version::store::KeyResponse, $version::store::Error>> {
                let Ok(from) = cursor.as_ref().map_or(Ok(0), Cursor::number) else {
                    return Ok(Err($version::store::Error::Other("this cursor is of no list of keys".into())));
                };
                let (store, caller) = stores::of_handle(self, &bucket)?;
                let listed = store.keys(&caller, from).await;
                let listed = listed
                    .map(|(keys, next)| $version::store::KeyResponse { keys, cursor: next.map(Cursor::of_number) });
                Ok(listed.map_err(Into::into))
            }

            async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
                self.table.delete(bucket)?;
                Ok(())
            }
        }
    };
}

/// Where the next part of a list of keys begins.
trait Cursor: Sized {
    fn number(&self) -> Result<u64, ()>;
    fn of_number(number: u64) -> Self;
}

impl Cursor for u64 {
    fn number(&self) -> Result<u64, ()> {
        Ok(*self)
    }
    fn of_number(number: u64) -> u64 {
        number
    }
}

impl Cursor for String {
    fn number(&self) -> Result<u64, ()> {
        self.parse().map_err(drop)
    }
    fn of_number(number: u64) -> String {
        number.to_string()
    }
}

/// Part of a list of keys.
trait Part {
    type Cursor: Cursor;
}

impl Part for draft::store::KeyResponse {
    type Cursor = u64;
}

impl Part for draft2::store::KeyResponse {
    type Cursor = String;
}

implement!(draft);
implement!(draft2);

macro_rules! implement_batch {
    ($version:ident, $pair:ty, $found:expr) => {
        impl $version::batch::Host for ComponentState {
            async fn get_many(
                &mut self,
                bucket: Resource<Bucket>,
                keys: Vec<String>,
            ) -> wasmtime::Result<Result<Vec<$pair>, $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                let values = store.get_many(&caller, keys.clone()).await;
                Ok(values.map(|values| keys.into_iter().zip(values).map($found).collect()).map_err(Into::into))
            }

            async fn set_many(
                &mut self,
                bucket: Resource<Bucket>,
                values: Vec<(String, Vec<u8>)>,
            ) -> wasmtime::Result<Result<(), $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.set_many(&caller, values).await.map_err(Into::into))
            }

            async fn delete_many(
                &mut self,
                bucket: Resource<Bucket>,
                keys: Vec<String>,
            ) -> wasmtime::Result<Result<(), $version::store::Error>> {
                let (store, caller) = stores::of_handle(self, &bucket)?;
                Ok(store.delete_many(&caller, keys).await.map_err(Into::into))
            }
        }
    };
}

implement_batch!(draft, Option<(String, Vec<u8>)>, |(key, value)| value.map(|value| (key, value)));
implement_batch!(draft2, (String, Option<Vec<u8>>), |pair| pair);

impl draft::atomics::Host for ComponentState {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> wasmtime::Result<Result<u64, draft::store::Error>> {
        let other = |text: &str| draft::store::Error::Other(text.into());
        let Ok(delta) = i64::try_from(delta) else { return Ok(Err(other("the counter would overflow"))) };
        let (store, caller) = stores::of_handle(self, &bucket)?;
        let counted = store.increment(&caller, key, delta).await.map_err(draft::store::Error::from);
        Ok(counted.and_then(|value| u64::try_from(value).map_err(|_| other("the counter is negative"))))
    }
}

impl draft2::atomics::Host for ComponentState {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: i64,
    ) -> wasmtime::Result<Result<i64, draft2::store::Error>> {
        let (store, caller) = stores::of_handle(self, &bucket)?;
        Ok(store.increment(&caller, key, delta).await.map_err(Into::into))
    }

    async fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), draft2::atomics::CasError>> {
        use draft2::atomics::CasError;
        let Cas { store, key, current } = self.table.delete(cas)?;
        let caller = stores::caller(self)?;
        let swapped = match store.swap(&caller, key.clone(), current, value).await {
            Ok(true) => return Ok(Ok(())),
            // The guest gets the value as it is now, to try again.
            Ok(false) => store.get(&caller, key.clone()).await,
            Err(error) => Err(error),
        };
        match swapped {
            Ok(current) => Ok(Err(CasError::CasFailed(self.table.push(Cas { store, key, current })?))),
            Err(error) => Ok(Err(CasError::StoreError(error.into()))),
        }
    }
}

impl draft2::atomics::HostCas for ComponentState {
    async fn new(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> wasmtime::Result<Result<Resource<Cas>, draft2::store::Error>> {
        let (store, caller) = stores::of_handle(self, &bucket)?;
        match store.get(&caller, key.clone()).await {
            Ok(current) => Ok(Ok(self.table.push(Cas { store, key, current })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn current(&mut self, cas: Resource<Cas>) -> wasmtime::Result<Result<Option<Vec<u8>>, draft2::store::Error>> {
        Ok(Ok(self.table.get(&cas)?.current.clone()))
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    draft::store::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    draft::batch::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    draft::atomics::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    draft2::store::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    draft2::batch::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    draft2::atomics::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}
