//! The order of addresses: RFC 6724's rules with the tables of glibc's getaddrinfo(3).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The flags of `/proc/net/if_inet6` that make an address one to avoid: deprecated, or not yet proven unique.
const AVOIDED: u32 = 0x20 | 0x04;

/// The flag of `/proc/net/if_inet6` of a home address (RFC 6275).
const HOME: u32 = 0x10;

/// The address that packets to a destination come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The source address.
    pub address: IpAddr,
    /// The length of its subnet's prefix, in bits, if it is an IPv4 address; 32 if the subnet is not known.
    pub prefix: u8,
    /// Whether the interface's configuration says to avoid the address.
    pub deprecated: bool,
    /// Whether it is a mobile node's home address.
    pub home: bool,
}

impl Source {
    /// The source for each of some destinations in the network namespace of the calling thread; `None` for a
    /// destination without a route. Sends nothing, but makes several system calls.
    pub fn of(destinations: &[IpAddr]) -> Vec<Option<Source>> {
        let interfaces = Interfaces::read();
        destinations.iter().map(|destination| interfaces.source(*destination)).collect()
    }
}

/// The configured addresses, with their prefixes and flags.
#[derive(Default)]
struct Interfaces {
    prefixes: HashMap<Ipv4Addr, u8>,
    flags: HashMap<Ipv6Addr, u32>,
}

impl Interfaces {
    /// Interfaces that cannot be read count as not configured, as in glibc.
    fn read() -> Interfaces {
        // Of the thread's own namespace, unlike /proc/net.
        let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
        let flags: HashMap<_, _> = text.lines().filter_map(flags_of).collect();
        // Without any IPv6 address but the loopback's, glibc has no prefixes either.
        if flags.keys().all(Ipv6Addr::is_loopback) {
            return Interfaces::default();
        }
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let prefix = |interface: nix::ifaddrs::InterfaceAddress| {
            let (address, mask) = (interface.address?, interface.netmask?);
            Some((address.as_sockaddr_in()?.ip(), mask.as_sockaddr_in()?.ip().to_bits().leading_ones() as u8))
        };
        Interfaces { prefixes: all.filter_map(prefix).collect(), flags }
    }

    fn source(&self, destination: IpAddr) -> Option<Source> {
        let address = route(destination).ok()?;
        let (prefix, flags) = match address {
            IpAddr::V4(address) => {
                let configured = if address.is_loopback() { Ipv4Addr::LOCALHOST } else { address };
                (self.prefixes.get(&configured).copied().unwrap_or(32), 0)
            }
            IpAddr::V6(address) => (0, self.flags.get(&address).copied().unwrap_or_default()),
        };
        Some(Source { address, prefix, deprecated: flags & AVOIDED != 0, home: flags & HOME != 0 })
    }
}

/// The address and flags of a line of `if_inet6`: address, index, prefix, scope and flags in hexadecimal, and a name.
fn flags_of(line: &str) -> Option<(Ipv6Addr, u32)> {
    let mut words = line.split_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
    Some((Ipv6Addr::from_bits(address), flags))
}

/// The source address for a destination: the local address of a datagram socket that is connected to it.
fn route(destination: IpAddr) -> rustix::io::Result<IpAddr> {
    let family = if destination.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddr::new(destination, 0))?;
    let local = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok(local.ip())
}

/// Sorts addresses by the sources of packets to them; addresses of the same rank keep their order.
pub(crate) fn sort(addresses: Vec<IpAddr>, sources: &[Option<Source>]) -> Vec<IpAddr> {
    let source = |place: usize| sources.get(place).copied().flatten();
    let mut placed: Vec<_> =
        addresses.into_iter().enumerate().map(|(place, address)| (rank(address, source(place)), address)).collect();
    placed.sort_by_key(|(rank, _)| *rank);
    placed.into_iter().map(|(_, address)| address).collect()
}

/// The values that are compared, in the order of RFC 6724's rules; the smaller comes first. Rule 7, which prefers native transport
/// to tunnels, is left out: a pod has no tunnels of its own.
type Rank = (bool, bool, bool, bool, bool, Reverse<u8>, u8, Reverse<u32>);

fn rank(address: IpAddr, source: Option<Source>) -> Rank {
    let (own, precedence) = (scope(address), Reverse(precedence(address)));
    let Some(source) = source else {
        return (true, false, false, false, false, precedence, own, Reverse(0));
    };
    let (other_scope, other_label) = (own != scope(source.address), label(address) != label(source.address));
    let matching = Reverse(matching_bits(address, source));
    (false, other_scope, source.deprecated, !source.home, other_label, precedence, own, matching)
}

/// Link-local 2, site-local 5, global 14; a multicast address has its own.
fn scope(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) if address.is_link_local() || address.is_loopback() => 2,
        IpAddr::V4(_) => 14,
        IpAddr::V6(address) if address.is_multicast() => address.octets()[1] & 0xf,
        IpAddr::V6(address) if address.is_unicast_link_local() || address.is_loopback() => 2,
        IpAddr::V6(address) if has_prefix(&address, 0xfec0, 10) => 5,
        IpAddr::V6(_) => 14,
    }
}

fn has_prefix(address: &Ipv6Addr, first: u16, bits: u32) -> bool {
    (address.segments()[0] ^ first) >> (16 - bits) == 0
}

