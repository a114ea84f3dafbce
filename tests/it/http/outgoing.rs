//! Outgoing HTTP requests of guests.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc;

use hearth_tests::tls::Authority;
use hearth_tests::{Guest, Imported, Node, Output, SHORT, World};
use rustix::net::{AddressFamily, SocketAddrV4, SocketType};

use super::server::{Server, read_head};
use crate::only_on_hearth;

/// The size of an upload, in bytes.
const UPLOAD: usize = 10_000_000;

/// The path of an image's certificates.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A world and the client's image in it.
struct Fetch {
    world: World,
    image: Imported,
    runs: std::cell::Cell<u32>,
}

impl Fetch {
    fn new() -> Fetch {
        let world = World::new();
        let image = world.program(&Guest::FETCH);
        Fetch { world, image, runs: std::cell::Cell::new(0) }
    }

    fn run(&self, flags: &[&str], args: &[&str]) -> Output {
        self.runs.set(self.runs.get() + 1);
        let flags = [&["--net-host"], flags].concat();
        self.world.run(&self.image, &format!("fetch-{}", self.runs.get())).flags(flags).args(args.iter().copied()).run()
    }

    /// The client's output when it fetches from `server`.
    fn fetch(&self, server: &Server, more: &[&str]) -> String {
        self.run(&[], &[&["http", &server.authority(), "/"], more].concat()).stdout()
    }
}

#[test]
fn a_guest_fetches_by_name_and_keeps_its_connection() {
    only_on_hearth!();
    let fetch = Fetch::new();
    let server = Server::greets();
    assert_eq!(fetch.fetch(&server, &["times=3"]), "200 7 hello 0\n200 7 hello 0\n200 7 hello 0\n");
    assert_eq!(server.connections(), 1);
    let upload = format!("upload={UPLOAD}");
    let answer = format!("200 {} hello {UPLOAD}\n", format!("hello {UPLOAD}").len());
    assert_eq!(fetch.fetch(&server, &[&upload, "times=2"]), answer.repeat(2));
    assert_eq!(server.connections(), 2, "each guest has a connection of its own");
    let metrics = fetch.world.metrics();
    assert_eq!(metrics.sum("hearth_http_outgoing_requests_total", &[("code", "2xx")]), 5.0);
    // The connections end with their guests.
    hearth_tests::eventually("no connection is left", SHORT, || {
        (fetch.world.metrics().sum("hearth_http_outgoing_connections", &[]) == 0.0).then_some(())
    });
}

#[test]
fn each_failure_of_a_fetch_has_its_error_code() {
    only_on_hearth!();
    let fetch = Fetch::new();
    let fails = |server: &Server, more: &[&str], name: &str| {
        assert_eq!(fetch.fetch(server, more), format!("error {name}\n"));
    };
    fails(&Server::says(b""), &["first=200"], "connection-read-timeout");
    fails(
        &Server::says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
        &["between=200"],
        "connection-read-timeout",
    );
    fails(&Server::cuts(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), &[], "HTTP-response-incomplete");
    fails(&Server::cuts(b"HTTP/1.1 200 OK\r\n"), &[], "connection-terminated");
    fails(&Server::cuts(b"no HTTP\r\n\r\n"), &[], "HTTP-protocol-error");
    let endless = Server::new(|mut stream| {
        use std::io::Write;
        if read_head(&mut stream).is_some() && stream.write_all(b"HTTP/1.1 200 OK\r\n").is_ok() {
            while stream.write_all(b"x: endless\r\n").is_ok() {}
        }
    });
    fails(&endless, &[], "HTTP-response-header-section-size");

    let unused = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let unused = unused.expect("the loopback is up").to_string();
    assert_eq!(fetch.run(&[], &["http", &unused, "/"]).stdout(), "error connection-refused\n");
    let hosts = fetch.world.write("hosts", b"127.0.0.1 localhost\n");
    let resolv = fetch.world.write("resolv.conf", b"");
    let mounts = [("hosts", &hosts), ("resolv.conf", &resolv)]
        .map(|(name, source)| format!("type=bind,src={},dst=/etc/{name},options=bind:ro", source.display()));
    let unknown = ["--with-ns", "network:/proc/1/ns/net", "--mount", &mounts[0], "--mount", &mounts[1]];
    let unknown = fetch.world.run(&fetch.image, "unknown").flags(unknown).args(["http", "no-such-name:80", "/"]).run();
    assert!(unknown.stdout().starts_with("error DNS-"), "{unknown}");
    assert_eq!(fetch.run(&[], &["http", "user@localhost", "/"]).stdout(), "error HTTP-request-URI-invalid\n");
}

