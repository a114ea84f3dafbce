//! A network and an `/etc` of one row's own, in which glibc and this crate look up the same name.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_names::{Family, Files, Network, Resolver, Source, Unresolved};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::net::{TcpSocket, UdpSocket};

use crate::row::Row;
use crate::server::{Log, Server};

/// The longest look-up of any row. Whatever is under way then does not end.
const LOOKUP_MAX: Duration = Duration::from_secs(12);

/// The result of a look-up, and the questions that the servers got.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub answer: Answer,
    pub questions: Vec<String>,
}

/// The results that getaddrinfo(3) tells apart, by its numbers on Linux.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<String>),
    /// `EAI_NONAME`.
    NoName,
    /// `EAI_AGAIN`.
    Again,
    /// `EAI_NODATA`.
    NoData,
    Endless,
}

impl From<&Result<Vec<IpAddr>, Unresolved>> for Answer {
    fn from(found: &Result<Vec<IpAddr>, Unresolved>) -> Answer {
        match found {
            Ok(addresses) => Answer::Addresses(addresses.iter().map(IpAddr::to_string).collect()),
            Err(Unresolved::Invalid | Unresolved::Unknown) => Answer::NoName,
            Err(Unresolved::NoAddress) => Answer::NoData,
            Err(_) => Answer::Again,
        }
    }
}

/// Runs a row on this thread, which is in namespaces of its own from then on.
///
/// # Errors
/// If the namespaces cannot be made, which takes root.
pub fn run(row: &Row, helper: &Path) -> io::Result<(Result<Vec<IpAddr>, Unresolved>, Seen, Seen)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    nix::unistd::sethostname(row.host_name)?;
    for command in ["link set lo up"].iter().chain(row.links) {
        let status = Command::new("ip").args(command.split(' ')).status()?;
        assert!(status.success(), "{}: ip {command}", row.story);
    }
    let etc = etc_of(row)?;
    mount(Some(etc.path()), "/etc", none, MsFlags::MS_BIND, none)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let log = Arc::<Mutex<Log>>::default();
        for (index, (at, rules)) in row.servers().enumerate() {
            // One without rules does not run.
            if !rules.is_empty() {
                Server::start(index + 1, at, rules, Arc::clone(&log)).await?;
            }
        }
        let answer = glibc(row, helper).await?;
        let glibc = Seen { answer, questions: questions(row, &log).await? };
        let text = |name: &str| fs::read(etc.path().join(name)).ok();
        let files = Files::parse(text("hosts").as_deref(), text("resolv.conf").as_deref(), Some(row.host_name));
        let found = Resolver::new(files, Here, LOOKUP_MAX).addresses(row.asks).await;
        let ours = Seen { answer: Answer::from(&found), questions: questions(row, &log).await? };
        Ok((found, ours, glibc))
    })
}

/// The questions that the servers got up to now.
async fn questions(row: &Row, log: &Mutex<Log>) -> io::Result<Vec<String>> {
    for (at, rules) in row.servers() {
        if !rules.is_empty() {
            Server::flush(at).await?;
        }
    }
    Ok(log.lock().unwrap().take())
}

fn etc_of(row: &Row) -> io::Result<tempfile::TempDir> {
    let etc = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs::write(etc.path().join(name), text);
    write("nsswitch.conf", "hosts: files dns\n")?;
    write("host.conf", row.host_conf)?;
    write("hosts", row.hosts)?;
    if let Some(text) = row.resolv_conf() {
        write("resolv.conf", &text)?;
    }
    Ok(etc)
}

/// Calls getaddrinfo(3) in a process of its own: a process keeps its experience with its servers.
async fn glibc(row: &Row, helper: &Path) -> io::Result<Answer> {
    let child = tokio::process::Command::new(helper)
        .arg(row.asks)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let Ok(output) = tokio::time::timeout(LOOKUP_MAX, child.wait_with_output()).await else {
        return Ok(Answer::Endless);
    };
    let text = String::from_utf8(output?.stdout).map_err(io::Error::other)?;
    let mut lines = text.lines().map(str::to_owned);
    match lines.next().as_deref() {
        Some("0") => Ok(Answer::Addresses(lines.collect())),
        Some("-2") => Ok(Answer::NoName),
        Some("-3") => Ok(Answer::Again),
        Some("-5") => Ok(Answer::NoData),
        other => Err(io::Error::other(format!("getaddrinfo: {other:?}"))),
    }
}

/// The network of the calling thread.
struct Here;

impl Network for Here {
    async fn datagram(&self, family: Family) -> io::Result<UdpSocket> {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        UdpSocket::bind(SocketAddr::new(any, 0)).await
    }

    async fn stream(&self, family: Family) -> io::Result<TcpSocket> {
        match family {
            Family::V4 => TcpSocket::new_v4(),
            Family::V6 => TcpSocket::new_v6(),
        }
    }

    async fn sources(&self, destinations: Vec<IpAddr>) -> io::Result<Vec<Option<Source>>> {
        Ok(Source::of(&destinations))
    }
}
