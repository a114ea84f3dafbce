//! Tests of [`super`].

use super::*;

fn parse_all(args: &[&str]) -> Result<Invocation> {
    parse(args.iter().map(OsString::from))
}

fn error(args: &[&str]) -> String {
    parse_all(args).unwrap_err().to_string()
}

fn flags(bundle: &str) -> Flags {
    Flags {
        namespace: "k8s.io".into(),
        id: "c1".into(),
        address: "/run/containerd/containerd.sock".into(),
        bundle: bundle.into(),
    }
}

#[test]
fn containerds_own_command_lines_are_understood() {
    let start = [
        "-namespace",
        "k8s.io",
        "-address",
        "/run/containerd/containerd.sock",
        "-publish-binary",
        "/usr/bin/containerd",
        "-id",
        "c1",
        "-debug",
        "start",
    ];
    assert_eq!(parse_all(&start), Ok(Invocation::Start(flags(""))));
    let delete = [
        "-namespace",
        "k8s.io",
        "-address",
        "/run/containerd/containerd.sock",
        "-publish-binary",
        "/usr/bin/containerd",
        "-id",
        "c1",
        "-bundle",
        "/run/b/c1",
        "delete",
    ];
    assert_eq!(parse_all(&delete), Ok(Invocation::Delete(flags("/run/b/c1"))));
}

#[test]
fn one_dash_or_two_joined_or_apart_before_or_after_the_action() {
    let expected = Ok(Invocation::Start(flags("/b")));
    for args in [
        &["--namespace", "k8s.io", "--id=c1", "-bundle=/b", "-address", "/run/containerd/containerd.sock", "start"][..],
        &[
            "start",
            "-namespace=k8s.io",
            "-id",
            "c1",
            "--bundle",
            "/b",
            "--address=/run/containerd/containerd.sock",
            "-socket",
            "/s",
            "-debug-socket=/d",
        ][..],
        &[
            "-id=first",
            "-id=c1",
            "-namespace=k8s.io",
            "-bundle=/b",
            "-address=/run/containerd/containerd.sock",
            "--",
            "start",
        ][..],
    ] {
        assert_eq!(parse_all(args), expected, "{args:?}");
    }
}

#[test]
fn a_value_may_contain_an_equals_sign_or_start_with_a_dash() {
    let Ok(Invocation::Start(flags)) = parse_all(&["-id", "-x", "-namespace=a=b", "start"]) else {
        panic!("not understood");
    };
    assert_eq!((flags.id.as_str(), flags.namespace.as_str()), ("-x", "a=b"));
}

#[test]
fn version_and_info_need_no_action() {
    assert_eq!(parse_all(&["-v"]), Ok(Invocation::Version));
    assert_eq!(parse_all(&["--version"]), Ok(Invocation::Version));
    assert_eq!(parse_all(&["-info"]), Ok(Invocation::Info));
    assert_eq!(parse_all(&["-info", "-v"]), Ok(Invocation::Version));
    assert_eq!(parse_all(&["-h"]), Ok(Invocation::Help));
    assert_eq!(parse_all(&["-v=false", "-debug=0", "start"]), Ok(Invocation::Start(Flags::default())));
}

#[test]
fn bad_command_lines_are_named() {
    assert!(error(&[]).starts_with("no action"));
    assert!(error(&["-frobnicate", "start"]).contains("unknown flag -frobnicate"));
    assert!(error(&["--frobnicate=1", "start"]).contains("unknown flag -frobnicate"));
    assert!(error(&["---id", "x", "start"]).contains("bad flag"));
    assert!(error(&["-=x", "start"]).contains("bad flag"));
    assert!(error(&["start", "-id"]).contains("-id needs a value"));
    assert!(error(&["-debug=maybe", "start"]).contains("-debug is a switch"));
    assert!(error(&["stop"]).contains("unknown action \"stop\""));
    assert!(error(&["-"]).contains("unknown action \"-\""));
    assert!(error(&["start", "delete"]).contains("unexpected argument \"delete\""));
    assert!(error(&["--", "-v"]).contains("unknown action"));
    let not_utf8 = OsString::from_vec(vec![b'a', 0xff]);
    let failure = parse(["-id".into(), not_utf8, "start".into()]).unwrap_err();
    assert!(failure.to_string().contains("is not UTF-8"), "{failure}");
}

#[test]
fn a_bundle_is_an_absolute_path_without_tricks() {
    assert_eq!(flags("/run/b/c1").bundle(), Ok(Bundle::At("/run/b/c1".into())));
    for (path, problem) in [
        ("b/c1", "is not absolute"),
        ("/run/../etc", "contains '..'"),
        ("/", "is the root directory"),
        ("//.", "is the root directory"),
        ("/run/b\0", "contains a NUL byte"),
    ] {
        let failure = flags(path).bundle().unwrap_err().to_string();
        assert!(failure.contains(problem), "{path:?}: {failure}");
    }
    let here = env::current_dir().unwrap();
    assert_eq!(flags("").bundle(), Ok(Bundle::At(here)));
}
