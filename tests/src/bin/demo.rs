//! `make demo`: shows Hearth's features on a real containerd.
//!
//! Everything shown is the output of the command above it, made now. A failed check ends the demo with a message and
//! exit code 101; the machine it ran on is removed in any case.

use std::io::{IsTerminal, Write};
use std::process::Command;

use hearth_tests::metrics::Metrics;
use hearth_tests::{Guest, Image, Imported, Layer, Output, SHORT, World, daemons};

/// Histogram of a start's phases, in seconds.
const PHASES: &str = "hearth_start_phase_seconds";

/// Its label values, as a start goes through them.
const PHASES_IN_ORDER: [&str; 6] = ["bundle", "lookup", "compile", "mounts", "instantiate", "first_call"];

/// Histogram of whole starts, in seconds.
const STARTS: &str = "hearth_start_seconds";

fn main() {
    headline("Hearth: WebAssembly containers, started by containerd, in one warm daemon");
    say("A private machine (mount and pid namespaces of its own) gets a containerd and a hearthd;");
    say("this machine's own containerd, if it has one, is not touched.");
    let world = World::with(daemons::HearthdOptions::default());
    say(&format!("  containerd  {}", containerd_version(&world)));
    say(&format!("  hearthd     pid {}, metrics at http://{}/metrics", pid(&world), world.metrics_address()));
    say(&format!("  directory   {}", world.machine().directory().display()));

    let (hello, component, exit) = images(&world);
    hello_from_c(&world, &hello);
    hello_from_a_component(&world, &component);
    an_exit_code(&world, &exit);
    a_kill(&world);
    first_and_second_start(&world);
    scrape(&world);
    let directory = world.machine().directory().to_owned();
    drop(world);
    headline("Cleaned up");
    assert!(!directory.exists(), "{} is still there", directory.display());
    say("Both daemons have ended; no process, mount, socket or file of theirs is left.");
    say("");
    say("Next: `make test` runs every story on a real containerd, `make bench` measures starts against");
    say("an empty RPC pair, and README.md says how to put Hearth on a node.");
}

fn images(world: &World) -> (Imported, Imported, Imported) {
    headline("Images, built here from tests/guests/*.c with clang and wasi-libc");
    let hello = Image::of(&Guest::HELLO, world.runtime());
    let component = Image::of_file("component", "/hello.wasm", Guest::HELLO.component_bytes());
    let exit = Image::of(&Guest::EXIT, world.runtime());
    let imported = [&hello, &component, &exit].map(|image| world.import(image));
    print(&world.ctr(["images", "ls", "--quiet"]).ok());
    imported.into()
}

fn hello_from_c(world: &World, image: &Imported) {
    headline("A C program (a core module, WASI preview 1)");
    let output = run(world, image, "hello", &["one", "two"]);
    assert!(output.stdout().starts_with("hello from C"), "{output}");
}

fn hello_from_a_component(world: &World, image: &Imported) {
    headline("The same program as a component (WASI preview 2)");
    let output = run(world, image, "component", &["three"]);
    assert!(output.stdout().starts_with("hello from C"), "{output}");
}

fn an_exit_code(world: &World, image: &Imported) {
    headline("The exit code is the guest's");
    run(world, image, "exit", &["7"]).assert_code(7);
    say("exit code 7");
}

fn a_kill(world: &World) {
    headline("A guest in an endless loop yields to others, and dies at a kill");
    let spin = world.program(&Guest::SPIN);
    show(&["run", "--detach", "--null-io", "--runtime", world.runtime().name(), &spin.name, "spin"]);
    world.run(&spin, "spin").detach().ok();
    show(&["tasks", "ls"]);
    print(&world.ctr(["tasks", "ls"]).ok());
    show(&["tasks", "kill", "--signal", "SIGKILL", "spin"]);
    world.kill("spin", "SIGKILL").ok();
    let code = world.finish("spin");
    assert_eq!(code, 137, "128 + SIGKILL");
    say(&format!("exit code {code}"));
}

