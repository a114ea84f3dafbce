//! `-info` and `-v`: the runtime's name, version and features. Both work without the daemon and cannot fail.
//!
//! containerd 2.2 and later run `-info` for every Create and remember only a success, so a failure
//! would cost each container one more exec. From 2.2.7 and 2.3.4 on, containerd's CRI plugin derives the features of a
//! runtime handler from it: kubelet refuses `recursiveReadOnly: Enabled` unless the mount option `rro` is listed.

use hearth_shim::features;
use prost::Message;
use prost_types::Any;

use hearth_shim::failure::RUNTIME_NAME;

/// The release.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit, from `HEARTH_REVISION` in the build's environment.
const REVISION: &str = match option_env!("HEARTH_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// The type of [`features::json`] in an `Any`, as containerd registers it (`core/runtime/typeurl.go`).
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// `containerd.types.RuntimeInfo`, without the options: Hearth has none.
#[derive(Clone, PartialEq, Message)]
struct RuntimeInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    version: Option<RuntimeVersion>,
    #[prost(message, optional, tag = "4")]
    features: Option<Any>,
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
        features: Some(Any { type_url: FEATURES_TYPE.into(), value: features::json().into_bytes() }),
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
        assert_eq!(info.version.clone().unwrap().version, VERSION);
        // Field 1, a string of 23 bytes.
        assert!(runtime_info().starts_with(b"\x0a\x17io.containerd.hearth.v1\x12"));
        let features = info.features.unwrap();
        assert_eq!((features.type_url.as_str(), features.value), (FEATURES_TYPE, features::json().into_bytes()));
    }
}
