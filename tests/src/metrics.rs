//! The daemon's metrics, fetched and parsed from Prometheus' text format.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::wait::SHORT;

/// One line of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The name, suffixes like `_bucket` included.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// In the order of the text.
    pub samples: Vec<Sample>,
    /// The text.
    pub text: String,
}

impl Metrics {
    /// Scrapes `http://ADDRESS/metrics`.
    ///
    /// # Panics
    /// If the answer is not 200 with well-formed text.
    pub fn fetch(address: &str) -> Self {
        let answer = get(address, "/metrics").unwrap_or_else(|error| panic!("{address}: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer has a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{address}: {head}");
        Self::parse(body)
    }

    /// Parses the text format.
    ///
    /// # Panics
    /// At a malformed line.
    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line:?}")))
            .collect();
        Self { samples, text: text.to_owned() }
    }

    /// The sum of the samples of this name that have these labels; 0 if there is none: a counter that was never
    /// incremented has no sample.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has =
            |sample: &Sample, &(key, value): &(&str, &str)| sample.labels.get(key).is_some_and(|found| found == value);
        self.samples
            .iter()
            .filter(|sample| sample.name == name && labels.iter().all(|label| has(sample, label)))
            .map(|sample| sample.value)
            .sum()
    }

    /// The names of the families.
    pub fn families(&self) -> Vec<String> {
        let names = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        names.map(str::to_owned).collect()
    }

    /// Whether any sample has this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// The values one label of a metric takes, in the order of the text.
    pub fn label_values(&self, name: &str, label: &str) -> Vec<String> {
        let mut values = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.name == name) {
            match sample.labels.get(label) {
                Some(value) if !values.contains(value) => values.push(value.clone()),
                _ => {}
            }
        }
        values
    }
}

/// One request over HTTP/1.1, without keeping the connection.
///
/// # Errors
/// The connection's error.
pub fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SHORT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `name{label="value",…} 1.5`
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = match line.find('}') {
        Some(end) => line.split_at(end + 1),
        None => line.split_once(' ')?,
    };
    let value = value.split_whitespace().next()?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
        None => (series, BTreeMap::new()),
    };
    Some(Sample { name: name.to_owned(), labels, value: value.replace("Inf", "inf").parse().ok()? })
}

/// `a="b",c="d"`; no label of ours has a quote, a brace or a comma in its value.
fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    text.split(',')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP hearth_tasks Tasks.\n\
        # TYPE hearth_tasks gauge\n\
        hearth_tasks{state=\"running\"} 3\n\
        hearth_tasks{state=\"stopped\"} 1\n\
        hearth_compiles_total 2\n\
        hearth_start_seconds_bucket{phase=\"mounts\",le=\"+Inf\"} 4\n";

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("hearth_tasks", &[]), 4.0);
        assert_eq!(metrics.sum("hearth_tasks", &[("state", "running")]), 3.0);
        assert_eq!(metrics.sum("hearth_compiles_total", &[]), 2.0);
        assert_eq!(metrics.sum("hearth_traps_total", &[]), 0.0);
        assert_eq!(metrics.label_values("hearth_tasks", "state"), ["running", "stopped"]);
        assert!(!metrics.has("hearth_traps_total"));
    }

    #[test]
    #[should_panic(expected = "not a sample")]
    fn a_malformed_line_is_no_sample() {
        Metrics::parse("hearth_tasks{state=running 3\n");
    }
}