/// Starts an unknown module twice, with the metrics read around each start.
fn first_and_second_start(world: &World) {
    headline("What a start costs: the first and the second of one image (a module of 1.7 MB)");
    let layer = Layer::new().file("/big.wasm", 0o755, Guest::BIG.wasm_bytes());
    let image = Image::scratch("hearth.test/big:1").layer(layer).entrypoint(["/big.wasm"]);
    // A module that is compiled at its import has no first start: the daemon does not follow this namespace yet.
    let tar = world.write("big.tar", &image.to_tar()).display().to_string();
    world.ctr_in("fresh", ["images", "import", &tar]).ok();
    let mut scrapes = vec![world.metrics()];
    for id in ["first", "second"] {
        let run = ["run", "--rm", "--runtime", world.runtime().name(), image.name(), id];
        world.ctr_in("fresh", run).deadline(4 * SHORT).run().assert_code(hearth_tests::guests::BIG_CODE);
        scrapes.push(world.metrics());
    }
    table(&scrapes);
    let compiles = |index: usize| {
        let total = |at: usize| scrapes[at].sum("hearth_compiles_total", &[]);
        total(index + 1) - total(index)
    };
    say(&format!("compiles: {} for the first start, {} for the second", compiles(0), compiles(1)));
    assert_eq!((compiles(0), compiles(1)), (1.0, 0.0), "the first start compiles, the second does not");
}

/// The time of each phase between one scrape and the next, in microseconds.
fn table(scrapes: &[Metrics]) {
    let row = |name: &str, times: [f64; 2]| {
        say(&format!("  {name:<12} {:>12.0} µs {:>12.0} µs", times[0], times[1]));
    };
    let between = |name: &str, labels: &[(&str, &str)]| {
        let sum = |at: usize| scrapes[at].sum(&format!("{name}_sum"), labels) * 1e6;
        [sum(1) - sum(0), sum(2) - sum(1)]
    };
    say("  phase          first start    second start");
    for phase in PHASES_IN_ORDER {
        assert!(scrapes[0].label_values(&format!("{PHASES}_sum"), "phase").iter().any(|name| name == phase));
        row(phase, between(PHASES, &[("phase", phase)]));
    }
    row("whole start", between(STARTS, &[]));
    say("  (from Create to the guest's first instruction; mounts overlap with the rest)");
}

fn scrape(world: &World) {
    let url = format!("http://{}/metrics", world.metrics_address());
    headline(&format!("$ curl -s {url}   (a few lines of it)"));
    let output = Command::new("curl").args(["-s", &url]).output().expect("`make deps` installs curl");
    assert!(output.status.success(), "curl ended with {}", output.status);
    let shown =
        ["hearth_task_starts_total", "hearth_module_lookups_total", "hearth_compiles_total", "hearth_pool_slots"];
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| shown.iter().any(|name| line.starts_with(name))) {
        say(line);
    }
}

/// Shows and runs `ctr run --rm` to its end.
fn run(world: &World, image: &Imported, id: &str, arguments: &[&str]) -> Output {
    let mut shown = vec!["run", "--rm", "--runtime", world.runtime().name(), &image.name, id];
    shown.extend(image.entry.iter().map(String::as_str));
    shown.extend(arguments);
    show(&shown);
    let output = world.run(image, id).args(arguments.iter().copied()).run();
    print(&output);
    output
}

fn show(arguments: &[&str]) {
    say(&format!("$ ctr {}", arguments.join(" ")));
}

fn print(output: &Output) {
    let mut stdout = std::io::stdout();
    // Without a reader of stdout there is nothing to do.
    let _ = stdout.write_all(&output.stdout).and_then(|()| stdout.write_all(&output.stderr));
}

fn headline(text: &str) {
    match std::io::stdout().is_terminal() {
        true => say(&format!("\n\x1b[1m{text}\x1b[0m")),
        false => say(&format!("\n{text}")),
    }
}

fn say(text: &str) {
    // As in `print`.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn containerd_version(world: &World) -> String {
    let text = world.ctr(["version"]).ok().stdout();
    let server = text.split("Server:").nth(1).unwrap_or_default();
    let version = server.lines().find_map(|line| line.trim().strip_prefix("Version:"));
    version.unwrap_or("of unknown version").trim().to_owned()
}

fn pid(world: &World) -> i32 {
    world.hearthd().pid().expect("it just said that it is ready")
}
