//! How much CPU time a guest may have: its weight among others, and its quota. Pure: no clock, no lock.
//!
//! **Weight** (`cpu.shares`): a guest's virtual time advances by the CPU time it used, times 1024, over its
//! weight; among those that want to run, the one with the least goes first (see [`super::queue`]).
//!
//! **Quota** (`cpu.quota` in each `cpu.period`): the CPU time of a guest is charged to its [`Account`]. A guest over its
//! budget waits for the next period. A guest is interrupted once a tick, so it may overrun by one;
//! the overrun stays in the account as debt, so that over many periods the quota is exact.

use hearth_base::bundle::Cpu;
use hearth_base::error::{Error, Result};

/// `cpu.shares` of a spec that names none.
pub const WEIGHT_DEFAULT: u64 = 1_024;

/// The least and the most `cpu.shares`, as the kernel's; other values are clamped.
const WEIGHTS: (u64, u64) = (2, 262_144);

/// The kernel's bounds of a period, in microseconds.
const PERIODS_US: (u64, u64) = (1_000, 1_000_000);

/// The kernel's least quota, in microseconds.
const QUOTA_MIN_US: u64 = 1_000;

/// `cpu.period` of a spec that names none, in microseconds.
const PERIOD_DEFAULT_US: u64 = 100_000;

/// The weight and quota of a spec or an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimits {
    /// Relative to other guests that compute.
    pub weight: u64,
    /// No limit if absent.
    pub quota: Option<Quota>,
}

/// CPU time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// CPU time, in nanoseconds.
    pub budget_ns: u64,
    /// In nanoseconds.
    pub period_ns: u64,
}

impl Default for CpuLimits {
    fn default() -> Self {
        CpuLimits { weight: WEIGHT_DEFAULT, quota: None }
    }
}

impl CpuLimits {
    /// From the spec's numbers. A single guest uses one core at most, so a quota of a core or more limits only guests
    /// that share it: a task's execs and requests.
    ///
    /// # Errors
    /// `InvalidArgument` naming a field that the kernel would refuse for a cgroup, too.
    pub fn of(cpu: &Cpu) -> Result<CpuLimits> {
        let weight = cpu.shares.map_or(WEIGHT_DEFAULT, |shares| shares.clamp(WEIGHTS.0, WEIGHTS.1));
        let period = cpu.period.unwrap_or(PERIOD_DEFAULT_US);
        let (least, most) = PERIODS_US;
        if !(least..=most).contains(&period) {
            return Err(Error::InvalidArgument(format!(
                "linux.resources.cpu.period: {period} is not between {least} and {most} microseconds"
            )));
        }
        if let Some(quota) = cpu.quota.filter(|&quota| quota < QUOTA_MIN_US) {
            return Err(Error::InvalidArgument(format!(
                "linux.resources.cpu.quota: {quota} is under {QUOTA_MIN_US} microseconds"
            )));
        }
        Ok(CpuLimits {
            weight,
            quota: cpu.quota.map(|quota| Quota { budget_ns: quota * 1_000, period_ns: period * 1_000 }),
        })
    }
}

/// How far virtual time advances for CPU time used.
pub(super) fn virtual_time(used_ns: u64, weight: u64) -> u64 {
    let scaled = u128::from(used_ns) * u128::from(WEIGHT_DEFAULT) / u128::from(weight.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How often and how long a guest had to wait for its quota, as cgroups count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttling {
    /// Periods in which it ran.
    pub periods: u64,
    /// Periods in which it had to wait.
    pub throttled_periods: u64,
    /// How long in all, in nanoseconds.
    pub throttled_ns: u64,
}

/// The CPU time that a guest with a quota has used, and the time that it has waited.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// When the current period began; `None` before the first.
    period_began_ns: Option<u64>,
    used_ns: u64,
    waiting_since_ns: Option<u64>,
    throttling: Throttling,
}

/// The decision whether a guest may run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowance {
    /// For so many nanoseconds of CPU time.
    Run(u64),
    /// Not before this time, in nanoseconds of the scheduler's clock.
    Wait(u64),
}

impl Account {
    /// Charges CPU time.
    pub(super) fn charge(&mut self, used_ns: u64) {
        self.used_ns = self.used_ns.saturating_add(used_ns);
    }

    /// Decides whether the guest, which can run, may run now.
    pub(super) fn ask(&mut self, now_ns: u64, quota: Quota) -> Allowance {
        let began = *self.period_began_ns.get_or_insert(now_ns);
        let passed = now_ns.saturating_sub(began) / quota.period_ns;
        let began = began + passed * quota.period_ns;
        self.period_began_ns = Some(began);
        self.used_ns = self.used_ns.saturating_sub(passed.saturating_mul(quota.budget_ns));
        let periods_to_wait = self.used_ns / quota.budget_ns;
        if periods_to_wait > 0 {
            if self.waiting_since_ns.is_none() {
                self.waiting_since_ns = Some(now_ns);
                self.throttling.throttled_periods += periods_to_wait;
            }
            return Allowance::Wait(began + periods_to_wait * quota.period_ns);
        }
        if passed > 0 || self.throttling.periods == 0 {
            self.throttling.periods += 1;
        }
        self.run(now_ns);
        Allowance::Run(quota.budget_ns - self.used_ns)
    }

