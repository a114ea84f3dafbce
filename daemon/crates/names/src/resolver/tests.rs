use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::*;

/// A network that makes no sockets.
#[derive(Default)]
struct Without {
    /// The error of each socket. Without one, a socket takes for ever.
    error: Option<Errno>,
    asked: AtomicUsize,
}

impl Without {
    async fn fail<T>(&self) -> io::Result<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.error {
            Some(error) => Err(error.into()),
            None => std::future::pending().await,
        }
    }
}

impl Network for Without {
    async fn datagram(&self, _: Family) -> io::Result<UdpSocket> {
        self.fail().await
    }

    async fn stream(&self, _: Family) -> io::Result<TcpSocket> {
        self.fail().await
    }

    async fn sources(&self, _: Vec<IpAddr>) -> io::Result<Vec<Option<Source>>> {
        self.fail().await
    }
}

const RESOLV_CONF: &str = "nameserver 192.0.2.1\nnameserver 2001:db8::1\noptions attempts:3\n";

fn resolver(error: Option<Errno>, options: &str) -> Resolver<Without> {
    let hosts = b"10.0.0.1 both\nfd00::1 both\n10.0.0.2 one";
    let files = Files::parse(Some(hosts), Some(format!("{RESOLV_CONF}{options}").as_bytes()), None);
    Resolver::new(files, Without { error, ..Without::default() }, Duration::from_millis(50))
}

#[tokio::test]
async fn a_family_without_sockets_leaves_the_other_servers() {
    for (options, asked) in [("", 6), ("options use-vc\n", 2)] {
        let resolver = resolver(Some(Errno::AFNOSUPPORT), options);
        assert_eq!(resolver.addresses("web.test").await, Err(Unresolved::Temporary));
        assert_eq!(resolver.network.asked.into_inner(), asked, "{options}");
    }
}

#[tokio::test]
async fn a_look_up_ends_if_no_socket_can_be_made() {
    for options in ["", "options use-vc\n"] {
        let resolver = resolver(Some(Errno::MFILE), options);
        assert_eq!(resolver.addresses("web.test").await, Err(Unresolved::Temporary));
        assert_eq!(resolver.network.asked.into_inner(), 1, "{options}");
    }
}

#[tokio::test]
async fn a_look_up_has_a_deadline() {
    assert_eq!(resolver(None, "").addresses("web.test").await, Err(Unresolved::Late));
}

#[tokio::test]
async fn the_hosts_file_needs_no_network() {
    for error in [None, Some(Errno::MFILE)] {
        let resolver = resolver(error, "");
        assert_eq!(resolver.addresses("one").await.unwrap(), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(resolver.network.asked.load(Ordering::Relaxed), 0);
        // Without sources, the kinds alone decide.
        let both = ["fd00::1", "10.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(resolver.known("both").await, both);
    }
}
