//! Programs kept in memory, the least recently used removed first, and modules that cannot be compiled, which are
//! remembered for a while.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::compiling::ModuleFile;
use super::loader::Loader;
use super::store::{LastUse, VerifiedArtifact};
use super::turns::Owner;
use crate::engine::{LiveProgram, Tier};
use hearth_base::digest::Digest;
use hearth_base::error::{Error, Result};

/// How long a module that cannot be compiled is remembered: twice the longest pause kubelet makes
/// between two starts of a container that fails (five minutes).
pub(super) const REJECTED_FOR: Duration = Duration::from_secs(600);

/// How many such modules are remembered.
pub(super) const REJECTED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A program kept in memory.
#[derive(Clone)]
pub(super) struct CachedProgram {
    pub(super) digest: Digest,
    pub(super) program: Arc<LiveProgram>,
    pub(super) used: Arc<LastUse>,
    /// The source of optimised code, while the program has baseline code only.
    pub(super) unoptimised: Option<Arc<Unoptimised>>,
}

impl CachedProgram {
    pub(super) fn tier(&self) -> Tier {
        if self.unoptimised.is_some() { Tier::Baseline } else { Tier::Optimised }
    }
}

/// A module that has baseline code only.
pub(super) struct Unoptimised {
    pub(super) wasm: Arc<ModuleFile>,
    /// Those that the baseline compile was for.
    pub(super) owners: Vec<Owner>,
    /// Whether its optimising compile runs or is queued, and a task of the daemon waits to put its code in place.
    pub(super) is_followed: AtomicBool,
}

impl Loader {
    /// The cached program of `digest`, if its code is of tier `least` or better. Starts its optimising compile if it
    /// has baseline code only and no such compile is under way (an earlier one has failed).
    pub(super) fn prepared(self: &Arc<Self>, digest: Digest, least: Tier) -> Option<CachedProgram> {
        let prepared = self.prepared.lock().get(&digest)?.clone();
        prepared.used.now();
        self.optimise(&prepared);
        Some(prepared).filter(|prepared| prepared.tier() >= least)
    }

    /// Prepares an artifact from the disk, if an intact one is there. Blocks.
    pub(super) fn take_from_disk(&self, digest: Digest) -> Result<Option<CachedProgram>> {
        let Some(verified) = self.store.get(digest) else { return Ok(None) };
        match self.prepare(digest, verified, None) {
            Ok(prepared) => Ok(Some(prepared)),
            // wasmtime refuses an artifact whose code is correct: it is compiled again.
            Err(Error::Internal(why)) => {
                self.store.discard(digest, &why);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Maps and links a verified artifact, and keeps the program. `unoptimised` is given for baseline code. Blocks.
    ///
    /// # Errors
    /// `ResourceExhausted` if the node has no memory, mappings or descriptors for it: that says nothing about the
    /// artifact. `Internal` if wasmtime refuses the artifact. `InvalidArgument` if the module's imports or structure
    /// are refused.
    #[allow(unsafe_code, reason = "the one place where artifacts become code; see the comment")]
    pub(super) fn prepare(
        &self,
        digest: Digest,
        artifact: VerifiedArtifact,
        unoptimised: Option<Arc<Unoptimised>>,
    ) -> Result<CachedProgram> {
        let VerifiedArtifact { file, kind, used } = artifact;
        let tier = if unoptimised.is_some() { Tier::Baseline } else { Tier::Optimised };
        // SAFETY: a `VerifiedArtifact` holds either the open file whose bytes the store has just checked
        // against a code made with root's own key, which the store makes only for what the compile process
        // wrote; or a sealed memory file with such bytes, which no process can write to. The former lies in
        // a directory that is root's alone, in which files are replaced and removed but never
        // written to or truncated, which holds for the open file as long as it is mapped.
        let program = unsafe { self.engines.load(file, kind, tier) }?;
        let prepared = CachedProgram { digest, program: Arc::new(LiveProgram::new(program)), used, unoptimised };
        let (kept, evicted) = {
            let mut all = self.prepared.lock();
            // A load from the disk and one by the compiler may have run at the same time.
            match all.get(&digest).cloned() {
                Some(first) if first.tier() >= prepared.tier() => (first, Some((digest, prepared))),
                _ => (prepared.clone(), all.push(digest, prepared)),
            }
        };
        // The mappings go with the program's last task; not under the lock.
        drop(evicted);
        self.metrics.modules.prepared.set(self.prepared.lock().len() as i64);
        Ok(kept)
    }

    /// Why the module was rejected, if that was less than [`REJECTED_FOR`] ago.
    pub(super) fn rejected(&self, digest: Digest, now: Instant) -> Option<Error> {
        let mut rejected = self.rejected.lock();
        let (since, error) = rejected.get(&digest)?;
        if now.duration_since(*since) < REJECTED_FOR {
            return Some(error.clone());
        }
        rejected.pop(&digest);
        None
    }

    pub(super) fn reject(&self, digest: Digest, error: Error, now: Instant) {
        self.rejected.lock().put(digest, (now, error));
    }
}
