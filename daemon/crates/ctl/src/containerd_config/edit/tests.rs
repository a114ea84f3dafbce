//! Edits of texts.

use super::*;

fn handler() -> Handler {
    Handler { name: "hearth".into(), runtime_path: None, sandboxer: None }
}

#[test]
fn the_users_text_stays_byte_for_byte() {
    let users = "# Mine.\nversion = 2 # two\n\n[plugins]\n  [plugins.'io.containerd.grpc.v1.cri']\n    # pause\n    \
                 sandbox_image = 'my/pause:1'\n    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.mine]\n      \
                 runtime_type = \"io.containerd.runc.v2\"\n# The end.\n";
    let with = with_handler(users, ConfigVersion::Two, &handler()).unwrap();
    for line in users.lines() {
        assert!(with.contains(line), "{line:?} is not in\n{with}");
    }
    assert!(with.contains("runtimes.hearth]\nruntime_type = \"io.containerd.hearth.v1\"\n"), "{with}");
    assert!(!with.contains("runtimes.runc"), "{with}");
    assert_eq!(with_handler(&with, ConfigVersion::Two, &handler()).unwrap(), with, "once more changes nothing");
    assert_eq!(without_handler(&with, ConfigVersion::Two, "hearth", Some(users)).unwrap(), users);
}

#[test]
fn where_no_runtime_was_named_runc_is_named_too() {
    for (version, users) in
        [(ConfigVersion::One, "oom_score = 1\n"), (ConfigVersion::Two, "version = 2\n"), (ConfigVersion::Two, "")]
    {
        let with = with_handler(users, version, &handler()).unwrap();
        assert!(with.contains("io.containerd.runc.v2") && with.contains("io.containerd.hearth.v1"), "{with}");
        assert_eq!(ConfigVersion::of(&with).unwrap(), Some(version), "{with}");
    }
}

#[test]
fn options_are_told_and_told_anew() {
    let elsewhere = Handler { runtime_path: Some("/opt/hearth/bin/shim".into()), ..handler() };
    let first = with_handler("version = 2\n", ConfigVersion::Two, &handler()).unwrap();
    let second = with_handler(&first, ConfigVersion::Two, &elsewhere).unwrap();
    assert!(second.contains("runtime_path = \"/opt/hearth/bin/shim\""), "{second}");
    assert_eq!(with_handler(&second, ConfigVersion::Two, &handler()).unwrap(), first);
    let controller = Handler { sandboxer: Some("/run/hearth/sandboxer.sock".into()), ..handler() };
    let text = drop_in(ConfigVersion::Three, &controller);
    for line in ["version = 3", "[proxy_plugins.hearth]", "type = \"sandbox\"", "sandboxer = \"hearth\""] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    parse(&text).unwrap();
}

#[test]
fn inline_tables_are_added_to() {
    let users = "version = 2\nplugins = { 'io.containerd.grpc.v1.cri' = { containerd = { runtimes = { mine = { runtime_type = 'x' } } } } }\n";
    let with = with_handler(users, ConfigVersion::Two, &handler()).unwrap();
    let parsed = parse(&with).unwrap();
    let runtimes = &parsed["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"];
    assert_eq!(runtimes["mine"]["runtime_type"].as_str(), Some("x"), "{with}");
    assert_eq!(runtimes["hearth"]["runtime_type"].as_str(), Some(RUNTIME_TYPE), "{with}");
}

