//! Volumes of pods, as kubelet prepares them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use hearth_tests::cri::v1;
use hearth_tests::daemons::containerd_version;
use hearth_tests::{Guest, Image, Imported, Layer, Node, PodOptions, Runtime, World};

use crate::skip_unless;

fn text(path: &Path) -> &str {
    path.to_str().expect("the paths of a machine are text")
}

/// The path by which the story reaches a path of the machine, with the machine's own mounts.
pub fn there(world: &World, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", world.machine().init(), path.display()))
}

/// A mount for a story. Dropping it unmounts it.
pub struct Mounted<'a> {
    world: &'a World,
    at: PathBuf,
}

impl<'a> Mounted<'a> {
    fn tmpfs(world: &'a World, at: &Path) -> Self {
        world.program_on_machine("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", text(at)]).ok();
        Self { world, at: at.to_owned() }
    }

    /// A directory whose mounts propagate to other namespaces, as on a node.
    pub fn shared(world: &'a World, at: &Path) -> Self {
        world.program_on_machine("mount", ["--bind", text(at), text(at)]).ok();
        world.program_on_machine("mount", ["--make-rshared", text(at)]).ok();
        Self { world, at: at.to_owned() }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // A story that failed leaves its mounts to the end of the machine.
        if !std::thread::panicking() {
            self.world.program_on_machine("umount", ["--recursive", text(&self.at)]).ok();
        }
    }
}

/// The `files` program in an image with more in a second layer.
fn files_in(node: &Node, layer: Layer) -> Imported {
    let path = "/bin/files";
    let program = Layer::new().file(path, 0o755, Guest::FILES.bytes_for(node.runtime()));
    node.import(&Image::scratch("hearth.test/volumes:1").layer(program).layer(layer).entrypoint([path]))
}

pub fn propagated(host: &Path, path: &str, propagation: v1::MountPropagation) -> v1::Mount {
    v1::Mount {
        container_path: path.to_owned(),
        host_path: host.display().to_string(),
        propagation: propagation.into(),
        ..v1::Mount::default()
    }
}

#[test]
fn a_volume_mounted_later_is_seen_by_a_running_container_that_asks_for_it() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let volume = node.directory("volume");
    let _shared = Mounted::shared(&node, &volume);
    let late = node.directory("volume/late");
    let pod = node.pod("propagated").run();
    let container = |name: &str, propagation: v1::MountPropagation, arguments: &[&str]| {
        let mount = propagated(&volume, "/volume", propagation);
        pod.container(name, &files).args(arguments.iter().copied()).options(|o| o.mounts.push(mount)).start()
    };
    let asks = container(
        "asks",
        v1::MountPropagation::PropagationHostToContainer,
        &["await", "/volume/late/file", "late", ",", "await", "/volume/late/end", "end", ",", "list", "/volume/late"],
    );
    let does_not = container("does-not", v1::MountPropagation::PropagationPrivate, &["await", "/volume/go", "go"]);
    for container in [&asks, &does_not] {
        container.wait_for_stdout("waiting");
    }
    let mounted = Mounted::tmpfs(&node, &late);
    fs::write(there(&node, &late).join("file"), "late").unwrap();
    fs::write(there(&node, &late).join("end"), "end").unwrap();
    assert_eq!(asks.wait(), 0, "{:?}", asks.log());
    // The other container sees the directory under the mount.
    fs::write(volume.join("go"), "go").unwrap();
    assert_eq!(does_not.wait(), 0, "{:?}", does_not.log());
    let looks = container("looks", v1::MountPropagation::PropagationPrivate, &["list", "/volume/late"]);
    assert_eq!(looks.wait(), 0);
    assert!(looks.stdout().contains("file"), "a new container sees the mounts made before it");
    drop(mounted);
}

