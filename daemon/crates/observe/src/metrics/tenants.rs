//! Metrics of the budgets of containers, by kind. They have no label of a container: `hearthctl inspect` shows the budget of
//! one.

use hearth_base::tenant::{Kind, Limits};
use prometheus::{IntCounterVec, IntGaugeVec, Registry};

use super::declare::Declare;

/// Set before a scrape.
pub struct TenantMetrics {
    used: IntGaugeVec,
    largest: IntGaugeVec,
    limit: IntGaugeVec,
    refused: IntCounterVec,
}

impl TenantMetrics {
    pub(super) fn new(registry: &Registry) -> TenantMetrics {
        let declare = Declare(registry);
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        TenantMetrics {
            used: declare.gauges_of(
                "hearth_tenant_used",
                "Sum over all containers of the things that they have taken from the node, by kind.",
                "kind",
                &kinds,
            ),
            largest: declare.gauges_of(
                "hearth_tenant_largest",
                "The most of the kind that one container has taken from the node.",
                "kind",
                &kinds,
            ),
            limit: declare.gauges_of(
                "hearth_tenant_limit",
                "The most of the kind that one container may take, by the configuration.",
                "kind",
                &kinds,
            ),
            refused: declare.counters_of(
                "hearth_tenant_refused_total",
                "Times that a container was refused the kind at its own or its pod's limit, or had to wait for it.",
                "kind",
                &kinds,
            ),
        }
    }

    /// Sets the series of one kind: `used` by each container, and `refused` to all of them so far.
    pub fn set(&self, kind: Kind, limits: &Limits, used: impl Iterator<Item = u64>, refused: u64) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (sum, largest) = used.fold((0u64, 0), |(sum, largest), used| (sum.saturating_add(used), largest.max(used)));
        let label = &[kind.name()];
        self.used.with_label_values(label).set(number(sum));
        self.largest.with_label_values(label).set(number(largest));
        self.limit.with_label_values(label).set(number(limits.get(kind)));
        let counter = self.refused.with_label_values(label);
        counter.inc_by(refused.saturating_sub(counter.get()));
    }
}

#[cfg(test)]
mod tests {
    use hearth_base::config::Config;

    use crate::metrics::Metrics;

    use super::*;

    #[test]
    fn each_kind_has_its_sum_its_largest_and_its_limit() {
        let metrics = Metrics::new();
        let limits = Limits::of(&Config::default());
        metrics.tenants.set(Kind::Execs, &limits, [2, 5].into_iter(), 3);
        metrics.tenants.set(Kind::Execs, &limits, [2, 4].into_iter(), 7);
        let text = metrics.render();
        for want in [
            "hearth_tenant_used{kind=\"execs\"} 6",
            "hearth_tenant_largest{kind=\"execs\"} 4",
            "hearth_tenant_limit{kind=\"execs\"} 64",
            "hearth_tenant_refused_total{kind=\"execs\"} 7",
        ] {
            assert!(text.contains(want), "{want} is missing in\n{text}");
        }
    }
}
