//! Networks of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::without_brackets;
use crate::error::{Error, Result};

/// The addresses that share a prefix: `10.0.0.0/8`, `fd00::/8`. An address alone is the network of that address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetwork {
    /// In the form of an IPv6 address; an IPv4 address is mapped (`::ffff:0:0/96`).
    prefix: u128,
    mask: u128,
}

/// The bits of an IPv4-mapped address before the IPv4 address.
const MAPPED_BITS: u32 = 96;

impl IpNetwork {
    /// Whether the address is in the network. An IPv4-mapped IPv6 address is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) & self.mask == self.prefix
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for IpNetwork {
    type Err = Error;

    fn from_str(text: &str) -> Result<IpNetwork> {
        let wrong = || Error::InvalidArgument(format!("{text:?} is not a network of addresses, as 10.0.0.0/8 is one"));
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = without_brackets(address).parse().map_err(|_| wrong())?;
        let (all, before) = if address.is_ipv4() { (32, MAPPED_BITS) } else { (128, 0) };
        let length = match length {
            Some(length) => length.parse().ok().filter(|length| *length <= all).ok_or_else(wrong)?,
            None => all,
        };
        let mask = u128::MAX.checked_shl(u128::BITS - before - length).unwrap_or(0);
        Ok(IpNetwork { prefix: bits(address) & mask, mask })
    }
}

/// Networks that a component may not reach, whatever names lead to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockedNetworks {
    networks: Vec<IpNetwork>,
    private: bool,
}

impl BlockedNetworks {
    /// These networks; with `private`, also each address that is not of the public Internet.
    pub fn new(networks: Vec<IpNetwork>, private: bool) -> BlockedNetworks {
        BlockedNetworks { networks, private }
    }

    /// Whether the address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
            || self.private && !is_public(address.to_canonical())
    }
}

/// Whether an address is one of the public Internet, by IANA's registries of special-purpose addresses
/// (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && b & 0xc0 == 64;
    let protocols = a == 192 && b == 0 && c == 0;
    let benchmarks = a == 198 && b & 0xfe == 18;
    !(a == 0
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || shared
        || protocols
        || benchmarks
        || a >= 240)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // IPv4-compatible and translated addresses lead to the IPv4 address in them.
    if let [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
        return is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    let [a, b, ..] = address.segments();
    // Only 2000::/3 is assigned to the public Internet; 2001::/23 and 2001:db8::/32 of it have other uses.
    a & 0xe000 == 0x2000 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8))
}