#[test]
fn a_fetch_waits_for_a_connection_no_longer_than_it_wants() {
    only_on_hearth!();
    let fetch = Fetch::new();
    // The queue of this listener holds one connection, and no thread accepts: the kernel drops the next client's first
    // packet.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
    rustix::net::listen(&socket, 0).expect("it is bound");
    let at = std::net::TcpListener::from(socket);
    let address = at.local_addr().expect("it is bound");
    let waiting = TcpStream::connect(address).expect("the queue has room for one");
    let late = fetch.run(&[], &["http", &address.to_string(), "/", "connect=300"]);
    assert_eq!(late.stdout(), "error connection-timeout\n");
    drop(waiting);
}

#[test]
fn tls_is_as_the_image_trusts() {
    only_on_hearth!();
    let fetch = Fetch::new();
    let (ours, other) = (Authority::new(), Authority::new());
    let server = Server::greets_by_tls(&ours, "localhost");
    let trusted = fetch.world.write("ours.pem", ours.pem().as_bytes());
    let unknown_authority = fetch.world.write("other.pem", other.pem().as_bytes());
    let mount =
        |source: &std::path::Path, to: &str| format!("type=bind,src={},dst={to},options=bind:ro", source.display());
    let secure =
        |server: &Server, flags: &[&str]| fetch.run(flags, &["https", &server.authority(), "/", "times=2"]).stdout();
    let as_image = mount(&trusted, CERTIFICATES);
    assert_eq!(secure(&server, &["--mount", &as_image]), "200 7 hello 0\n200 7 hello 0\n");
    assert_eq!(server.connections(), 1);
    let named = mount(&trusted, "/a/ca.pem");
    let named = ["--mount", &named, "--env", "SSL_CERT_FILE=/a/ca.pem"];
    assert_eq!(secure(&server, &named), "200 7 hello 0\n200 7 hello 0\n");
    let wrong = mount(&unknown_authority, CERTIFICATES);
    assert_eq!(secure(&server, &["--mount", &wrong]), "error TLS-certificate-error\n");
    let another = Server::greets_by_tls(&ours, "another.name");
    assert_eq!(secure(&another, &["--mount", &as_image]), "error TLS-certificate-error\n");
    assert_eq!(secure(&server, &["--env", "SSL_CERT_FILE=/none.pem"]), "error configuration-error\n");
    // A server without TLS.
    let plain = Server::says(b"");
    let plain = fetch.run(&["--mount", &as_image], &["https", &plain.authority(), "/", "connect=500"]).stdout();
    assert_eq!(plain, "error connection-timeout\n");
    let wrong = Server::new(|mut stream| {
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = std::io::Read::read(&mut stream, &mut [0; 1]);
    });
    assert_eq!(secure(&wrong, &["--mount", &as_image]), "error TLS-protocol-error\n");
}

/// A proxy: it answers requests itself, and makes tunnels. It sends the head of each request.
fn proxy(heads: mpsc::Sender<String>) -> Server {
    Server::new(move |mut stream| {
        use std::io::Write;
        while let Some(head) = read_head(&mut stream) {
            heads.send(head.clone()).expect("the story waits");
            let Some(target) = head.strip_prefix("connect ") else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nvia proxy");
                continue;
            };
            let target = target.split(' ').next().expect("an authority");
            // Its own names: this one is the loopback, and no other is known.
            let found = target.strip_prefix("service.test:").map(|port| format!("127.0.0.1:{port}"));
            let Some(server) = found.and_then(|at| TcpStream::connect(at).ok()) else {
                let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
                continue;
            };
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("the client reads");
            let halves = [(stream.try_clone(), server.try_clone()), (Ok(server), Ok(stream))];
            let copies = halves.map(|(from, to)| {
                let (mut from, mut to) = (from.expect("a socket"), to.expect("a socket"));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                })
            });
            copies.into_iter().for_each(|copy| copy.join().expect("it does not panic"));
            return;
        }
    })
}

