//! The fuzz targets: each runs a parser and asserts its properties. An input that has several texts separates them by a byte 0 or a line break.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use hearth_base::bundle::{ProcessSpec, ResourceUpdate, TaskSpec};
use hearth_base::cell::{self, ProgramReply, ProgramRequest};
use hearth_base::config::Config;
use hearth_base::destinations::Destinations;
use hearth_base::generation::wire;
use hearth_base::isolation::Level;
use hearth_ctl::fuzzing::edit::{self, ConfigVersion, Handler};
use hearth_os::mount::MountOptions;
use hearth_os::sysctl::Sysctl;
use hearth_shim::{Reply, Request, args};
use hearth_spin::application::Application;
use hearth_spin::environment::Environment;
use hearth_spin::routes::{RoutePattern, Routes};
use hearth_spin::runtime_config::RuntimeConfig;
use hearth_spin::template::Template;
use hearth_spin::{grants, locked, manifest, variables};
use prost::Message;

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_else(|error| {
        let (valid, _) = data.split_at(error.valid_up_to());
        std::str::from_utf8(valid).unwrap_or_default()
    })
}

/// The first line, and the rest.
fn two(data: &[u8]) -> (&str, &str) {
    let text = text(data);
    text.split_once('\n').unwrap_or((text, ""))
}

/// `config.json`, the process of an exec, the resources of an Update, and the texts of a spec that are parsed later:
/// mount options, sysctls, the isolation level.
pub fn bundle(data: &[u8]) {
    if let Ok(spec) = TaskSpec::parse(data, Path::new("/bundle")) {
        for (name, value) in &spec.process.env {
            assert!(!name.contains(['\0', '=']) && !value.contains('\0'), "a variable {name:?}={value:?}");
        }
        assert!(spec.process.cwd.starts_with('/'));
        for (name, value) in &spec.sysctls {
            let _ = Sysctl::parse(name, value);
        }
        for mount in &spec.mounts {
            let _ = MountOptions::parse(&mount.options);
        }
    }
    let _ = ProcessSpec::parse(data);
    if let Ok(update) = ResourceUpdate::parse(data) {
        assert_ne!(update.memory_limit, Some(Some(0)), "a limit of 0 is none");
    }
    let _ = Level::of_option(text(data));
}

/// `config.toml` of hearthd.
pub fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(text(data)) {
        let _ = config.check();
    }
}

/// `config.toml` of containerd, as `hearthctl install containerd` edits it: the edited text has the handler, the same
/// edit again changes nothing, and the handler can be taken out.
pub fn containerd_config(data: &[u8]) {
    let text = text(data);
    let _ = edit::disabled_cri(text);
    let path = Some("/opt/hearth/shim".to_owned());
    for (version, sandboxer) in [
        (ConfigVersion::One, None),
        (ConfigVersion::Two, None),
        (ConfigVersion::Three, Some("/run/hearth/sandboxer.sock".to_owned())),
    ] {
        let handler = Handler { name: "hearth".into(), runtime_path: path.clone(), sandboxer };
        let Ok(with) = edit::with_handler(text, version, &handler) else { continue };
        let found = edit::handler_in(&with, version, "hearth").expect("the edited text is read");
        assert_eq!(found.as_ref(), Some(&handler));
        assert_eq!(edit::with_handler(&with, version, &handler).as_ref(), Ok(&with), "the same edit changes nothing");
        let without = edit::without_handler(&with, version, "hearth", Some(text)).expect("the edited text is read");
        assert_eq!(edit::handler_in(&without, version, "hearth"), Ok(None));
    }
    if let Ok(with) = edit::with_import(text, ConfigVersion::Two, "/etc/hearth.toml") {
        let without = edit::without_import(&with, "/etc/hearth.toml").expect("the edited text is read");
        assert!(edit::with_import(&without, ConfigVersion::Two, "/etc/hearth.toml").is_ok());
    }
}

/// The messages of the control socket, of generations and of cells. A message that is read is the same when it was
/// written and is read again.
pub fn frames(data: &[u8]) {
    fn again<M: Message + Default>(data: &[u8]) {
        if let Ok(message) = M::decode(data) {
            let bytes = message.encode_to_vec();
            let again = M::decode(bytes.as_slice()).expect("a message that was written is read");
            // Not the messages: a number can be NaN.
            assert_eq!(again.encode_to_vec(), bytes);
        }
    }
    let mut reader = data;
    let _ = hearth_shim::read_frame::<Request>(&mut reader);
    let _ = cell::read::<ProgramRequest>(&mut &*data);
    let _ = cell::read_json::<cell::About>(&mut &*data);
    if let Ok(body) = hearth_shim::read_body(&mut &*data, hearth_shim::MAX_FRAME_BYTES) {
        assert!(body.len() + 4 <= data.len());
    }
    again::<Request>(data);
    again::<Reply>(data);
    again::<wire::Question>(data);
    again::<wire::Answer>(data);
    again::<ProgramRequest>(data);
    again::<ProgramReply>(data);
    let _ = serde_json::from_slice::<cell::About>(data);
    let _ = serde_json::from_slice::<cell::LivingTask>(data);
    let _ = serde_json::from_slice::<cell::Ready>(data);
    if let Some(path) = hearth_shim::config_path("runtimeoptions.v1.Options", data) {
        let _ = Level::of_option(&path);
    }
}

