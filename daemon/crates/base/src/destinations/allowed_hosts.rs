//! Spin's `allowed_outbound_hosts`: entries `scheme://host[:port]`.
//!
//! * scheme: letters, or `*` for all.
//! * host: a name, an address, a network (`10.0.0.0/8`), `*.domain` for all names below a domain, `*` for all, `self` (or
//!   `self.alt`) for the own application.
//! * port: a number, `*`, or a range `A..B` without its end. An entry without a port has the scheme's own.

use std::net::IpAddr;

use super::networks::IpNetwork;
use super::without_brackets;
use crate::error::{Error, Result};
use crate::text::shown;

/// The most bytes of an entry in an error.
const ENTRY_BYTES_MAX: usize = 200;

/// Which hosts a component may reach: those that an entry matches. Without entries, none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// `None`: all.
    scheme: Option<String>,
    host: Host,
    ports: Ports,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    /// The names that end with this, which begins with a dot.
    Below(String),
    OwnApplication,
    Name(String),
    Network(IpNetwork),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    Any,
    /// From the first up to, but not including, the second.
    Range(u32, u32),
}

impl AllowedHosts {
    /// Parses the entries of a list, in which all templates are resolved. Entries that a template left empty (``,
    /// `http://`, `https://`) match nothing.
    ///
    /// # Errors
    /// `InvalidArgument` naming the entry and what is wrong with it.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<AllowedHosts> {
        let entries = entries.into_iter().map(str::trim).filter(|entry| !matches!(*entry, "" | "http://" | "https://"));
        entries.map(Entry::parse).collect::<Result<_>>().map(AllowedHosts)
    }

    /// Whether an entry matches.
    pub fn allows(&self, scheme: &str, host: &str, port: u16) -> bool {
        let host = Wanted::new(host);
        self.0.iter().any(|entry| entry.has_scheme(scheme) && entry.ports.contains(port) && entry.host.matches(&host))
    }

    /// Whether an entry with one of these schemes matches the name, whatever its port.
    pub fn names(&self, schemes: &[&str], name: &str) -> bool {
        let name = Wanted::new(name);
        let has_one = |entry: &Entry| schemes.iter().any(|scheme| entry.has_scheme(scheme));
        self.0.iter().any(|entry| has_one(entry) && entry.host.matches(&name))
    }

    /// Whether an entry allows requests to the own application.
    pub fn allows_self(&self, scheme: &str) -> bool {
        let own = |entry: &Entry| matches!(entry.host, Host::Any | Host::OwnApplication);
        self.0.iter().any(|entry| entry.has_scheme(scheme) && own(entry))
    }
}

/// A host to be reached.
enum Wanted {
    Address(IpAddr),
    Name(String),
}

impl Wanted {
    fn new(host: &str) -> Wanted {
        match without_brackets(host).parse() {
            Ok(address) => Wanted::Address(address),
            Err(_) => Wanted::Name(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()),
        }
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Entry> {
        let wrong = |what: &str| {
            let entry = shown(text, ENTRY_BYTES_MAX);
            Error::InvalidArgument(format!("the allowed host {entry:?}: {what}"))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| {
            wrong(
                "it has no scheme; an entry is scheme://host:port, for example https://example.com, or *://*:* for all",
            )
        })?;
        if scheme != "*" && (scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphabetic())) {
            return Err(wrong("a scheme has only letters, or is *"));
        }
        let (host, port) = split_port(rest).ok_or_else(|| wrong("it has a path, which an entry cannot have"))?;
        Ok(Entry {
            scheme: (scheme != "*").then(|| scheme.to_ascii_lowercase()),
            host: Host::parse(host).map_err(|what| wrong(&what))?,
            ports: Ports::parse(port, scheme).map_err(|what| wrong(&what))?,
        })
    }

    fn has_scheme(&self, scheme: &str) -> bool {
        self.scheme.as_deref().is_none_or(|own| own == scheme)
    }
}

/// Host and port of an entry without its scheme; `None` if it has a path.
fn split_port(rest: &str) -> Option<(&str, &str)> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.parse::<IpNetwork>().is_ok() {
        return Some((rest, ""));
    }
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    let has_path = host.contains('/') && host.parse::<IpNetwork>().is_err() || port.contains('/');
    (!has_path).then_some((host, port))
}

impl Host {
    fn parse(text: &str) -> std::result::Result<Host, String> {
        if let Ok(network) = text.parse() {
            return Ok(Host::Network(network));
        }
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "*" => Ok(Host::Any),
            "self" | "self.alt" => Ok(Host::OwnApplication),
            name => match name.strip_prefix('*') {
                Some(below) if below.strip_prefix('.').is_some_and(is_name) => Ok(Host::Below(below.to_owned())),
                None if is_name(name) => Ok(Host::Name(name.to_owned())),
                Some(_) => Err("* is a host alone, or the first part of a name: *.example.com".into()),
                None => Err(format!("{name:?} is neither a host name nor an address")),
            },
        }
    }

    fn matches(&self, wanted: &Wanted) -> bool {
        match (self, wanted) {
            (Host::Any, _) => true,
            (Host::Below(domain), Wanted::Name(name)) => name.ends_with(domain.as_str()),
            (Host::Name(own), Wanted::Name(name)) => own == name,
            (Host::Network(network), Wanted::Address(address)) => network.contains(*address),
            // `self` is asked for by its own method.
            (Host::Below(_) | Host::Name(_) | Host::Network(_) | Host::OwnApplication, _) => false,
        }
    }
}

/// Letters and digits of any script, `-`, `_` and dots between them.
fn is_name(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
    text.split('.').all(part)
}

impl Ports {
    fn parse(text: &str, scheme: &str) -> std::result::Result<Ports, String> {
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
        match text {
            "" => match default_port(scheme) {
                Some(port) => Ok(Ports::one(port)),
                None => Err(format!("it has no port, and the scheme {scheme:?} has none of its own; :* is all ports")),
            },
            "*" => Ok(Ports::Any),
            _ => match text.split_once("..") {
                Some((from, to)) => Ok(Ports::Range(number(from)?.into(), number(to)?.into())),
                None => Ok(Ports::one(number(text)?)),
            },
        }
    }

    fn one(port: u16) -> Ports {
        Ports::Range(port.into(), u32::from(port) + 1)
    }

    fn contains(self, port: u16) -> bool {
        match self {
            Ports::Any => true,
            Ports::Range(from, to) => (from..to).contains(&port.into()),
        }
    }
}

/// The port that an entry without one stands for.
fn default_port(scheme: &str) -> Option<u16> {
    Some(match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        "postgres" => 5432,
        "mysql" => 3306,
        "redis" => 6379,
        "mqtt" => 1883,
        _ => return None,
    })
}
