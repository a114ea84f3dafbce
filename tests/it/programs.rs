//! Programs: their arguments, environment and directory, and their exit codes.
//!
//! Files:
//!
//! * `published.rs`: programs that others publish: CPython, SQLite, GCC and others.

mod published;

use hearth_tests::{Guest, Image, Layer, Runtime, World, guests};

use crate::{only_on_hearth, skip_unless};

#[test]
fn a_c_program_sees_its_arguments_environment_and_directory() {
    let world = World::new();
    let image = world.program(&Guest::HELLO);
    let output = world
        .run(&image, "hello")
        .args(["one", "two words", ""])
        .flags(["--env", "GREETING=good day", "--env", "EMPTY="])
        .ok();
    let text = output.stdout();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["hello from C", &format!("arg 0: {}", image.entry[0])], "{output}");
    assert_eq!(lines[2..5], ["arg 1: one", "arg 2: two words", "arg 3: "], "{output}");
    assert!(lines.contains(&"env GREETING=good day"), "{output}");
    assert!(lines.contains(&"env EMPTY="), "{output}");
    assert!(lines.contains(&"cwd /"), "{output}");
    assert_eq!(output.stderr(), "hello on stderr\n", "stderr is apart from stdout");
}

#[test]
fn a_component_sees_its_arguments_and_environment() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("component", "/hello.wasm", Guest::HELLO.component_bytes()));
    let output = world.run(&image, "component").args(["one"]).flags(["--env", "GREETING=hi"]).ok();
    for expected in ["hello from C\n", "arg 1: one\n", "env GREETING=hi\n"] {
        assert!(output.stdout().contains(expected), "{output}");
    }
    assert_eq!(output.stderr(), "hello on stderr\n");
    // Only `initial-cwd` has the directory, and wasi-libc does not ask for it.
    let output = world.run(&image, "elsewhere").flags(["--cwd", "/data"]).ok();
    assert!(output.stdout().contains("cwd /\n"), "{output}");
}

#[test]
fn the_environment_and_directory_of_the_image_are_the_guests() {
    let world = World::new();
    let program = match world.runtime() {
        Runtime::Hearth => "/bin/hello.wasm",
        Runtime::Runc => "/bin/hello",
    };
    let layer =
        Layer::new().file(program, 0o755, Guest::HELLO.bytes_for(world.runtime())).file("/data/note", 0o644, "");
    let image = Image::scratch("hearth.test/workdir:1").layer(layer).entrypoint([program]).workdir("/data");
    let image = world.import(&image.env("MOOD", "bright"));
    let output = world.run(&image, "workdir").ok();
    assert!(output.stdout().contains("env MOOD=bright\n"), "{output}");
    // Preview 1 has no working directory to inherit; a guest that wants it reads PWD, as Go's does.
    let directory = match world.runtime() {
        Runtime::Hearth => "env PWD=/data\n",
        Runtime::Runc => "cwd /data\n",
    };
    assert!(output.stdout().contains(directory), "{output}");
}

#[test]
fn the_exit_code_is_the_programs() {
    let world = World::new();
    let image = world.program(&Guest::EXIT);
    for code in [0, 1, 7, 42, 125] {
        world.run(&image, &format!("exit-{code}")).args([code.to_string()]).run().assert_code(code);
    }
}

#[test]
fn a_component_ends_with_success_or_failure() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("component", "/exit.wasm", Guest::EXIT.component_bytes()));
    // wasi:cli/exit has success and failure only: the adapter makes 1 of every code but 0.
    for (given, code) in [(0, 0), (1, 1), (7, 1)] {
        world.run(&image, &format!("exit-{given}")).args([given.to_string()]).run().assert_code(code);
    }
}

#[test]
fn a_program_is_found_on_the_path() {
    let world = World::new();
    let image = world.import(
        &Image::scratch("hearth.test/path:1")
            .layer(Layer::new().file("/opt/tools/tool", 0o755, Guest::EXIT.bytes_for(world.runtime())))
            .env("PATH", "/usr/bin:/opt/tools")
            .entrypoint(["tool"]),
    );
    world.run(&image, "path").args(["7"]).run().assert_code(7);
}

#[test]
fn a_program_may_have_any_name_and_be_a_link() {
    let world = World::new();
    let layer = Layer::new()
        .file("/lib/program-1.2", 0o755, Guest::EXIT.bytes_for(world.runtime()))
        .directory("/bin", 0o755)
        .symlink("/bin/relative", "../lib/program-1.2")
        .symlink("/bin/absolute", "/bin/relative");
    let image = world.import(&Image::scratch("hearth.test/links:1").layer(layer).entrypoint(["/bin/absolute"]));
    world.run(&image, "absolute").args(["7"]).run().assert_code(7);
    world.run(&image, "relative").command(["/bin/relative", "8"]).run().assert_code(8);
}

#[test]
fn an_export_is_called_by_its_name() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::EXPORTS);
    assert_eq!(world.run(&image, "main").ok().stdout(), "main was called\n");
    let greeted = world.run(&image, "greet").command(["/exports.wasm#greet"]).ok();
    assert_eq!(greeted.stdout(), "greet was called\n");
}

#[test]
fn a_reactor_is_initialised_before_its_export_is_called() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::REACTOR);
    let output = world.run(&image, "reactor").command(["/reactor.wasm#serve"]).ok();
    assert_eq!(output.stdout(), "reactor: initialised\n");
}

