//! Slots for guests: how many may have an instance at once, in the pool and beyond it.
//!
//! The pool has reserved its address space once. A guest beyond it reserves its own: each linear memory takes
//! four gigabytes of the daemon's address space and a few memory mappings, also one that begins without a page. So such a
//! slot is taken together with the reservation of the program's structure, from the container's budget and from the
//! node's bound, before an instance is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hearth_base::config;
use hearth_base::error::{Error, Result};
use hearth_base::operator;
use hearth_base::tenant::{Kind, Permit, Tenant};
use hearth_observe::metrics::Metrics;

use crate::engine::{Allocation, InitialMemory, Program, Reservation};

/// The address space of a process, in bytes: 47 bits on x86-64 (Documentation/arch/x86/x86_64/mm.rst), 48 on 64-bit ARM.
const ADDRESS_SPACE_BYTES: u64 = 1 << if cfg!(target_arch = "x86_64") { 47 } else { 48 };

/// Address space for the heap, the program, threads and prepared modules, in bytes.
const ADDRESS_SPACE_SPARE_BYTES: u64 = 24 << 40;

/// The kernel's default of `vm.max_map_count`.
const MAPPINGS_DEFAULT: u64 = 65_530;

/// Counts guests against the pool and the limit beyond it, so that Start on a full node fails with a clear error and no
/// guest traps.
pub struct Slots {
    pool: SlotCounter,
    on_demand: SlotCounter,
    reserved: Reserved,
    metrics: Arc<Metrics>,
}

/// The reservations of all guests beyond the pool.
struct Reserved {
    address_space: AtomicU64,
    mappings: AtomicU64,
    limits: Reservation,
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
        let reserved =
            Reserved { address_space: AtomicU64::new(0), mappings: AtomicU64::new(0), limits: room_beyond(config) };
        Arc::new(Slots { pool: room(config.pool_slots), on_demand: room(config.on_demand_max), reserved, metrics })
    }

    /// Takes a slot for a guest of this container: of the pool if the program fits one and one is free, else beyond it.
    ///
    /// # Errors
    /// `ResourceExhausted` naming the limits of the node or the container.
    pub fn take(self: &Arc<Self>, program: &Program, tenant: &Arc<Tenant>) -> Result<Slot> {
        if program.fits_pool() && self.pool.take() {
            return Ok(Slot { slots: self.clone(), allocation: Allocation::Pooling, own: None });
        }
        self.take_on_demand(program, tenant)
    }

    /// Takes a slot of the pool for an instance that is made in advance; none where a quarter of the pool or less is free.
    pub fn take_spare(self: &Arc<Self>, fits_pool: bool) -> Option<Slot> {
        let few = self.pool.used.load(Ordering::Relaxed) >= self.pool.limit - self.pool.limit / 4;
        let slot = || Slot { slots: self.clone(), allocation: Allocation::Pooling, own: None };
        (fits_pool && !few && self.pool.take()).then(slot)
    }

    /// Takes a slot beyond the pool.
    ///
    /// # Errors
    /// As [`Slots::take`].
    pub fn take_on_demand(self: &Arc<Self>, program: &Program, tenant: &Arc<Tenant>) -> Result<Slot> {
        if !self.on_demand.take() {
            return Err(Error::ResourceExhausted(format!(
                "the node runs as many Wasm guests as it may: {} in the pool (engine.pool_slots) and {} beyond it (engine.on_demand_max); stop some or raise a limit",
                self.pool.limit, self.on_demand.limit
            )));
        }
        let needs = program.reservation();
        // From here on, its drop gives everything back.
        let mut slot = Slot { slots: self.clone(), allocation: Allocation::OnDemand, own: None };
        let permits =
            [tenant.take(Kind::AddressSpace, needs.address_space)?, tenant.take(Kind::Mappings, needs.mappings)?];
        if !self.reserved.take(needs) {
            return Err(Error::ResourceExhausted(format!(
                "guests beyond the pool have reserved as much address space or as many memory mappings as the node has for them ({} TiB, {} mappings; vm.max_map_count): stop some, raise engine.pool_slots, or give the module fewer memories",
                self.reserved.limits.address_space >> 40,
                self.reserved.limits.mappings
            )));
        }
        slot.own = Some(OwnReservation { needs, _permits: permits });
        Ok(slot)
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

/// The room of the node for guests beyond the pool.
fn room_beyond(config: &config::Engine) -> Reservation {
    let pool = u64::from(config.pool_memories())
        .saturating_mul(config::engine::MEMORY_RESERVATION_BYTES + config::engine::MEMORY_GUARD_BYTES);
    let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let mappings = mappings.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(MAPPINGS_DEFAULT);
    Reservation {
        address_space: ADDRESS_SPACE_BYTES.saturating_sub(ADDRESS_SPACE_SPARE_BYTES).saturating_sub(pool),
        // The rest is for the pool's guests, prepared modules, threads and the heap.
        mappings: mappings / 2,
    }
}

impl Reserved {
    fn take(&self, needs: Reservation) -> bool {
        let add = |room: &AtomicU64, amount: u64, limit: u64| {
            let more = |used: u64| used.checked_add(amount).filter(|sum| *sum <= limit);
            room.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
        };
        if !add(&self.address_space, needs.address_space, self.limits.address_space) {
            return false;
        }
        let fits = add(&self.mappings, needs.mappings, self.limits.mappings);
        if !fits {
            self.address_space.fetch_sub(needs.address_space, Ordering::AcqRel);
        }
        fits
    }

    fn give_back(&self, needs: Reservation) {
        self.address_space.fetch_sub(needs.address_space, Ordering::AcqRel);
        self.mappings.fetch_sub(needs.mappings, Ordering::AcqRel);
    }
}

/// A guest's slot; given back on drop.
pub struct Slot {
    slots: Arc<Slots>,
    allocation: Allocation,
    /// Of a guest beyond the pool.
    own: Option<OwnReservation>,
}

/// The reservation of one guest beyond the pool.
struct OwnReservation {
    needs: Reservation,
    _permits: [Permit; 2],
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
        if let Some(own) = &self.own {
            self.slots.reserved.give_back(own.needs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_guests_beyond_the_pool_reserve_together_is_bounded_and_given_back() {
        let limits = Reservation { address_space: 100, mappings: 10 };
        let reserved = Reserved { address_space: AtomicU64::new(0), mappings: AtomicU64::new(0), limits };
        let half = Reservation { address_space: 50, mappings: 4 };
        assert!(reserved.take(half) && reserved.take(half));
        assert!(!reserved.take(Reservation { address_space: 1, mappings: 0 }));
        reserved.give_back(half);
        assert!(!reserved.take(Reservation { address_space: 1, mappings: 7 }), "too many mappings");
        assert!(reserved.take(Reservation { address_space: 50, mappings: 6 }), "the refusal took nothing");
    }

    #[test]
    fn the_default_leaves_room_for_all_guests_beyond_the_pool() {
        let config = config::Engine::default();
        let room = room_beyond(&config);
        let each = Reservation::of(1, 1);
        assert!(room.address_space >= each.address_space * u64::from(config.on_demand_max), "{room:?}");
        let largest = config::Engine { pool_slots: config::Engine::POOL_SLOTS_MAX, ..config };
        assert!(room_beyond(&largest).address_space >= each.address_space * 1_000);
    }
}
