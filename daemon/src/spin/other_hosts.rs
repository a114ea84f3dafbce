//! Images of hosts that Hearth does not replace: how they are recognised, and the errors with the remedy.

use std::path::Path;

use hearth_base::error::Error;
use hearth_os::in_root::RootDir;

/// The manifest of slight (SpiderLightning).
const SLIGHT: &str = "/slightfile.toml";

/// The error for an image of another host, whose command is a directory; none if the image is of no host that is
/// known. Blocks.
pub fn recognised(root: &RootDir) -> Option<Error> {
    if root.resolve(Path::new(SLIGHT)).is_ok() {
        return Some(Error::InvalidArgument(format!(
            "the image is a slight application (it has {SLIGHT}), which Hearth does not run: build its component for wasi:http and wasi:keyvalue, or push it as a Spin application"
        )));
    }
    None
}

/// The error of an image whose command is `/`, as hosts of applications have it, without an application in it.
pub fn no_application(missing: Error) -> Error {
    missing.context(
        "the command is \"/\", and the image is no Spin application: it has neither /spin.toml nor a layer with a locked application. Name the program instead; images of Wasm Workers Server and lunatic do not run here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slight_application_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = || RootDir::open(directory.path()).unwrap();
        assert!(recognised(&root()).is_none());
        std::fs::write(directory.path().join("slightfile.toml"), "specversion = \"0.2\"").unwrap();
        let error = recognised(&root()).unwrap().to_string();
        assert!(error.starts_with("the image is a slight application (it has /slightfile.toml)"), "{error}");
    }
}