#[test]
fn imports_are_added_before_the_first_table_and_taken_away() {
    let users = "version = 3\n# mine\n[grpc]\naddress = '/x'\n";
    let with = with_import(users, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap();
    assert!(with.find("imports").unwrap() < with.find("[grpc]").unwrap(), "{with}");
    assert_eq!(with_import(&with, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap(), with);
    assert_eq!(without_import(&with, "/etc/containerd/conf.d/hearth.toml").unwrap(), users);
    let pattern = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
    assert_eq!(with_import(pattern, ConfigVersion::Three, "/etc/containerd/conf.d/hearth.toml").unwrap(), pattern);
    assert_eq!(without_import(pattern, "/etc/containerd/conf.d/hearth.toml").unwrap(), pattern);
    assert_eq!(with_import("", ConfigVersion::Three, "/x").unwrap(), "version = 3\nimports = [\"/x\"]\n");
}

#[test]
fn what_cannot_be_edited_is_named() {
    assert!(ConfigVersion::of("version = 9\n").unwrap_err().contains("version 9"));
    assert!(ConfigVersion::of("version = \n").unwrap_err().contains("not TOML"));
    assert_eq!(ConfigVersion::of("# nothing\n").unwrap(), None);
    for independent in
        ["oom_score = 1\n", "disabled_plugins = []\n", "[plugins]\n# none\n", "imports = ['/x']\n[grpc]\n"]
    {
        assert_eq!(ConfigVersion::of(independent).unwrap(), None, "{independent}");
    }
    for first in ["[plugins.cri]\n", "disabled_plugins = ['aufs']\n", "required_plugins = ['x']\n", "version = 1\n"] {
        assert_eq!(ConfigVersion::of(first).unwrap(), Some(ConfigVersion::One), "{first}");
    }
    assert!(ConfigVersion::of("version = '2'\n").unwrap_err().contains("no number"));
    let error =
        with_handler("version = 2\n[plugins]\n'io.containerd.grpc.v1.cri' = 3\n", ConfigVersion::Two, &handler());
    assert!(error.unwrap_err().contains("plugins.io.containerd.grpc.v1.cri"));
}

#[test]
fn a_version_line_goes_below_the_comments_of_a_file_without_one() {
    let with = with_handler("# Mine.\n", ConfigVersion::Two, &handler()).unwrap();
    assert!(with.starts_with("# Mine.\nversion = 2\n\n[plugins."), "{with}");
    let with = with_import("# Mine.\r\n", ConfigVersion::Three, "/x").unwrap();
    assert_eq!(with, "# Mine.\r\nversion = 3\r\nimports = [\"/x\"]\r\n");
    let with = with_handler("oom_score = 1\n[grpc]\n", ConfigVersion::Two, &handler()).unwrap();
    assert!(with.starts_with("oom_score = 1\nversion = 2\n[grpc]\n"), "{with}");
}

#[test]
fn each_name_of_cri_is_found_among_disabled_plugins() {
    for name in CRI_PLUGINS {
        assert_eq!(disabled_cri(&format!("disabled_plugins = ['aufs', \"{name}\"]")).unwrap().as_deref(), Some(name));
    }
    for none in ["", "disabled_plugins = []", "disabled_plugins = ['io.containerd.snapshotter.v1.aufs']"] {
        assert_eq!(disabled_cri(none).unwrap(), None, "{none}");
    }
}

#[test]
fn a_controller_that_the_handler_does_not_name_is_not_its_own() {
    let users = "version = 3\n[proxy_plugins.hearth]\ntype = \"sandbox\"\naddress = \"/run/s\"\n";
    let with = with_handler(users, ConfigVersion::Three, &handler()).unwrap();
    assert_eq!(handler_in(&with, ConfigVersion::Three, "hearth").unwrap(), Some(handler()));
}

#[test]
fn what_cannot_be_edited_is_said() {
    let controller = Handler { sandboxer: Some("/run/s".into()), ..handler() };
    let error = with_handler("proxy_plugins = 1\n", ConfigVersion::Three, &controller).unwrap_err();
    assert!(error.contains("no table at proxy_plugins"), "{error}");
    // The dotted keys stand below a head whose part has a head of its own above it.
    let mixed = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\n[plugins]\ncri.containerd.x.y = 1\n";
    let error = with_handler(mixed, ConfigVersion::One, &handler()).unwrap_err();
    assert!(error.contains("one form"), "{error}");
}