#[test]
fn a_mount_made_later_is_not_seen_by_a_container_that_does_not_ask_for_it() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let volume = node.directory("volume");
    let _shared = Mounted::shared(&node, &volume);
    let late = node.directory("volume/late");
    fs::write(late.join("below"), "").unwrap();
    let pod = node.pod("private").run();
    let container = pod
        .container("private", &files)
        .args(["await", "/volume/go", "go", ",", "list", "/volume/late"])
        .volume(&volume, "/volume")
        .start();
    container.wait_for_stdout("waiting");
    let _mounted = Mounted::tmpfs(&node, &late);
    fs::write(there(&node, &late).join("above"), "").unwrap();
    fs::write(volume.join("go"), "go").unwrap();
    assert_eq!(container.wait(), 0, "{:?}", container.log());
    assert_eq!(container.stdout(), "waiting\nbelow\n");
}

/// Writes a Secret's files as kubelet does: into a directory of their own, which `..data` then names.
fn write_secret(volume: &Path, generation: u32, files: &[(&str, &str)]) {
    let directory = volume.join(format!("..generation_{generation}"));
    fs::create_dir(&directory).unwrap();
    for (name, text) in files {
        let file = directory.join(name);
        fs::write(&file, text).unwrap();
        // As with `defaultMode: 0400` and `fsGroup: 2000`.
        fs::set_permissions(&file, Permissions::from_mode(0o440)).unwrap();
        chown(&file, None, Some(2_000)).unwrap();
        if generation == 1 {
            symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
    }
    symlink(directory.file_name().unwrap(), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn a_token_is_found_where_every_client_looks_for_it_and_renewed() {
    const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let node = Node::new();
    // As in many images, the path of the volume leads through an absolute link.
    let files = files_in(&node, Layer::new().directory("/run", 0o755).symlink("/var/run", "/run"));
    let volume = node.directory("token");
    let _mounted = Mounted::tmpfs(&node, &volume);
    write_secret(&there(&node, &volume), 1, &[("token", "first"), ("namespace", "default")]);
    let pod = node.pod("account").run();
    let container = |name: &str, user: i64, arguments: &[&str]| {
        let plan = pod.container(name, &files).args(arguments.iter().copied());
        let plan = plan.read_only_volume(&volume, "/var/run/secrets/kubernetes.io/serviceaccount");
        let plan = plan.options(|options| {
            (options.user, options.group) = (Some(user), Some(user));
            options.supplemental_groups = if user == 1_000 { vec![2_000] } else { Vec::new() };
        });
        plan.start()
    };
    let reads = container("reads", 1_000, &["read", TOKEN]);
    assert_eq!((reads.wait(), reads.stdout().trim_end()), (0, "first"), "{:?}", reads.log());
    let other = container("other", 3_000, &["try", "read", TOKEN]);
    assert_eq!((other.wait(), other.stdout().as_str()), (0, "Permission denied\n"));
    let waits = container("waits", 1_000, &["await", TOKEN, "second", ",", "try", "write", TOKEN, "x"]);
    waits.wait_for_stdout("waiting");
    write_secret(&there(&node, &volume), 2, &[("token", "second"), ("namespace", "default")]);
    assert_eq!(waits.wait(), 0, "{:?}", waits.log());
    assert_eq!(waits.stdout(), "waiting\nRead-only file system\n");
}

#[test]
fn a_read_only_volume_is_so_as_deep_as_it_was_asked_for() {
    let node = Node::new();
    // A node's mounts propagate to the daemon. `ctr` has mount options that CRI before containerd 2 lacks.
    let world: &World = &node;
    let program = Layer::new().file("/bin/files", 0o755, Guest::FILES.bytes_for(world.runtime()));
    let image = world.import(&Image::scratch("hearth.test/deep:1").layer(program).entrypoint(["/bin/files"]));
    let volume = world.directory("volume");
    let inner = world.directory("volume/inner");
    let mounted = Mounted::tmpfs(world, &inner);
    let run = |id: &str, option: &str| {
        let mount = format!("type=bind,src={},dst=/volume,options=rbind:rprivate:{option}", volume.display());
        let script = "try write /volume/new x , try write /volume/inner/new x";
        world.run(&image, id).flags(["--mount", &mount]).args(script.split_whitespace()).ok().stdout()
    };
    assert_eq!(run("top", "ro"), "Read-only file system\nok\n");
    fs::remove_file(there(world, &inner).join("new")).expect("the guest made it");
    assert_eq!(run("all", "rro"), "Read-only file system\nRead-only file system\n");
    assert_eq!(run("none", "rw"), "ok\nok\n");
    drop(mounted);
}

#[test]
fn a_recursively_read_only_volume_is_offered_to_kubelet_and_honoured() {
    let node = Node::new();
    let runtime = node.runtime();
    // Older ones ask runc only.
    let asks = containerd_version() >= (2, 3, 4) || ((2, 2, 7)..(2, 3, 0)).contains(&containerd_version());
    skip_unless!(asks, "this containerd asks no other runtime than runc for its features");
    let handlers = node.cri().status(v1::StatusRequest { verbose: false }).expect("CRI is ready").runtime_handlers;
    let name = PodOptions::of(runtime).handler;
    let features = handlers.into_iter().find(|found| found.name == name).and_then(|handler| handler.features);
    let features = features.expect("the handler has features");
    assert!(features.recursive_read_only_mounts);
    assert!(runtime == Runtime::Runc || !features.user_namespaces);

    let files = node.program(&Guest::FILES);
    let (volume, inner) = (node.directory("volume"), node.directory("volume/inner"));
    let mounted = Mounted::tmpfs(&node, &inner);
    let pod = node.pod("deep").run();
    let script = "try write /volume/new x , try write /volume/inner/new x";
    let container = pod.container("deep", &files).args(script.split(' ')).options(|options| {
        options.mounts.push(v1::Mount {
            readonly: true,
            recursive_read_only: true,
            ..propagated(&volume, "/volume", v1::MountPropagation::PropagationPrivate)
        });
    });
    let container = container.start();
    assert_eq!(container.wait(), 0, "{:?}", container.log());
    assert_eq!(container.stdout(), "Read-only file system\nRead-only file system\n");
    drop(mounted);
}

#[test]
fn an_image_is_mounted_as_a_volume() {
    let node = Node::new();
    skip_unless!(containerd_version() >= (2, 1, 0), "this containerd has no image volumes");
    let layer = Layer::new().file("/inside", 0o644, "of the image\n");
    let data = node.import(&Image::scratch("hearth.test/data:1").layer(layer).entrypoint(["/inside"]));
    let files = node.program(&Guest::FILES);
    let pod = node.pod("image-volume").run();
    let script = "read /data/inside , try write /data/new x";
    let container = pod.container("reads", &files).args(script.split(' ')).options(|options| {
        options.mounts.push(v1::Mount {
            container_path: "/data".into(),
            image: Some(v1::ImageSpec { image: data.name.clone() }),
            readonly: true,
            ..v1::Mount::default()
        });
    });
    let container = container.start();
    assert_eq!(container.wait(), 0, "{:?}", container.log());
    assert_eq!(container.stdout(), "of the image\nRead-only file system\n");
}

#[test]
fn a_volume_that_vanishes_is_an_error_of_its_reader_alone() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let (volume, other) = (node.directory("volume"), node.directory("other"));
    let mounted = Mounted::tmpfs(&node, &volume);
    fs::write(there(&node, &volume).join("file"), "of the volume").unwrap();
    let pod = node.pod("bereft").run();
    let container = |name: &str, arguments: &[&str]| {
        let plan = pod.container(name, &files).args(arguments.iter().copied());
        plan.volume(&volume, "/volume").volume(&other, "/other").start()
    };
    let script = "read /volume/file , await /other/go go , try read /volume/file , try write /volume/new x";
    let loses = container("loses", &script.split(' ').collect::<Vec<_>>());
    let lives = container("lives", &["await", "/other/end", "end"]);
    for container in [&loses, &lives] {
        container.wait_for_stdout("waiting");
    }
    // As when an operator detaches a disk in use and empties it.
    fs::remove_file(there(&node, &volume).join("file")).unwrap();
    drop(mounted);
    fs::remove_dir_all(&volume).unwrap();
    fs::write(other.join("go"), "go").unwrap();
    assert_eq!(loses.wait(), 0, "{:?}", loses.log());
    assert!(loses.stdout().contains("No such file or directory\n"), "{:?}", loses.log());
    assert!(lives.is_running());
    // A container with a volume that does not exist does not start.
    let missing = node.path("no-such-volume");
    fs::write(&missing, "a file").unwrap();
    let plan = pod.container("missing", &files).args(["read", "/volume/x"]).volume(missing.join("below"), "/volume");
    plan.try_create().and_then(|container| container.try_start()).expect_err("its volume is no directory's");
    fs::write(other.join("end"), "end").unwrap();
    assert_eq!(lives.wait(), 0, "{:?}", lives.log());
}

#[test]
fn a_mount_point_behind_a_link_is_inside_the_root_wherever_the_link_leads() {
    let node = Node::new();
    let outside = node.write("outside/.keep", b"").parent().expect("a file is in a directory").to_owned();
    let layer = Layer::new()
        .directory("/inside", 0o755)
        .symlink("/link", "/inside")
        .symlink("/up", &format!("{}{}", "../".repeat(20), outside.display()))
        .symlink("/absolute", text(&outside));
    let files = files_in(&node, layer);
    let volume = node.write("volume/file", b"of the volume").parent().expect("a file is in a directory").to_owned();
    let pod = node.pod("linked").run();
    for (index, (at, look)) in [
        ("/link/volume", "/inside/volume/file".to_owned()),
        ("/up", format!("{}/file", outside.display())),
        ("/absolute", format!("{}/file", outside.display())),
    ]
    .into_iter()
    .enumerate()
    {
        let container = pod.container(&format!("c{index}"), &files).args(["read", &look]).volume(&volume, at).start();
        assert_eq!((container.wait(), container.stdout().trim_end()), (0, "of the volume"), "{:?}", container.log());
    }
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".keep"], "nothing was made outside");
}

