//! One guest: its identity, its CPU limits, its kills and pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

use super::cpu::{Account, Allowance, CpuLimits, Quota, Throttling, virtual_time};
use hearth_base::error::{Error, Result};
use hearth_base::tenant::{Kind, Tenant};
use hearth_os::identity::{self, Identity};

/// One guest. A holder of it can pause it, kill it and change its limits; the scheduler looks at it
/// at every poll, and at every tick while it computes.
#[derive(Debug, Default)]
pub struct Guest {
    identity: Identity,
    /// The guest whose CPU limits, CPU time and pauses this one shares; `None`: it has its own.
    group: Option<Arc<Guest>>,
    /// See [`Guest::part`].
    is_part: bool,
    /// Its future is in the part that runs as [`Guest::identity`], not as the daemon.
    acts: AtomicBool,
    killed: AtomicBool,
    paused: AtomicBool,
    pub(super) waker: AtomicWaker,
    cpu_ns: AtomicU64,
    /// When its slice ends, in nanoseconds of the scheduler's clock.
    pub(super) slice_ends_ns: AtomicU64,
    /// From when on it gives way at once to a woken guest, by the same clock.
    pub(super) gives_way_ns: AtomicU64,
    /// The round of the ticker in which its slice began; from the next one on it gives way in any case.
    pub(super) slice_tick: AtomicU64,
    /// See [`super::queue`].
    virtual_ns: AtomicU64,
    /// Read at every poll, so that a guest without a quota takes no lock.
    has_quota: AtomicBool,
    cpu: Mutex<CpuState>,
    /// Of `cpu.limits`, for the queue.
    weight: AtomicU64,
    /// The container's budget, in which workers are counted that its guests block; `None`: nothing of it is counted.
    tenant: Option<Arc<Tenant>>,
}

#[derive(Debug, Default)]
struct CpuState {
    limits: CpuLimits,
    account: Account,
}

impl Guest {
    /// A guest of the container with this budget, which acts with this identity.
    pub fn new(identity: Identity, cpu: CpuLimits, tenant: Arc<Tenant>) -> Guest {
        let guest = Guest { identity, tenant: Some(tenant), ..Guest::default() };
        guest.set_cpu(cpu);
        guest
    }

    /// One more guest of the same container: it uses up the share of `leader`, its CPU time is the
    /// leader's, and it is paused with it. It is killed by itself. A caller that changes the leader's limits or resumes
    /// it wakes the members with [`Guest::wake`].
    pub fn member(leader: &Arc<Guest>, identity: Identity) -> Guest {
        Guest { identity, group: Some(leader.clone()), ..Guest::default() }
    }

    /// A member with the identity of `leader`, which acts with it from its first poll: one of the many short parts of a
    /// container, which a thread goes on to without a change of identity.
    pub fn part(leader: &Arc<Guest>) -> Guest {
        Guest { is_part: true, acts: AtomicBool::new(true), ..Guest::member(leader, leader.identity.clone()) }
    }

    /// Whether it is one of the many short parts of a container.
    pub(super) fn is_part(&self) -> bool {
        self.is_part
    }

    /// Whether its CPU time is limited.
    pub(super) fn has_quota(&self) -> bool {
        self.group().has_quota.load(Ordering::Acquire)
    }

    /// Whether both use up the same CPU limits.
    pub(super) fn is_beside(&self, other: &Guest) -> bool {
        std::ptr::eq(self.group(), other.group())
    }

    fn group(&self) -> &Guest {
        self.group.as_deref().unwrap_or(self)
    }

