//! Host interfaces beyond WASI's own: how one is added, and which of them a component imports.
//!
//! Each is one [`HostInterface`] in the list that the daemon gives to [`Engines`](crate::engine::Engines). Its functions
//! are in every linker, so that a program is linked once for all containers. Whether a container has the interface is
//! decided by its [`Access`] at Create ([`check`]). A host function finds the container's state by its type, as
//! `store.data().access.get::<State>()`.

use wasmtime::component::{Component, Linker};

use crate::access::Access;
use crate::state::ComponentState;
use hearth_base::error::{Error, Result};
use hearth_base::text::shown;

/// The most bytes of an import's name in an error.
const NAME_BYTES_MAX: usize = 200;

/// A host interface, or several that are turned on together.
pub struct HostInterface {
    /// The prefixes of its imports' names, for example `wasi:keyvalue/`.
    pub imports: &'static [&'static str],
    /// Whether this access has it.
    pub is_granted: fn(&Access) -> bool,
    /// How it is turned on, as the end of the sentence "…: turn it on by".
    pub setting: &'static str,
    /// Adds its functions.
    pub add_to_linker: fn(&mut Linker<ComponentState>) -> wasmtime::Result<()>,
}

/// Checks that the access has each of these interfaces that the component imports.
///
/// # Errors
/// `InvalidArgument` naming the import and the setting that turns it on.
pub fn check(interfaces: &[HostInterface], component: &Component, access: &Access) -> Result<()> {
    if interfaces.is_empty() {
        return Ok(());
    }
    for (name, _) in component.component_type().imports(component.engine()) {
        let interface =
            interfaces.iter().find(|interface| interface.imports.iter().any(|import| name.starts_with(import)));
        if let Some(interface) = interface.filter(|interface| !(interface.is_granted)(access)) {
            return Err(Error::InvalidArgument(format!(
                "the component imports {}, which is off in this container: turn it on by {}",
                shown(name, NAME_BYTES_MAX),
                interface.setting
            )));
        }
    }
    Ok(())
}