#[test]
fn a_container_has_the_capabilities_its_security_context_leaves_it() {
    let node = Node::new();
    let files = node.program(&Guest::FILES);
    let volume = node.directory("volume");
    let private = node.write("volume/private", b"of 1000");
    fs::set_permissions(&private, Permissions::from_mode(0o600)).unwrap();
    chown(&private, Some(1_000), Some(1_000)).unwrap();
    let pod = node.pod("capable").run();
    for (name, add, drop, want) in [
        ("usual", &[][..], &[][..], "of 1000ok\nok\n"),
        ("none", &[], &["ALL"], "Permission denied\nOperation not permitted\n"),
        ("one", &["DAC_OVERRIDE"], &["ALL"], "of 1000ok\nOperation not permitted\n"),
        ("another", &["FOWNER"], &["ALL"], "Permission denied\nok\n"),
        ("without", &[], &["DAC_OVERRIDE", "DAC_READ_SEARCH"], "Permission denied\nok\n"),
    ] {
        let words = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let script = "try read /volume/private , try touch /volume/private";
        let plan = pod.container(name, &files).args(script.split(' ')).volume(&volume, "/volume");
        let plan = plan.options(|options| {
            options.capabilities = v1::Capability { add_capabilities: words(add), drop_capabilities: words(drop) };
        });
        let container = plan.start();
        assert_eq!((container.wait(), container.stdout().as_str()), (0, want), "{name}");
    }
}

#[test]
fn a_container_that_says_nothing_of_its_end_leaves_its_last_words_in_the_log() {
    crate::only_on_hearth!();
    let node = Node::new();
    let pod = node.pod("mute").run();
    let trap = node.program(&Guest::TRAP);
    let container = pod.container("trap", &trap).start();
    assert_eq!(container.wait(), 134);
    // kubelet shows this with `terminationMessagePolicy: FallbackToLogsOnError`.
    assert!(container.stderr().contains("unreachable"), "{:?}", container.log());
    // A program that cannot be started has its error in the answer of CRI.
    let image = node.program(&Guest::NO_ENTRY);
    let refused = pod.container("no-entry", &image).try_create().and_then(|container| container.try_start());
    assert!(refused.expect_err("it exports nothing to call").to_string().contains("_start"));
}
