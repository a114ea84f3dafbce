//! Text of guests, images and specs as the daemon shows it: bounded, and harmless to a terminal and to a log.
//!
//! A guest chooses the names in its module, the text of its traps and the arguments of its container. Each of these
//! reaches the log, errors that containerd passes on, the container's standard error and hearthctl. [`shown`] is what
//! all of them show.

use std::borrow::Cow;

/// The most bytes of a name that an error quotes: of an import, an export, a file.
pub const NAME_BYTES_MAX: usize = 200;

/// The most bytes of an error's message at containerd, which keeps it in the container's status.
pub const ERROR_BYTES_MAX: usize = 2 << 10;

/// `text` in one line of at most `bytes_max` bytes.
///
/// Control characters, line and paragraph separators and those that change the direction of text are escaped as in
/// a Rust string (`\n`, `\u{1b}`); backslashes stay as they are, so that a text may pass here twice. Of a longer text
/// the first part is shown, and its length: `first part… (90000 bytes)`.
pub fn shown(text: &str, bytes_max: usize) -> Cow<'_, str> {
    escaped(text, bytes_max, is_escaped)
}

/// As [`shown`], but lines stay lines: for a trap with its backtrace, where no line of a log depends on it.
pub fn shown_lines(text: &str, bytes_max: usize) -> Cow<'_, str> {
    escaped(text, bytes_max, |c| c != '\n' && is_escaped(c))
}

fn is_escaped(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, bytes_max: usize, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.len() <= bytes_max && !text.chars().any(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let length = format!("… ({} bytes)", text.len());
    let room = bytes_max.saturating_sub(length.len());
    let (mut out, mut cut) = (String::new(), 0);
    for c in text.chars() {
        match is_escaped(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
        if out.len() <= room {
            cut = out.len();
        }
        if out.len() > bytes_max {
            out.truncate(cut);
            out.push_str(&length[..length.floor_char_boundary(bytes_max - cut)]);
            break;
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_or_a_log_would_obey_is_escaped() {
        assert_eq!(shown("plain \\ é", 100), "plain \\ é");
        assert_eq!(
            shown("a\nb\r\x1b[2Jc\u{9b}\u{202e}\u{2028}\0", 100),
            r"a\nb\r\u{1b}[2Jc\u{9b}\u{202e}\u{2028}\u{0}"
        );
        assert_eq!(shown_lines("a\n\x1b[2Jb\n", 100), "a\n\\u{1b}[2Jb\n");
    }

    #[test]
    fn a_long_text_is_its_first_part_and_its_length() {
        let name = "x".repeat(90_000);
        let text = shown(&name, 200);
        assert!(text.len() == 200 && text.starts_with("xxx") && text.ends_with("x… (90000 bytes)"), "{text}");
    }

    #[test]
    fn no_text_is_longer_than_its_bound_and_none_changes_when_shown_again() {
        let all = ["é".repeat(50), "\x1b".repeat(50), "a\n".repeat(50), "x".repeat(99), "𝄞\u{7f}".repeat(20)];
        for text in &all {
            for bytes_max in 0..300 {
                let once = shown(text, bytes_max);
                assert!(once.len() <= bytes_max, "{} bytes of {bytes_max}: {once}", once.len());
                assert_eq!(shown(&once, bytes_max), once);
                assert!(!once.chars().any(is_escaped), "{once:?}");
            }
        }
    }
}
