//! What is in the store, for those who look at the node.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::operator::{ModuleCounts, ModuleInfo, Modules, RejectedModule};
use crate::wasm::modules::store::kind_name;
use crate::wasm::modules::{ModuleStore, REJECTED_FOR};

impl ModuleStore {
    /// The store in numbers.
    pub fn counts(&self) -> ModuleCounts {
        let metrics = &self.rooms.metrics;
        let gauge = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        ModuleCounts {
            prepared: self.rooms.prepared.lock().len() as u64,
            artifacts: gauge(&metrics.store_artifacts),
            bytes: gauge(&metrics.store_bytes),
            bytes_limit: self.rooms.store.bytes_max(),
            compiles_pending: gauge(&metrics.compiles_pending),
        }
    }

    /// Everything that is compiled or cannot be, by digest. Who uses it is not known here.
    pub fn inventory(&self) -> Modules {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let listed = self.rooms.store.list();
        // Locked one after the other: a look at the node may be a moment off.
        let prepared: Vec<_> = {
            let prepared = self.rooms.prepared.lock();
            let each = prepared.iter();
            each.map(|(&digest, module)| (digest, module.program.kind(), module.used.time())).collect()
        };
        let mut compiled: Vec<_> = listed
            .iter()
            .map(|artifact| ModuleInfo {
                digest: artifact.digest.to_string(),
                kind: kind_name(artifact.kind).into(),
                bytes: artifact.bytes,
                current: artifact.current,
                prepared: artifact.current && prepared.iter().any(|(digest, ..)| *digest == artifact.digest),
                used_at: seconds(artifact.used),
                ..ModuleInfo::default()
            })
            .collect();
        let on_disk = |wanted| listed.iter().any(|artifact| artifact.current && artifact.digest == wanted);
        compiled.extend(prepared.iter().filter(|(digest, ..)| !on_disk(*digest)).map(|(digest, kind, used)| {
            ModuleInfo {
                digest: digest.to_string(),
                kind: kind_name(*kind).into(),
                current: true,
                prepared: true,
                used_at: seconds(*used),
                ..ModuleInfo::default()
            }
        }));
        compiled.sort_by(|a, b| (&a.digest, b.current).cmp(&(&b.digest, a.current)));
        let now = Instant::now();
        let rejected = self.rooms.rejected.lock();
        let rejected = rejected.iter().filter_map(|(digest, (since, error))| {
            let age = now.duration_since(*since);
            (age < REJECTED_FOR).then(|| RejectedModule {
                digest: digest.to_string(),
                reason: error.to_string(),
                age_seconds: age.as_secs_f64(),
            })
        });
        let rejected = rejected.collect();
        Modules { compiled, rejected }
    }
}
