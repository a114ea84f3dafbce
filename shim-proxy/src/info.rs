//! `-info` and `-v`: the runtime's name and version. Both work without the daemon and cannot fail.
//!
//! containerd 2.2 and later run `-info` for every Create and remember only a success, so a failure
//! would cost each container one more exec.

use prost::Message;

use crate::failure::RUNTIME_NAME;

/// The release.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit, from `HEARTH_REVISION` in the build's environment.
const REVISION: &str = match option_env!("HEARTH_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// `containerd.types.RuntimeInfo`, without the options and features, which describe runc and similar runtimes.
#[derive(Clone, PartialEq, Message)]
struct RuntimeInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    version: Option<RuntimeVersion>,
}

/// `containerd.types.RuntimeVersion`.
#[derive(Clone, PartialEq, Message)]
struct RuntimeVersion {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    revision: String,
}

/// The answer to `-info`: a marshalled `RuntimeInfo`. The options that containerd writes to stdin
/// change nothing in it, so they are not read.
pub fn runtime_info() -> Vec<u8> {
    RuntimeInfo {
        name: RUNTIME_NAME.into(),
        version: Some(RuntimeVersion { version: VERSION.into(), revision: REVISION.into() }),
    }
    .encode_to_vec()
}

/// The answer to `-v`, laid out as containerd's own shims do it.
pub fn version() -> Vec<u8> {
    format!("containerd-shim-hearth-v1:\n  Version:  {VERSION}\n  Revision: {REVISION}\n  Runtime:  {RUNTIME_NAME}\n\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_names_itself_as_containerd_selects_it() {
        let info = RuntimeInfo::decode(&*runtime_info()).unwrap();
        assert_eq!(info.name, "io.containerd.hearth.v1");
        assert_eq!(info.version.unwrap().version, VERSION);
        // Field 1, a string of 23 bytes.
        assert!(runtime_info().starts_with(b"\x0a\x17io.containerd.hearth.v1\x12"));
    }
}
