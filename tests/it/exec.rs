//! More programs in a running task: `ctr task exec`, `kubectl exec`.

use hearth_tests::{Ctr, Guest, Image, Imported, Layer, Output, SHORT, World};

use crate::only_on_hearth;
use crate::stdio::bare_container;

/// The id of the task that the execs are in.
const TASK: &str = "main";

/// An image of several programs in `/bin`, which is the `PATH`; its entry point sleeps.
fn tools(world: &World) -> Imported {
    let runtime = world.runtime();
    let tool =
        |layer: Layer, guest: &Guest| layer.file(&format!("/bin/{}", guest.name()), 0o755, guest.bytes_for(runtime));
    let guests =
        [Guest::SLEEP, Guest::EXIT, Guest::CAT, Guest::TALLY, Guest::HELLO, Guest::SPIN, Guest::GROW, Guest::FILES];
    let layer = guests.iter().fold(Layer::new(), tool).file("/bin/text", 0o755, "no program\n");
    let image = Image::scratch("hearth.test/tools:1").layer(layer).env("PATH", "/bin").entrypoint(["/bin/sleep"]);
    world.import(&image)
}

/// The task, running.
fn start(world: &World) {
    world.run(&tools(world), TASK).args(["3600"]).detach().ok();
}

/// A call of `ctr task exec`, not yet made.
fn exec<'a>(world: &'a World, exec_id: &str, command: &[&str]) -> Ctr<'a> {
    world.ctr([&["tasks", "exec", "--exec-id", exec_id, TASK], command].concat())
}

#[test]
fn an_exec_ends_with_its_programs_code() {
    let world = World::new();
    start(&world);
    for code in [0, 1, 7, 125] {
        exec(&world, &format!("exit-{code}"), &["/bin/exit", &code.to_string()]).run().assert_code(code);
    }
    assert_eq!(world.task_status(TASK).as_deref(), Some("RUNNING"));
}

#[test]
fn an_exec_has_arguments_directory_and_streams_of_its_own() {
    let world = World::new();
    start(&world);
    let hello = world.ctr(["tasks", "exec", "--exec-id", "x", "--cwd", "/bin", TASK, "hello", "one", "two words"]).ok();
    for line in ["hello from C\n", "arg 0: hello\n", "arg 1: one\n", "arg 2: two words\n", "env PATH=/bin\n"] {
        assert!(hello.stdout().contains(line), "{line:?} is missing: {hello}");
    }
    assert_eq!(hello.stderr(), "hello on stderr\n");
}

#[test]
fn an_exec_reads_its_stdin_to_the_end() {
    let world = World::new();
    start(&world);
    let output = exec(&world, "cat", &["cat"]).stdin("over and\nout\n").run().assert_code(0);
    assert_eq!(output.stdout(), "over and\nout\n");
    let mut tally = exec(&world, "tally", &["tally"]).open_stdin().spawn();
    tally.write(b"a\n");
    tally.wait_for_stdout("line 1\n");
    tally.close_stdin();
    let output = tally.wait(SHORT).assert_code(0);
    assert!(output.stdout().ends_with("end after 1\n"), "{output}");
}

#[test]
fn an_exec_is_killed_alone() {
    let world = World::new();
    start(&world);
    for (guest, text, signal, code) in
        [("sleep", "asleep", "SIGKILL", 137), ("sleep", "asleep", "SIGTERM", 143), ("spin", "spinning", "SIGINT", 130)]
    {
        let mut running = exec(&world, signal, &[guest, "3600"]).spawn();
        running.wait_for_stdout(text);
        world.ctr(["tasks", "kill", "--signal", signal, "--exec-id", signal, TASK]).ok();
        running.wait(SHORT).assert_code(code);
    }
    assert_eq!(world.task_status(TASK).as_deref(), Some("RUNNING"));
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let world = World::new();
    start(&world);
    exec(&world, "missing", &["no-such-tool"]).run().assert_fault(&["no-such-tool"]);
    exec(&world, "missing", &["/no/such/tool"]).run().assert_fault(&["/no/such/tool"]);
    // The id is free again, and the task unharmed.
    exec(&world, "missing", &["exit", "3"]).run().assert_code(3);
}

