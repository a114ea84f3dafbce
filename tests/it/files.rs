//! The guest's file system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use hearth_tests::{Guest, Image, Imported, Layer, Runtime, World};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::only_on_hearth;

/// An image with the `files` program in its first layer, and one more layer of the story's.
fn files(world: &World, layers: impl IntoIterator<Item = Layer>) -> Imported {
    files_as(world, "files", "0:0", Guest::FILES.bytes_for(world.runtime()), layers)
}

/// The program in all its forms, with each form's name: on Hearth a module and a component.
fn all_files(world: &World, layers: &[Layer]) -> Vec<(&'static str, Imported)> {
    all_files_as(world, "0:0", layers)
}

fn all_files_as(world: &World, user: &str, layers: &[Layer]) -> Vec<(&'static str, Imported)> {
    let program = Guest::FILES.bytes_for(world.runtime());
    let mut images = vec![("files", files_as(world, "files", user, program, layers.to_vec()))];
    if world.runtime() == Runtime::Hearth {
        let component = Guest::FILES.component_bytes();
        images.push(("component", files_as(world, "component", user, component, layers.to_vec())));
    }
    images
}

fn files_as(
    world: &World,
    name: &str,
    user: &str,
    program: Vec<u8>,
    layers: impl IntoIterator<Item = Layer>,
) -> Imported {
    let path = "/bin/files";
    let first = Layer::new().file(path, 0o755, program);
    let name = format!("hearth.test/{name}-{}:1", user.replace(':', "-"));
    let mut image = Image::scratch(&name).layer(first).entrypoint([path]).user(user);
    for layer in layers {
        image = image.layer(layer);
    }
    world.import(&image)
}

#[test]
fn files_are_read_written_listed_and_removed() {
    let world = World::new();
    let image = files(&world, [Layer::new().file("/etc/motd", 0o644, "welcome")]);
    assert_eq!(world.run(&image, "read").args(["read", "/etc/motd"]).ok().stdout(), "welcome");
    // A container's changes are visible to it alone, and live as long as it does.
    world.run(&image, "own").args(["write", "/etc/motd", "changed"]).detach().ok();
    world.wait_for_status("own", "STOPPED");
    assert_eq!(world.run(&image, "other").args(["read", "/etc/motd"]).ok().stdout(), "welcome");
    world.run(&image, "mkdir").args(["mkdir", "/new"]).ok();
    world.run(&image, "remove").args(["remove", "/etc/motd"]).ok();
    let listed = world.run(&image, "list").args(["list", "/etc"]).ok().stdout();
    assert!(listed.lines().any(|name| name == "motd"), "{listed:?}");
}

#[test]
fn a_missing_file_is_an_error_of_the_guests() {
    let world = World::new();
    let image = files(&world, []);
    let output = world.run(&image, "missing").args(["read", "/no/such/file"]).run();
    assert!(!output.status.success());
    assert!(output.stderr().contains("/no/such/file: No such file or directory"), "{output}");
}

#[test]
fn a_later_layer_replaces_and_removes() {
    let world = World::new();
    let lower = Layer::new().file("/data/a", 0o644, "lower a").file("/data/b", 0o644, "lower b");
    let upper = Layer::new().file("/data/a", 0o644, "upper a").whiteout("/data/b");
    let image = files(&world, [lower, upper]);
    assert_eq!(world.run(&image, "a").args(["read", "/data/a"]).ok().stdout(), "upper a");
    assert_eq!(world.run(&image, "list").args(["list", "/data"]).ok().stdout(), "a\n");
}

