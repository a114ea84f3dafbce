//! TLS at the port of a service.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_tests::tls::Authority;
use hearth_tests::{Guest, Running, SHORT, World, eventually};

use super::{free_address, start};
use crate::{only_on_hearth, skip_unless};

/// The name that the certificates are for.
const NAME: &str = "service.test";

/// A service whose certificate is in a directory like the volume of a Secret.
struct Secured {
    world: World,
    at: SocketAddr,
    ca: PathBuf,
    secret: PathBuf,
    authority: Authority,
}

impl Secured {
    fn configured(text: &str) -> Secured {
        let world = World::configured(text);
        let authority = Authority::new();
        let ca = world.write("ca.pem", authority.pem().as_bytes());
        let secret = world.directory("secret");
        let secured = Secured { world, at: free_address(), ca, secret, authority };
        let (certificate, key) = secured.authority.pair(NAME);
        secured.write("..1", &certificate, &key);
        secured
    }

    /// Writes both files as kubelet does: into a directory of their own, to which a link is then renamed.
    fn write(&self, version: &str, certificate: &str, key: &str) {
        let directory = self.secret.join(version);
        std::fs::create_dir(&directory).expect("it is new");
        for (name, text) in [("tls.crt", certificate), ("tls.key", key)] {
            std::fs::write(directory.join(name), text).expect("it is writable");
            let link = self.secret.join(name);
            if !link.is_symlink() {
                symlink(format!("..data/{name}"), link).expect("it is writable");
            }
        }
        let link = self.secret.join("..data_tmp");
        symlink(version, &link)
            .and_then(|()| std::fs::rename(&link, self.secret.join("..data")))
            .expect("it is writable");
    }

    fn mount(&self) -> String {
        format!("type=bind,src={},dst=/etc/tls,options=bind:ro", self.secret.display())
    }

    fn start(&self) -> Running {
        let image = self.world.program(&Guest::HTTP);
        let flags = ["--mount", &self.mount(), "--env", "HEARTH_HTTP_TLS=/etc/tls"];
        start(&self.world, &image, "service", self.at, &flags)
    }

    /// curl's output.
    fn curl(&self, flags: &[&str], path: &str) -> String {
        let resolve = format!("{NAME}:{}:127.0.0.1", self.at.port());
        let url = format!("https://{NAME}:{}{path}", self.at.port());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--resolve", &resolve, "--cacert"]).arg(&self.ca);
        let output = curl.args(flags).arg(url).output().expect("`make deps` installs curl");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// openssl's report of a handshake.
    fn handshake(&self, flags: &[&str]) -> String {
        let at = self.at.to_string();
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &at, "-servername", NAME, "-CAfile"]).arg(&self.ca).args(flags);
        let output = openssl.stdin(std::process::Stdio::null()).output().expect("`make deps` installs openssl");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn stop(&self, server: Running) -> String {
        self.world.kill("service", "SIGTERM").ok();
        server.wait(SHORT).assert_code(0).stderr()
    }
}

/// The certificate in openssl's output, in PEM.
fn shown_certificate(output: &str) -> String {
    let begin = output.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("no certificate: {output}"));
    let end = output.find("-----END CERTIFICATE-----").expect("its end");
    output[begin..end].split_whitespace().collect()
}