#[test]
fn a_program_that_cannot_run_is_refused_at_its_start_in_the_words_of_runc() {
    let world = World::new();
    start(&world);
    let api = world.api();
    // By these words docker chooses the exit codes 127 and 126.
    let table = [
        ("/no/such/tool", "no such file or directory"),
        ("no-such-tool", "executable file not found in $path"),
        ("/bin", "permission denied"),
    ];
    for (index, (program, words)) in table.into_iter().enumerate() {
        let id = format!("refused-{index}");
        api.exec(TASK, &id, &[program]).expect("Exec does not look at the program");
        let error = api.start_exec(TASK, &id).expect_err("it cannot run");
        let text = error.message().to_lowercase();
        assert!(text.contains(words) && text.contains(program), "{program}: {error}");
        api.delete_exec(TASK, &id).expect("it does not run");
    }
    exec(&world, "refused-0", &["exit", "3"]).run().assert_code(3);
}

#[test]
fn an_exec_that_was_not_started_is_deleted_without_an_exit_code() {
    let world = World::new();
    start(&world);
    let api = world.api();
    api.exec(TASK, "created", &["/bin/exit", "7"]).expect("the task runs");
    assert_eq!(api.delete_exec(TASK, "created").expect("it does not run"), 0);
    api.start_exec(TASK, "created").expect_err("it is gone");
}

#[test]
fn a_native_program_is_refused_and_identified() {
    only_on_hearth!();
    let world = World::new();
    let layer = Layer::new()
        .file("/bin/sleep.wasm", 0o755, Guest::SLEEP.wasm_bytes())
        .file("/bin/sh", 0o755, Guest::EXIT.native_bytes())
        .file("/bin/script", 0o755, "#!/bin/sh\n");
    let image = Image::scratch("hearth.test/native:1").layer(layer).env("PATH", "/bin").entrypoint(["/bin/sleep.wasm"]);
    world.run(&world.import(&image), TASK).args(["3600"]).detach().ok();
    let only = "only webassembly programs run in a hearth task";
    exec(&world, "x", &["sh"]).run().assert_fault(&["/bin/sh", "linux/amd64 program (an elf", only]);
    exec(&world, "x", &["/bin/script"]).run().assert_fault(&["/bin/script", "a script for", only]);
    exec(&world, "x", &["no-such-tool"]).run().assert_fault(&["tried /bin/no-such-tool", only]);
}

#[test]
fn a_name_without_extension_and_a_component_are_found_on_the_path() {
    only_on_hearth!();
    let world = World::new();
    let layer = Layer::new()
        .file("/opt/sleep.wasm", 0o755, Guest::SLEEP.wasm_bytes())
        .file("/opt/hello.wasm", 0o755, Guest::HELLO.component_bytes())
        .file("/opt/exit.wasm", 0o644, Guest::EXIT.wasm_bytes());
    let image = Image::scratch("hearth.test/path:1").layer(layer).env("PATH", "/bin:/opt").entrypoint(["sleep"]);
    world.run(&world.import(&image), TASK).args(["3600"]).detach().ok();
    exec(&world, "bare", &["exit", "9"]).run().assert_code(9);
    let hello = exec(&world, "component", &["hello", "one"]).ok();
    assert!(hello.stdout().contains("hello from C\narg 0: hello\narg 1: one\n"), "{hello}");
}

#[test]
fn two_execs_run_at_once() {
    let world = World::new();
    start(&world);
    let mut tallies: Vec<_> =
        ["one", "two"].iter().map(|id| exec(&world, id, &["tally"]).open_stdin().spawn()).collect();
    for _ in 0..2 {
        for tally in &mut tallies {
            tally.write(b"x\n");
        }
    }
    for mut tally in tallies {
        tally.wait_for_stdout("line 2\n");
        tally.close_stdin();
        tally.wait(SHORT).assert_code(0);
    }
}

