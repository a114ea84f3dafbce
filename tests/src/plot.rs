//! Lines over time as an SVG: pictures of a dashboard's panels, as Debian has no Grafana.

use std::fmt::Write as _;

/// A line: its name, and its points (seconds, value).
pub type Line = (String, Vec<(f64, f64)>);

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 34.0;
const COLOURS: [&str; 10] =
    ["#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00", "#b82e2e", "#316395"];

/// A picture of lines. `unit` is Grafana's name of the values' unit.
pub fn svg(title: &str, unit: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|(_, points)| points).filter(|(_, value)| value.is_finite());
    let begin = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let end = points().map(|point| point.0).fold(begin + 1.0, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max).max(1e-9) * 1.05;
    let x = |at: f64| LEFT + (at - begin) / (end - begin) * (WIDTH - LEFT - 10.0);
    let y = |value: f64| TOP + HEIGHT - value / top * HEIGHT;
    let height = TOP + HEIGHT + 34.0 + 16.0 * lines.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"{LEFT}\" y=\"20\" \
         font-size=\"14\">{}</text>\n",
        escape(title)
    );
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\" fill=\"#555\">{}</text>",
            WIDTH - 10.0,
            LEFT - 6.0,
            y(value) + 4.0,
            shown(value, unit),
            y = y(value),
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{0}\" fill=\"#555\">0 s</text><text x=\"{1}\" y=\"{0}\" text-anchor=\"end\" \
         fill=\"#555\">{2:.0} s</text>",
        TOP + HEIGHT + 14.0,
        WIDTH - 10.0,
        end - begin
    );
    for (at, (name, points)) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let finite = points.iter().filter(|(_, value)| value.is_finite());
        let path: Vec<String> = finite.map(|&(time, value)| format!("{:.1},{:.1}", x(time), y(value))).collect();
        let below = TOP + HEIGHT + 32.0 + 16.0 * at as f64;
        let last = points.last().map(|point| shown(point.1, unit)).unwrap_or_default();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/><rect x=\"{LEFT}\" \
             y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"{below}\">{} ({last})</text>",
            path.join(" "),
            below - 9.0,
            LEFT + 16.0,
            escape(name),
        );
    }
    svg + "</svg>\n"
}

/// A value as people read it.
fn shown(value: f64, unit: &str) -> String {
    match unit {
        "s" if value == 0.0 => "0".into(),
        "s" if value < 1e-3 => format!("{:.0} µs", value * 1e6),
        "s" if value < 1.0 => format!("{:.1} ms", value * 1e3),
        "s" => format!("{value:.2} s"),
        "percentunit" => format!("{:.1} %", value * 100.0),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_the_left_to_the_right_and_the_highest_point_is_at_the_top() {
        let text = svg("a < b", "s", &[("one".into(), vec![(10.0, 0.0), (20.0, 2.0), (15.0, f64::NAN)])]);
        assert!(text.contains("a &lt; b") && text.contains("one (NaN s)"), "{text}");
        assert!(text.contains("points=\"70.0,254.0 850.0,44.5\""), "{text}");
    }
}
