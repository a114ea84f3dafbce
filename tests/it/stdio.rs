//! stdin, stdout, stderr: FIFOs, files and log programs.

use std::fs;

use hearth_tests::{Guest, LONG, NewContainer, SHORT, World, api, eventually};

use crate::only_on_hearth;

#[test]
fn ten_megabytes_pass_through_unchanged() {
    let world = World::new();
    ten_megabytes_pass_through(&world, &Guest::CAT.bytes_for(world.runtime()));
}

#[test]
fn ten_megabytes_pass_through_a_component_unchanged() {
    only_on_hearth!();
    ten_megabytes_pass_through(&World::new(), &Guest::CAT.component_bytes());
}

fn ten_megabytes_pass_through(world: &World, program: &[u8]) {
    let api = world.api();
    let bytes = noise(10_000_000);
    api.create_container(bare_container(world, "cat", program));
    let (code, output) = api.run_task("cat", &bytes, LONG);
    assert_eq!(code, 0);
    assert!(output == bytes, "{} bytes came back of {}, or other bytes", output.len(), bytes.len());
    api.delete_container("cat");
}

#[test]
fn a_guest_is_answered_while_stdin_is_open_and_ends_when_it_is_closed() {
    let world = World::new();
    let image = world.program(&Guest::TALLY);
    let mut run = world.run(&image, "tally").ctr().open_stdin().spawn();
    run.write(b"a\n");
    run.wait_for_stdout("line 1\n");
    run.write(b"b\nc\n");
    run.wait_for_stdout("line 3\n");
    run.close_stdin();
    let output = run.wait(SHORT).assert_code(0);
    assert!(output.stdout().ends_with("end after 3\n"), "{output}");
}

#[test]
fn a_file_takes_stdout_and_stderr() {
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    let log = world.path("hello.log");
    let uri = format!("file://{}", log.display());
    world.run(&image, "logged").flags(["--log-uri", &uri]).detach().ok();
    world.wait_for_status("logged", "STOPPED");
    let text = fs::read_to_string(&log).expect("the log was made");
    assert!(text.contains("hello from C\n") && text.contains("hello on stderr\n"), "{text:?}");
}

#[test]
fn a_log_program_takes_stdout_and_stderr_apart() {
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    // containerd's protocol: stdout, stderr and a pipe to close when ready, as descriptors 3, 4 and 5.
    let program = world.write(
        "logger",
        b"#!/bin/sh\n\
          test \"$1\" = to || exit 1\n\
          cat <&3 >\"$2.out\" 5>&- & cat <&4 >\"$2.err\" 5>&- &\n\
          echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID\" >\"$2.id\"\n\
          exec 3<&- 4<&- 5>&-\n\
          wait\n",
    );
    make_executable(&program);
    let base = world.path("log").display().to_string();
    let uri = format!("binary://{}?to={base}", program.display());
    world.run(&image, "logged").flags(["--log-uri", &uri]).detach().ok();
    assert_eq!(world.finish("logged"), 0);
    let read = |name: &str| fs::read_to_string(world.path(name)).unwrap_or_default();
    eventually("the log program has both streams", SHORT, || {
        (read("log.out").contains("cwd /\n") && !read("log.err").is_empty()).then_some(())
    });
    assert!(read("log.out").starts_with("hello from C\n"), "{:?}", read("log.out"));
    assert_eq!(read("log.err"), "hello on stderr\n");
    assert_eq!(read("log.id"), "stories/logged\n");
}

#[test]
fn a_log_program_that_fails_is_named() {
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    let missing = format!("binary://{}", world.path("no-such-logger").display());
    let output = world.run(&image, "logged").flags(["--log-uri", &missing]).detach().run();
    output.assert_fault(&["no-such-logger"]);
    world.run(&image, "after").ok();
}

#[test]
fn a_reader_that_hangs_stops_its_own_guest_only() {
    let world = World::new();
    let flood = world.program(&Guest::FLOOD);
    let hello = world.program(&Guest::HELLO);
    let held: Vec<_> =
        (0..4).map(|index| world.run(&flood, &format!("flood-{index}")).ctr().unread_stdout().spawn()).collect();
    for index in 0..held.len() {
        world.wait_for_status(&format!("flood-{index}"), "RUNNING");
    }
    for index in 0..5 {
        world.run(&hello, &format!("hello-{index}")).ok();
    }
    for index in 0..held.len() {
        let id = format!("flood-{index}");
        world.kill(&id, "SIGKILL").ok();
        world.wait_for_status(&id, "STOPPED");
    }
}

#[test]
fn a_client_that_vanishes_leaves_a_task_that_can_be_killed() {
    let world = World::new();
    let flood = world.program(&Guest::FLOOD);
    let mut run = world.run(&flood, "orphan").spawn();
    run.wait_for_stdout("xxx");
    run.process().signal(rustix::process::Signal::KILL);
    eventually("ctr is gone", SHORT, || (!run.is_running()).then_some(()));
    world.kill("orphan", "SIGKILL").run();
    world.wait_for_status("orphan", "STOPPED");
    let hello = world.program(&Guest::HELLO);
    world.run(&hello, "after").ok();
}

#[test]
fn a_fifo_that_is_not_there_is_named() {
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    let api = world.api();
    api.create_container(bare_container(&world, "lost", &Guest::HELLO.bytes_for(world.runtime())));
    let missing = world.path("no-such-fifo").display().to_string();
    let error = api.create_task("lost", ["", &missing, ""]).expect_err("there is no such FIFO");
    assert!(error.message().contains("no-such-fifo"), "{error}");
    world.run(&image, "after").ok();
}

/// A container of one program, in a plain directory: no image, no snapshot.
pub fn bare_container<'a>(world: &World, id: &'a str, program: &[u8]) -> NewContainer<'a> {
    let program = world.write("root/program", program);
    make_executable(&program);
    let mut spec = api::spec(&["/program"], &[]);
    spec["root"]["path"] = program.parent().expect("a file is in a directory").display().to_string().into();
    let (runtime, spec) = (world.runtime().name(), spec.to_string().into_bytes());
    NewContainer { id, runtime, spec, ..NewContainer::default() }
}

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect()
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it was just written");
}
