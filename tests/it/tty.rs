//! Terminals: `ctr run -t`, `kubectl exec -it`.

use hearth_tests::api::Api;
use hearth_tests::{Guest, Image, NewContainer, SHORT, Terminal, World, api, eventually};
use serde_json::{Value, json};

use crate::only_on_hearth;

/// The id of the container and its task.
const TASK: &str = "main";

/// Creates a container in a plain directory with the guests in `/bin`. The first one is its program, on a terminal.
fn create_container(world: &World, guests: &[Guest]) {
    for guest in guests {
        let path = world.write(&format!("root/bin/{}", guest.name()), &guest.bytes_for(world.runtime()));
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it was just written");
    }
    let mut spec = api::spec(&[&format!("/bin/{}", guests[0].name())], &[]);
    spec["root"]["path"] = world.path("root").display().to_string().into();
    spec["process"]["terminal"] = true.into();
    // runc makes a native program's terminal there.
    let mounts = spec["mounts"].as_array_mut().expect("it has mounts");
    mounts.push(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}));
    mounts.push(json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                       "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}));
    let (runtime, spec) = (world.runtime().name(), spec.to_string().into_bytes());
    world.api().create_container(NewContainer { id: TASK, runtime, spec, ..NewContainer::default() });
}

/// Starts a container of the guests on a terminal, and waits until the first one's `greeting` is shown.
fn start<'a>(world: &World, api: &'a Api, guests: &[Guest], greeting: &str) -> Terminal<'a> {
    create_container(world, guests);
    let mut terminal = api.create_on_terminal(TASK).expect("it is created");
    terminal.start();
    terminal.wait_for(greeting);
    terminal
}

/// Types the key that ends the program, checks its exit code, and deletes the container.
#[track_caller]
fn end(api: &Api, mut terminal: Terminal<'_>, key: &[u8], code: u32) {
    terminal.types(key);
    assert_eq!(terminal.finish().0, code);
    api.delete_container(TASK);
}

/// The key that ends stdin.
const END_OF_FILE: &[u8] = b"\x04";

/// The first line of [`Guest::TTY`], on a terminal.
const TTY_GREETING: &str = "terminals 111\r\n";

/// The exit code of [`Guest::TTY`] at the end of its stdin.
const TTY_CODE: u32 = 6;

/// The OCI process of an exec.
fn process(command: &[&str]) -> Value {
    let mut process = api::spec(command, &[])["process"].take();
    process["terminal"] = true.into();
    process
}

#[test]
fn a_terminal_echoes_lines_and_ends_with_its_end_of_file_key() {
    let world = World::new();
    let api = world.api();
    let mut terminal = start(&world, &api, &[Guest::TTY], TTY_GREETING);
    terminal.types(b"helo\x7flo\r");
    terminal.wait_for("got <hello>\r\n");
    terminal.types(END_OF_FILE);
    let (code, shown) = terminal.finish();
    assert_eq!(code, TTY_CODE);
    assert_eq!(shown, "terminals 111\r\nhelo\x08 \x08lo\r\ngot <hello>\r\nthe end\r\n");
    api.delete_container(TASK);
}

#[test]
fn interrupt_and_quit_keys_end_a_program() {
    let world = World::new();
    let api = world.api();
    for (guest, text, key, code) in [
        (Guest::SLEEP, "asleep\r\n", b"\x03", 130),
        (Guest::TTY, TTY_GREETING, b"\x03", 130),
        (Guest::SPIN, "spinning\r\n", b"\x1c", 131),
    ] {
        let terminal = start(&world, &api, &[guest], text);
        end(&api, terminal, key, code);
    }
}

#[test]
fn a_quoted_key_is_just_a_character() {
    let world = World::new();
    let api = world.api();
    let mut terminal = start(&world, &api, &[Guest::TTY], TTY_GREETING);
    terminal.types(b"a\x16\x03b\n");
    terminal.wait_for("got <a\x03b>\r\n");
    end(&api, terminal, END_OF_FILE, TTY_CODE);
}

#[test]
fn an_exec_has_a_terminal_of_its_own() {
    let world = World::new();
    let api = world.api();
    let mut init = start(&world, &api, &[Guest::SLEEP, Guest::TTY], "asleep\r\n");
    let mut one = api.exec_on_terminal(TASK, "one", &process(&["/bin/tty"])).expect("it is added");
    let mut two = api.exec_on_terminal(TASK, "two", &process(&["/bin/tty"])).expect("it is added");
    for terminal in [&mut one, &mut two] {
        terminal.start();
        terminal.resize(132, 43).expect("it has a terminal");
        terminal.wait_for(TTY_GREETING);
    }
    one.types(b"1\n");
    one.wait_for("got <1>\r\n");
    two.types(b"\x03");
    assert_eq!(two.finish().0, 130);
    one.types(END_OF_FILE);
    let (code, shown) = one.finish();
    assert_eq!((code, shown.as_str()), (TTY_CODE, "terminals 111\r\n1\r\ngot <1>\r\nthe end\r\n"));
    init.types(b"\x03");
    assert_eq!(init.finish(), (130, "asleep\r\n^C".to_owned()));
    api.delete_container(TASK);
}

