//! Docker, with Hearth as a runtime of its containerd. `make test-docker` fetches a Docker; without `HEARTH_TEST_DOCKER`,
//! the directory of its programs, the stories are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_tests::{Ctr, Guest, LONG, Node, Running, SHORT, eventually, paths};

use super::http::client::get;
use crate::{only_on_hearth, skip_unless};

/// containerd's name of Hearth.
const RUNTIME: &str = "io.containerd.hearth.v1";

/// Where Docker keeps images.
#[derive(Clone, Copy, Debug)]
enum Store {
    Containerd,
    Overlay2,
}

const STORES: [Store; 2] = [Store::Containerd, Store::Overlay2];

/// A Docker daemon on a node of its own.
struct Docker {
    // Dropped first: the daemon before the node.
    _daemon: Running,
    node: Node,
    programs: PathBuf,
}

/// The directory of Docker's programs.
fn programs() -> Option<PathBuf> {
    std::env::var_os("HEARTH_TEST_DOCKER").map(PathBuf::from)
}

/// The search path of a program that starts Docker's own.
fn path(programs: &Path) -> String {
    format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default())
}

impl Docker {
    fn new(store: Store) -> Self {
        let programs = programs().expect("the story was not skipped");
        let node = Node::new();
        let mut config = serde_json::json!({
            "features": {"containerd-snapshotter": matches!(store, Store::Containerd)},
            "runtimes": {"hearth": {"runtimeType": RUNTIME}},
            "data-root": node.path("docker"),
            "exec-root": node.path("docker-run"),
            "pidfile": node.path("docker.pid"),
            "hosts": [format!("unix://{}", node.path("docker.sock").display())],
            "containerd": node.layout().containerd_socket(),
            "cgroup-parent": node.machine().cgroup(),
            // The node has a network namespace of its own, without packet filters: docker-proxy forwards ports.
            "iptables": false,
            "ip6tables": false,
        });
        if matches!(store, Store::Overlay2) {
            config["storage-driver"] = "overlay2".into();
        }
        let file = node.write("daemon.json", config.to_string().as_bytes()).display().to_string();
        let path = path(&programs);
        let daemon = programs.join("dockerd").display().to_string();
        let daemon = node.program_on_machine(&daemon, ["--config-file", &file]).env("PATH", path).spawn();
        let docker = Self { _daemon: daemon, node, programs };
        eventually("docker answers", SHORT, || docker.docker(["version"]).run().status.success().then_some(()));
        docker
    }

