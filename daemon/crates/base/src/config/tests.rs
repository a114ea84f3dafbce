use super::*;

#[test]
fn the_default_is_right_and_an_empty_file_is_the_default() {
    Config::default().check().unwrap();
    assert_eq!(Config::parse("").unwrap(), Config::default());
}

/// The expected [`DEFAULT_FILE`]: made of the documentation in the sections' files and `Config::default()`.
fn default_file() -> String {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut text = String::from(
        "# /etc/hearth/config.toml: every setting of hearthd, with its default. Nothing needs to be set.\n\
         # Made by hearthd --print-default-config; `hearthd --check-config` says whether a change is right.\n\n",
    );
    text += &section(include_str!("mod.rs"), "Config", &defaults);
    for (name, values) in defaults.as_object().unwrap().iter().filter(|(_, value)| value.is_object()) {
        let mut kind = name.clone();
        kind[..1].make_ascii_uppercase();
        let source = source(name);
        let about = documentation(source, &format!("pub struct {kind} {{"));
        text += &format!("\n{about}[{name}]\n{}", section(source, &kind, values));
    }
    text
}

/// The source of the file of one section.
fn source(section: &str) -> &'static str {
    match section {
        "ahead" => include_str!("ahead.rs"),
        "engine" => include_str!("engine.rs"),
        "events" => include_str!("events.rs"),
        "files" => include_str!("files.rs"),
        "http" => include_str!("http.rs"),
        "isolation" => include_str!("isolation.rs"),
        "log" => include_str!("log.rs"),
        "memory" => include_str!("memory.rs"),
        "metrics" => include_str!("metrics.rs"),
        "modules" => include_str!("modules.rs"),
        "native" => include_str!("native.rs"),
        "interfaces" => include_str!("interfaces.rs"),
        "network" => include_str!("network.rs"),
        "rpc" => include_str!("rpc.rs"),
        "sandboxer" => include_str!("sandboxer.rs"),
        "scheduler" => include_str!("scheduler.rs"),
        "stdio" => include_str!("stdio.rs"),
        "tenant" => include_str!("tenant.rs"),
        "upgrade" => include_str!("upgrade.rs"),
        _ => panic!("add the file of [{section}] here"),
    }
}

/// The keys of one structure, in the order of its source.
fn section(source: &str, kind: &str, values: &serde_json::Value) -> String {
    let begin = source.find(&format!("pub struct {kind} {{")).unwrap();
    let body = &source[begin..begin + source[begin..].find("\n}").unwrap()];
    let fields = body.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'));
    let mut text = String::new();
    for (name, _) in fields {
        let value = match &values[name] {
            serde_json::Value::Object(_) => continue,
            // `control_socket`, the only key without a default of its own.
            serde_json::Value::Null => "\"/run/hearth/control.sock\"".into(),
            serde_json::Value::Number(number) => with_separators(&number.to_string()),
            serde_json::Value::Array(values) => {
                let values: Vec<_> = values.iter().map(inline).collect();
                format!("[{}]", values.join(", "))
            }
            other => other.to_string(),
        };
        text += &documentation(body, &format!("    pub {name}:"));
        text += &format!("# {name} = {value}\n");
    }
    text
}

fn inline(value: &serde_json::Value) -> String {
    let Some(table) = value.as_object() else { return value.to_string() };
    let pairs: Vec<_> = table.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", pairs.join(", "))
}

/// The `///` lines above a line that begins with `of`, as comments.
fn documentation(source: &str, of: &str) -> String {
    let before = &source[..source.find(&format!("\n{of}")).unwrap() + 1];
    let lines = before.lines().rev().skip_while(|line| line.starts_with("#[")).map(str::trim_start);
    let mut lines: Vec<_> = lines.map_while(|line| line.strip_prefix("///")).collect();
    lines.reverse();
    let limit = STATE_DIR_BYTES_MAX.to_string();
    lines.iter().map(|line| format!("##{}\n", line.replace("[`STATE_DIR_BYTES_MAX`]", &limit))).collect()
}

