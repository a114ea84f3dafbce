//! The text of an error in a configuration file: its line, and the key that was probably meant.

use super::Config;

/// The least likeness of an unknown key to an existing one that makes it a suggestion, from 0 to 1.
const LIKENESS_MIN: f64 = 0.8;

/// Keys of earlier releases, and the keys that have replaced them.
const RENAMED: [(&str, &str); 7] = [
    ("pod_labels", "metrics.pods"),
    ("open_max", "tenant.descriptors_max"),
    ("blocked_max", "tenant.blocked_workers_max"),
    ("requests_max", "tenant.http_requests_max"),
    ("connections_max", "tenant.http_connections_max"),
    ("outgoing_connections_max", "tenant.outgoing_connections_max"),
    ("execs_per_task_max", "tenant.execs_max"),
];

/// Explains an error in the TOML `text` in one line: the place, the error, and a suggestion for an unknown key.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    let message = error.message().trim().replace('\n', " ");
    // toml reports an unknown key only by its text: the key itself is in none of the error's fields.
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((key, rest)) = unknown else { return format!("{place}{message}") };
    if let Some((_, now)) = RENAMED.iter().find(|(old, _)| *old == key) {
        return format!("{place}unknown key {key}; it is {now} now");
    }
    // "expected one of `a`, `b`, `c`"
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let likeness = |known: &str| strsim::jaro_winkler(known, key);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(nearest) = nearest.filter(|nearest| likeness(nearest) >= LIKENESS_MIN) {
        return format!("{place}unknown key {key}; did you mean {nearest}?");
    }
    match section_with(key) {
        Some(section) => format!("{place}unknown key {key} here; did you mean the one in [{section}]?"),
        None => format!("{place}unknown key {key}; there are {}", known.join(", ")),
    }
}

/// The section that has a key of this name.
fn section_with(key: &str) -> Option<String> {
    let Ok(serde_json::Value::Object(all)) = serde_json::to_value(Config::default()) else { return None };
    let has = |value: &serde_json::Value| value.as_object().is_some_and(|section| section.contains_key(key));
    all.into_iter().find_map(|(name, value)| has(&value).then_some(name))
}