#[test]
fn an_exec_id_is_taken_while_its_exec_exists() {
    let world = World::new();
    start(&world);
    let mut first = exec(&world, "same", &["sleep", "3600"]).spawn();
    first.wait_for_stdout("asleep");
    exec(&world, "same", &["exit", "0"]).run().assert_fault(&["same"]);
    let unknown = world.ctr(["tasks", "kill", "--exec-id", "other", TASK]).run();
    unknown.assert_fault(&["other", "not found"]);
    world.ctr(["tasks", "kill", "--signal", "SIGKILL", "--exec-id", "same", TASK]).ok();
    first.wait(SHORT).assert_code(137);
    exec(&world, "same", &["exit", "4"]).run().assert_code(4);
}

#[test]
fn execs_end_with_the_init_and_are_told_in_order() {
    let world = World::new();
    start(&world);
    let events = world.events();
    exec(&world, "short", &["exit", "5"]).run().assert_code(5);
    let exited = events.wait_for("the exec's exit", |event| event.topic == "/tasks/exit" && of(event, "short"));
    assert_eq!(exited.exit_status(), 5);
    let topics: Vec<String> =
        events.all().into_iter().filter(|event| of(event, "short")).map(|event| event.topic).collect();
    assert_eq!(topics, ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]);

    let mut long = exec(&world, "long", &["sleep", "3600"]).spawn();
    long.wait_for_stdout("asleep");
    if world.runtime() == hearth_tests::Runtime::Runc {
        // The stories' native tasks share the machine's pid namespace: the end of init does not end their execs.
        world.ctr(["tasks", "kill", "--signal", "SIGKILL", "--exec-id", "long", TASK]).ok();
    }
    world.kill(TASK, "SIGKILL").ok();
    assert_eq!(ended(long), 137);
    let exited = events.wait_for("the exec's exit", |event| event.topic == "/tasks/exit" && of(event, "long"));
    assert_eq!(exited.exit_status(), 137);
    assert_eq!(world.finish(TASK), 137);
}

fn ended(running: hearth_tests::Running) -> i32 {
    let output: Output = running.wait(SHORT);
    output.code()
}

/// Whether an event is about this exec: an exit names it `id`, the others `exec_id`.
fn of(event: &hearth_tests::events::Event, exec_id: &str) -> bool {
    ["exec_id", "id"].iter().any(|name| event.fields.get(name).and_then(serde_json::Value::as_str) == Some(exec_id))
}

#[test]
fn the_exits_of_execs_come_before_the_inits() {
    only_on_hearth!();
    let world = World::new();
    start(&world);
    let events = world.events();
    let running: Vec<_> = (0..4)
        .map(|index| {
            let mut exec = exec(&world, &format!("x{index}"), &[["sleep", "spin"][index % 2], "3600"]).spawn();
            exec.wait_for_stdout(["asleep", "spinning"][index % 2]);
            exec
        })
        .collect();
    world.kill(TASK, "SIGTERM").ok();
    let last = events.wait_for("the task's exit", |event| event.topic == "/tasks/exit" && of(event, TASK));
    assert_eq!(last.exit_status(), 143);
    let exits: Vec<_> = events.all().into_iter().filter(|event| event.topic == "/tasks/exit").collect();
    assert_eq!(exits.len(), 5, "{exits:#?}");
    assert!(exits[..4].iter().all(|exit| exit.exit_status() == 137), "{exits:#?}");
    for exec in running {
        exec.wait(SHORT).assert_code(137);
    }
    assert_eq!(world.finish(TASK), 143);
}

#[test]
fn a_stopped_task_takes_no_exec() {
    let world = World::new();
    start(&world);
    world.kill(TASK, "SIGKILL").ok();
    world.wait_for_status(TASK, "STOPPED");
    exec(&world, "late", &["exit", "0"]).run().assert_fault(&["stopped"]);
    assert_eq!(world.finish(TASK), 137);
}

