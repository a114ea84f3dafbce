//! Whose rights to files a guest has.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use hearth_tests::{Guest, Image, Imported, Layer, NewContainer, SHORT, World, api};

use crate::only_on_hearth;

/// An image with the `files` program, of this user.
fn files(world: &World, user: &str) -> Imported {
    let (program, name) = ("/bin/files", format!("hearth.test/files-{}:1", user.replace(':', "-")));
    let layer = Layer::new().file(program, 0o755, Guest::FILES.bytes_for(world.runtime()));
    world.import(&Image::scratch(&name).layer(layer).entrypoint([program]).user(user))
}

/// A directory all may write to, with a file of root's, one of user 1000's and one of group 3000's.
fn volume(world: &World) -> PathBuf {
    for (name, uid, gid, mode) in [("root", 0, 0, 0o600), ("own", 1_000, 0, 0o600), ("shared", 0, 3_000, 0o660)] {
        let path = world.write(&format!("volume/{name}"), name.as_bytes());
        chown(&path, Some(uid), Some(gid)).expect("the tests run as root");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
    }
    let volume = world.path("volume");
    fs::set_permissions(&volume, Permissions::from_mode(0o777)).expect("it is ours");
    volume
}

#[test]
fn a_guest_reads_and_writes_what_its_user_may() {
    let world = World::new();
    let volume = volume(&world);
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", volume.display());
    let cases: [(&str, (u32, u32), &[&str]); 3] = [
        ("0:0", (0, 0), &["root", "own", "shared"]),
        ("1000:1000", (1_000, 1_000), &["own"]),
        ("2000:3000", (2_000, 3_000), &["shared"]),
    ];
    for (user, owner, readable) in cases {
        let image = files(&world, user);
        let id = user.replace(':', "-");
        let run = |id: &str, arguments: &[&str]| {
            world.run(&image, id).flags(["--mount", &mount]).args(arguments.iter().copied()).run()
        };
        for name in ["root", "own", "shared"] {
            let output = run(&format!("{id}-{name}"), &["read", &format!("/data/{name}")]);
            if readable.contains(&name) {
                assert_eq!(output.assert_code(0).stdout(), name);
            } else {
                output.assert_fault(&["permission denied"]);
            }
        }
        run(&format!("{id}-new"), &["write", &format!("/data/{id}"), "x"]).assert_code(0);
        let made = fs::metadata(volume.join(&id)).expect("the guest made it");
        assert_eq!((made.uid(), made.gid()), owner);
        // The image's own files are root's.
        let outcome = run(&format!("{id}-image"), &["write", "/bin/new", "x"]);
        assert_eq!(outcome.status.success(), owner.0 == 0, "{outcome}");
    }
}

/// As a pod's `fsGroup` is in its containers' spec.
#[test]
fn a_supplementary_group_gives_access() {
    only_on_hearth!();
    let world = World::new();
    let api = world.api();
    let root = volume(&world);
    let program = world.write("volume/files.wasm", &Guest::FILES.wasm_bytes());
    fs::set_permissions(program, Permissions::from_mode(0o600)).expect("it is ours");
    for (id, groups, code) in [("within", vec![3_000], 0), ("without", vec![3_001], 2)] {
        let mut spec = api::spec(&["/files.wasm", "append", "/shared", id], &[]);
        spec["process"]["user"] = serde_json::json!({"uid": 1_000, "gid": 1_000, "additionalGids": groups});
        spec["root"]["path"] = root.display().to_string().into();
        let runtime = world.runtime().name();
        api.create_container(NewContainer { id, runtime, spec: spec.to_string().into(), ..NewContainer::default() });
        // 2: EACCES of preview 1.
        assert_eq!(api.run_task(id, b"", SHORT).0, code, "{id}");
        api.delete_container(id);
    }
    assert_eq!(fs::read(root.join("shared")).expect("it is there"), b"sharedwithin");
}
