//! Reading the daemon's `/metrics`: Prometheus' text format, and histograms as differences of two
//! scrapes. Pure but for [`scrape`].
//!
//! Failure paths: a line that is no sample is an error that quotes it; a counter that went back
//! (another daemon answered) is an error too.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One sample of a scrape.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// All samples of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Scrape(Vec<Sample>);

/// A Prometheus histogram, not cumulated over buckets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Upper bound (the unit is the metric's; infinite for the last) and observations, ascending.
    buckets: Vec<(f64, u64)>,
    sum: f64,
}

impl Scrape {
    /// Parses the text format.
    ///
    /// # Errors
    /// Quotes the first line that is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Scrape> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_sample(line).with_context(|| format!("not a metric: {line:?}")))
            .collect::<Result<_>>()
            .map(Scrape)
    }

    /// A counter's values by the value of one label.
    pub fn counters(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        samples.filter_map(|s| Some((s.labels.get(label)?.clone(), s.value as u64))).collect()
    }

    /// A histogram's children by the value of one label.
    pub fn histograms(&self, name: &str, label: &str) -> BTreeMap<String, Histogram> {
        let mut cumulated: BTreeMap<String, Vec<(f64, u64)>> = BTreeMap::new();
        for sample in self.0.iter().filter(|s| s.name.strip_suffix("_bucket") == Some(name)) {
            let bound = sample.labels.get("le").and_then(|le| le.parse().ok());
            if let (Some(bound), Some(value)) = (bound, sample.labels.get(label)) {
                cumulated.entry(value.clone()).or_default().push((bound, sample.value as u64));
            }
        }
        let sums = self.0.iter().filter(|s| s.name.strip_suffix("_sum") == Some(name));
        let sums: BTreeMap<&String, f64> = sums.filter_map(|s| Some((s.labels.get(label)?, s.value))).collect();
        let child = |(value, mut buckets): (String, Vec<(f64, u64)>)| {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut below = 0;
            for (_, count) in &mut buckets {
                (*count, below) = (count.saturating_sub(below), *count);
            }
            let sum = sums.get(&value).copied().unwrap_or_default();
            (value, Histogram { buckets, sum })
        };
        cumulated.into_iter().map(child).collect()
    }
}

impl Histogram {
    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The arithmetic mean, which is exact.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum / count as f64)
    }

    /// An estimate of a quantile (0 to 1): linear within its bucket, as Prometheus' `histogram_quantile` has it; the
    /// largest finite bound for a value beyond it.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let rank = quantile * self.count() as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for &(upper, count) in &self.buckets {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                if upper.is_infinite() {
                    return Some(lower);
                }
                return Some(lower + (upper - lower) * ((rank - below) / count));
            }
            below += count;
            lower = upper;
        }
        None
    }

    /// The observations since `earlier`, a state of the same histogram (or the empty one).
    ///
    /// # Errors
    /// If a bucket has shrunk or the bounds differ.
    pub fn since(&self, earlier: &Histogram) -> Result<Histogram> {
        let mut later = self.clone();
        later.sum -= earlier.sum;
        if earlier.buckets.is_empty() {
            return Ok(later);
        }
        ensure!(self.buckets.len() == earlier.buckets.len(), "the histogram's buckets changed");
        for (now, then) in later.buckets.iter_mut().zip(&earlier.buckets) {
            ensure!(now.0 == then.0, "the histogram's buckets changed");
            now.1 = now.1.checked_sub(then.1).context("a histogram's bucket went back")?;
        }
        Ok(later)
    }

    /// Adds another histogram's observations.
    pub fn add(&mut self, other: &Histogram) {
        if self.buckets.is_empty() {
            self.buckets = other.buckets.iter().map(|&(bound, _)| (bound, 0)).collect();
        }
        self.sum += other.sum;
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            mine.1 += theirs.1;
        }
    }
}

/// Fetches `http://<address>/metrics`.
///
/// # Errors
/// If nothing answers there, the status is not 200, or the body is not the text format.
pub async fn scrape(address: &str) -> Result<Scrape> {
    Scrape::parse(&text(address).await?)
}

/// The same, as it comes.
///
/// # Errors
/// If nothing answers there, or the status is not 200.
pub async fn text(address: &str) -> Result<String> {
    get(address).await.with_context(|| format!("GET http://{address}/metrics"))
}

