//! An edit by toml_edit, applied to the file's own lines: line ends, quotes and comments that it would change stay.
//!
//! toml_edit writes `\n` for each line end, one kind of quotes for a key that the file writes with two, and drops the
//! comments above a key that it removes. It never joins or splits a line, so its text and the file's have the same
//! lines in the same order.

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// The mark that some editors put at the beginning of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// `text` with the edit that makes `after` from `before`, where `before` is toml_edit's output for the unedited `text`.
/// New lines get the line end of the file. Lines that are only a comment are kept.
pub fn apply_edit(text: &str, before: &str, after: &str) -> String {
    if let Some(rest) = text.strip_prefix(BYTE_ORDER_MARK) {
        return format!("{BYTE_ORDER_MARK}{}", apply_edit(rest, before, after));
    }
    let split = |text| str::split_inclusive(text, '\n').collect::<Vec<_>>();
    let (lines, old, new) = (split(text), split(before), split(after));
    if lines.len() != old.len() {
        return after.to_owned();
    }
    let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut out = String::with_capacity(text.len() + after.len());
    let mut push = |line: &str| {
        // The last line of the file may have no end.
        if !out.is_empty() && !out.ends_with('\n') {
            out.push_str(line_end);
        }
        out.push_str(line);
    };
    for op in capture_diff_slices(Algorithm::Myers, &old, &new) {
        match op {
            DiffOp::Equal { .. } => lines[op.old_range()].iter().for_each(|line| push(line)),
            DiffOp::Delete { .. } | DiffOp::Insert { .. } | DiffOp::Replace { .. } => {
                lines[op.old_range()]
                    .iter()
                    .filter(|line| line.trim_start().starts_with('#'))
                    .for_each(|line| push(line));
                new[op.new_range()]
                    .iter()
                    .for_each(|line| push(&format!("{}{line_end}", line.trim_end_matches(['\r', '\n']))));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_lines_keep_their_ends_and_quotes() {
        let text = "[p.\"a\".x]\r\nq=1\r\n[p.'a'.y]\r\nr=2";
        let before = "[p.\"a\".x]\nq=1\n[p.\"a\".y]\nr=2\n";
        let after = "version = 2\n[p.\"a\".x]\nq=1\n[p.\"a\".y]\nr=2\n\n[z]\n";
        let wanted = "version = 2\r\n[p.\"a\".x]\r\nq=1\r\n[p.'a'.y]\r\nr=2\r\n\r\n[z]\r\n";
        assert_eq!(apply_edit(text, before, after), wanted);
    }

    #[test]
    fn comments_stay_where_their_table_goes() {
        let text = "a = 1\n# mine\n[hearth]\nb = 2\n[c]\n";
        assert_eq!(apply_edit(text, text, "a = 1\n[c]\n"), "a = 1\n# mine\n[c]\n");
    }

    #[test]
    fn a_byte_order_mark_stays_first() {
        assert_eq!(apply_edit("\u{feff}a = 1\n", "a = 1\n", "v = 2\na = 1\n"), "\u{feff}v = 2\na = 1\n");
    }
}
