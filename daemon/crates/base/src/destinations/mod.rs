//! Which servers a component may reach: a list of allowed hosts, and networks that are blocked whatever the list says.
//!
//! The list is Spin's `allowed_outbound_hosts`, the networks are `block_networks` of its runtime configuration. A
//! component of a pod that has neither may reach all that its pod may.
//!
//! * `allowed_hosts.rs`: one entry of the list, and its matches.
//! * `networks.rs`: networks of addresses.
//! * `tests.rs`: tables of entries.

mod allowed_hosts;
mod networks;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::error::Result;

pub use allowed_hosts::AllowedHosts;
pub use networks::{BlockedNetworks, IpNetwork};

/// The host of an authority without the brackets of an IPv6 address (RFC 3986, 3.2.2).
pub fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

/// Which servers a component may reach. A copy is cheap.
#[derive(Debug, Clone, Default)]
pub struct Destinations {
    /// `None`: all that its pod may reach.
    limits: Option<Arc<Limits>>,
}

#[derive(Debug)]
struct Limits {
    allowed: AllowedHosts,
    blocked: BlockedNetworks,
}

impl Destinations {
    /// Only these hosts, and no address of these networks.
    pub fn only(allowed: AllowedHosts, blocked: BlockedNetworks) -> Destinations {
        Destinations { limits: Some(Arc::new(Limits { allowed, blocked })) }
    }

    /// Only the hosts of this list.
    ///
    /// # Errors
    /// `InvalidArgument` naming the entry and what is wrong with it.
    pub fn parse<'a>(allowed: impl IntoIterator<Item = &'a str>) -> Result<Destinations> {
        Ok(Destinations::only(AllowedHosts::parse(allowed)?, BlockedNetworks::default()))
    }

    /// Whether there is a list. Without one, the component may reach all that its pod may.
    pub fn is_limited(&self) -> bool {
        self.limits.is_some()
    }

    /// Whether the server may be reached, as far as its name tells: `host` is a name or an address, an IPv6 address
    /// with or without brackets. The addresses of a name are checked by [`Destinations::address`].
    pub fn host(&self, scheme: &str, host: &str, port: u16) -> bool {
        self.limits.as_ref().is_none_or(|limits| limits.allowed.allows(scheme, host, port))
    }

    /// Whether an address that a name was resolved to is in no blocked network.
    pub fn address(&self, address: IpAddr) -> bool {
        self.limits.as_ref().is_none_or(|limits| !limits.blocked.contains(address))
    }

    /// Whether a socket may exchange bytes with this address.
    pub fn socket(&self, scheme: &str, address: SocketAddr) -> bool {
        self.host(scheme, &address.ip().to_string(), address.port()) && self.address(address.ip())
    }

    /// Whether the addresses of a name may be asked for: an entry for sockets has the name.
    pub fn look_up(&self, name: &str) -> bool {
        self.limits.as_ref().is_none_or(|limits| limits.allowed.names(&["tcp", "udp"], name))
    }

    /// Whether the component may send requests to its own application (`self`).
    pub fn own_application(&self, scheme: &str) -> bool {
        self.limits.as_ref().is_none_or(|limits| limits.allowed.allows_self(scheme))
    }
}