#[test]
fn a_service_speaks_tls_with_the_certificate_of_a_secret() {
    only_on_hearth!();
    let secured = Secured::configured("");
    let server = secured.start();
    let version = ["--write-out", " %{http_version} %{scheme}"];
    assert_eq!(secured.curl(&[&version[..], &["--http2"]].concat(), "/scheme"), "https\n 2 HTTPS");
    assert_eq!(secured.curl(&[&version[..], &["--http1.1"]].concat(), "/scheme"), "https\n 1.1 HTTPS");
    assert_eq!(secured.curl(&[&version[..], &["--no-alpn", "--tls-max", "1.2"]].concat(), "/count"), "1\n 1.1 HTTPS");
    let body = secured.world.write("body", &vec![b'x'; 3_000_000]);
    let upload = format!("@{}", body.display());
    assert_eq!(secured.curl(&["--data-binary", &upload], "/upload"), "3000000 bytes\n");
    assert_eq!(secured.curl(&["--http1.1"], "/download").len(), 10_000_000);
    assert_eq!(secured.curl(&["--http2"], "/download").len(), 10_000_000);
    // Its certificate counts, not only its key: another authority is refused by the client.
    let other = secured.world.write("other.pem", Authority::new().pem().as_bytes());
    let refused = secured.curl(&["--cacert", other.to_str().expect("it is text")], "/count");
    assert!(refused.starts_with("curl: ("), "{refused}");

    let shaken = secured.handshake(&["-alpn", "h2,http/1.1"]);
    assert!(shaken.contains("ALPN protocol: h2") && shaken.contains("TLSv1.3"), "{shaken}");
    assert!(shaken.contains("Verify return code: 0 (ok)"), "{shaken}");
    let shaken = secured.handshake(&["-alpn", "http/1.1", "-tls1_2"]);
    assert!(shaken.contains("ALPN protocol: http/1.1") && shaken.contains("TLSv1.2"), "{shaken}");
    assert!(!secured.handshake(&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]).contains("BEGIN CERTIFICATE"));
    // A session is resumed by its ticket.
    let session = secured.world.path("session").display().to_string();
    secured.handshake(&["-tls1_2", "-sess_out", &session]);
    assert!(secured.handshake(&["-tls1_2", "-sess_in", &session]).contains("Reused, TLSv1.2"));
    // A client without TLS, and one of another protocol, get no answer of HTTP and harm no other.
    let mut plain = TcpStream::connect(secured.at).expect("it listens");
    plain.write_all(b"GET /count HTTP/1.1\r\nHost: here\r\n\r\n").expect("it reads");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert!(secured.handshake(&["-alpn", "spdy/1"]).contains("no application protocol"));
    assert_eq!(secured.curl(&[], "/count"), "1\n");
    let metrics = secured.world.metrics();
    assert!(metrics.sum("hearth_http_tls_handshakes_total", &[("result", "done")]) >= 10.0);
    assert!(metrics.sum("hearth_http_tls_handshakes_total", &[("result", "failed")]) >= 3.0);
    secured.stop(server);
}

#[test]
fn many_streams_on_many_connections_are_answered_by_tls() {
    only_on_hearth!();
    let h2load = || Command::new("h2load");
    skip_unless!(h2load().arg("--version").output().is_ok(), "h2load is missing: `make deps` installs nghttp2-client");
    let secured = Secured::configured("");
    let server = secured.start();
    let url = format!("https://{}/count", secured.at);
    let output = h2load().args(["-n", "2000", "-c", "20", "-m", "10", &url]).output().expect("it is there");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{told}");
    assert!(told.contains("status codes: 2000 2xx"), "{told}");
    secured.stop(server);
}

#[test]
fn a_renewed_certificate_counts_and_an_unusable_one_does_not() {
    only_on_hearth!();
    let secured = Secured::configured("");
    let server = secured.start();
    let begun = shown_certificate(&secured.handshake(&[]));
    let (second, key) = secured.authority.pair(NAME);
    secured.write("..2", &second, &key);
    let renewed = eventually("it shows the new certificate", SHORT, || {
        let shown = shown_certificate(&secured.handshake(&[]));
        (shown != begun).then_some(shown)
    });
    let pem: String = second.split_whitespace().collect();
    assert!(pem.starts_with(&renewed), "{renewed}");
    assert_eq!(secured.curl(&[], "/count"), "1\n");
    // The key of another certificate.
    let (third, _) = secured.authority.pair(NAME);
    secured.write("..3", &third, &key);
    let is_told = || {
        assert_eq!(shown_certificate(&secured.handshake(&[])), renewed);
        let unusable = secured.world.metrics().sum("hearth_http_tls_renewals_total", &[("result", "unusable")]);
        (unusable == 1.0).then_some(())
    };
    eventually("it is told", SHORT, is_told);
    assert_eq!(secured.curl(&[], "/count"), "1\n");
    let (fourth, key) = secured.authority.pair(NAME);
    secured.write("..4", &fourth, &key);
    eventually("the next renewal counts", SHORT, || {
        (shown_certificate(&secured.handshake(&[])) != renewed).then_some(())
    });
    let told = secured.stop(server);
    assert!(told.contains("/etc/tls/tls.key is not the key of the first certificate"), "{told}");
    assert_eq!(told.matches("the new certificate cannot be used").count(), 1, "{told}");
}

