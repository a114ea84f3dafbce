//! Where a process that serves tasks gets its programs from: the node's daemon from its own module store; a process that
//! neither compiles nor writes the store from the daemon ([`super::remote`]).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;

use super::lookup::ProgramFile;
use super::origin::Origin;
use super::places::Place;
use super::turns::Owner;
use super::{Loaded, ModuleStore};
use hearth_base::digest::Digest;
use hearth_base::error::Result;
use hearth_base::wanted::Wanted;

/// The programs of tasks.
#[async_trait]
pub trait Programs: Send + Sync {
    /// The program in `place`, if it is known and prepared in this process. Waits for nothing.
    fn warm(&self, place: &Place) -> Option<Loaded>;

    /// The program in `place` without its file. `None` if it has to be looked up.
    ///
    /// # Errors
    /// `InvalidArgument` if the program has an import that Hearth does not offer.
    async fn known(&self, place: &Place) -> Result<Option<Loaded>>;

    /// The program of `digest`, as [`Programs::known`]; `export`: the export to call, if the caller names one.
    ///
    /// # Errors
    /// As [`Programs::known`].
    async fn known_digest(&self, digest: Digest, export: Option<Arc<str>>) -> Result<Option<Loaded>>;

    /// Finds the program's file in the directory `root`, with the container's volumes mounted in it.
    ///
    /// # Errors
    /// `InvalidArgument` with what was tried, or why a name was refused.
    async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<ProgramFile>;

    /// The program of `origin`, for `owner`, compiled if there is no other way. Its digest is remembered for `place`, if
    /// the search for its file left the root's own mount nowhere.
    ///
    /// # Errors
    /// As [`ModuleStore::load`].
    async fn load(&self, origin: Origin, place: Option<Place>, owner: Owner) -> Result<Loaded>;

    /// The component with this digest, or the one that is made of the module with this digest, without its bytes.
    ///
    /// # Errors
    /// As [`Programs::known`].
    async fn known_component(&self, digest: Digest) -> Result<Option<Loaded>>;

    /// The program of a component, as [`Programs::load`]; of a core module, that of the component that is made of it.
    ///
    /// # Errors
    /// As [`ModuleStore::load_component`].
    async fn load_component(&self, origin: Origin, owner: Owner) -> Result<Loaded>;
}

#[async_trait]
impl Programs for ModuleStore {
    fn warm(&self, place: &Place) -> Option<Loaded> {
        ModuleStore::warm(self, place)
    }

    async fn known(&self, place: &Place) -> Result<Option<Loaded>> {
        ModuleStore::known(self, place).await
    }

    async fn known_digest(&self, digest: Digest, export: Option<Arc<str>>) -> Result<Option<Loaded>> {
        ModuleStore::known_digest(self, digest, export).await
    }

    async fn find(&self, root: OwnedFd, wanted: Wanted) -> Result<ProgramFile> {
        ModuleStore::find(self, root, wanted).await
    }

    async fn load(&self, origin: Origin, place: Option<Place>, owner: Owner) -> Result<Loaded> {
        ModuleStore::load(self, origin, place, owner).await
    }

    async fn known_component(&self, digest: Digest) -> Result<Option<Loaded>> {
        ModuleStore::known_component(self, digest).await
    }

    async fn load_component(&self, origin: Origin, owner: Owner) -> Result<Loaded> {
        ModuleStore::load_component(self, origin, owner).await
    }
}
