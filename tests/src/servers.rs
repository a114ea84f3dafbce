//! Servers that guests talk to, each private to one story: unpacked from Debian's packages by `servers.sh`, on a free port
//! of the machine's network, with their files in the machine's directory.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::Process;
use crate::wait::{SHORT, eventually};
use crate::world::World;

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    /// Its port on the machine's loopback.
    pub port: u16,
    /// Its port for TLS, if it has one.
    pub tls_port: u16,
    process: Process,
}

/// A free port of the machine's network.
///
/// # Panics
/// If the loopback is down.
pub fn free_port(world: &World) -> u16 {
    world.machine().in_network(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback is up");
        listener.local_addr().expect("it is bound").port()
    })
}

/// The directory of an unpacked package.
fn unpacked(package: &str) -> PathBuf {
    let script = crate::paths::repository().join("tests/servers.sh");
    let run = Command::new("bash").arg(script).arg(package).output().expect("bash starts");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "tests/servers.sh {package} (needs Debian's mirror):\n{log}");
    PathBuf::from(String::from_utf8_lossy(&run.stdout).trim())
}

/// A command that runs a program of an unpacked package on the machine.
fn program(world: &World, package: &str, path: &str) -> Command {
    let root = unpacked(package);
    let mut command = world.machine().command(root.join(path));
    command.env("LD_LIBRARY_PATH", libraries(&root));
    command
}

/// The directories of an unpacked package's libraries.
fn libraries(root: &Path) -> OsString {
    let all = std::fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = all.filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    std::env::join_paths(all).expect("paths have no colons")
}

impl Server {
    fn start(world: &World, name: &str, mut command: Command, port: u16) -> Self {
        let log = std::fs::File::create(world.path(&format!("{name}.log"))).expect("it can be made");
        command.stdout(log.try_clone().expect("it is open")).stderr(Stdio::from(log));
        let mut process = Process::start(name, &mut command);
        eventually(&format!("{name} listens"), SHORT, || {
            let status = process.status();
            assert!(status.is_none(), "{name} ended: {status:?}, see {}", world.path(name).display());
            world.machine().in_network(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()).map(drop)
        });
        Self { port, tls_port: 0, process }
    }

    /// A Redis server. With a certificate and its key, in PEM, it has a port for TLS, too.
    ///
    /// # Panics
    /// If it does not start.
    pub fn redis(world: &World, certificate: Option<(&str, &str)>) -> Self {
        Self::redis_at(world, free_port(world), certificate)
    }

    /// The same on this port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn redis_at(world: &World, port: u16, certificate: Option<(&str, &str)>) -> Self {
        let tls_port = free_port(world);
        let mut command = program(world, "redis-server", "usr/bin/redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        command.arg("--dir").arg(world.directory("redis"));
        if let Some((certificate, key)) = certificate {
            command.args(["--tls-port", &tls_port.to_string(), "--tls-auth-clients", "no"]);
            command.arg("--tls-cert-file").arg(world.write("redis.crt", certificate.as_bytes()));
            command.arg("--tls-key-file").arg(world.write("redis.key", key.as_bytes()));
            command.arg("--tls-ca-cert-file").arg(world.write("redis.ca", certificate.as_bytes()));
        }
        Self { tls_port, ..Self::start(world, "redis", command, port) }
    }

    /// A PostgreSQL server with the user and the database `postgres`, whose password is `secret`. With a certificate and
    /// its key, in PEM, it has TLS, too.
    ///
    /// # Panics
    /// If it does not start.
    pub fn postgres(world: &World, certificate: Option<(&str, &str)>) -> Self {
        // It refuses to run as root. In a user namespace it has another user, and the rights of the story.
        const USER: [&str; 4] = ["unshare", "--user", "--map-user=65534", "--map-group=65534"];
        let (port, root) = (free_port(world), unpacked("postgresql"));
        let versions = std::fs::read_dir(root.join("usr/lib/postgresql")).expect("the package has programs");
        let programs = versions.flatten().next().expect("of one version").path().join("bin");
        let data = world.path("postgres");
        let on_machine = |program: &str, arguments: &[&str]| {
            let mut command = world.machine().command(USER[0]);
            command.args(&USER[1..]).arg(programs.join(program)).arg("-D").arg(&data).args(arguments);
            command.env("LD_LIBRARY_PATH", libraries(&root));
            command
        };
        let password = world.write("postgres.password", b"secret\n").display().to_string();
        let options = ["-U", "postgres", "-A", "password", "-E", "UTF8", "--locale", "C", "--no-sync", "--pwfile"];
        let made = on_machine("initdb", &[options.as_slice(), &[&password]].concat()).output().expect("it starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        if let Some((certificate, key)) = certificate {
            std::fs::write(data.join("server.crt"), certificate).expect("it can be written");
            std::fs::write(data.join("server.key"), key).expect("it can be written");
            let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(data.join("server.key"), own).expect("it is ours");
        }
        let tls = if certificate.is_some() { "ssl=on" } else { "ssl=off" };
        let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", tls];
        let mut command = on_machine("postgres", &["-p", &port.to_string()]);
        command.args(settings.iter().flat_map(|setting| ["-c", setting]));
        Self::start(world, "postgres.server", command, port)
    }

    /// The answer of a Redis server to a command without blanks in its words, as it is sent (RESP).
    ///
    /// # Panics
    /// If the server is gone.
    pub fn redis_answer(&self, world: &World, command: &str) -> String {
        world.machine().in_network(|| {
            let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("it listens");
            peer.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).expect("it reads");
            let mut answer = String::new();
            peer.read_to_string(&mut answer).expect("it answers in UTF-8");
            answer.trim_end_matches("+OK\r\n").to_owned()
        })
    }

    /// Ends it at once.
    pub fn kill(self) {
        self.process.kill();
    }
}
