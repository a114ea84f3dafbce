//! Tests of [`super`].

use super::*;
use crate::args::{self, Invocation};

const ADDRESS: &str = "unix:///run/hearth/t/1.sock";

fn flags(args: &[&str]) -> Flags {
    let args = args.iter().chain(&["start"]).map(OsString::from);
    match args::parse(args) {
        Ok(Invocation::Start(flags)) => flags,
        other => panic!("{other:?}"),
    }
}

fn usual_flags() -> Flags {
    flags(&["-namespace=k8s.io", "-id=c1", "-address=/run/c.sock"])
}

fn usual_environment() -> Environment {
    Environment { ttrpc_address: "/run/c.sock.ttrpc".into(), has_max_shim_version: false }
}

fn params() -> BootstrapParams {
    BootstrapParams {
        instance_id: "c1".into(),
        namespace: "k8s.io".into(),
        containerd_version: "2.3.4".into(),
        containerd_ttrpc_address: "unix:///run/other.sock.ttrpc".into(),
        containerd_grpc_address: "/run/other.sock".into(),
    }
}

fn options(type_url: &str, value: &[u8]) -> Vec<u8> {
    Any { type_url: type_url.into(), value: value.into() }.encode_to_vec()
}

fn reply(version: u32) -> TaskSocketReply {
    TaskSocketReply { address: ADDRESS.into(), version }
}

#[test]
fn options_parameters_and_garbage_are_told_apart() {
    let flags = usual_flags();
    let recognised = |bytes: &[u8]| recognise(bytes, &flags);
    assert_eq!(recognised(b""), Ok(StdinMessage::Options(String::new())));
    assert_eq!(
        recognised(&options("runtimeoptions.v1.Options", b"\x0a\x03abc")),
        Ok(StdinMessage::Options(String::new()))
    );
    assert_eq!(recognised(&options("containerd.runc.v1.Options", b"")), Ok(StdinMessage::Options(String::new())));
    // A value that is text decodes as a namespace, and is still an option.
    assert_eq!(recognised(&options("a.b.Options", b"k8s.io")), Ok(StdinMessage::Options(String::new())));
    assert_eq!(recognised(&params().encode_to_vec()), Ok(StdinMessage::Params(params())));
    for garbage in [&b"garbage on stdin"[..], &[0xff; 64], b"{}", b"\x12\x01a"] {
        let failure = recognised(garbage).unwrap_err().to_string();
        assert!(failure.contains("neither runtime options"), "{failure}");
    }
}

#[test]
fn parameters_with_nothing_but_the_identity_are_recognised_by_it() {
    let bare = BootstrapParams { instance_id: "c1".into(), namespace: "k8s.io".into(), ..Default::default() };
    let bytes = bare.encode_to_vec();
    assert_eq!(recognise(&bytes, &usual_flags()), Ok(StdinMessage::Params(bare)));
    let others = flags(&["-namespace=moby", "-id=c1"]);
    assert_eq!(recognise(&bytes, &others), Ok(StdinMessage::Options(String::new())));
}

#[test]
fn unknown_fields_of_later_versions_do_not_disturb() {
    let mut bytes = params().encode_to_vec();
    bytes.extend_from_slice(b"\x18\x04"); // 3, the log level
    bytes.extend_from_slice(b"\x42\x04\x0a\x02\x0a\x00"); // 8, an extension
    bytes.extend_from_slice(b"\x4a\x02/s"); // 9, the socket directory
    bytes.extend_from_slice(b"\xa2\x06\x01x"); // 100, not invented yet
    assert_eq!(recognise(&bytes, &usual_flags()), Ok(StdinMessage::Params(params())));
}

#[test]
fn flags_and_environment_make_the_request() {
    let flags = flags(&["-namespace=default", "-id=c1", "-address=unix:///run/c.sock"]);
    let environment = Environment { ttrpc_address: "unix:///run/c.sock.ttrpc".into(), has_max_shim_version: true };
    let expected = TaskSocketRequest {
        namespace: "default".into(),
        grpc_address: "/run/c.sock".into(),
        ttrpc_address: "/run/c.sock.ttrpc".into(),
        id: "c1".into(),
        containerd_version: String::new(),
        accepts_version_3: true,
        bundle: String::new(),
        config_path: String::new(),
    };
    assert_eq!(question(&flags, &environment, &StdinMessage::Options(String::new())), Ok(expected));
    let old = question(&flags, &usual_environment(), &StdinMessage::Options(String::new())).unwrap();
    assert!(!old.accepts_version_3);
}