async fn get(address: &str) -> Result<String> {
    let response = crate::get::get(address, "/metrics").await?;
    ensure!(response.status().is_success(), "status {}", response.status());
    Ok(String::from_utf8(response.into_body().to_vec())?)
}

/// `name{label="value",…} number`; a timestamp behind it is ignored.
fn parse_sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(labels) => parse_labels(labels)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next().context("no value")?;
    let value = value.parse().with_context(|| format!("{value:?} is no number"))?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to and with the closing brace, and the rest of the line.
fn parse_labels(mut rest: &str) -> Result<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"").context("a label without a value")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match characters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped)) => value.push(escaped),
                    None => bail!("a label's value without an end"),
                },
                Some((_, character)) => value.push(character),
                None => bail!("a label's value without an end"),
            }
        };
        labels.insert(name.trim().to_owned(), value);
        rest = &quoted[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP hearth_start_phase_seconds Duration of each phase.
# TYPE hearth_start_phase_seconds histogram
hearth_start_phase_seconds_bucket{phase="mounts",le="0.000001"} 0
hearth_start_phase_seconds_bucket{phase="mounts",le="0.00001"} 4
hearth_start_phase_seconds_bucket{phase="mounts",le="0.0001"} 10
hearth_start_phase_seconds_bucket{phase="mounts",le="+Inf"} 11
hearth_start_phase_seconds_sum{phase="mounts"} 0.0022
hearth_start_phase_seconds_count{phase="mounts"} 11
hearth_module_lookups_total{source="warm"} 42
hearth_module_lookups_total{source="compiled"} 1
odd{a="x,y}\"\\\n",b=""} 1 1700000000
"#;

    #[test]
    fn samples_labels_and_escapes_are_read() {
        let Scrape(samples) = Scrape::parse(TEXT).unwrap();
        let odd = samples.last().unwrap();
        assert_eq!(odd.labels["a"], "x,y}\"\\\n");
        assert_eq!((odd.labels["b"].as_str(), odd.value), ("", 1.0));
    }

    #[test]
    fn counters_come_by_label() {
        let lookups = Scrape::parse(TEXT).unwrap().counters("hearth_module_lookups_total", "source");
        assert_eq!(lookups, BTreeMap::from([("compiled".into(), 1), ("warm".into(), 42)]));
    }

    #[test]
    fn histograms_lose_their_cumulation() {
        let mounts = &Scrape::parse(TEXT).unwrap().histograms("hearth_start_phase_seconds", "phase")["mounts"];
        assert_eq!(mounts.buckets, [(1e-6, 0), (1e-5, 4), (1e-4, 6), (f64::INFINITY, 1)]);
        assert_eq!(mounts.count(), 11);
        assert!((mounts.mean().unwrap() - 0.0002).abs() < 1e-12);
    }

    #[test]
    fn quantiles_are_linear_within_a_bucket_and_end_at_the_last_bound() {
        let histogram = Histogram { buckets: vec![(1.0, 0), (2.0, 10), (4.0, 10), (f64::INFINITY, 5)], sum: 0.0 };
        assert_eq!(histogram.quantile(0.2), Some(1.5));
        assert_eq!(histogram.quantile(0.6), Some(3.0));
        assert_eq!(histogram.quantile(0.99), Some(4.0));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn differences_and_sums_of_histograms() {
        let then = Histogram { buckets: vec![(1.0, 2), (f64::INFINITY, 0)], sum: 1.0 };
        let now = Histogram { buckets: vec![(1.0, 5), (f64::INFINITY, 1)], sum: 9.0 };
        let later = now.since(&then).unwrap();
        assert_eq!(later, Histogram { buckets: vec![(1.0, 3), (f64::INFINITY, 1)], sum: 8.0 });
        assert_eq!(now.since(&Histogram::default()).unwrap(), now);
        assert!(then.since(&now).is_err(), "a bucket that went back is another daemon's");
        let mut total = Histogram::default();
        total.add(&later);
        total.add(&later);
        assert_eq!((total.count(), total.sum), (8, 16.0));
    }

    #[test]
    fn a_line_that_is_no_sample_is_quoted() {
        for bad in ["hearth_tasks", "hearth_tasks{state=\"x} 1", "hearth_tasks{state} 1", "a b"] {
            let error = format!("{:#}", Scrape::parse(bad).unwrap_err());
            assert!(error.contains("hearth") || error.contains("\"a b\""), "{error}");
        }
    }
}