#[test]
fn a_size_is_taken_before_the_start_and_after() {
    let world = World::new();
    create_container(&world, &[Guest::TTY]);
    let api = world.api();
    let mut terminal = api.create_on_terminal(TASK).expect("it is created");
    terminal.resize(80, 24).expect("a created task has a terminal");
    terminal.start();
    terminal.resize(100_000, 1).expect("a running task has a terminal");
    terminal.wait_for(TTY_GREETING);
    end(&api, terminal, END_OF_FILE, TTY_CODE);
}

#[test]
fn a_client_that_leaves_is_replaced_by_another() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    let mut terminal = start(&world, &api, &[Guest::TTY], TTY_GREETING);
    terminal.types(b"one\n");
    terminal.wait_for("got <one>\r\n");
    terminal.attach_again();
    terminal.types(b"two\n");
    terminal.wait_for("got <two>\r\n");
    end(&api, terminal, END_OF_FILE, TTY_CODE);
}

#[test]
fn ctr_runs_a_program_on_its_own_terminal() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::TTY);
    // ctr needs a terminal of its own, which `script` makes.
    let command = world.run(&image, TASK).flags(["--tty"]).ctr().on_terminal();
    let mut running = command.open_stdin().spawn();
    running.wait_for_stdout("terminals 111");
    running.write(b"hello\r");
    running.wait_for_stdout("got <hello>");
    running.write(b"\x03");
    running.wait(SHORT).assert_code(130);
}

#[test]
fn a_component_has_a_terminal() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("component", "/tty.wasm", Guest::TTY.component_bytes()));
    let mut running = world.run(&image, TASK).flags(["--tty"]).ctr().on_terminal().open_stdin().spawn();
    running.wait_for_stdout("terminals 111");
    running.write(b"hello\r");
    running.wait_for_stdout("got <hello>");
    running.write(END_OF_FILE);
    // wasi:cli/exit has success and failure only.
    running.wait(SHORT).assert_code(1);
}

#[test]
fn ctr_execs_on_its_own_terminal() {
    let world = World::new();
    let api = world.api();
    let init = start(&world, &api, &[Guest::SLEEP, Guest::TTY], "asleep\r\n");
    let command = ["tasks", "exec", "--tty", "--exec-id", "x", TASK, "/bin/tty"];
    let mut running = world.ctr(command).on_terminal().open_stdin().spawn();
    running.wait_for_stdout("terminals 111");
    running.write(b"hello\r");
    running.wait_for_stdout("got <hello>");
    running.write(END_OF_FILE);
    running.wait(SHORT).assert_code(TTY_CODE as i32);
    end(&api, init, b"\x1c", 131);
}

/// Whether a `ctr tasks attach` of this world still runs.
fn is_attached(world: &World) -> bool {
    let socket = world.layout().containerd_socket().display().to_string();
    let processes = std::fs::read_dir("/proc").expect("there is a /proc").flatten();
    let mut commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    commands.any(|command| {
        let command = String::from_utf8_lossy(&command);
        command.contains(&socket) && command.contains("attach")
    })
}

#[test]
fn ctr_attaches_to_a_task_that_runs_on_a_terminal() {
    let world = World::new();
    let image = world.program(&Guest::TTY);
    let run = ["run", "--runtime", world.runtime().name(), "--tty", "--detach", &image.name, TASK];
    // With its stdin open: otherwise `script` would type an end of file.
    world.ctr(run).on_terminal().open_stdin().spawn().wait(SHORT).assert_code(0);
    let attach = |line: &str| {
        let mut attached = world.ctr(["tasks", "attach", TASK]).on_terminal().open_stdin().spawn();
        attached.write(format!("{line}\r").as_bytes());
        attached.wait_for_stdout(&format!("got <{line}>"));
        attached
    };
    for line in ["one", "two"] {
        let attached = attach(line);
        // The client is gone, and the program goes on.
        attached.process().signal(rustix::process::Signal::KILL);
        attached.wait(SHORT);
        // That was `script`; `ctr` ends when its terminal is gone, and reads the next answer until then.
        eventually("ctr has ended", SHORT, || (!is_attached(&world)).then_some(()));
        assert_eq!(world.task_status(TASK).as_deref(), Some("RUNNING"));
    }
    let mut attached = attach("three");
    attached.write(END_OF_FILE);
    attached.wait(SHORT).assert_code(TTY_CODE as i32);
    world.remove(TASK);
}
