//! The port of a service: which one, how many connections wait at it, and binding it.
//!
//! It is bound in the pod's network and with the container's rights, so that a port that the container may not have is
//! refused as it would be to a native server. A port that cannot be bound is Start's error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind as bind_socket, listen, socket_with, sockopt};

use crate::context::Http;
use hearth_base::env::last;
use hearth_base::error::{Error, Result};
use hearth_os::identity::{self, Identity};

/// The environment variable with the port.
pub const PORT: &str = "HEARTH_HTTP_PORT";

/// runwasi's environment variable with an address and a port.
pub const ADDRESS: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";

/// The port if neither variable is set.
pub const PORT_DEFAULT: u16 = 8080;

/// runwasi's environment variable with the number of connections that may wait to be accepted, in its present form and in
/// an earlier one.
pub const BACKLOGS: [&str; 2] = ["WASMTIME_HTTP_PROXY_BACKLOG", "WASMTIME_HTTP_BACKLOG"];

/// Connections that may wait to be accepted, unless the environment says otherwise. The kernel's own bound of the pod's
/// network (`net.core.somaxconn`) holds as well.
const BACKLOG_DEFAULT: i32 = 1_024;

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The first one has to be bound.
    addresses: Vec<SocketAddr>,
    /// Connections that may wait to be accepted.
    backlog: i32,
    /// The environment variable that chooses the addresses.
    variable: &'static str,
}

impl Listen {
    /// Where the environment of a container of one program asks for.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable.
    pub fn of(env: &[(String, String)]) -> Result<Listen> {
        Ok(Listen { addresses: addresses(env)?, backlog: backlog(env)?, variable: PORT })
    }

    /// At these addresses, which `variable` chooses.
    pub fn at(addresses: Vec<SocketAddr>, variable: &'static str) -> Listen {
        Listen { addresses, backlog: BACKLOG_DEFAULT, variable }
    }
}

fn addresses(env: &[(String, String)]) -> Result<Vec<SocketAddr>> {
    let find = |name| last(env, name).map(str::trim);
    // Kubernetes sets this variable in every pod of a namespace with a Service called `hearth-http`, to the address of
    // that Service (`tcp://10.96.0.7:80`): it says nothing about this container.
    let of_service = |value: &&str| ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let port = match (find(PORT).filter(|value| !of_service(value)), find(ADDRESS)) {
        (Some(port), _) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(Error::InvalidArgument(format!("{PORT}={port:?} is not a port between 1 and 65535"))),
        },
        (None, Some(address)) => {
            let address = address.parse().map_err(|_| {
                Error::InvalidArgument(format!("{ADDRESS}={address:?} is not an address like 0.0.0.0:8080"))
            })?;
            return Ok(vec![address]);
        }
        (None, None) => PORT_DEFAULT,
    };
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    Ok(any.map(|address| SocketAddr::new(address, port)).to_vec())
}

/// How many connections may wait to be accepted.
///
/// # Errors
/// `InvalidArgument` naming the variable.
fn backlog(env: &[(String, String)]) -> Result<i32> {
    let find = |name: &&'static str| last(env, name).map(|value| (*name, value));
    let Some((name, value)) = BACKLOGS.iter().find_map(find) else { return Ok(BACKLOG_DEFAULT) };
    match value.trim().parse() {
        Ok(backlog) if backlog > 0 => Ok(backlog),
        _ => Err(Error::InvalidArgument(format!("{name}={value:?} is not a number between 1 and {}", i32::MAX))),
    }
}

/// Binds a service's addresses, as `identity`.
///
/// # Errors
/// The address is taken, not the pod's, or not for this user.
pub async fn bind(http: &Http, listen: &Listen, identity: &Identity) -> Result<Vec<TcpListener>> {
    let (listen, identity) = (listen.clone(), identity.clone());
    let job = move || {
        identity::bind_as(&identity, || listen_on(&listen))
            .map_err(|e| Error::Internal(format!("cannot take on the container's identity: {e}")))?
    };
    let bound = http.runtime.spawn_blocking(job).await;
    bound.map_err(|e| Error::Internal(format!("binding ended early: {e}")))?
}

fn listen_on(listen: &Listen) -> Result<Vec<TcpListener>> {
    let Listen { addresses, backlog, variable } = listen;
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        match listen_at(*address, *backlog) {
            Ok(listener) => listeners.push(listener),
            // The network has no IPv6.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if !listeners.is_empty() => {}
            Err(error) => {
                return Err(Error::FailedPrecondition(format!(
                    "cannot listen on {address}: {}; choose another port with {variable}",
                    io::Error::from(error)
                )));
            }
        }
    }
    Ok(listeners)
}

fn listen_at(address: SocketAddr, backlog: i32) -> Result<TcpListener, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // Connections of an earlier container may linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind_socket(&socket, &address)?;
    listen(&socket, backlog)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn the_environment_says_where_and_8080_is_where_it_says_nothing() {
        let texts = |pairs: &[(&str, &str)]| {
            addresses(&env(pairs)).unwrap().iter().map(SocketAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[]), ["0.0.0.0:8080", "[::]:8080"]);
        assert_eq!(texts(&[(PORT, "81"), (ADDRESS, "127.0.0.1:9")]), ["0.0.0.0:81", "[::]:81"]);
        assert_eq!(texts(&[(ADDRESS, "127.0.0.1:9")]), ["127.0.0.1:9"]);
        let of_service = (PORT, "tcp://10.96.209.185:80");
        assert_eq!(texts(&[of_service]), ["0.0.0.0:8080", "[::]:8080"]);
        assert_eq!(texts(&[of_service, (ADDRESS, "127.0.0.1:9")]), ["127.0.0.1:9"]);
        for (name, value) in [(PORT, "0"), (PORT, "65536"), (PORT, "x"), (ADDRESS, "localhost:80")] {
            let error = addresses(&env(&[(name, value)])).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn the_backlog_is_runwasis_or_ours() {
        assert_eq!(backlog(&env(&[])).unwrap(), BACKLOG_DEFAULT);
        assert_eq!(backlog(&env(&[(BACKLOGS[1], "7")])).unwrap(), 7);
        assert_eq!(backlog(&env(&[(BACKLOGS[1], "7"), (BACKLOGS[0], " 100 ")])).unwrap(), 100);
        for value in ["0", "-1", "many"] {
            let error = backlog(&env(&[(BACKLOGS[1], value)])).unwrap_err().to_string();
            assert!(error.contains("WASMTIME_HTTP_BACKLOG"), "{error}");
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let error = listen_on(&Listen::at(vec![address], "THE_PORT")).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }
}
