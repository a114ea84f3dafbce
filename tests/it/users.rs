//! A guest's user and network: its rights to files and ports, and its network namespace.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Stdio;

use hearth_tests::process::Process;
use hearth_tests::{Guest, Image, Imported, Layer, NewContainer, SHORT, World, api, eventually};

use crate::only_on_hearth;

/// An image with the `files` program, which runs as this user.
fn files(world: &World, user: &str) -> Imported {
    let (program, name) = ("/bin/files", format!("hearth.test/files-{}:1", user.replace(':', "-")));
    let layer = Layer::new().file(program, 0o755, Guest::FILES.bytes_for(world.runtime()));
    world.import(&Image::scratch(&name).layer(layer).entrypoint([program]).user(user))
}

/// A directory that all users may write to, with files of root, of user 1000 and of group 3000.
fn volume(world: &World) -> PathBuf {
    for (name, uid, gid, mode) in [("root", 0, 0, 0o600), ("own", 1_000, 0, 0o600), ("shared", 0, 3_000, 0o660)] {
        let path = world.write(&format!("volume/{name}"), name.as_bytes());
        chown(&path, Some(uid), Some(gid)).expect("the tests run as root");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
    }
    let volume = world.path("volume");
    fs::set_permissions(&volume, Permissions::from_mode(0o777)).expect("it is ours");
    volume
}

#[test]
fn a_guest_reads_and_writes_what_its_user_may() {
    let world = World::new();
    let volume = volume(&world);
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", volume.display());
    let cases: [(&str, (u32, u32), &[&str]); 3] = [
        ("0:0", (0, 0), &["root", "own", "shared"]),
        ("1000:1000", (1_000, 1_000), &["own"]),
        ("2000:3000", (2_000, 3_000), &["shared"]),
    ];
    for (user, owner, readable) in cases {
        let image = files(&world, user);
        let id = user.replace(':', "-");
        let run = |id: &str, arguments: &[&str]| {
            world.run(&image, id).flags(["--mount", &mount]).args(arguments.iter().copied()).run()
        };
        for name in ["root", "own", "shared"] {
            let output = run(&format!("{id}-{name}"), &["read", &format!("/data/{name}")]);
            if readable.contains(&name) {
                assert_eq!(output.assert_code(0).stdout(), name);
            } else {
                output.assert_fault(&["permission denied"]);
            }
        }
        run(&format!("{id}-new"), &["write", &format!("/data/{id}"), "x"]).assert_code(0);
        let made = fs::metadata(volume.join(&id)).expect("the guest made it");
        assert_eq!((made.uid(), made.gid()), owner);
        // The image's own files are root's.
        let outcome = run(&format!("{id}-image"), &["write", "/bin/new", "x"]);
        assert_eq!(outcome.status.success(), owner.0 == 0, "{outcome}");
    }
}

/// As a pod's `fsGroup` is in its containers' spec.
#[test]
fn a_supplementary_group_gives_access() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    let root = volume(&world);
    let program = world.write("volume/files.wasm", &Guest::FILES.wasm_bytes());
    fs::set_permissions(program, Permissions::from_mode(0o600)).expect("it is ours");
    for (id, groups, code) in [("within", vec![3_000], 0), ("without", vec![3_001], 2)] {
        let mut spec = api::spec(&["/files.wasm", "append", "/shared", id], &[]);
        spec["process"]["user"] = serde_json::json!({"uid": 1_000, "gid": 1_000, "additionalGids": groups});
        spec["root"]["path"] = root.display().to_string().into();
        let runtime = world.runtime().name();
        api.create_container(NewContainer { id, runtime, spec: spec.to_string().into(), ..NewContainer::default() });
        // 2: EACCES of preview 1.
        assert_eq!(api.run_task(id, b"", SHORT).0, code, "{id}");
        api.delete_container(id);
    }
    assert_eq!(fs::read(root.join("shared")).expect("it is there"), b"sharedwithin");
}

/// The number of threads of the daemon in the network namespace of a process.
fn threads_in_network_of(world: &World, process: i32) -> usize {
    let network = |path: String| fs::read_link(path).ok();
    let wanted = network(format!("/proc/{process}/ns/net")).expect("the process runs");
    let daemon = world.hearthd().pid().expect("hearthd runs");
    let threads = fs::read_dir(format!("/proc/{daemon}/task")).expect("hearthd runs");
    threads
        .flatten()
        .filter(|thread| network(format!("{}/ns/net", thread.path().display())).as_ref() == Some(&wanted))
        .count()
}

/// A network namespace, which lives as long as the process in it.
struct Network {
    holder: Process,
    /// The namespace's path on the machine.
    path: String,
}

impl Network {
    fn new(world: &World) -> Self {
        let mut command = world.machine().command("/usr/bin/unshare");
        // It prints its pid in the machine's namespace.
        command.args(["--net", "/bin/sh", "-c", "echo $$; exec sleep 3600"]).stdout(Stdio::piped());
        let mut holder = Process::start("holder", &mut command);
        let mut pid = String::new();
        let stdout = holder.child().stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut pid).expect("it says its pid");
        Self { holder, path: format!("/proc/{}/ns/net", pid.trim()) }
    }

    /// Waits until this number of the daemon's threads are in it.
    #[track_caller]
    fn wait_for_threads(&self, world: &World, count: usize) {
        let holder = self.holder.pid().expect("it runs");
        eventually(&format!("{count} threads are in the network"), SHORT, || {
            (threads_in_network_of(world, holder) == count).then_some(())
        });
    }
}

