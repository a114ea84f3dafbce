//! Addresses as text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Unresolved;

/// The longest name, in bytes: a DNS name's 255 as text, with room for a trailing dot.
const NAME_BYTES_MAX: usize = 256;

/// The longest name of a network interface, in bytes (the kernel's `IFNAMSIZ` without its NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// The address that a text is, or `None` if the text is a name.
///
/// IPv4 addresses are read as inet_aton(3) reads them: one to four parts, each decimal, octal or hexadecimal. An IPv6
/// address may have a scope (`fe80::1%2`). The scope is checked and then dropped: WASI's look-ups have no field for it.
///
/// # Errors
/// [`Unresolved::Invalid`] if the text is empty, too long, or has a NUL; [`Unresolved::Unknown`] for a scope that no
/// interface can have.
pub fn literal(text: &str) -> Result<Option<IpAddr>, Unresolved> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains('\0') {
        return Err(Unresolved::Invalid);
    }
    if let Some(address) = ipv4(text.as_bytes()) {
        return Ok(Some(address.into()));
    }
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<Ipv6Addr>() else {
        return Ok(None);
    };
    match scope {
        Some(scope) if !is_scope(&address, scope) => Err(Unresolved::Unknown),
        _ => Ok(Some(address.into())),
    }
}

/// The address that inet_aton(3) reads, if the whole text is an address.
pub(crate) fn ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(text).ok()?;
    let parts = text.split('.').map(number).collect::<Option<Vec<u32>>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 0xff) {
        return None;
    }
    // The last part fills the bytes that the others leave.
    let room = 32 - 8 * first.len() as u32;
    if room < 32 && *last >> room != 0 {
        return None;
    }
    let high = first.iter().enumerate().map(|(place, part)| part << (24 - 8 * place)).sum::<u32>();
    Some(Ipv4Addr::from_bits(high | last))
}

/// A number as strtoul(3) reads it with base 0, without signs and blanks.
fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// Whether the scope of an address may be the name of an interface. Other addresses only have a number there.
pub(crate) fn is_link_local(address: &Ipv6Addr) -> bool {
    let multicast_here = address.is_multicast() && matches!(address.segments()[0] & 0xf, 1 | 2);
    address.is_unicast_link_local() || multicast_here
}

fn is_scope(address: &Ipv6Addr, scope: &str) -> bool {
    let numeric = scope.bytes().all(|byte| byte.is_ascii_digit()) && scope.parse::<u32>().is_ok();
    let interface = (1..=INTERFACE_BYTES_MAX).contains(&scope.len())
        && scope.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    numeric || (is_link_local(address) && interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_has_one_to_four_parts_in_three_notations() {
        let read = [
            ("127.0.0.1", "127.0.0.1"),
            ("127.1", "127.0.0.1"),
            ("10.1.258", "10.1.1.2"),
            ("2130706433", "127.0.0.1"),
            ("0x7f.1", "127.0.0.1"),
            ("0X7F000001", "127.0.0.1"),
            ("0177.0.0.01", "127.0.0.1"),
            ("0", "0.0.0.0"),
            ("4294967295", "255.255.255.255"),
            ("1.16777215", "1.255.255.255"),
        ];
        for (text, address) in read {
            assert_eq!(literal(text), Ok(Some(address.parse().unwrap())), "{text}");
        }
        let names = ["1.2.3.4.5", "256.1.1.1", "1.16777216", "4294967296", "08.1.1.1", "0x.1", "1.2.3.4.", "1..2"];
        for text in names.into_iter().chain(["+1", "1.+2", "0x+1", "-1", "1e3", "a.b", "1.2.3.4 "]) {
            assert_eq!(literal(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn an_ipv6_address_may_have_a_scope() {
        for (text, address) in [("::1", "::1"), ("fe80::1%2", "fe80::1"), ("fe80::1%eth0", "fe80::1"), ("::1%7", "::1")]
        {
            assert_eq!(literal(text), Ok(Some(address.parse().unwrap())), "{text}");
        }
        for text in ["fe80::1%", "fe80::1%a/b", "::1%lo", "fe80::1%a234567890123456", "::1%4294967296"] {
            assert_eq!(literal(text), Err(Unresolved::Unknown), "{text}");
        }
        assert_eq!(literal("x%1"), Ok(None));
    }

    #[test]
    fn a_text_that_is_neither_address_nor_name_is_invalid() {
        for text in ["", "a\0b", &"x".repeat(257)] {
            assert_eq!(literal(text), Err(Unresolved::Invalid), "{text:?}");
        }
        assert_eq!(literal(&"x".repeat(256)), Ok(None));
    }
}
