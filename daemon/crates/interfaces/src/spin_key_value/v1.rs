//! `fermyon:spin/key-value` without a version, as Spin's first SDKs have it: handles are numbers.

use std::sync::Arc;

use wasmtime::component::Resource;

use hearth_wasm::state::ComponentState;

use super::all_keys;
use crate::spin_v1::key_value::{Error, Host};
use crate::storage::Caller;
use crate::stores::{self, Bucket, Store, StoreError};

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        match error {
            StoreError::Missing => Error::NoSuchStore,
            StoreError::Denied => Error::AccessDenied,
            StoreError::Full => Error::StoreTableFull,
            StoreError::Other(text) => Error::Io(text),
        }
    }
}

/// The store of a number, and the guest as its caller. The table of handles tells a number that is none.
fn of_number(state: &ComponentState, number: u32) -> Result<(Arc<dyn Store>, Caller), Error> {
    stores::of_handle(state, &Resource::<Bucket>::new_borrow(number)).map_err(|_| Error::InvalidStore)
}

impl Host for ComponentState {
    async fn open(&mut self, name: String) -> Result<u32, Error> {
        // The outer error: the guest has as many handles as it may.
        let opened = stores::open(self, &name).map_err(|_| Error::StoreTableFull)?;
        Ok(opened?.rep())
    }

    async fn get(&mut self, store: u32, key: String) -> Result<Vec<u8>, Error> {
        let (store, caller) = of_number(self, store)?;
        store.get(&caller, key).await?.ok_or(Error::NoSuchKey)
    }

    async fn set(&mut self, store: u32, key: String, value: Vec<u8>) -> Result<(), Error> {
        let (store, caller) = of_number(self, store)?;
        Ok(store.set_many(&caller, vec![(key, value)]).await?)
    }

    async fn delete(&mut self, store: u32, key: String) -> Result<(), Error> {
        let (store, caller) = of_number(self, store)?;
        Ok(store.delete_many(&caller, vec![key]).await?)
    }

    async fn exists(&mut self, store: u32, key: String) -> Result<bool, Error> {
        let (store, caller) = of_number(self, store)?;
        Ok(store.exists(&caller, key).await?)
    }

    async fn get_keys(&mut self, store: u32) -> Result<Vec<String>, Error> {
        let (store, caller) = of_number(self, store)?;
        Ok(all_keys(&store, &caller).await?)
    }

    async fn close(&mut self, store: u32) {
        // A number that is no store is ignored, as the interface says.
        let _ = self.table.delete(Resource::<Bucket>::new_own(store));
    }
}