#[test]
fn clocks_go_forward_and_random_bytes_differ() {
    let world = World::new();
    let image = world.program(&Guest::CLOCK);
    let before = seconds_now();
    let runs: Vec<String> = ["a", "b"].iter().map(|id| world.run(&image, id).ok().stdout()).collect();
    let after = seconds_now();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        line.unwrap_or_else(|| panic!("no {name:?} in {text:?}")).to_owned()
    };
    for run in &runs {
        let wall: u64 = field(run, "wall").parse().expect("a number of seconds");
        assert!((before..=after).contains(&wall), "{wall} is not between {before} and {after}");
        assert_eq!(field(run, "monotonic"), "forward");
    }
    assert_ne!(field(&runs[0], "random"), field(&runs[1], "random"));
}

#[test]
fn a_module_of_over_a_megabyte_computes_right() {
    only_on_hearth!();
    let world = World::new();
    let image = world.import(&Image::of_file("big", "/big.wasm", Guest::BIG.wasm_bytes()));
    for id in ["first", "second"] {
        world.run(&image, id).ctr().deadline(hearth_tests::LONG).run().assert_code(guests::BIG_CODE);
    }
}

#[test]
fn a_real_program_does_its_work() {
    only_on_hearth!();
    let world = World::new();
    // Not as a component: Debian 12's wasi-libc takes all memory beyond its heap for its own, also the page
    // that the preview 1 adapter keeps its state in.
    let layer = Layer::new().file("/usr/bin/lua", 0o755, Guest::LUA.wasm_bytes()).file(
        "/work/main.lua",
        0o644,
        include_str!("../guests/lua.lua"),
    );
    let image = world.import(&Image::scratch("hearth.test/lua:1").layer(layer).entrypoint(["lua"]));
    let run = world.run(&image, "lua").args(["/work/main.lua", "one", "two"]);
    let run = run.flags(["--env", "GREETING=good day"]).ctr().stdin("every good boy\ndeserves fudge\n");
    let output = run.deadline(hearth_tests::LONG).run().assert_code(5);
    assert_eq!(
        output.stdout(),
        "Lua 5.4\t100000\t99988\t3.14159\tgood day\nEVERY-GOOD-BOY-DESERVES-FUDGE\n",
        "{output}"
    );
}

#[test]
fn a_rust_program_runs_as_a_module_and_as_a_component() {
    only_on_hearth!();
    const NOTE: &str = "from the image";
    let world = World::new();
    // wasi:cli/exit has success and failure only: the adapter makes 1 of every code but 0.
    for (form, program, code) in
        [("module", Guest::REPORT.wasm_bytes(), 7), ("component", Guest::REPORT.component_bytes(), 1)]
    {
        let layer = Layer::new().file("/bin/report", 0o755, program).file("/work/note", 0o644, NOTE);
        let image = Image::scratch(&format!("hearth.test/rust-{form}:1")).layer(layer).entrypoint(["/bin/report"]);
        let image = world.import(&image);
        let run = |id: &str, arguments: [&str; 2]| {
            let run = world.run(&image, &format!("{form}-{id}")).args(arguments);
            run.flags(["--env", "GREETING=good day"]).ctr().stdin("every good boy\ndeserves fudge\n").run()
        };
        let output = run("fails", ["/work/note", "7"]).assert_code(code);
        let lines = [
            "hello from Rust".to_owned(),
            "arg 0: /bin/report".to_owned(),
            "arg 1: /work/note".to_owned(),
            "arg 2: 7".to_owned(),
            "env GREETING=good day".to_owned(),
            format!("/work/note has {} bytes: {NOTE}", NOTE.len()),
            "EVERY GOOD BOY".to_owned(),
            "DESERVES FUDGE".to_owned(),
        ];
        assert_eq!(output.stdout().lines().collect::<Vec<_>>(), lines, "{form}");
        assert_eq!(output.stderr(), "2 lines read\n", "{form}");
        run("succeeds", ["/work/note", "0"]).assert_code(0);
        let missing = run("lacks-a-file", ["/no/such/file", "0"]);
        assert!(!missing.status.success() && missing.stderr().contains("/no/such/file: "), "{missing}");
    }
}

#[test]
fn a_command_in_javascript_on_quickjs_answers_a_line() {
    only_on_hearth!();
    let world = World::new();
    let image = world.program(&Guest::JAVASCRIPT_QJS);
    let output = world.run(&image, "quickjs").ctr().stdin("every good boy\n").deadline(hearth_tests::LONG).ok();
    assert_eq!(output.stdout(), "hello from QuickJS: EVERY GOOD BOY\n", "{output}");
}

#[test]
fn a_go_program_runs_in_its_working_directory() {
    only_on_hearth!();
    skip_unless!(std::env::var_os("HEARTH_TEST_PROGRAMS").is_some(), "`make test-programs` has it");
    let world = World::new();
    let numbers: Vec<String> = (1..=1000).map(|number| number.to_string()).collect();
    let layer = Layer::new().file("/bin/worker", 0o755, Guest::WORKER.wasm_bytes()).file(
        "/data/numbers.json",
        0o644,
        format!("[{}]", numbers.join(", ")),
    );
    let image = Image::scratch("hearth.test/worker:1").layer(layer).entrypoint(["/bin/worker"]).workdir("/data");
    let image = world.import(&image);
    let run = |id: &str, file: &str| world.run(&image, id).args([file]).ctr().deadline(hearth_tests::LONG).run();
    let output = run("sums", "numbers.json").assert_code(0);
    assert_eq!(output.stdout(), "go1.27.3 in /data <nil>\n333833500\n", "{output}");
    let missing = run("lacks-a-file", "missing.json").assert_code(3);
    assert!(missing.stderr().contains("missing.json"), "{missing}");
}

fn seconds_now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is past 1970").as_secs()
}
