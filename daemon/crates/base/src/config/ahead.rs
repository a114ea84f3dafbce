//! `[ahead]`: compiling the modules of images before a pod is started from them: namespaces, containerd, snapshotter,
//! nice value.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, at_least_one, refuse};

/// Compiling the modules of images before a pod is started from them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ahead {
    /// containerd's namespaces whose images are compiled when they are pulled or imported. Images that arrive while
    /// the daemon does not run are compiled when it starts. Empty: none; each module is compiled at its first start.
    pub namespaces: Vec<String>,
    /// The gRPC socket of the containerd that has these namespaces.
    pub containerd: PathBuf,
    /// containerd's snapshotter that unpacks the images.
    pub snapshotter: String,
    /// Images that wait for their turn; more are left to their first start.
    pub images_max: usize,
    /// How long after its pull an image may take to be unpacked, in milliseconds.
    pub unpack_timeout_ms: u64,
    /// The nice value of such a compile, until a start waits for it, and of the optimising compile that follows a
    /// start on baseline code. With 19 it uses only CPU time that no other process wants.
    pub nice: i32,
}

impl Default for Ahead {
    fn default() -> Self {
        Ahead {
            namespaces: vec!["k8s.io".into()],
            containerd: "/run/containerd/containerd.sock".into(),
            snapshotter: "overlayfs".into(),
            images_max: 4_096,
            unpack_timeout_ms: 120_000,
            nice: 19,
        }
    }
}

impl Ahead {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("ahead.images_max", self.images_max as u64),
            ("ahead.unpack_timeout_ms", self.unpack_timeout_ms),
        ])?;
        if !(0..=19).contains(&self.nice) {
            return refuse("ahead.nice", format!("{} is not from 0 to 19", self.nice));
        }
        Ok(())
    }
}
