//! Bytes, durations and ages as text for people.

/// Bytes, as `4.0 KiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A duration in seconds, as `12 µs`, `1.2 ms`, `3.4 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.000_999_5 => format!("{:.0} µs", s * 1e6),
        s if s < 0.999_95 => format!("{:.1} ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1} s"),
        s => age(s),
    }
}

/// An age in seconds, in the two largest units: `5m12s`, `3d4h`.
pub fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The age of an event that happened at `at`, in seconds since 1970.
pub fn age_since(at: f64) -> String {
    age(crate::time::unix(std::time::SystemTime::now()) - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_a_fitting_unit() {
        let sizes = [0, 1023, 1024, 64 << 10, 5 << 20, 3 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "64.0 KiB", "5.0 MiB", "3.0 GiB"]);
        let times = [0.0, 12e-6, 0.001_2, 0.999_97, 3.44, 100.0].map(seconds);
        assert_eq!(times, ["0 µs", "12 µs", "1.2 ms", "1.0 s", "3.4 s", "1m40s"]);
        let ages = [0.0, 59.9, 61.0, 3_700.0, 90_000.0].map(age);
        assert_eq!(ages, ["0s", "59s", "1m1s", "1h1m", "1d1h"]);
    }
}
