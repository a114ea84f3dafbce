//! Look-ups: the search list, and the meaning of its failures.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use tokio::net::{TcpSocket, UdpSocket};

use crate::exchange::{Exchange, Failure};
use crate::files::resolv_conf::Configuration;
use crate::message::Reply;
use crate::name::HostName;
use crate::{Files, Source, Unresolved, literal, order};

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The network that names are asked from.
///
/// A socket belongs to the network namespace that it was made in, so these alone decide where packets come from.
pub trait Network: Send + Sync {
    /// A new datagram socket, not connected.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` makes the next server be asked; any other error ends the look-up.
    fn datagram(&self, family: Family) -> impl Future<Output = io::Result<UdpSocket>> + Send;

    /// A new stream socket, not connected.
    ///
    /// # Errors
    /// As for [`Network::datagram`].
    fn stream(&self, family: Family) -> impl Future<Output = io::Result<TcpSocket>> + Send;

    /// The result of [`Source::of`] in the network. That function blocks for some system calls.
    ///
    /// # Errors
    /// After any error, the addresses are sorted without their sources.
    fn sources(&self, destinations: Vec<IpAddr>) -> impl Future<Output = io::Result<Vec<Option<Source>>>> + Send;
}

/// Looks up names for one pod.
#[derive(Debug)]
pub struct Resolver<N> {
    files: Files,
    network: N,
    deadline: Duration,
}

impl<N: Network> Resolver<N> {
    /// A resolver whose look-ups end after `deadline`, whatever the files say about time-outs.
    pub fn new(files: Files, network: N, deadline: Duration) -> Resolver<N> {
        Resolver { files, network, deadline }
    }

    /// The addresses of a name, or the one that it is, at least one and in the order of getaddrinfo(3).
    ///
    /// # Errors
    /// Why there are none.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        if let Some(address) = literal(name)? {
            return Ok(vec![address]);
        }
        let known = self.known(name).await;
        if !known.is_empty() {
            return Ok(known);
        }
        self.asked(name).await
    }

    /// The addresses of the hosts file, in the order of getaddrinfo(3). No question is sent. Empty if the name is not in
    /// the file.
    pub async fn known(&self, name: &str) -> Vec<IpAddr> {
        self.sort(self.files.known(name)).await
    }

    /// The addresses that the name servers have, in the order of getaddrinfo(3). The hosts file is not read.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn asked(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        let found = tokio::time::timeout(self.deadline, self.ask(name)).await;
        found.unwrap_or(Err(Unresolved::Late))
    }

    async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        let name = HostName::new(name)?;
        let configuration = self.files.configuration.as_ref().ok_or(Unresolved::NoResolver)?;
        let found = Search::new(&self.network, configuration).addresses(&name).await?;
        Ok(self.sort(found).await)
    }

    async fn sort(&self, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        if addresses.len() < 2 {
            return addresses;
        }
        let sources = tokio::time::timeout(self.deadline, self.network.sources(addresses.clone())).await;
        order::sort(addresses, &sources.ok().and_then(Result::ok).unwrap_or_default())
    }
}

/// One look-up through the search list.
struct Search<'a, N> {
    exchange: Exchange<'a, N>,
    configuration: &'a Configuration,
}

/// Why one name of the search has no answer.
#[derive(Debug, Clone, Copy)]
enum Miss {
    /// NXDOMAIN.
    Unknown,
    /// Answers without records.
    NoAddress,
    /// The servers failed.
    Failed(Failure),
    /// An answer with another error.
    Error,
}

impl From<Miss> for Unresolved {
    fn from(miss: Miss) -> Unresolved {
        match miss {
            Miss::Unknown => Unresolved::Unknown,
            Miss::NoAddress => Unresolved::NoAddress,
            Miss::Failed(failure) if failure.silent => Unresolved::Late,
            Miss::Failed(Failure { last: Some(ResponseCode::Refused | ResponseCode::NotImp), .. }) => {
                Unresolved::Permanent
            }
            Miss::Failed(_) => Unresolved::Temporary,
            Miss::Error => Unresolved::Permanent,
        }
    }
}

