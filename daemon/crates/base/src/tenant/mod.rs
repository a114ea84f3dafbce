//! The budget of a container: the things that it may take from the node. Create makes it, and every layer gets it.
//!
//! ```text
//!   take(kind, amount) ─▶ Permit ─▶ given back on drop
//!        │ over the container's limit, or over that of its pod
//!        ▼
//!   Refused: counted, told once in the log and in the container's own stderr
//! ```
//!
//! The node has bounds of its own, which all containers share. They are second: a container meets its own limit first, so
//! that no container uses up the things that others need. The containers of a pod have limits together, `tenant.pod_factor` times those
//! of one container, so that a pod does not take more by having many containers.
//!
//! Counting takes no lock and no memory. Containers of different pods share no cache line of it. Only a container that has
//! reached a limit waits in a queue.
//!
//! The memory of guests has the limit of the spec, and is counted where it is given: `memory.rs` of `hearth-wasm`.
//!
//! * `kind.rs`: the kinds, their names and their keys in the configuration.
//! * `waiting.rs`: waiting until a container may have one more.
//! * `tests.rs`: each kind, used up by one container, while another one gets it.

mod kind;
#[cfg(test)]
mod tests;
mod waiting;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use crate::config::Config;
use crate::error::Error;
use crate::namespace::ContainerdNamespace;

pub use kind::Kind;
use waiting::Queue;
pub use waiting::Wait;

/// The target of log lines that guests can trigger at will. Such a line has the fields `namespace` and `task`.
pub const GUEST: &str = "hearthd::guest";

/// A limit that is none.
pub const UNLIMITED: u64 = u64::MAX;

/// The limits of one container, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    each: [u64; Kind::COUNT],
    /// Those of the containers of a pod together.
    of_pod: [u64; Kind::COUNT],
}

impl Limits {
    /// Those of the configuration.
    pub fn of(config: &Config) -> Limits {
        let tenant = &config.tenant;
        let workers = |part: usize| (config.scheduler.workers_max / part).max(1) as u64;
        let limit = |kind: Kind| match kind {
            Kind::AddressSpace => tenant.address_space_bytes_max,
            Kind::Mappings => tenant.mappings_max,
            Kind::Compiles => tenant.compiles_max as u64,
            Kind::Descriptors => tenant.descriptors_max.into(),
            // However it is set, three containers leave workers for a fourth one.
            Kind::BlockedWorkers => (tenant.blocked_workers_max as u64).min(workers(4)),
            Kind::Lookups => tenant.lookups_max as u64,
            Kind::HttpRequests => tenant.http_requests_max as u64,
            Kind::ComponentCalls => tenant.component_calls_max as u64,
            Kind::HttpConnections => tenant.http_connections_max as u64,
            Kind::OutgoingConnections => tenant.outgoing_connections_max as u64,
            Kind::Execs => tenant.execs_max as u64,
        };
        let mut limits = Limits::none();
        for kind in Kind::ALL.iter().copied() {
            let together = limit(kind).saturating_mul(tenant.pod_factor);
            limits = limits.with(kind, limit(kind)).with_pod(kind, together);
        }
        // One pod leaves workers for another one.
        let blocked = limits.of_pod[Kind::BlockedWorkers as usize].min(workers(2));
        limits.with_pod(Kind::BlockedWorkers, blocked)
    }

    /// None.
    pub fn none() -> Limits {
        Limits { each: [UNLIMITED; Kind::COUNT], of_pod: [UNLIMITED; Kind::COUNT] }
    }

    /// One of them.
    pub fn get(&self, kind: Kind) -> u64 {
        self.each[kind as usize]
    }

    /// The same with another limit of one kind.
    #[must_use]
    pub fn with(mut self, kind: Kind, limit: u64) -> Limits {
        self.each[kind as usize] = limit;
        self
    }

    /// The same with another limit of one kind for the containers of a pod together.
    #[must_use]
    pub fn with_pod(mut self, kind: Kind, limit: u64) -> Limits {
        self.of_pod[kind as usize] = limit;
        self
    }
}

/// The number of refusals of each kind to all containers of the node.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Kind::COUNT]);