fn with_separators(digits: &str) -> String {
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
    groups.join("_")
}

#[test]
fn the_default_file_has_every_key_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../deploy/config.toml");
    let want = default_file();
    if std::env::var_os("HEARTH_WRITE_DEFAULT_CONFIG").is_some() {
        std::fs::write(path, &want).unwrap();
    } else {
        assert!(
            DEFAULT_FILE == want,
            "deploy/config.toml differs from the documentation of the keys: run this test again with \
             HEARTH_WRITE_DEFAULT_CONFIG=1, which writes it. It has to be:\n{want}"
        );
    }
    assert_eq!(Config::parse(&want).unwrap(), Config::default());
    // And with each comment mark taken off.
    let set: String = want.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n").collect();
    let set = set.split_once("\n\n").unwrap().1;
    let parsed = Config::parse(set).unwrap_or_else(|error| panic!("{error}\n{set}"));
    let control = Some("/run/hearth/control.sock".into());
    assert_eq!(parsed, Config { control_socket: control, ..Config::default() });
}

#[test]
fn a_wrong_key_is_named() {
    let error = Config::parse("[engine]\npool_slot = 3\n").unwrap_err().to_string();
    assert_eq!(error, "line 2: unknown key pool_slot; did you mean pool_slots?");
    let error = |text: &str| Config::parse(text).unwrap_err().to_string();
    assert_eq!(error("pool_slots = 3\n"), "line 1: unknown key pool_slots here; did you mean the one in [engine]?");
    assert!(
        error("\n[log]\ncolour = 'red'\n")
            .ends_with("line 3: unknown key colour; there are level, format, kept_level, kept_lines")
    );
    assert_eq!(error("metrics.pod_labels = true\n"), "line 1: unknown key pod_labels; it is metrics.pods now");
    assert!(error("\n\n[engine]\npool_slots = 'x'\n").starts_with("line 4: invalid type"));
    assert!(!error("a = \n").contains('\n'));
}

#[test]
fn a_wrong_value_is_named_with_its_remedy() {
    let cases = [
        ("state_dir = 'run'", "state_dir: run is not an absolute path"),
        ("metrics.address = 'here'", "metrics.address"),
        ("metrics.address = 'unix:here'", "metrics.address"),
        ("metrics.tls_key = '/etc/hearth/key.pem'", "metrics.tls_certificate"),
        ("metrics.recent_max = 0", "metrics.recent_max"),
        ("engine.pool_slots = 0", "engine.pool_slots: must be at least 1"),
        ("engine.pool_slots = 200000", "engine.pool_slots: at most "),
        ("engine.stack_bytes = 600000", "engine.stack_bytes"),
        ("scheduler.blocked_after_ms = 1", "scheduler.blocked_after_ms"),
        ("events.queue_max = 4", "events.queue_max: must be at least 5"),
        ("events.retry_max_ms = 9", "events.retry_max_ms"),
        ("http.header_bytes_max = 99", "http.header_bytes_max: must be at least 8192"),
        ("modules.compile_uid = 0", "modules.compile_uid"),
        ("memory.refuse_percent = 0", "memory.refuse_percent: 0 is not from 1 to 100"),
        ("memory.end_percent = 50", "memory.end_percent: must be at least memory.refuse_percent (90)"),
        ("ahead.nice = -1", "ahead.nice: -1 is not from 0 to 19"),
        ("sandboxer.sockets = [{listen='a',containerd='b'}]", "sandboxer.sockets: b is not an absolute path"),
        (
            "sandboxer.sockets = [{listen='a',containerd='/b'},{listen='/run/hearth/a',containerd='/c'}]",
            "sandboxer.sockets: /run/hearth/a is there twice",
        ),
    ];
    for (text, want) in cases {
        let error = Config::parse(text).unwrap().check().unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
}
