//! The guest's file system.

use std::fs;

use hearth_tests::{Guest, Image, Imported, Layer, World};

use crate::only_on_hearth;

/// An image with the `files` program in its first layer, and one more layer of the story's.
fn files(world: &World, layers: impl IntoIterator<Item = Layer>) -> Imported {
    let program = "/bin/files";
    let first = Layer::new().file(program, 0o755, Guest::FILES.bytes_for(world.runtime()));
    let mut image = Image::scratch("hearth.test/files:1").layer(first).entrypoint([program]);
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
    // A container's changes are its own and live as long as it does.
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
    let image = files(&world, [Layer::new().file("/etc/motd", 0o644, "welcome")]);
    let read = world.run(&image, "read").flags(["--read-only"]).args(["read", "/etc/motd"]);
    assert_eq!(read.ok().stdout(), "welcome");
    for (id, verb, path) in [
        ("write", "write", "/etc/motd"),
        ("create", "write", "/new"),
        ("mkdir", "mkdir", "/d"),
        ("remove", "remove", "/etc/motd"),
    ] {
        let output = world.run(&image, id).flags(["--read-only"]).args([verb, path, "x"]).run();
        assert!(!output.status.success(), "{output}");
        let text = output.stderr();
        assert!(text.contains("Read-only file system"), "{output}");
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
        let output = run(id, ["write", path, "x"]);
        assert!(output.stderr().contains("Read-only file system"), "{output}");
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
    // Gone with the exit, before the task is deleted.
    hearth_tests::eventually("no mount of a stopped task is left", hearth_tests::SHORT, || {
        world.hearthd_mounts().is_empty().then_some(())
    });
}