impl Refusals {
    /// How often containers were refused this kind, or had to wait for it.
    pub fn count(&self, kind: Kind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

/// One kind of one container or pod.
#[derive(Debug, Default)]
struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
    refused: AtomicU64,
}

impl Budget {
    fn try_add(&self, amount: u64) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let add = |used: u64| used.checked_add(amount).filter(|sum| *sum <= limit);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).is_ok()
    }

    fn is_full(&self) -> bool {
        self.used.load(Ordering::SeqCst) >= self.limit.load(Ordering::Relaxed)
    }
}

fn budgets(limit: impl Fn(Kind) -> u64) -> [Budget; Kind::COUNT] {
    let budgets: [Budget; Kind::COUNT] = Default::default();
    for kind in Kind::ALL {
        budgets[*kind as usize].limit.store(limit(*kind), Ordering::Relaxed);
    }
    budgets
}

/// The budget of the containers of one pod together.
#[derive(Debug)]
pub struct PodTenant {
    budgets: [Budget; Kind::COUNT],
    queue: Queue,
}

impl PodTenant {
    /// The budget of a pod whose containers have `limits` each.
    pub fn new(limits: &Limits) -> PodTenant {
        PodTenant { budgets: budgets(|kind| limits.of_pod[kind as usize]), queue: Queue::default() }
    }

    fn try_add(&self, kind: Kind, amount: u64) -> Result<(), Refused> {
        let budget = &self.budgets[kind as usize];
        let refused = || Refused { kind, limit: budget.limit.load(Ordering::Relaxed), of_pod: true };
        if budget.try_add(amount) { Ok(()) } else { Err(refused()) }
    }
}

/// Where a container's user reads.
pub trait Notes: Send + Sync {
    /// Writes one line. Does not wait.
    fn note(&self, text: &str);
}

/// The budget of one container.
pub struct Tenant {
    namespace: ContainerdNamespace,
    id: Arc<str>,
    pod: Option<Arc<PodTenant>>,
    budgets: [Budget; Kind::COUNT],
    queue: Queue,
    refusals: Arc<Refusals>,
    notes: OnceLock<Weak<dyn Notes>>,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenant").field("namespace", &self.namespace).field("id", &self.id).finish_non_exhaustive()
    }
}

/// A kind of which a container, or its pod, has as much as it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .kind.refusal(*.limit, *.of_pod))]
pub struct Refused {
    /// The kind.
    pub kind: Kind,
    /// The limit.
    pub limit: u64,
    /// Whether it is the limit of the pod.
    pub of_pod: bool,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        Error::ResourceExhausted(refused.to_string())
    }
}

impl Tenant {
    /// The budget of the container `id` of `namespace`, which belongs to `pod`.
    pub fn new(
        namespace: ContainerdNamespace,
        id: Arc<str>,
        pod: Option<Arc<PodTenant>>,
        limits: &Limits,
        refusals: Arc<Refusals>,
    ) -> Arc<Tenant> {
        Arc::new(Tenant {
            namespace,
            id,
            pod,
            budgets: budgets(|kind| limits.get(kind)),
            queue: Queue::default(),
            refusals,
            notes: OnceLock::new(),
        })
    }

    /// A container of no name with these limits: for tests and benchmarks.
    pub fn unnamed(limits: &Limits) -> Arc<Tenant> {
        Tenant::new("".into(), "".into(), None, limits, Arc::default())
    }

    /// Sets where its user reads of refusals; the first call counts.
    pub fn set_notes(&self, notes: Weak<dyn Notes>) {
        // A container has one stderr of its first process.
        let _ = self.notes.set(notes);
    }

    /// Takes an amount, and gives it back when the permit is dropped.
    ///
    /// # Errors
    /// The container or its pod has as much as it may. Its user is told so once for each kind.
    pub fn take(self: &Arc<Tenant>, kind: Kind, amount: u64) -> Result<Permit, Refused> {
        self.add(kind, amount)?;
        Ok(Permit { tenant: self.clone(), kind, amount })
    }

    /// Takes an amount if it may; a caller that then waits counts as refused there.
    pub fn try_take(self: &Arc<Tenant>, kind: Kind, amount: u64) -> Option<Permit> {
        self.try_add(kind, amount).ok()?;
        Some(Permit { tenant: self.clone(), kind, amount })
    }