/// The index, manifest and configuration of an image.
pub fn image(data: &[u8]) {
    hearth_containerd::client::fuzzing::image(data);
}

/// The first line is a name; the rest is `/etc/hosts` and, after a byte 0, `/etc/resolv.conf`.
pub fn names(data: &[u8]) {
    let (name, rest) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let mut files = rest.splitn(2, |byte| *byte == 0);
    let name = text(name);
    let parsed = hearth_names::Files::parse(files.next(), files.next(), Some("pod.example.org"));
    let _ = parsed.known(name);
    if let Ok(Some(address)) = hearth_names::literal(name)
        && let Ok(same) = name.parse::<IpAddr>()
    {
        assert_eq!(address, same);
    }
}

/// A packet from a name server.
pub fn reply(data: &[u8]) {
    hearth_names::fuzzing::reply(data);
}

/// The shim's command line: arguments separated by bytes 0.
pub fn shim_arguments(data: &[u8]) {
    let arguments = data.split(|byte| *byte == 0).map(|argument| OsString::from_vec(argument.to_vec()));
    if let Err(failure) = args::parse(arguments) {
        assert!(!failure.to_string().contains(char::is_control), "{failure:?}");
    }
}

/// Allowed hosts, one a line; the last line is a host that is asked for.
pub fn allowed_hosts(data: &[u8]) {
    let text = text(data);
    let (entries, host) = text.rsplit_once('\n').unwrap_or((text, "example.org"));
    let Ok(destinations) = Destinations::parse(entries.lines()) else { return };
    for port in [0, 1, 80, 443, 65535] {
        let _ = destinations.host("https", host, port);
    }
    let _ = destinations.look_up(host);
    let _ = destinations.own_application("http");
    if entries.trim().is_empty() {
        assert!(!destinations.host("https", host, 443), "an empty list allows nothing");
    }
}

/// A Spin application: locked, or the manifest of either version.
pub fn spin_application(data: &[u8]) {
    for application in [locked::parse(data), manifest::parse(text(data))].into_iter().flatten() {
        use_application(application);
    }
}

fn use_application(application: Application) {
    let env = [("SPIN_VARIABLE_A".to_owned(), "a".to_owned()), ("B".to_owned(), "{{ a }}".to_owned())];
    if let Ok(values) = variables::values(&application, &[], &env) {
        let _ = grants::all(&application, &RuntimeConfig::default(), &values);
    }
    let kept: Vec<_> = application.components.iter().take(1).map(|component| component.id.clone()).collect();
    if let Ok(application) = application.retaining(&kept) {
        assert!(application.components.len() <= 1);
    }
}

/// The runtime configuration of Spin, a template, and the environment of a container of Spin's.
pub fn spin_configuration(data: &[u8]) {
    let text = text(data);
    let _ = RuntimeConfig::parse(text);
    let (value, rest) = two(data);
    let variable = |name: &str| (name.to_owned(), value.to_owned());
    let _ = Environment::of(&[
        variable("SPIN_HTTP_LISTEN_ADDR"),
        variable("SPIN_COMPONENTS_TO_RETAIN"),
        variable("SPIN_MAX_INSTANCE_MEMORY"),
    ]);
    if let Ok(template) = Template::parse(rest) {
        assert_eq!(template.as_written(), rest);
        let _ = template.render(&BTreeMap::from([("a".into(), "b".into())]));
    }
}

/// A route, and after a line break the path of a request. A route of fixed text takes its own text.
pub fn spin_route(data: &[u8]) {
    let (route, path) = two(data);
    let Ok(pattern) = RoutePattern::parse(route) else { return };
    if let Some(found) = pattern.matches(path) {
        assert!(found.rest.is_empty() || found.rest.starts_with('/'), "{:?}", found.rest);
    }
    let written = pattern.as_written();
    // Slashes beside each other are one in a route, and not in a path.
    if !written.contains([':', '*', '.']) && !written.contains("//") {
        assert!(pattern.matches(written).is_some(), "{written:?} does not take itself");
    }
    let routes = Routes::new([(pattern, 1), (RoutePattern::everything(), 2)]);
    assert!(routes.find(path).is_some(), "a route that takes every path does not take {path:?}");
}