#[test]
fn a_guest_runs_in_the_network_its_spec_names() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SPIN);
    let network = Network::new(&world);
    let flags = ["--with-ns".to_owned(), format!("network:{}", network.path)];
    world.run(&image, "spin").flags(flags).detach().ok();
    network.wait_for_threads(&world, 1);
    world.kill("spin", "SIGKILL").ok();
    assert_eq!(world.finish("spin"), 137);
    network.wait_for_threads(&world, 0);
    for (id, path, word) in
        [("gone", "/proc/1/ns/nothing", "No such file"), ("other", "/proc/1/ns/uts", "another kind")]
    {
        let namespace = format!("network:{path}");
        let output = world.run(&image, id).flags(["--with-ns", &namespace]).run();
        output.assert_fault(&["network namespace", path, word]);
    }
    network.holder.kill();
}

#[test]
fn a_pods_container_runs_in_its_sandboxs_network() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    let network = Network::new(&world);
    let program = world.write("root/spin.wasm", &Guest::SPIN.wasm_bytes());
    let root = program.parent().expect("a file is in a directory").display().to_string();
    // As CRI writes them: the container's own path would be the daemon's network, which CRI does not mean.
    let pod = [
        ("pod", vec![("io.kubernetes.cri.container-type", "sandbox")], network.path.as_str()),
        (
            "spin",
            vec![("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "pod")],
            "/proc/self/ns/net",
        ),
    ];
    for (id, annotations, path) in &pod {
        let mut spec = api::spec(&["/spin.wasm"], annotations);
        spec["root"]["path"] = root.as_str().into();
        spec["linux"]["namespaces"] = serde_json::json!([{"type": "network", "path": path}]);
        let runtime = world.runtime().name();
        api.create_container(NewContainer { id, runtime, spec: spec.to_string().into(), ..NewContainer::default() });
        world.ctr(["tasks", "start", "--detach", "--null-io", id]).ok();
    }
    network.wait_for_threads(&world, 1);
    for id in ["spin", "pod"] {
        world.kill(id, "SIGKILL").ok();
        assert_eq!(world.finish(id), 137);
        api.delete_container(id);
    }
    network.wait_for_threads(&world, 0);
    network.holder.kill();
}

#[test]
fn root_may_do_to_files_what_its_capabilities_say() {
    let world = World::new();
    let volume = volume(&world);
    let sticky = world.write("sticky/others", b"x");
    chown(&sticky, Some(1_000), Some(1_000)).expect("the tests run as root");
    let sticky = world.path("sticky");
    fs::set_permissions(&sticky, Permissions::from_mode(0o1777)).expect("it is ours");
    chown(&sticky, Some(1_000), Some(1_000)).expect("the tests run as root");
    let mounts = [(&volume, "/data"), (&sticky, "/sticky")]
        .map(|(source, at)| format!("type=bind,src={},dst={at},options=rbind:rw", source.display()));
    let image = files(&world, "0:0");
    let script = "try read /data/own , try touch /data/own , try move /sticky/others /sticky/moved , try move /sticky/moved /sticky/others";
    for (id, dropped, want) in [
        ("usual", &[][..], "ownok\nok\nok\nok\n"),
        ("no-override", &["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"], "Permission denied\nok\nok\nok\n"),
        (
            "neither",
            &["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER"],
            "Permission denied\nOperation not permitted\nOperation not permitted\nNo such file or directory\n",
        ),
    ] {
        let flags = ["--mount", &mounts[0], "--mount", &mounts[1]].into_iter();
        let flags = flags.chain(dropped.iter().flat_map(|&capability| ["--cap-drop", capability]));
        let output = world.run(&image, id).flags(flags).args(script.split(' ')).ok().stdout();
        assert_eq!(output, want, "{id}");
    }
}

#[test]
fn a_privileged_port_needs_the_capability() {
    only_on_hearth!();
    let world = World::new();
    let image = |user: &str| {
        let layer = Layer::new().file("/tcp.wasm", 0o755, Guest::TCP.wasm_bytes());
        let name = format!("hearth.test/tcp-{user}:1");
        world.import(&Image::scratch(&name).layer(layer).entrypoint(["/tcp.wasm"]).user(user))
    };
    let (as_root, as_user) = (image("0"), image("1000"));
    let run = |image: &Imported, id: &str, flags: &[&str]| world.run(image, id).flags(flags.to_vec()).args(["80"]);
    let mut root = run(&as_root, "root", &[]).spawn();
    root.wait_for_stdout("listening");
    world.kill("root", "SIGKILL").ok();
    root.wait(SHORT).assert_code(137);
    let user = run(&as_user, "user", &[]).run().assert_code(1);
    let dropped = run(&as_root, "dropped", &["--cap-drop", "CAP_NET_BIND_SERVICE"]).run().assert_code(1);
    for output in [user, dropped] {
        assert!(output.stderr().contains("bind"), "{output}");
    }
}