    /// Waits until the amount may be taken.
    pub fn wait(self: &Arc<Tenant>, kind: Kind, amount: u64) -> Wait<'_> {
        Wait::new(self, kind, amount)
    }

    /// As [`Tenant::take`], for a caller that counts and calls [`Tenant::give_back`].
    ///
    /// # Errors
    /// As [`Tenant::take`].
    pub fn add(&self, kind: Kind, amount: u64) -> Result<(), Refused> {
        self.try_add(kind, amount).inspect_err(|refused| self.refuse(refused))
    }

    /// As [`Tenant::add`]; a refusal is not counted.
    fn try_add(&self, kind: Kind, amount: u64) -> Result<(), Refused> {
        let budget = self.budget(kind);
        if !budget.try_add(amount) {
            return Err(Refused { kind, limit: budget.limit.load(Ordering::Relaxed), of_pod: false });
        }
        if let Some(pod) = &self.pod {
            pod.try_add(kind, amount).inspect_err(|_| {
                budget.used.fetch_sub(amount, Ordering::SeqCst);
            })?;
        }
        Ok(())
    }

    /// Counts an amount that is taken already, whatever the limit. It is given back by [`Tenant::give_back`].
    pub fn count(&self, kind: Kind, amount: u64) {
        self.budget(kind).used.fetch_add(amount, Ordering::SeqCst);
        if let Some(pod) = &self.pod {
            pod.budgets[kind as usize].used.fetch_add(amount, Ordering::SeqCst);
        }
    }

    /// Gives back what [`Tenant::add`] or [`Tenant::count`] took.
    pub fn give_back(&self, kind: Kind, amount: u64) {
        if amount == 0 {
            return;
        }
        self.budget(kind).used.fetch_sub(amount, Ordering::SeqCst);
        if let Some(pod) = &self.pod {
            pod.budgets[kind as usize].used.fetch_sub(amount, Ordering::SeqCst);
        }
        self.queue().given_back(kind);
    }

    /// Whether it, or its pod, has as much as it may.
    pub fn is_full(&self, kind: Kind) -> bool {
        self.budget(kind).is_full() || self.pod.as_ref().is_some_and(|pod| pod.budgets[kind as usize].is_full())
    }

    /// As [`Tenant::is_full`]. If so, it is counted as a refusal, and `waker` is woken once some of the kind is given back.
    pub fn is_held(&self, kind: Kind, waker: &Waker) -> bool {
        let is_held = self.is_full(kind) && self.queue().watch(self, kind, waker);
        if is_held {
            self.count_refusal(kind);
        }
        is_held
    }

    /// How much it has.
    pub fn used(&self, kind: Kind) -> u64 {
        self.budget(kind).used.load(Ordering::Relaxed)
    }

    /// How much it may have.
    pub fn limit(&self, kind: Kind) -> u64 {
        self.budget(kind).limit.load(Ordering::Relaxed)
    }

    /// How often it was refused the kind, or had to wait for it.
    pub fn refused(&self, kind: Kind) -> u64 {
        self.budget(kind).refused.load(Ordering::Relaxed)
    }

    fn budget(&self, kind: Kind) -> &Budget {
        &self.budgets[kind as usize]
    }

    fn queue(&self) -> &Queue {
        self.pod.as_ref().map_or(&self.queue, |pod| &pod.queue)
    }

    /// Counts a refusal; whether it is the first of its kind.
    fn count_refusal(&self, kind: Kind) -> bool {
        self.refusals.0[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.budget(kind).refused.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Counts a refusal and tells of the first one: a guest can be refused as often as it asks.
    fn refuse(&self, refused: &Refused) {
        if !self.count_refusal(refused.kind) {
            return;
        }
        tracing::warn!(
            target: GUEST,
            namespace = %self.namespace,
            task = %self.id,
            kind = refused.kind.name(),
            limit = refused.limit,
            reason = %refused,
            "a container is at a limit of [tenant]; this is logged once for each container and kind"
        );
        if let Some(notes) = self.notes.get().and_then(Weak::upgrade) {
            notes.note(&format!("hearth: refused: {refused}; this is told once\n"));
        }
    }
}

/// An amount that a container has taken; given back on drop.
#[derive(Debug)]
#[must_use = "a permit that is dropped is given back"]
pub struct Permit {
    tenant: Arc<Tenant>,
    kind: Kind,
    amount: u64,
}

impl Permit {
    /// The amount.
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.tenant.give_back(self.kind, self.amount);
    }
}