#[test]
fn a_task_that_was_not_started_takes_no_exec() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    api.create_container(bare_container(&world, TASK, &Guest::SLEEP.wasm_bytes()));
    api.create_task(TASK, ["", "", ""]).expect("it can be created");
    exec(&world, "early", &["exit", "0"]).run().assert_fault(&["not been started"]);
    world.remove(TASK);
}

#[test]
fn execs_are_bounded_listed_and_share_the_tasks_memory() {
    only_on_hearth!();
    let world = World::configured("[tenant]\nexecs_max = 2\n");
    let mib = 1 << 20;
    world
        .run(&tools(&world), TASK)
        .args(["3600"])
        .flags(["--memory-limit".to_owned(), (16 * mib).to_string()])
        .detach()
        .ok();
    // The memory of an exec is the task's again after the exec's end.
    for _ in 0..3 {
        exec(&world, "grow", &["grow", "10"]).ok();
    }
    exec(&world, "grow", &["grow", "32"]).run().assert_code(9);
    let running: Vec<_> = ["a", "b"]
        .iter()
        .map(|id| {
            let mut exec = exec(&world, id, &["sleep", "3600"]).spawn();
            exec.wait_for_stdout("asleep");
            exec
        })
        .collect();
    exec(&world, "c", &["exit", "0"]).run().assert_fault(&["tenant.execs_max"]);
    let listed = world.ctr(["tasks", "ps", TASK]).ok().stdout();
    // 1.6 writes `ExecID:a`, later versions `exec_id:"a"`.
    let has = |id: &str| [format!("ExecID:{id}"), format!("exec_id:\"{id}\"")].iter().any(|form| listed.contains(form));
    assert!(has("a") && has("b"), "{listed}");
    world.kill(TASK, "SIGKILL").ok();
    for exec in running {
        exec.wait(SHORT).assert_code(137);
    }
    assert_eq!(world.finish(TASK), 137);
}

#[test]
fn execs_that_begin_while_the_init_ends_all_end() {
    only_on_hearth!();
    let world = World::new();
    let image = tools(&world);
    for round in 0..4 {
        world.run(&image, TASK).args(["3600"]).detach().ok();
        let running: Vec<_> =
            (0..6).map(|index| exec(&world, &format!("x{round}-{index}"), &["sleep", "3600"]).spawn()).collect();
        world.kill(TASK, "SIGKILL").ok();
        for exec in running {
            // It ran and was ended, or it was refused; it never stays.
            let output = exec.wait(SHORT);
            assert!(output.code() == 137 || !output.stderr().is_empty(), "{output}");
        }
        assert_eq!(world.finish(TASK), 137);
        world.ctr(["containers", "rm", TASK]).ok();
    }
}

#[test]
fn an_exec_is_of_its_own_user() {
    let world = World::new();
    start(&world);
    exec(&world, "root", &["files", "write", "/roots", "x"]).ok();
    let user =
        ["tasks", "exec", "--exec-id", "user", "--user", "1000:1000", TASK, "/bin/files", "append", "/roots", "x"];
    world.ctr(user).run().assert_fault(&["permission denied"]);
}

#[test]
fn a_paused_task_takes_its_execs_along_and_no_new_ones() {
    only_on_hearth!();
    let world = World::new();
    start(&world);
    let mut tally = exec(&world, "tally", &["tally"]).open_stdin().spawn();
    tally.write(b"a\n");
    tally.wait_for_stdout("line 1\n");
    world.ctr(["tasks", "pause", TASK]).ok();
    exec(&world, "late", &["hello"]).run().assert_fault(&["paused"]);
    tally.write(b"b\n");
    assert_eq!(world.task_status(TASK).as_deref(), Some("PAUSED"));
    world.ctr(["tasks", "resume", TASK]).ok();
    tally.wait_for_stdout("line 2\n");
    tally.close_stdin();
    tally.wait(SHORT).assert_code(0);
}