    /// A call of `docker`.
    fn docker<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        let program = self.programs.join("docker").display().to_string();
        self.with_environment(self.node.program_on_machine(&program, arguments)).deadline(LONG)
    }

    fn with_environment<'a>(&self, call: Ctr<'a>) -> Ctr<'a> {
        call.env("DOCKER_HOST", format!("unix://{}", self.node.path("docker.sock").display()))
            .env("DOCKER_CONFIG", self.node.path("docker-client"))
            .env("HOME", self.node.path("home"))
            // Without the plugin of BuildKit, the daemon builds.
            .env("DOCKER_BUILDKIT", "0")
            .env("PATH", path(&self.programs))
    }

    /// Makes an image of files and settings.
    fn image(&self, name: &str, files: &[(&str, Vec<u8>)], changes: &[&str]) {
        let root = self.node.path(&format!("image-{name}"));
        for (path, bytes) in files {
            self.node.write(&format!("image-{name}/{path}"), bytes);
        }
        let tar = self.node.path(&format!("image-{name}.tar"));
        let made = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.expect("tar is everywhere").success());
        let changes = changes.iter().flat_map(|change| ["--change".to_owned(), (*change).to_owned()]);
        let words = ["import".to_owned()].into_iter().chain(changes);
        self.docker(words.chain([tar.display().to_string(), name.to_owned()])).ok();
    }

    /// `docker run --rm` on Hearth.
    fn run<'a>(&'a self, flags: &[&'a str], image: &'a str, arguments: &[&'a str]) -> Ctr<'a> {
        let head = ["run", "--rm", "--runtime", RUNTIME];
        self.docker(head.iter().chain(flags).chain(&[image]).chain(arguments).copied())
    }

    fn inspect(&self, name: &str, format: &str) -> String {
        self.docker(["inspect", "--format", format, name]).ok().stdout().trim().to_owned()
    }
}

#[test]
fn docker_runs_programs_with_their_files_environment_and_exit_codes() {
    only_on_hearth!();
    skip_unless!(programs().is_some(), "`make test-docker` has it");
    for store in STORES {
        let docker = Docker::new(store);
        docker.image("hello", &[("hello.wasm", Guest::HELLO.wasm_bytes())], &[r#"ENTRYPOINT ["/hello.wasm"]"#]);
        let output = docker.run(&["--env", "GREETING=hi"], "hello", &["one", "two words"]).ok();
        for line in ["hello from C\n", "arg 1: one\n", "arg 2: two words\n", "env GREETING=hi\n"] {
            assert!(output.stdout().contains(line), "{store:?}: {line:?} is missing: {output}");
        }
        assert!(output.stderr().contains("hello on stderr\n"), "{store:?}: {output}");
        // The name of daemon.json.
        docker.docker(["run", "--rm", "--runtime", "hearth", "hello"]).ok();

        let tools = [("bin/exit", Guest::EXIT.wasm_bytes()), ("bin/files", Guest::FILES.wasm_bytes())];
        docker.image("tools", &tools, &["ENV PATH=/bin"]);
        docker.run(&[], "tools", &["exit", "7"]).run().assert_code(7);
        // As docker and runc have it.
        for (program, code, words) in [
            ("/nope", 127, "no such file or directory"),
            ("nope", 127, "executable file not found in $path"),
            ("/bin", 126, "permission denied"),
        ] {
            docker.run(&[], "tools", &[program]).run().assert_code(code).assert_fault(&[words]);
        }
        let volume = docker.node.write("volume/text", b"of the node");
        let volume = format!("{}:/data", volume.parent().expect("it is in a directory").display());
        let read = docker.run(&["--volume", &volume], "tools", &["files", "read", "/data/text"]).ok();
        assert_eq!(read.stdout(), "of the node", "{store:?}");
        docker.docker(["volume", "create", "kept"]).ok();
        docker.run(&["--volume", "kept:/kept"], "tools", &["files", "write", "/kept/text", "x"]).ok();
        assert_eq!(
            docker.run(&["--volume", "kept:/kept"], "tools", &["files", "read", "/kept/text"]).ok().stdout(),
            "x"
        );
    }
}

#[test]
fn docker_publishes_a_service_execs_in_it_and_checks_its_health() {
    only_on_hearth!();
    skip_unless!(programs().is_some(), "`make test-docker` has it");
    for store in STORES {
        let docker = Docker::new(store);
        let files = [("service.wasm", Guest::RUST_SERVICE.wasm_bytes()), ("exit.wasm", Guest::EXIT.wasm_bytes())];
        let changes =
            [r#"ENTRYPOINT ["/service.wasm"]"#, r#"HEALTHCHECK --interval=1s --retries=1 CMD ["/exit.wasm", "0"]"#];
        docker.image("service", &files, &changes);
        let detached = ["run", "--detach", "--runtime", RUNTIME];
        let published = ["--name", "web", "--publish", "127.0.0.1:8081:8080", "service"];
        docker.docker(detached.iter().chain(&published).copied()).ok();
        let at = "127.0.0.1:8081".parse().expect("an address");
        docker.node.machine().in_network(|| {
            let answer = get(at, "/path");
            assert_eq!((answer.status, answer.text()), (200, "hello from Rust: /path\n"), "{store:?}");
        });
        docker.docker(["exec", "web", "/exit.wasm", "9"]).run().assert_code(9);
        docker.docker(["exec", "web", "/nope"]).run().assert_code(127);
        docker.docker(["exec", "web", "/"]).run().assert_code(126);
        eventually("it is healthy", SHORT, || {
            (docker.inspect("web", "{{.State.Health.Status}}") == "healthy").then_some(())
        });
        // SIGTERM drains it.
        docker.docker(["stop", "web"]).ok();
        assert_eq!(docker.inspect("web", "{{.State.ExitCode}}"), "0", "{store:?}");
        docker.docker(["rm", "web"]).ok();
        // The health of a check that needs a shell.
        let unhealthy = ["--health-cmd", "exit 0", "--health-interval", "1s", "--health-retries", "1"];
        let named = ["--name", "shell", "service"];
        docker.docker(detached.iter().chain(&unhealthy).chain(&named).copied()).ok();
        let state = || docker.inspect("shell", "{{.State.Health.Status}}");
        eventually("it is unhealthy", SHORT, || (state() == "unhealthy").then_some(()));
        docker.docker(["rm", "--force", "shell"]).ok();
    }
}

#[test]
fn docker_restarts_limits_and_pauses_and_goes_on_over_a_restart_of_hearthd() {
    only_on_hearth!();
    skip_unless!(programs().is_some(), "`make test-docker` has it");
    let docker = Docker::new(Store::Containerd);
    let tools = [
        ("bin/exit", Guest::EXIT.wasm_bytes()),
        ("bin/sleep", Guest::SLEEP.wasm_bytes()),
        ("bin/grow", Guest::GROW.wasm_bytes()),
    ];
    docker.image("tools", &tools, &["ENV PATH=/bin"]);
    let detached = ["run", "--detach", "--runtime", RUNTIME];
    let fails = ["--name", "fails", "--restart", "on-failure:2", "tools", "exit", "3"];
    docker.docker(detached.iter().chain(&fails).copied()).ok();
    eventually("it has been restarted twice", SHORT, || {
        (docker.inspect("fails", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}") == "2 exited 3")
            .then_some(())
    });
    docker.docker(["rm", "fails"]).ok();
    // A growth beyond the limit fails.
    docker.run(&["--memory", "16m"], "tools", &["grow", "32"]).run().assert_code(9);
    let grown = ["--name", "grown", "--memory", "64m", "tools", "grow", "20", "3600"];
    docker.docker(detached.iter().chain(&grown).copied()).ok();
    eventually("its memory is told", SHORT, || {
        let stats = docker.docker(["stats", "--no-stream", "--format", "{{.MemUsage}}", "grown"]).ok().stdout();
        (stats.starts_with('2') && stats.trim().ends_with("MiB / 64MiB")).then_some(())
    });
    docker.docker(["rm", "--force", "grown"]).ok();
    let sleeps = ["--name", "sleeps", "--restart", "always", "tools", "sleep", "3600"];
    docker.docker(detached.iter().chain(&sleeps).copied()).ok();
    docker.docker(["pause", "sleeps"]).ok();
    assert_eq!(docker.inspect("sleeps", "{{.State.Status}}"), "paused");
    docker.docker(["unpause", "sleeps"]).ok();
    // An upgrade ends no container, and the next is the new daemon's.
    docker.node.upgrade_hearthd();
    assert_eq!(docker.inspect("sleeps", "{{.State.Status}} {{.RestartCount}}"), "running 0");
    docker.run(&[], "tools", &["exit", "5"]).run().assert_code(5);
    docker.docker(["rm", "--force", "sleeps"]).ok();
}

#[test]
fn the_commands_of_the_docker_page_run() {
    only_on_hearth!();
    skip_unless!(programs().is_some(), "`make test-docker` has it");
    let page = fs::read_to_string(paths::repository().join("docs/docker.md")).expect("the page is there");
    let blocks: Vec<_> = page.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```")).collect();
    assert_eq!(blocks.len(), 2, "the page has other commands than this story knows");
    for store in STORES {
        let docker = Docker::new(store);
        docker.image(
            "hello-http",
            &[("service.wasm", Guest::RUST_SERVICE.wasm_bytes())],
            &[r#"ENTRYPOINT ["/service.wasm"]"#],
        );
        let directory = docker.node.write("page/hello.wasm", &Guest::HELLO.wasm_bytes());
        let directory = directory.parent().expect("it is in a directory").display().to_string();
        for (block, _) in &blocks {
            let script = format!("cd {directory}\n{block}");
            let shell = docker.node.program_on_machine("bash", ["-euxo", "pipefail", "-c", &script]);
            let output = docker.with_environment(shell).deadline(LONG).ok();
            if block.contains("hello-wasm") {
                assert!(output.stdout().contains("arg 2: two\n"), "{store:?}: {output}");
            }
        }
        assert_eq!(docker.inspect("web", "{{.State.ExitCode}}"), "0", "{store:?}");
        docker.docker(["rm", "web"]).ok();
    }
}
