//! Host names, and the names that are asked for in their place.

use std::borrow::Cow;

use hickory_proto::rr::Name;

use crate::Unresolved;

/// The longest DNS name without its trailing dot, in bytes of text.
const TEXT_BYTES_MAX: usize = 253;

/// The longest part between two dots, in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// A name that may be asked for, in ASCII.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostName<'a> {
    text: Cow<'a, str>,
}

impl<'a> HostName<'a> {
    /// Checks a name as glibc does before it asks: letters, digits, hyphens and underscores in parts of 1 to 63, no
    /// hyphen at the beginning.
    ///
    /// # Errors
    /// [`Unresolved::Invalid`] if no server could answer with such a name.
    pub(crate) fn new(text: &'a str) -> Result<HostName<'a>, Unresolved> {
        let text = if text.is_ascii() {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(idna::domain_to_ascii(text).map_err(|_| Unresolved::Invalid)?)
        };
        let stem = text.strip_suffix('.').unwrap_or(&text);
        let is_name = stem.split('.').all(is_label) && stem.len() <= TEXT_BYTES_MAX && !stem.starts_with('-');
        let is_root = stem.is_empty() && text.len() == 1;
        if !is_name && !is_root {
            return Err(Unresolved::Invalid);
        }
        Ok(HostName { text })
    }

    /// How many dots are in the name, a trailing one included.
    pub(crate) fn dots(&self) -> usize {
        self.text.bytes().filter(|byte| *byte == b'.').count()
    }

    /// Whether the name is complete: no search domain is to be added.
    pub(crate) fn is_complete(&self) -> bool {
        self.text.ends_with('.')
    }

    /// The name to ask for: the name within a search domain. `None` if the two are too long together, or if the
    /// domain is not valid.
    pub(crate) fn within(&self, domain: &[u8]) -> Option<Name> {
        let domain = domain.strip_suffix(b".").unwrap_or(domain);
        let own = self.text.trim_end_matches('.').as_bytes();
        let parts = [own, domain].into_iter().filter(|part| !part.is_empty());
        Name::from_labels(parts.flat_map(|part| part.split(|byte| *byte == b'.'))).ok()
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_parts_of_letters_digits_hyphens_and_underscores() {
        for text in ["a", "a.b.", "a_b.c", "_srv.x", "a-.b", "a.-b", "1a", ".", &"x".repeat(63)] {
            assert!(HostName::new(text).is_ok(), "{text}");
        }
        let long = ["abcdefgh"; 29].join(".");
        for text in ["-a.b", "a..b", ".a", "a..", "a b", "a/b", "a\\.b", "a%b", &"x".repeat(64), &long] {
            assert_eq!(HostName::new(text), Err(Unresolved::Invalid), "{text}");
        }
        assert_eq!(HostName::new("b\u{fc}cher.test").unwrap().text, "xn--bcher-kva.test");
    }

    #[test]
    fn a_domain_is_added_to_a_name() {
        let name = HostName::new("web").unwrap();
        // Of bytes: hickory's own text has escapes.
        let within = |domain: &str| {
            let labels = |name: Name| name.iter().map(|label| String::from_utf8_lossy(label) + ".").collect::<String>();
            name.within(domain.as_bytes()).map(labels)
        };
        assert_eq!(within("a.test").as_deref(), Some("web.a.test."));
        assert_eq!(within("a.test.").as_deref(), Some("web.a.test."));
        assert_eq!(within("").as_deref(), Some("web."));
        assert_eq!(within("-x.d").as_deref(), Some("web.-x.d."));
        assert_eq!(within("a..b"), None);
        assert_eq!(within(&["abcdefgh"; 28].join(".")), None);
        assert_eq!(HostName::new(".").unwrap().within(b"").unwrap(), Name::root());
    }
}