impl<'a, N: Network> Search<'a, N> {
    fn new(network: &'a N, configuration: &'a Configuration) -> Search<'a, N> {
        Search { exchange: Exchange::new(network, configuration), configuration }
    }

    /// As res_search(3) does it: a name with `ndots` dots is asked for as it is first, another one last.
    async fn addresses(&mut self, name: &HostName<'_>) -> Result<Vec<IpAddr>, Unresolved> {
        let complete = name.is_complete();
        let mut as_it_is = None;
        if name.dots() >= self.configuration.ndots || complete {
            match self.one(name, b"").await {
                Ok(found) => return found,
                Err(miss) if complete => return Err(miss.into()),
                Err(miss) => as_it_is = Some(miss),
            }
        }
        let mut misses = Misses::default();
        if !complete {
            let configuration = self.configuration;
            for domain in configuration.domains() {
                match self.one(name, domain).await {
                    Ok(found) => return found,
                    Err(miss) if misses.add(miss, domain) => {}
                    Err(Miss::Failed(Failure { unreachable: true, .. })) => return Err(Unresolved::Temporary),
                    Err(_) => break,
                }
            }
        }
        let too_short = self.configuration.no_tld_query && name.dots() == 0 && misses.last.is_some();
        if as_it_is.is_none() && !misses.root && !too_short {
            match self.one(name, b"").await {
                Ok(found) => return found,
                Err(miss) => misses.last = Some(miss),
            }
        }
        Err(as_it_is.or(misses.no_address).or(misses.failed).or(misses.last).map_or(Unresolved::Unknown, Into::into))
    }

    /// The addresses of a name within one domain. An inner error ends the search: the name exists.
    async fn one(&mut self, name: &HostName<'_>, domain: &[u8]) -> Result<Result<Vec<IpAddr>, Unresolved>, Miss> {
        // Counts as NXDOMAIN, so that the next domains are still searched.
        let Some(asked) = name.within(domain) else {
            return Err(Miss::Unknown);
        };
        self.replies(&asked).await.map(|replies| {
            let found: Vec<_> = replies.into_iter().flat_map(|reply| reply.addresses).collect();
            // An alias that leads to no address ends the search too.
            if found.is_empty() { Err(Unresolved::Unknown) } else { Ok(found) }
        })
    }

    /// The replies to both questions, if there is a record in one of them.
    async fn replies(&mut self, name: &Name) -> Result<Vec<Reply>, Miss> {
        let replies = self.exchange.ask(name).await.map_err(Miss::Failed)?;
        if replies.iter().any(|reply| reply.code == ResponseCode::NoError && reply.has_records) {
            return Ok(replies);
        }
        let failed = replies.iter().map(|reply| reply.code).find(|code| *code != ResponseCode::NoError);
        Err(match failed {
            None => Miss::NoAddress,
            Some(ResponseCode::NXDomain) => Miss::Unknown,
            Some(_) => Miss::Error,
        })
    }
}

/// The failures in the search domains.
#[derive(Default)]
struct Misses {
    /// Whether the root was one of them: the name was asked for as it is.
    root: bool,
    no_address: Option<Miss>,
    failed: Option<Miss>,
    last: Option<Miss>,
}

impl Misses {
    /// Whether the next domain is to be searched.
    fn add(&mut self, miss: Miss, domain: &[u8]) -> bool {
        self.root |= matches!(domain, b"" | b".");
        self.last = Some(miss);
        match miss {
            Miss::Unknown => true,
            Miss::NoAddress => {
                self.no_address = Some(miss);
                true
            }
            Miss::Failed(failure) if failure.last == Some(ResponseCode::ServFail) && !failure.unreachable => {
                self.failed = Some(miss);
                true
            }
            Miss::Failed(_) | Miss::Error => false,
        }
    }
}

#[cfg(test)]
#[path = "resolver/tests.rs"]
mod tests;
