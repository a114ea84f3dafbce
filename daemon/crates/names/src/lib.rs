//! Names as getaddrinfo(3) of glibc 2.36 looks them up, by files and sockets of the caller's choice.
//!
//! A program in a pod expects its pod's files to be used: `/etc/hosts` first, then the servers of `/etc/resolv.conf`
//! in the order of that file. glibc uses the files and the network of the calling process. Here the caller gives both:
//! [`Files`] are parsed from bytes, and a [`Network`] makes the sockets, for example in another network namespace.
//!
//! These follow glibc. The sources are resolv.conf(5), resolver(5) and the test `glibc`, which compares each look-up
//! of a table with getaddrinfo(3):
//!
//! * **Servers**: the first three `nameserver` lines, in their order; the next one after a time-out, an I/O error,
//!   SERVFAIL, NOTIMP, REFUSED or a malformed answer, but not after NXDOMAIN; 127.0.0.1 if there is no line.
//! * **Options**: `timeout` (1 to 30 s), `attempts` (1 to 5), `ndots` (up to 15), `rotate`, `edns0`, `trust-ad`,
//!   `single-request`, `single-request-reopen`, `use-vc`, `no-aaaa`, `no-tld-query`. `no-reload` has no meaning: the
//!   caller reads the files for each look-up. Other options are in [`Files::problems`] and change nothing.
//! * **Search**: any number of domains of the last `search` or `domain` line, or the domain of the host name.
//! * **Order of addresses**: RFC 6724 with glibc's tables, by the source addresses that the network would use.
//!
//! These differ from glibc on purpose; the test has a row for each:
//!
//! * Without a resolv.conf there is no resolver ([`Unresolved::NoResolver`]); glibc would ask 127.0.0.1.
//! * A server that answers SERVFAIL, NOTIMP or REFUSED by TCP is left for the next one, as by UDP; glibc returns the
//!   error. The server's time-out also limits a TCP exchange; glibc waits without limit.
//! * SERVFAIL to one of the questions for A and AAAA beside an empty answer to the other makes the next server be
//!   asked. glibc reports that the name has no address, and a program takes that as a lasting error.
//! * A message that cannot be decoded makes the next server be asked; glibc gives up.
//! * FORMERR is [`Unresolved::Permanent`]; glibc reports that there is no such name.
//! * A carriage return ends a line of resolv.conf; glibc takes it as part of the last word.
//! * The interface in the scope of a literal address is not looked up.
//! * A search domain that is not a valid name is skipped; glibc ends the search there. `attempts:0` is one attempt;
//!   glibc sends no question.
//! * Names with letters outside ASCII are asked for in their IDNA form, as WASI prescribes.
//! * A name of the hosts file is found with a trailing dot too, and with all its lines; glibc reads more than the
//!   first only if `/etc/host.conf` has `multi on`, which distributions ship.
//! * IPv4-mapped IPv6 addresses of files and servers are returned as IPv4 addresses: WASI's sockets take no mapped
//!   addresses.
//!
//! No answer is cached, and neither `/etc/nsswitch.conf` nor `/etc/gai.conf` is read.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod exchange;
mod files;
mod literal;
mod message;
mod name;
mod order;
mod resolver;

pub use files::Files;
pub use literal::literal;
#[cfg(feature = "fuzzing")]
pub use message::fuzzing;
pub use order::Source;
pub use resolver::{Family, Network, Resolver};

/// Why a name has no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The text cannot be a host name, and nothing was asked: WASI's `invalid-argument`.
    #[error("not a host name")]
    Invalid,
    /// No such name is known: WASI's `name-unresolvable`.
    #[error("no such name")]
    Unknown,
    /// The name is known but has no address: WASI's `name-unresolvable`.
    #[error("the name has no address")]
    NoAddress,
    /// No server answered in time: WASI's `temporary-resolver-failure`.
    #[error("no answer in time")]
    Late,
    /// The servers cannot tell now (SERVFAIL), or cannot be reached: WASI's `temporary-resolver-failure`.
    #[error("the name servers cannot answer now")]
    Temporary,
    /// The servers do not answer such questions (REFUSED, NOTIMP, FORMERR): WASI's `permanent-resolver-failure`.
    #[error("the name servers do not answer this question")]
    Permanent,
    /// There is no resolv.conf, so there is no resolver to ask: WASI's `permanent-resolver-failure`.
    #[error("there is no resolv.conf")]
    NoResolver,
}
