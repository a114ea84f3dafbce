//! Lists, verifies and prunes modules for the operator's commands.

use std::collections::HashSet;
use std::time::Instant;

use crate::engine::Tier;
use crate::modules::ModuleStore;
use crate::modules::artifact_index::kind_name;
use crate::modules::cache::REJECTED_FOR;
use hearth_base::digest::Digest;
use hearth_base::operator::{CompilingModule, ModuleCounts, ModuleInfo, Modules, Pruned, RejectedModule, Verified};
use hearth_base::time::unix;

impl ModuleStore {
    /// The store in numbers.
    pub fn counts(&self) -> ModuleCounts {
        let metrics = &self.loader.metrics;
        let gauge = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        ModuleCounts {
            prepared: self.loader.prepared.lock().len() as u64,
            artifacts: gauge(&metrics.store.artifacts),
            bytes: gauge(&metrics.store.bytes),
            bytes_limit: self.loader.store.bytes_max(),
            compiles_pending: gauge(&metrics.compiles.pending),
        }
    }

    /// Everything that is compiled or cannot be, by digest. The caller adds which tasks use it.
    pub fn inventory(&self) -> Modules {
        let listed = self.loader.store.list();
        // Locked one after the other: the list may be a moment old.
        let prepared: Vec<_> = {
            let prepared = self.loader.prepared.lock();
            let each = prepared.iter();
            each.map(|(&digest, module)| (digest, module.program.now().kind(), module.tier(), module.used.time()))
                .collect()
        };
        let mut compiled: Vec<_> = listed
            .iter()
            .map(|artifact| ModuleInfo {
                digest: artifact.digest.to_string(),
                kind: kind_name(artifact.kind).into(),
                bytes: artifact.bytes,
                current: artifact.current,
                prepared: artifact.current && prepared.iter().any(|(digest, ..)| *digest == artifact.digest),
                used_at: unix(artifact.used),
                ..ModuleInfo::default()
            })
            .collect();
        let on_disk = |wanted| listed.iter().any(|artifact| artifact.current && artifact.digest == wanted);
        compiled.extend(prepared.iter().filter(|(digest, ..)| !on_disk(*digest)).map(|(digest, kind, tier, used)| {
            ModuleInfo {
                digest: digest.to_string(),
                kind: kind_name(*kind).into(),
                current: true,
                prepared: true,
                baseline: *tier == Tier::Baseline,
                used_at: unix(*used),
                ..ModuleInfo::default()
            }
        }));
        compiled.sort_by(|a, b| (&a.digest, b.current).cmp(&(&b.digest, a.current)));
        let now = Instant::now();
        let rejected = self.loader.rejected.lock();
        let rejected = rejected.iter().filter_map(|(digest, (since, error))| {
            let age = now.duration_since(*since);
            (age < REJECTED_FOR).then(|| RejectedModule {
                digest: digest.to_string(),
                reason: error.to_string(),
                age_seconds: age.as_secs_f64(),
            })
        });
        let rejected = rejected.collect();
        let compiling = self.loader.compiling.lock();
        let compiling = compiling.iter().map(|((digest, _), (name, since))| CompilingModule {
            digest: digest.to_string(),
            name: name.clone(),
            age_seconds: now.duration_since(*since).as_secs_f64(),
        });
        Modules { compiled, rejected, compiling: compiling.collect() }
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        let now = Instant::now();
        let rejected = self.loader.rejected.lock();
        let still = rejected.iter().filter(|(_, (since, _))| now.duration_since(*since) < REJECTED_FOR).count();
        self.loader.metrics.modules.rejected.set(still as i64);
    }

    /// Checks every artifact of this daemon's engine on the disk. Damaged ones are removed, and compiled again at their
    /// next start. Reads all of them: blocks.
    pub fn verify(&self) -> Verified {
        let mut verified = Verified::default();
        for artifact in self.loader.store.list() {
            match artifact.current.then(|| self.loader.store.check(artifact.digest)) {
                Some(true) => verified.good += 1,
                Some(false) => verified.removed.push(artifact.digest.to_string()),
                None => verified.foreign += 1,
            }
        }
        verified
    }

    /// Removes artifacts of other engines from the disk; with `unused`, also those of this engine that are not in
    /// `used`. Guests that run their code go on. Blocks.
    pub fn prune(&self, unused: bool, used: &HashSet<Digest>) -> Pruned {
        let (artifacts, bytes) = self.loader.store.prune(|digest| unused && !used.contains(&digest));
        if unused {
            let dropped: Vec<_> = {
                let mut prepared = self.loader.prepared.lock();
                let idle: Vec<_> = prepared.iter().map(|(digest, _)| *digest).filter(|d| !used.contains(d)).collect();
                idle.iter().filter_map(|digest| prepared.pop(digest)).collect()
            };
            // Their mappings go; not under the lock.
            drop(dropped);
            self.loader.metrics.modules.prepared.set(self.loader.prepared.lock().len() as i64);
        }
        Pruned { artifacts, bytes }
    }
}
