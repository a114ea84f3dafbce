//! The program of a component of a Spin application: a component as it is, or the one that is made of a core module.
//!
//! Which component a module becomes is remembered with the known places, and the component is compiled and kept as any
//! other: a second start needs neither the module's bytes nor a process that adapts it.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::loader::Depth;
use super::pace::{Pace, Urgency};
use super::places::Place;
use super::turns::Owner;
use super::{Loaded, ModuleStore, Origin, blocking};
use crate::engine::ModuleKind;
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};
use hearth_os::memfd;

impl ModuleStore {
    /// The program of the component with this digest, or of the one that is made of the module with this digest, without
    /// its bytes. `None` if neither is known.
    ///
    /// # Errors
    /// As [`ModuleStore::known`].
    pub async fn known_component(&self, digest: Digest) -> Result<Option<Loaded>> {
        if let Some(loaded) = self.known(&Place::of_adapted(digest)).await? {
            return Ok(Some(loaded));
        }
        // The same bytes may have run as a command by themselves.
        let as_it_is = self.known_digest(digest, None).await?;
        Ok(as_it_is.filter(|loaded| loaded.program.now().kind() == ModuleKind::Component))
    }

    /// The program of a component, as [`ModuleStore::load`]; of a core module, that of the component that is made of it.
    ///
    /// # Errors
    /// As [`ModuleStore::load`]; `InvalidArgument` if no component can be made of the module.
    pub async fn load_component(&self, origin: Origin, owner: Owner) -> Result<Loaded> {
        self.load_component_with(origin, None, &Pace::new(Urgency::Start, vec![owner])).await
    }

    /// As [`ModuleStore::load_component`], before a start asks for it: see [`ModuleStore::load_ahead`].
    ///
    /// # Errors
    /// As [`ModuleStore::load_component`].
    pub async fn load_component_ahead(&self, origin: Origin) -> Result<Loaded> {
        self.load_component_with(origin, Some(Depth::Optimised), &Pace::new(Urgency::Ahead, Vec::new())).await
    }

    async fn load_component_with(&self, origin: Origin, depth: Option<Depth>, pace: &Arc<Pace>) -> Result<Loaded> {
        let (origin, bytes_max) = (Arc::new(origin), self.loader.module_bytes_max);
        let name = origin.name().to_string();
        let named = |error: Error| error.context(&name);
        let scan = {
            let origin = origin.clone();
            move || origin.scan(bytes_max)
        };
        let scanned = blocking(&self.loader.runtime, scan).await.map_err(named)?;
        if scanned.kind == ModuleKind::Component {
            return self.load_shared(origin, None, depth, pace).await;
        }
        let place = Place::of_adapted(scanned.digest);
        if let Some(loaded) = self.known(&place).await? {
            return Ok(loaded);
        }
        let wasm = async {
            let copy = move || origin.to_memory(scanned.digest, bytes_max);
            blocking(&self.loader.runtime, copy).await
        };
        if let Some(refused) = self.loader.retries.refusal(scanned.digest, SystemTime::now()) {
            return Err(named(refused));
        }
        let component = match self.loader.compiler.adapt(wasm, pace).await {
            Ok(component) => component,
            Err(failed) => return Err(named(self.loader.noted(scanned.digest, failed, pace).await)),
        };
        let loader = self.loader.clone();
        let read = move || {
            loader.retries.succeeded(scanned.digest);
            let mapped = memfd::map(&component);
            let failed = |error| Error::Internal(format!("cannot read the component that was made: {error}"));
            let bytes = Bytes::copy_from_slice(&mapped.map_err(failed)?);
            Ok((Digest::of(&bytes), bytes))
        };
        let (digest, bytes) = blocking(&self.loader.runtime, read).await?;
        let origin = Origin::Layer { name, digest, bytes, export: None };
        self.load_shared(Arc::new(origin), Some(place), depth, pace).await
    }
}
