//! Slots for guests: how many may have an instance at once, in the pool and beyond it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::operator;
use hearth_observe::metrics::Metrics;

use crate::engine::{Allocation, InitialMemory, Program};

/// Counts guests against the pool and the limit beyond it, so that Start on a full node fails with a clear error and no
/// guest traps.
pub struct Slots {
    pool: SlotCounter,
    on_demand: SlotCounter,
    metrics: Arc<Metrics>,
}

struct SlotCounter {
    limit: u32,
    used: AtomicU32,
}

impl SlotCounter {
    fn take(&self) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < self.limit).then_some(used + 1))
            .is_ok()
    }
}

impl Slots {
    /// As many as the configuration allows.
    pub fn new(config: &config::Engine, metrics: Arc<Metrics>) -> Arc<Slots> {
        let room = |limit| SlotCounter { limit, used: AtomicU32::new(0) };
        Arc::new(Slots { pool: room(config.pool_slots), on_demand: room(config.on_demand_max), metrics })
    }

    /// Takes a slot: of the pool if the program fits one and one is free, else beyond it.
    ///
    /// # Errors
    /// `ResourceExhausted` naming both limits.
    pub fn take(self: &Arc<Self>, fits_pool: bool) -> Result<Slot> {
        if fits_pool && self.pool.take() {
            return Ok(Slot { slots: self.clone(), allocation: Allocation::Pooling });
        }
        self.take_on_demand()
    }

    /// Takes a slot of the pool for an instance that is made in advance; none where a quarter of the pool or less is free.
    pub fn take_spare(self: &Arc<Self>, fits_pool: bool) -> Option<Slot> {
        let few = self.pool.used.load(Ordering::Relaxed) >= self.pool.limit - self.pool.limit / 4;
        (fits_pool && !few && self.pool.take()).then(|| Slot { slots: self.clone(), allocation: Allocation::Pooling })
    }

    /// Takes a slot beyond the pool.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub fn take_on_demand(self: &Arc<Self>) -> Result<Slot> {
        if self.on_demand.take() {
            return Ok(Slot { slots: self.clone(), allocation: Allocation::OnDemand });
        }
        Err(Error::ResourceExhausted(format!(
            "the node runs as many Wasm guests as it may: {} in the pool (engine.pool_slots) and {} beyond it (engine.on_demand_max); stop some or raise a limit",
            self.pool.limit, self.on_demand.limit
        )))
    }

    /// How many guests there are.
    pub fn usage(&self) -> operator::Pool {
        let used = |room: &SlotCounter| u64::from(room.used.load(Ordering::Relaxed));
        operator::Pool {
            used: used(&self.pool),
            slots: self.pool.limit.into(),
            on_demand: used(&self.on_demand),
            on_demand_limit: self.on_demand.limit.into(),
        }
    }

    /// Brings the gauges up to date; called before a scrape.
    pub fn observe(&self) {
        let used = self.pool.used.load(Ordering::Relaxed);
        self.metrics.engine.pool_slots.with_label_values(&["used"]).set(i64::from(used));
        self.metrics.engine.pool_slots.with_label_values(&["free"]).set(i64::from(self.pool.limit - used));
        self.metrics.engine.on_demand_instances.set(i64::from(self.on_demand.used.load(Ordering::Relaxed)));
    }
}

/// A guest's slot; given back on drop.
pub struct Slot {
    slots: Arc<Slots>,
    allocation: Allocation,
}

impl Slot {
    /// Where its instance is made.
    pub fn allocation(&self) -> Allocation {
        self.allocation
    }

    /// Whether a program that needs this much memory is sure to be instantiated: it has a slot of the pool, and its
    /// memory is within the limit.
    pub fn is_sure(&self, needs: Option<InitialMemory>, memory_limit: u64) -> bool {
        self.allocation == Allocation::Pooling && needs.is_some_and(|needs| needs.at_most <= memory_limit)
    }
}

/// A program, and the slot that was taken for it.
pub type Placed = (Arc<Program>, Slot);

impl Drop for Slot {
    fn drop(&mut self) {
        let room = match self.allocation {
            Allocation::Pooling => &self.slots.pool,
            Allocation::OnDemand => &self.slots.on_demand,
        };
        room.used.fetch_sub(1, Ordering::AcqRel);
    }
}
