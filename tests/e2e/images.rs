//! The images of the stories, and of the manifests and pages in `deploy/`, under the names these give them.

use std::path::Path;

use hearth_tests::{Guest, Image, Layer, Node};

/// Small Wasm programs in `PATH`.
pub const TOOLS: &str = "e2e.test/tools:1";

/// An HTTP component, and small programs for probes and hooks.
pub const WEB: &str = "e2e.test/web:1";

/// A TCP server as a component…
pub const TCP: &str = "registry.example/tcp:1";

/// … and the same source as a native program.
pub const NATIVE_TCP: &str = "e2e.test/native-tcp:1";

/// busybox, under its usual name.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";

/// The applets of busybox that the stories call.
const APPLETS: [&str; 14] =
    ["cat", "date", "echo", "false", "head", "hostname", "httpd", "ls", "nc", "sh", "sleep", "tar", "true", "wget"];

/// Imports all of them.
pub fn import(node: &Node, programs: &Path) {
    for image in images(programs) {
        node.import(&image);
    }
}

fn images(programs: &Path) -> Vec<Image> {
    let busybox = std::fs::read(programs.join("busybox")).expect("it was unpacked there");
    let shell = APPLETS.iter().fold(Layer::new().file("/bin/busybox", 0o755, busybox), |layer, applet| {
        layer.symlink(&format!("/bin/{applet}"), "busybox")
    });
    let tools = [
        ("exit", Guest::EXIT),
        ("files", Guest::FILES),
        ("grow", Guest::GROW),
        ("hello", Guest::HELLO),
        ("net", Guest::NET),
        ("sleep", Guest::SLEEP),
        ("spin", Guest::SPIN),
        ("tally", Guest::TALLY),
        ("trap", Guest::TRAP),
        ("tty", Guest::TTY),
    ];
    let files = |layer, (name, guest): &(&str, Guest)| program(layer, name, guest);
    let web = [("service", Guest::HTTP), ("files", Guest::FILES), ("sleep", Guest::SLEEP)];
    let site = [("service", Guest::HTTP), ("sleep", Guest::SLEEP)];
    let worker = [("worker", Guest::SLEEP), ("check", Guest::HELLO)];
    let native = Layer::new().file("/tcp", 0o755, Guest::TCP.native_bytes());
    let one = |name: &str, program: &str, guest: Guest| {
        let layer = files(Layer::new(), &(program, guest));
        Image::scratch(name).layer(layer).entrypoint([format!("/{program}.wasm")])
    };
    vec![
        Image::scratch(BUSYBOX).layer(shell).env("PATH", "/bin"),
        Image::scratch(TOOLS).layer(tools.iter().fold(Layer::new(), files)).env("PATH", "/"),
        Image::scratch(WEB).layer(web.iter().fold(Layer::new(), files)).entrypoint(["/service.wasm"]).env("PATH", "/"),
        Image::scratch(NATIVE_TCP).layer(native).entrypoint(["/tcp"]),
        Image::scratch("registry.example/worker:1").layer(worker.iter().fold(Layer::new(), files)),
        one(TCP, "tcp", Guest::TCP),
        one("registry.example/http:1", "http", Guest::HTTP),
        one("registry.example/hello:1", "hello", Guest::HELLO),
        one("registry.example/files:1", "files", Guest::FILES),
        Image::scratch("registry.example/hello-http:1")
            .layer(site.iter().fold(Layer::new(), files))
            .entrypoint(["/service.wasm"]),
    ]
}

fn program(layer: Layer, name: &str, guest: &Guest) -> Layer {
    layer.file(&format!("/{name}.wasm"), 0o755, guest.wasm_bytes())
}
