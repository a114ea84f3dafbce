//! The metrics of several generations in one text. Samples of older generations have the label `generation`.
//!
//! An older generation is another process and answers with text, which no collector of the `prometheus` crate takes,
//! and the crate has no parser. Nothing of a sample is interpreted here: lines are sorted by metric, and one label is
//! inserted.

use std::collections::HashMap;

/// The label of an older generation's samples.
const LABEL: &str = "generation";

/// One metric: its `# HELP` and `# TYPE` lines, and its samples.
#[derive(Default)]
struct Family<'a> {
    head: Vec<&'a str>,
    samples: Vec<String>,
}

/// Merges `own`, the text of this generation, with the texts of `others`, each with its generation's id.
///
/// The text format has all samples of a metric in one place, below one head.
pub fn merge(own: &str, others: &[(String, String)]) -> String {
    let mut order = Vec::new();
    let mut families: HashMap<&str, Family> = HashMap::new();
    let all = [(None, own)].into_iter().chain(others.iter().map(|(id, text)| (Some(id.as_str()), text.as_str())));
    for (generation, text) in all {
        let mut name = "";
        let mut is_new = false;
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# ") {
                let mut words = head.split(' ');
                let (_, of) = (words.next(), words.next().unwrap_or_default());
                if of != name {
                    name = of;
                    is_new = !families.contains_key(of);
                    if is_new {
                        order.push(of);
                        families.insert(of, Family::default());
                    }
                }
                if is_new && let Some(family) = families.get_mut(of) {
                    family.head.push(line);
                }
            } else if !line.is_empty()
                && let Some(family) = families.get_mut(name)
            {
                family.samples.push(generation.map_or_else(|| line.to_string(), |id| labelled(line, id)));
            }
        }
    }
    let mut merged = String::new();
    for family in order.iter().filter_map(|name| families.get(name)) {
        for line in family.head.iter().copied().chain(family.samples.iter().map(String::as_str)) {
            merged += line;
            merged.push('\n');
        }
    }
    merged
}

/// A sample with one more label. A generation's id is hexadecimal, so that it needs no escape.
fn labelled(sample: &str, generation: &str) -> String {
    match sample.split_once('{') {
        Some((name, rest)) => format!("{name}{{{LABEL}=\"{generation}\",{rest}"),
        None => match sample.split_once(' ') {
            Some((name, value)) => format!("{name}{{{LABEL}=\"{generation}\"}} {value}"),
            None => sample.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_stay_together_with_their_generation() {
        let own = "# HELP a A.\n# TYPE a counter\na 1\n# HELP b B.\n# TYPE b gauge\nb{x=\"1\"} 2\n";
        let old = "# HELP a A, once.\n# TYPE a counter\na 3\n# HELP c C.\n# TYPE c gauge\nc 4\n";
        let merged = merge(own, &[("0a".into(), old.into()), ("0b".into(), "# TYPE b gauge\nb{x=\"1\"} 5\n".into())]);
        let want = "# HELP a A.\n# TYPE a counter\na 1\na{generation=\"0a\"} 3\n\
                    # HELP b B.\n# TYPE b gauge\nb{x=\"1\"} 2\nb{generation=\"0b\",x=\"1\"} 5\n\
                    # HELP c C.\n# TYPE c gauge\nc{generation=\"0a\"} 4\n";
        assert_eq!(merged, want);
    }

    #[test]
    fn alone_nothing_changes() {
        let metrics = hearth_observe::metrics::Metrics::new();
        let text = metrics.render();
        assert_eq!(merge(&text, &[]), text);
    }
}