#[test]
fn a_read_only_root_is_not_written() {
    let world = World::new();
    let layer = Layer::new().file("/etc/motd", 0o644, "welcome").symlink("/etc/link", "/etc/motd");
    for (form, image) in all_files(&world, &[layer]) {
        let script = "read /etc/motd , try write /etc/motd x , try write /new x , try mkdir /d , \
                      try remove /etc/motd , try move /etc/motd /m , try link motd /l , try twin /etc/motd /t , \
                      try touch /etc/motd , try write /etc/link x , try read /new";
        let output = world.run(&image, form).flags(["--read-only"]).args(script.split_whitespace()).ok().stdout();
        let refused = "Read-only file system\n".repeat(9);
        assert_eq!(output, format!("welcome{refused}No such file or directory\n"), "{form}");
    }
}

#[test]
fn writable_volumes_in_a_read_only_root_are_written_and_read_only_ones_are_not() {
    let world = World::new();
    let image = files(&world, [Layer::new().file("/etc/motd", 0o644, "welcome")]);
    let kept = world.write("kept/file", b"as it was");
    let log = world.write("log", b"");
    let directory = kept.parent().expect("a file is in a directory").display();
    let run = |id: &str, arguments: [&str; 3]| {
        let mounts = [
            format!("type=bind,src={directory},dst=/data,options=rbind:rw"),
            format!("type=bind,src={},dst=/dev/termination-log,options=rbind:rw", log.display()),
            format!("type=bind,src={directory},dst=/config,options=rbind:ro"),
        ];
        let flags = ["--read-only", "--mount", &mounts[0], "--mount", &mounts[1], "--mount", &mounts[2]];
        world.run(&image, id).flags(flags).args(arguments).run()
    };
    run("directory", ["write", "/data/new", "x"]).assert_code(0);
    run("file", ["write", "/dev/termination-log", "why"]).assert_code(0);
    assert_eq!(fs::read(&log).expect("it is there"), b"why");
    assert_eq!(fs::read(kept.with_file_name("new")).expect("the guest made it"), b"x");
    for (id, path) in [("root", "/new"), ("config", "/config/file")] {
        // The program ends with WASI's number of EROFS; ctr 1.6 may lose its output.
        run(id, ["write", path, "x"]).assert_code(69);
    }
    assert_eq!(fs::read(&kept).expect("it is there"), b"as it was");
}

#[test]
fn a_link_never_leads_out_of_the_root() {
    let world = World::new();
    let secret = world.write("secret", b"the host's");
    let up = "../".repeat(30);
    let layer = Layer::new()
        .symlink("/absolute", &secret.display().to_string())
        .symlink("/up", &format!("{up}{}", secret.display()))
        .symlink("/root", "/")
        .symlink("/above", &up);
    let image = files(&world, [layer]);
    let host = secret.display().to_string();
    let paths = [
        "/absolute".to_owned(),
        "/up".to_owned(),
        host.clone(),
        format!("/root{host}"),
        format!("/above{host}"),
        format!("/{up}{host}"),
    ];
    for (index, path) in paths.iter().enumerate() {
        let output = world.run(&image, &format!("escape-{index}")).args(["read", path]).run();
        assert!(!output.status.success() && output.stdout.is_empty(), "{path}: {output}");
    }
}