#[test]
fn parameters_win_over_flags_and_environment() {
    let flags = flags(&["-namespace=default", "-id=x", "-address=/run/c.sock"]);
    let stdin = StdinMessage::Params(params());
    let expected = TaskSocketRequest {
        namespace: "k8s.io".into(),
        grpc_address: "/run/other.sock".into(),
        ttrpc_address: "/run/other.sock.ttrpc".into(),
        id: "c1".into(),
        containerd_version: "2.3.4".into(),
        accepts_version_3: true,
        bundle: String::new(),
        config_path: String::new(),
    };
    let usual = usual_environment();
    assert_eq!(question(&flags, &usual, &stdin).as_ref(), Ok(&expected));
    let nothing = Environment::default();
    assert_eq!(question(&Flags::default(), &nothing, &stdin), Ok(expected), "the parameters alone are enough");
}

#[test]
fn a_missing_parameter_is_named() {
    let missing = |args: &[&str], environment: Environment| {
        question(&flags(args), &environment, &StdinMessage::Options(String::new())).unwrap_err().to_string()
    };
    let all = ["-namespace=n", "-id=i", "-address=/run/c.sock"];
    for (left_out, name) in [(0, "-namespace"), (1, "-id"), (2, "-address")] {
        let mut args = all.to_vec();
        args.remove(left_out);
        let failure = missing(&args, usual_environment());
        assert!(failure.starts_with(&format!("{name} is missing")), "{failure}");
    }
    let failure = missing(&all, Environment::default());
    assert!(failure.starts_with("TTRPC_ADDRESS is missing"), "{failure}");
    let failure = missing(&["-namespace=n", "-id=i", "-address=c.sock"], usual_environment());
    assert!(failure.contains("gRPC address \"c.sock\""), "{failure}");
}

#[test]
fn each_caller_gets_its_form() {
    let params = StdinMessage::Params(params());
    assert_eq!(form(&StdinMessage::Options(String::new()), false, &reply(2)), Ok(Form::Plain));
    assert_eq!(form(&StdinMessage::Options(String::new()), true, &reply(2)), Ok(Form::Plain));
    assert_eq!(form(&StdinMessage::Options(String::new()), true, &reply(3)), Ok(Form::Json));
    assert_eq!(form(&params, true, &reply(3)), Ok(Form::Protobuf));
    assert_eq!(form(&params, true, &reply(2)), Ok(Form::Protobuf));

    let error = |result: Result<Form>| result.unwrap_err().to_string();
    let old = error(form(&StdinMessage::Options(String::new()), false, &reply(3)));
    assert!(old.contains("which containerd 1.6 does not know"), "{old:?}");
    let future = error(form(&params, true, &reply(4)));
    assert!(future.contains("version 4"), "{future:?}");
    for address in ["", "/run/x.sock", "unix://x.sock", "unix:///run/x\n"] {
        let odd = TaskSocketReply { address: address.into(), version: 2 };
        let odd = error(form(&StdinMessage::Options(String::new()), true, &odd));
        assert!(odd.contains("not a unix:/// address"), "{odd:?}");
    }
}

#[test]
fn the_forms_are_containerds() {
    assert_eq!(encode(Form::Plain, reply(2)), ADDRESS.as_bytes());
    assert_eq!(
        encode(Form::Json, reply(3)),
        br#"{"version":3,"address":"unix:///run/hearth/t/1.sock","protocol":"ttrpc"}"#
    );
    let quoted = TaskSocketReply { address: r#"unix:///a"b\c"#.into(), version: 3 };
    assert_eq!(encode(Form::Json, quoted), br#"{"version":3,"address":"unix:///a\"b\\c","protocol":"ttrpc"}"#);
    // Field 1 varint 3, field 2 the address of 27 bytes, field 3 "ttrpc".
    let expected = [b"\x08\x03\x12\x1b", ADDRESS.as_bytes(), b"\x1a\x05ttrpc"].concat();
    assert_eq!(encode(Form::Protobuf, reply(3)), expected);
}

#[test]
fn the_address_file_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::At(dir.path().to_owned());
    fs::write(dir.path().join(".address"), "left by a shim that was killed").unwrap();
    write_address_file(&bundle, "unix:///first-and-longer").unwrap();
    write_address_file(&bundle, ADDRESS).unwrap();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["address"]);
    let content = fs::read_to_string(dir.path().join("address")).unwrap();
    assert_eq!(content, ADDRESS, "without a line break");
}

#[test]
fn an_address_file_that_cannot_be_written_fails_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let gone = Bundle::At(dir.path().join("gone"));
    let failure = write_address_file(&gone, ADDRESS).unwrap_err().to_string();
    assert!(failure.contains("gone/address"), "{failure}");
    assert!(write_address_file(&Bundle::Gone, ADDRESS).is_err());

    // A link planted at the temporary name is not written through.
    let outside = dir.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    std::os::unix::fs::symlink(&outside, dir.path().join(".address")).unwrap();
    write_address_file(&Bundle::At(dir.path().to_owned()), ADDRESS).unwrap_err();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
}