    /// The guest runs or has ended: its wait is over, if it waited.
    pub(super) fn run(&mut self, now_ns: u64) {
        if let Some(since) = self.waiting_since_ns.take() {
            self.throttling.throttled_ns += now_ns.saturating_sub(since);
        }
    }

    pub(super) fn throttling(&self) -> Throttling {
        // A period is throttled only if it is one.
        Throttling { periods: self.throttling.periods.max(self.throttling.throttled_periods), ..self.throttling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn tenth() -> Quota {
        Quota { budget_ns: 10 * MS, period_ns: 100 * MS }
    }

    #[test]
    fn limits_are_the_specs_in_the_kernels_bounds() {
        let of = |shares, quota, period| CpuLimits::of(&Cpu { shares, quota, period });
        assert_eq!(of(None, None, None).unwrap(), CpuLimits::default());
        assert_eq!(of(Some(1), None, None).unwrap().weight, 2);
        assert_eq!(of(Some(1 << 30), None, None).unwrap().weight, 262_144);
        assert_eq!(of(None, Some(10_000), None).unwrap().quota, Some(tenth()));
        let core = Quota { budget_ns: 100 * MS, period_ns: 100 * MS };
        assert_eq!(of(None, Some(100_000), Some(100_000)).unwrap().quota, Some(core));
        for (quota, period, field) in
            [(Some(999), None, "cpu.quota"), (None, Some(999), "cpu.period"), (None, Some(1_000_001), "cpu.period")]
        {
            let error = of(None, quota, period).unwrap_err().to_string();
            assert!(error.starts_with(&format!("linux.resources.{field}: ")), "{error}");
        }
    }

    #[test]
    fn virtual_time_is_slower_for_who_weighs_more() {
        assert_eq!(virtual_time(MS, 1_024), MS);
        assert_eq!(virtual_time(MS, 2_048), MS / 2);
        assert_eq!(virtual_time(MS, 2), 512 * MS);
        assert_eq!(virtual_time(u64::MAX, 2), u64::MAX);
    }

    #[test]
    fn over_the_budget_is_the_next_periods_debt() {
        let mut account = Account::default();
        assert_eq!(account.ask(5 * MS, tenth()), Allowance::Run(10 * MS));
        account.charge(11 * MS);
        assert_eq!(account.ask(20 * MS, tenth()), Allowance::Wait(105 * MS));
        assert_eq!(account.ask(60 * MS, tenth()), Allowance::Wait(105 * MS), "woken meanwhile");
        assert_eq!(account.ask(106 * MS, tenth()), Allowance::Run(9 * MS));
        assert_eq!(account.throttling(), Throttling { periods: 2, throttled_periods: 1, throttled_ns: 86 * MS });
        // One host call of two and a half budgets: two periods pass without it.
        account.charge(25 * MS);
        assert_eq!(account.ask(130 * MS, tenth()), Allowance::Wait(305 * MS));
        assert_eq!(account.ask(306 * MS, tenth()), Allowance::Run(4 * MS));
        assert_eq!(account.throttling().throttled_periods, 3);
    }

    #[test]
    fn what_is_not_used_is_not_saved() {
        let mut account = Account::default();
        assert_eq!(account.ask(0, tenth()), Allowance::Run(10 * MS));
        account.charge(MS);
        assert_eq!(account.ask(5_000 * MS, tenth()), Allowance::Run(10 * MS));
        account.charge(10 * MS);
        assert_eq!(account.ask(5_010 * MS, tenth()), Allowance::Wait(5_100 * MS));
    }

    #[test]
    fn one_thread_never_waits_for_a_quota_of_a_core() {
        let core = Quota { budget_ns: 100 * MS, period_ns: 100 * MS };
        let (mut account, mut now) = (Account::default(), 7);
        while now < 10_000 * MS {
            let Allowance::Run(left) = account.ask(now, core) else { panic!("it waits at {now}") };
            // It looks up every 3 ms, and the thread is on a core all the time.
            let slice = left.min(10 * MS).div_ceil(3 * MS) * 3 * MS;
            account.charge(slice);
            now += slice;
        }
        assert_eq!(account.throttling().throttled_periods, 0);
    }

    #[test]
    fn over_many_periods_the_quota_is_exact_whatever_the_overrun() {
        let (mut account, mut now, mut ran) = (Account::default(), 0, 0);
        while now < 10_000 * MS {
            match account.ask(now, tenth()) {
                // It looks up every 3 ms only.
                Allowance::Run(left) => {
                    let slice = left.div_ceil(3 * MS) * 3 * MS;
                    account.charge(slice);
                    ran += slice;
                    now += slice;
                }
                Allowance::Wait(until) => now = until + MS,
            }
        }
        assert!((990 * MS..=1_012 * MS).contains(&ran), "{ran}");
    }
}
