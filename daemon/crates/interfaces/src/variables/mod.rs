//! Spin's variables: `fermyon:spin/variables@2.0.0` and `spin:variables/variables@3.0.0`. They are the values of
//! [`Configuration`].
//!
//! * `v1.rs`: the same as `fermyon:spin/config`.

mod v1;

use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf, Linker};

use hearth_wasm::access::Access;
use hearth_wasm::host_interface::HostInterface;
use hearth_wasm::state::ComponentState;

use crate::config::{self, Configuration};
use crate::spin_v1;

/// The registration.
pub const INTERFACE: HostInterface = HostInterface {
    imports: &["fermyon:spin/variables@", "fermyon:spin/config", "spin:variables/"],
    is_granted: Access::has::<Configuration>,
    setting: config::INTERFACE.setting,
    add_to_linker,
};

mod generated {
    wasmtime::component::bindgen!({
        path: "src/variables/variables.wit",
        world: "hearth:variables/host",
        imports: { default: async },
    });
}

use generated::fermyon::spin::variables as v2;
use generated::spin::variables::variables as v3;

/// Why there is no value.
enum Missing {
    InvalidName(String),
    Undefined(String),
    Provider(String),
}

/// Whether a variable can have this name.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('_')
        && !name.contains("__")
}

async fn get(configuration: Option<Arc<Configuration>>, name: String) -> Result<String, Missing> {
    if !is_name(&name) {
        return Err(Missing::InvalidName(format!(
            "{name:?}: a name has lower-case letters, digits and single underscores, and begins with a letter"
        )));
    }
    let missing = || Missing::Undefined(format!("the component has no variable {name:?}"));
    let configuration = configuration.ok_or_else(missing)?;
    configuration.get(name.clone()).await.map_err(Missing::Provider)?.ok_or_else(missing)
}

macro_rules! error {
    ($version:ident) => {
        impl From<Missing> for $version::Error {
            fn from(missing: Missing) -> Self {
                match missing {
                    Missing::InvalidName(text) => $version::Error::InvalidName(text),
                    Missing::Undefined(text) => $version::Error::Undefined(text),
                    Missing::Provider(text) => $version::Error::Provider(text),
                }
            }
        }
    };
}

error!(v2);
error!(v3);

impl v2::Host for ComponentState {
    async fn get(&mut self, name: String) -> Result<String, v2::Error> {
        Ok(get(self.access.get(), name).await?)
    }
}

impl v3::Host for ComponentState {}

impl<T: Send> v3::HostWithStore<T> for HasSelf<ComponentState> {
    async fn get(store: &Accessor<T, Self>, name: String) -> Result<String, v3::Error> {
        let configuration = store.with(|mut store| store.get().access.get());
        Ok(get(configuration, name).await?)
    }
}

fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    spin_v1::config::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v2::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)?;
    v3::add_to_linker::<_, HasSelf<ComponentState>>(linker, |state| state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_in_lower_case() {
        for name in ["a", "api_key", "a1", "a_1"] {
            assert!(is_name(name), "{name}");
        }
        for wrong in ["", "API_KEY", "_a", "a_", "a__b", "1a", "a-b", "ä"] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