#[test]
fn absolute_links_are_followed_within_the_root() {
    let world = World::new();
    let layer = Layer::new()
        .directory("/data", 0o777)
        .file("/data/file", 0o666, "inside")
        .file("/listed/one", 0o644, "")
        .symlink("/file", "/data/file")
        .symlink("/directory", "/data")
        .symlink("/list", "/listed")
        .symlink("/twice", "/directory/file")
        .symlink("/data/up", "../../../data/file")
        .symlink("/data/later", "/directory/made")
        .symlink("/circle", "/circle")
        .symlink("/nowhere", "/none/at/all");
    // The verbs, each with its output.
    let script = [
        ("read /file", "inside"),
        ("try read /twice", "insideok\n"),
        ("try read /data/up", "insideok\n"),
        ("try read /../../file", "insideok\n"),
        ("list /list", "one\n"),
        ("write /data/later made", ""),
        ("read /data/made", "made"),
        ("append /file !", ""),
        ("read /data/file", "inside!"),
        ("size /file", "7\n"),
        ("kind /file", "link\n"),
        ("target /file", "/data/file\n"),
        ("kind /directory/file", "file\n"),
        ("mkdir /directory/new", ""),
        ("kind /data/new", "directory\n"),
        ("move /directory/made /directory/new/moved", ""),
        ("twin /directory/new/moved /directory/twin", ""),
        // A file of its own: only root may change the times of another user's file.
        ("touch /directory/new/moved", ""),
        ("link file /directory/link", ""),
        ("read /data/link", "inside!"),
        ("remove /directory/new/moved", ""),
        ("remove /directory/new", ""),
        ("read /directory/twin", "made"),
        ("try read /circle", "Symbolic link loop\n"),
        ("try read /nowhere", "No such file or directory\n"),
        ("try write /nowhere x", "No such file or directory\n"),
        ("try mkdir /circle", "File exists\n"),
        ("try kind /file/x", "Not a directory\n"),
        ("try read /directory/none", "No such file or directory\n"),
    ];
    let words = script.iter().flat_map(|(act, _)| act.split(' ').chain([","]));
    let want: String = script.iter().map(|(_, prints)| *prints).collect();
    for user in ["0:0", "1000:1000"] {
        for (form, image) in all_files_as(&world, user, std::slice::from_ref(&layer)) {
            let id = format!("{form}-{}", user.replace(':', "-"));
            let output = world.run(&image, &id).args(words.clone()).ok().stdout();
            // glibc's text for the same error.
            assert_eq!(output.replace("Too many levels of symbolic links", "Symbolic link loop"), want, "{id}");
        }
    }
}

#[test]
fn links_in_a_volume_of_another_owner_lead_only_into_the_root() {
    let world = World::new();
    let secret = world.write("host/secret", b"the host's");
    let outside = secret.parent().expect("it is in a directory");
    let volume = world.write("volume/file", b"the volume's").parent().expect("it is in a directory").to_owned();
    for (name, target) in [
        ("absolute", secret.as_path()),
        ("up", Path::new("../host/secret")),
        ("directory", outside),
        ("above", Path::new("../../../../../../..")),
        ("root", Path::new("/")),
        ("proc", Path::new("/proc/self/root")),
    ] {
        symlink(target, volume.join(name)).expect("it is writable");
    }
    let mounts = [format!("type=bind,src={},dst=/mnt/volume,options=rbind:rw", volume.display())];
    let host = secret.display();
    let refused: Vec<String> = ["absolute", "up", "directory/secret", &format!("above{host}"), &format!("root{host}")]
        .map(|path| format!("/mnt/volume/{path}"))
        .into_iter()
        .chain([format!("/mnt/volume/proc{host}"), format!("/mnt/volume/../../..{host}")])
        .collect();
    for (form, image) in all_files(&world, &[Layer::new().file("/etc/motd", 0o644, "welcome")]) {
        let reads: Vec<String> =
            refused.iter().flat_map(|path| [",", "try", "read", path].map(str::to_owned)).collect();
        // A link to `/` leads to the guest's root, and `..` crosses the mount's edge, as on Linux.
        let inside = "read /mnt/volume/root/etc/motd , read /mnt/volume/above/mnt/volume/file";
        let script = inside.split_whitespace().map(str::to_owned).chain(reads);
        let output = world.run(&image, form).flags(["--mount", &mounts[0]]).args(script).ok().stdout();
        let missing = "No such file or directory\n".repeat(refused.len());
        assert_eq!(output, format!("welcomethe volume's{missing}"), "{form}");
    }
}