#[test]
fn requests_go_through_the_proxy_of_the_environment() {
    only_on_hearth!();
    let fetch = Fetch::new();
    let (send, heads) = mpsc::channel();
    let proxy = proxy(send);
    let named = |name: &str| format!("{name}=http://user:pass@127.0.0.1:{}", proxy.at.port());
    let run = |env: &[&str], args: &[&str]| {
        let flags: Vec<_> = env.iter().flat_map(|pair| ["--env", *pair]).collect();
        fetch.run(&flags, args)
    };
    let plain = ["http", "service.invalid", "/a", "times=2"];
    let answer = run(&[&named("HTTP_PROXY")], &plain).stdout();
    assert_eq!(answer, "200 9 via proxy\n200 9 via proxy\n");
    let head = heads.recv_timeout(SHORT).expect("a request");
    assert!(head.starts_with("get http://service.invalid/a http/1.1\r\n"), "{head}");
    // `user:pass` in base64; heads are in lower case here.
    assert!(head.contains("\r\nproxy-authorization: basic dxnlcjpwyxnz\r\n"), "{head}");
    assert!(head.contains("\r\nhost: service.invalid\r\n"), "{head}");
    heads.recv_timeout(SHORT).expect("the other request");
    assert_eq!(proxy.connections(), 1, "the connection is kept");
    // Not for these names.
    let direct = run(&[&named("http_proxy"), "NO_PROXY=.invalid"], &plain).stdout();
    assert!(direct.starts_with("error DNS-"), "{direct}");
    assert!(heads.try_recv().is_err());

    // A tunnel, for TLS. The loopback itself takes no proxy: the name is another one.
    let authority = Authority::new();
    let server = Server::greets_by_tls(&authority, "service.test");
    let trusted = fetch.world.write("ca.pem", authority.pem().as_bytes());
    let trusted = format!("type=bind,src={},dst={CERTIFICATES},options=bind:ro", trusted.display());
    let tunnelled = |target: &str, port: u16| {
        let proxy = named("HTTPS_PROXY");
        fetch.run(&["--mount", &trusted, "--env", &proxy], &["https", &format!("{target}:{port}"), "/"]).stdout()
    };
    assert_eq!(tunnelled("service.test", server.at.port()), "200 7 hello 0\n");
    let head = heads.recv_timeout(SHORT).expect("a request");
    assert!(head.starts_with(&format!("connect service.test:{} http/1.1\r\n", server.at.port())), "{head}");
    assert!(head.contains("\r\nproxy-authorization: basic "), "{head}");
    assert_eq!(tunnelled("another.test", 443), "error destination-unavailable\n");

    // One that is no proxy by http.
    let refused = run(&["HTTP_PROXY=socks5://proxy.test:1080"], &plain);
    assert_eq!(refused.stdout(), "error configuration-error\n");
    assert!(refused.stderr().contains("HTTP_PROXY is not a proxy like http://"), "{refused}");
}

#[test]
fn a_guest_that_is_killed_takes_its_fetch_with_it() {
    only_on_hearth!();
    let fetch = Fetch::new();
    let (send, seen) = mpsc::channel();
    let server = Server::new(move |mut stream| {
        read_head(&mut stream).expect("a request");
        send.send("asked").expect("the story waits");
        // Returns at the end of the connection.
        let _ = std::io::Read::read(&mut stream, &mut [0; 1]);
        send.send("closed").expect("the story waits");
    });
    let authority = server.authority();
    let run = fetch.world.run(&fetch.image, "killed").flags(["--net-host"]);
    let run = run.args(["http", authority.as_str(), "/"]).spawn();
    assert_eq!(seen.recv_timeout(SHORT), Ok("asked"));
    fetch.world.kill("killed", "SIGKILL").ok();
    run.wait(SHORT).assert_code(137);
    assert_eq!(seen.recv_timeout(SHORT), Ok("closed"));
}

#[test]
fn a_pod_fetches_from_a_pod_in_its_own_network() {
    only_on_hearth!();
    let node = Node::new();
    let (service, client) = (node.program(&Guest::HTTP), node.program(&Guest::FETCH));
    let (serving, asking) = (node.pod("serving").run(), node.pod("asking").run());
    let _service = serving.container("service", &service).start();
    let hosts = node.write("hosts", format!("127.0.0.1 localhost\n{} peer\n", serving.ip()).as_bytes());
    let ask = |name: &str, authority: &str| {
        let container = asking.container(name, &client).args(["http", authority, "/count", "times=2"]);
        let container = container.read_only_volume(&hosts, "/etc/hosts").start();
        container.wait();
        container.stdout()
    };
    assert_eq!(ask("by-address", &format!("{}:8080", serving.ip())), "200 2 1\n\n200 2 1\n\n");
    assert_eq!(ask("by-name", "peer:8080"), "200 2 1\n\n200 2 1\n\n");
    // The other pod's loopback is not its own, nor is the node's.
    assert_eq!(ask("elsewhere", "localhost:8080"), "error connection-refused\n");
}