    /// Has it polled, so that a change takes effect.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Its identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Ends the guest: at its next tick if it computes, at once if it waits or is paused.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Stops the guest: at its next tick if it computes, before its next poll if it waits. A system call
    /// it is in comes to its end.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    /// Lets a paused guest go on.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.waker.wake();
    }

    /// Changes its weight and quota. What it has used of a quota so far counts against the new one.
    pub fn set_cpu(&self, limits: CpuLimits) {
        {
            let mut cpu = self.cpu.lock();
            cpu.limits = limits;
            self.weight.store(limits.weight, Ordering::Relaxed);
            self.has_quota.store(limits.quota.is_some(), Ordering::Release);
        }
        // It may wait for a budget that it no longer needs.
        self.waker.wake();
    }

    /// Its weight and quota.
    pub fn cpu(&self) -> CpuLimits {
        self.cpu.lock().limits
    }

    /// CPU time of its polls so far.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// How it was held back by its quota so far.
    pub fn throttling(&self) -> Throttling {
        self.cpu.lock().account.throttling()
    }

    /// For its future: the thread has the guest's rights and network from here on, in this poll and in later ones.
    ///
    /// # Errors
    /// If the kernel refuses the identity: the guest must not go on.
    pub fn act_as_itself(&self) -> Result<()> {
        self.acts.store(true, Ordering::Relaxed);
        self.assume_identity().map_err(Error::Internal)
    }

    /// For its future: the thread has the daemon's identity from here on. A guest's future begins so.
    pub fn act_as_daemon(&self) {
        self.acts.store(false, Ordering::Relaxed);
        identity::restore();
    }

    /// Gives the calling thread the identity that the guest's future has now.
    pub(super) fn assume_identity(&self) -> std::result::Result<(), String> {
        if !self.acts.load(Ordering::Relaxed) {
            identity::restore();
            return Ok(());
        }
        identity::assume(&self.identity).map_err(|e| format!("cannot take on the guest's identity: {e}"))
    }

    /// A worker is blocked in a system call of this guest.
    pub(super) fn blocks(&self) {
        if let Some(tenant) = &self.group().tenant {
            tenant.count(Kind::BlockedWorkers, 1);
        }
    }

    /// The worker is free again; guests of the container that were held back may run.
    pub(super) fn unblocks(&self) {
        if let Some(tenant) = &self.group().tenant {
            tenant.give_back(Kind::BlockedWorkers, 1);
        }
    }

    /// Whether the container blocks as many workers as it may. If so, `waker` is woken when one is free again.
    pub(super) fn is_held(&self, waker: &Waker) -> bool {
        self.group().tenant.as_ref().is_some_and(|tenant| tenant.is_held(Kind::BlockedWorkers, waker))
    }

    pub(super) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.group().paused.load(Ordering::Acquire)
    }

    /// Decides whether it may run now, if it has a quota.
    pub(super) fn allowance(&self, now_ns: u64) -> Option<Allowance> {
        if !self.has_quota() {
            return None;
        }
        let cpu = &mut *self.group().cpu.lock();
        cpu.limits.quota.map(|quota: Quota| cpu.account.ask(now_ns, quota))
    }

    /// Its wait for its budget, if it was in one, is over.
    pub(super) fn waits_no_more(&self, now_ns: u64) {
        self.group().cpu.lock().account.run(now_ns);
    }

    /// Charges CPU time, of a poll or of work that another thread did for the guest, in nanoseconds.
    pub fn charge(&self, used_ns: u64) {
        let group = self.group();
        group.cpu_ns.fetch_add(used_ns, Ordering::Relaxed);
        // Guests of one group run side by side.
        group.virtual_ns.fetch_add(virtual_time(used_ns, self.weight()), Ordering::Relaxed);
        if self.has_quota() {
            group.cpu.lock().account.charge(used_ns);
        }
    }

    pub(super) fn weight(&self) -> u64 {
        match self.group().weight.load(Ordering::Relaxed) {
            // By `Default`.
            0 => super::cpu::WEIGHT_DEFAULT,
            weight => weight,
        }
    }

    pub(super) fn virtual_ns(&self) -> u64 {
        self.group().virtual_ns.load(Ordering::Relaxed)
    }

    pub(super) fn set_virtual_ns(&self, at: u64) {
        self.group().virtual_ns.fetch_max(at, Ordering::Relaxed);
    }
}