#[test]
fn links_swapped_while_a_guest_opens_files_lead_it_nowhere_outside() {
    let world = World::new();
    world.write("host/file", b"the host's");
    let volume = world.write("volume/real/file", b"the volume's");
    let volume = volume.ancestors().nth(2).expect("it is in a directory in one").to_owned();
    symlink(world.path("host"), volume.join("link")).expect("it is writable");
    symlink("/mnt/volume/real", volume.join("inside")).expect("it is writable");
    let mount = format!("type=bind,src={},dst=/mnt/volume,options=rbind:rw", volume.display());
    let images = all_files(&world, &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Setting(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let exchange = |one: &str, other: &str| {
                    renameat_with(CWD, volume.join(one), CWD, volume.join(other), RenameFlags::EXCHANGE)
                        .expect("both are there");
                };
                exchange("real", "link");
                exchange("inside", "link");
            }
        });
        for (form, image) in &images {
            let script = "hunt /mnt/volume/real/file 20000 , hunt /mnt/volume/inside/file 20000 , \
                          hunt /mnt/volume/link/file 20000 , hunt /mnt/volume/inside/../link/file 20000";
            let run = world.run(image, form).flags(["--mount", &mount]).args(script.split_whitespace());
            let output = run.ok().stdout();
            assert!(output.contains("the volume's") && !output.contains("host"), "{form}: {output}");
        }
    });
}

/// Sets a flag when it is dropped, also by a panic.
struct Setting<'a>(&'a AtomicBool);

impl Drop for Setting<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_fifo_of_an_image_is_not_waited_for() {
    only_on_hearth!();
    let world = World::new();
    let image = files(&world, [Layer::new().file("/etc/motd", 0o644, "welcome").fifo("/pipe")]);
    let output = world.run(&image, "pipe").args(["try", "read", "/pipe", ",", "read", "/etc/motd"]).ok();
    assert!(output.stdout().contains("Not supported\nwelcome"), "{output}");
}

#[test]
fn a_guest_has_no_more_files_open_than_it_may() {
    only_on_hearth!();
    let world = World::configured("[tenant]\ndescriptors_max = 64\n");
    let image = files(&world, [Layer::new().file("/etc/motd", 0o644, "welcome")]);
    // ctr's own limit is higher; the lower one holds. After closing files the guest can open others.
    let script = "hoard /etc/motd 100 , read /etc/motd , hoard /etc/motd 100 , try hold /etc/motd 70";
    let output = world.run(&image, "hoards").args(script.split(' ')).ok().stdout();
    assert_eq!(output, "64\nwelcome64\nNo file descriptors available\n");
}

#[test]
fn a_bind_mount_is_at_its_place() {
    let world = World::new();
    let image = files(&world, []);
    let shared = world.write("shared/from-host", b"hello guest").parent().expect("it is a directory").to_owned();
    let mount = |options: &str| format!("type=bind,src={},dst=/mnt/shared,options={options}", shared.display());
    let read = world.run(&image, "read").flags(["--mount", &mount("rbind:ro")]);
    assert_eq!(read.args(["read", "/mnt/shared/from-host"]).ok().stdout(), "hello guest");
    let write = world.run(&image, "write").flags(["--mount", &mount("rbind:rw")]);
    write.args(["write", "/mnt/shared/from-guest", "hello host"]).ok();
    assert_eq!(fs::read(shared.join("from-guest")).expect("the guest wrote it"), b"hello host");
    let refused = world.run(&image, "refused").flags(["--mount", &mount("rbind:ro")]);
    let refused = refused.args(["write", "/mnt/shared/another", "x"]).run();
    assert!(!refused.status.success(), "{refused}");
    assert!(!shared.join("another").exists());
}

#[test]
fn mounts_are_gone_when_the_task_is() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::SLEEP);
    for index in 0..3 {
        world.run(&image, &format!("sleep-{index}")).args(["3600"]).detach().ok();
    }
    for index in 0..3 {
        let id = format!("sleep-{index}");
        world.kill(&id, "SIGKILL").ok();
        world.wait_for_status(&id, "STOPPED");
    }
    // They are gone with the exit, before the task is deleted.
    hearth_tests::eventually("no mount of a stopped task is left", hearth_tests::SHORT, || {
        world.hearthd_mounts().is_empty().then_some(())
    });
}
