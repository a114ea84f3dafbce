//! `fermyon:spin/config`, as Spin's first SDKs read variables.

use hearth_wasm::state::ComponentState;

use super::{Missing, get};
use crate::spin_v1::config::{Error, Host};

impl From<Missing> for Error {
    fn from(missing: Missing) -> Error {
        match missing {
            Missing::InvalidName(text) => Error::InvalidKey(text),
            Missing::Undefined(text) => Error::Provider(text),
            Missing::Provider(text) => Error::Other(text),
        }
    }
}

impl Host for ComponentState {
    async fn get_config(&mut self, key: String) -> Result<String, Error> {
        Ok(get(self.access.get(), key).await?)
    }
}