#[test]
fn a_service_without_a_usable_certificate_does_not_start_and_says_why() {
    only_on_hearth!();
    let secured = Secured::configured("");
    let image = secured.world.program(&Guest::HTTP);
    let mount = secured.mount();
    let fails = |id: &str, directory: &str, words: &[&str]| {
        let variable = format!("HEARTH_HTTP_TLS={directory}");
        let flags = ["--net-host", "--mount", &mount, "--env", &variable];
        secured.world.run(&image, id).flags(flags).run().assert_fault(words);
    };
    fails("relative", "etc/tls", &["HEARTH_HTTP_TLS", "absolute path"]);
    fails("missing", "/nowhere", &["HEARTH_HTTP_TLS", "/nowhere/tls.crt does not exist", "kubernetes.io/tls"]);
    let (certificate, key) = secured.authority.pair(NAME);
    secured.write("..2", "no certificate\n", &key);
    fails("text", "/etc/tls", &["HEARTH_HTTP_TLS", "/etc/tls/tls.crt has no certificate in PEM form"]);
    secured.write("..3", &certificate, "no key\n");
    fails("no-key", "/etc/tls", &["/etc/tls/tls.key has no private key in PEM form"]);
    let (_, other) = secured.authority.pair(NAME);
    secured.write("..4", &certificate, &other);
    fails("another-key", "/etc/tls", &["/etc/tls/tls.key is not the key"]);
}

#[test]
fn silent_clients_of_a_tls_service_lose_their_connections_and_keep_no_other_out() {
    only_on_hearth!();
    let secured = Secured::configured(
        "[http]\ntls_handshakes_max = 2\ntls_handshake_timeout_ms = 500\nheader_timeout_ms = 20000\n",
    );
    let server = secured.start();
    let mut silent: Vec<_> = (0..4).map(|_| TcpStream::connect(secured.at).expect("it listens")).collect();
    // The beginning of a record with a ClientHello that never comes.
    silent[0].write_all(&[22, 3, 1, 2, 0]).expect("it reads");
    for client in &mut silent {
        client.set_read_timeout(Some(SHORT)).expect("it is a socket");
        let _ = client.read(&mut [0; 64]).expect("it is closed in time");
    }
    eventually("they are counted", SHORT, || {
        let count = secured.world.metrics().sum("hearth_http_tls_handshakes_total", &[("result", "too_slow")]);
        (count >= 4.0).then_some(())
    });
    assert_eq!(secured.curl(&[], "/count"), "1\n");
    // A drain does not wait for a client that is silent in its handshake.
    let _late = TcpStream::connect(secured.at).expect("it listens");
    let began = Instant::now();
    secured.stop(server);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn handshakes_are_cpu_time_of_the_container() {
    only_on_hearth!();
    let secured = Secured::configured("");
    let server = secured.start();
    let used = || secured.world.ask(&["ps", "--all"])[0]["cpu_seconds"].as_f64().expect("a number");
    secured.handshake(&[]);
    let before = used();
    // Each is a new session, and none sends a request.
    let full = |path: &Path| {
        let seconds = "1";
        let mut openssl = Command::new("openssl");
        openssl.args(["s_time", "-new", "-time", seconds, "-connect", &secured.at.to_string(), "-CAfile"]).arg(path);
        let output = openssl.output().expect("`make deps` installs openssl");
        assert!(output.status.success(), "{output:?}");
    };
    full(&secured.ca);
    let done = secured.world.metrics().sum("hearth_http_tls_handshakes_total", &[("result", "done")]);
    let each = (used() - before) / done;
    // A signature alone takes ten microseconds and more.
    assert!(done >= 10.0 && each > 20e-6, "{each} s for each of {done}");
    secured.stop(server);
}