/// The table of labels; only equality of labels matters.
fn label(address: IpAddr) -> u8 {
    let IpAddr::V6(address) = address else {
        return 4;
    };
    let segments = address.segments();
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => 0,
        [0x2002, ..] => 2,
        [0, 0, 0, 0, 0, 0, ..] => 3,
        [0, 0, 0, 0, 0, 0xffff, ..] => 4,
        _ if has_prefix(&address, 0xfec0, 10) => 5,
        _ if has_prefix(&address, 0xfc00, 7) => 6,
        [0x2001, 0, ..] => 7,
        _ => 1,
    }
}

/// The table of precedences.
fn precedence(address: IpAddr) -> u8 {
    let IpAddr::V6(address) = address else {
        return 10;
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => 50,
        [0x2002, ..] => 30,
        [0, 0, 0, 0, 0, 0, ..] => 20,
        [0, 0, 0, 0, 0, 0xffff, ..] => 10,
        _ => 40,
    }
}

/// How many bits a destination and its source share, from the first on: for IPv4 none outside of the source's subnet.
fn matching_bits(address: IpAddr, source: Source) -> u32 {
    match (address, source.address) {
        (IpAddr::V4(address), IpAddr::V4(from)) => {
            let bits = (address.to_bits() ^ from.to_bits()).leading_zeros();
            if bits >= source.prefix.into() { bits } else { 0 }
        }
        (IpAddr::V6(address), IpAddr::V6(from)) => (address.to_bits() ^ from.to_bits()).leading_zeros(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, prefix: u8) -> Option<Source> {
        Some(Source { address: address.parse().unwrap(), prefix, deprecated: false, home: false })
    }

    /// Destinations with their sources, in the order that is expected. They are given in the other order.
    fn assert_order(expected: &[(&str, Option<Source>)]) {
        let addresses: Vec<IpAddr> = expected.iter().map(|(address, _)| address.parse().unwrap()).collect();
        let reversed = addresses.iter().rev().copied().collect();
        let sources: Vec<_> = expected.iter().rev().map(|(_, source)| *source).collect();
        assert_eq!(sort(reversed, &sources), addresses);
    }

    #[test]
    fn rules_apply_in_their_order() {
        // 1: a destination without a route is last.
        assert_order(&[("10.0.0.1", source("10.0.0.9", 24)), ("2001:db8::1", None)]);
        // 2: the same scope.
        assert_order(&[("2001:db8::1", source("2001:db8::9", 64)), ("2001:db8::2", source("fe80::9", 64))]);
        // 3: no deprecated source.
        let deprecated = source("2001:db8::9", 64).map(|source| Source { deprecated: true, ..source });
        assert_order(&[("10.0.0.1", source("10.0.0.9", 24)), ("2001:db8::1", deprecated)]);
        // 4: a home address.
        let home = source("10.0.0.9", 24).map(|source| Source { home: true, ..source });
        assert_order(&[("10.0.0.1", home), ("2001:db8::1", source("2001:db8::9", 64))]);
        // 5: the same label, so a pod with a private IPv6 address uses IPv4 for a public one.
        assert_order(&[("192.0.2.1", source("10.0.0.9", 24)), ("2001:db8::1", source("fd00::9", 64))]);
        // 6: precedence.
        assert_order(&[("2001:db8::1", source("2001:db8::9", 64)), ("192.0.2.1", source("10.0.0.9", 24))]);
        // 8: the smaller scope.
        assert_order(&[("fe80::1", source("fe80::9", 64)), ("2001:db8::1", source("2001:db8::9", 64))]);
        // 9: the longer common prefix, for IPv4 in the subnet only.
        assert_order(&[("2001:db8::8", source("2001:db8::9", 64)), ("2001:db8:1::8", source("2001:db8::9", 64))]);
        assert_order(&[("10.0.0.8", source("10.0.0.9", 24)), ("10.0.1.8", source("10.0.0.9", 24))]);
        // 10: the order that was.
        let far = source("10.0.0.9", 24);
        let addresses: Vec<IpAddr> = ["10.2.0.1", "10.1.0.1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(sort(addresses.clone(), &[far, far]), addresses);
    }

    #[test]
    fn the_tables_are_glibcs() {
        let of = |text: &str| {
            let address = text.parse().unwrap();
            (scope(address), label(address), precedence(address))
        };
        let expected = [
            ("127.0.0.1", (2, 4, 10)),
            ("169.254.1.1", (2, 4, 10)),
            ("10.0.0.1", (14, 4, 10)),
            ("::1", (2, 0, 50)),
            ("2002::1", (14, 2, 30)),
            ("::7", (14, 3, 20)),
            ("fec0::1", (5, 5, 40)),
            ("feff::1", (5, 5, 40)),
            ("fd00::1", (14, 6, 40)),
            ("2001::1", (14, 7, 40)),
            ("2001:db8::1", (14, 1, 40)),
            ("ff02::1", (2, 1, 40)),
        ];
        for (text, values) in expected {
            assert_eq!(of(text), values, "{text}");
        }
    }

    #[test]
    fn the_source_for_the_loopback_is_the_loopback() {
        let sources = Source::of(&["127.0.0.1".parse().unwrap()]);
        assert_eq!(sources[0].unwrap().address, IpAddr::from(Ipv4Addr::LOCALHOST));
        let line = "fe800000000000000000000000000001 02 40 20 a0     eth0";
        assert_eq!(flags_of(line), Some(("fe80::1".parse().unwrap(), 0xa0)));
        assert_eq!(flags_of("nonsense"), None);
    }
}
