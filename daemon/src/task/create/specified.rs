//! Second phase of a Create: the bundle's config.json is read and checked.
//!
//! The file is read on the thread of the call. It is a bounded read (`rpc.spec_bytes_max`) in containerd's state
//! directory, which is on the node's own disk or in its memory; a change to the blocking pool and back would cost
//! more than the read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::cells::not_in_a_cell;
use hearth_base::bundle::{self, TaskSpec};
use hearth_base::config::Isolation;
use hearth_base::error::Result;
use hearth_base::isolation::{self, Level};
use hearth_observe::starts::{About, NewAbout};

use super::reserved::Reserved;
use super::{CreateRequest, Creator};

/// A Create with its spec.
pub(super) struct Specified {
    pub(super) request: CreateRequest,
    pub(super) spec: TaskSpec,
    /// The task's record for operators.
    pub(super) about: Arc<About>,
    /// When the request arrived.
    pub(super) began: Instant,
    /// Dropped last.
    pub(super) reserved: Reserved,
}

impl Reserved {
    /// Reads the spec.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file, the line and what is wrong.
    pub(super) fn specify(self, creator: &Creator, request: CreateRequest, began: Instant) -> Result<Specified> {
        let config = creator.config.now();
        let spec = TaskSpec::read(&request.bundle, config.rpc.spec_bytes_max)?;
        check_level(&config.isolation, creator.world.level(), &spec)?;
        let upper = request.rootfs.iter().flat_map(|mount| &mount.options);
        let about = About::new(NewAbout {
            namespace: creator.namespace.clone(),
            id: request.id.as_str().into(),
            names: spec.names.clone(),
            program: spec.process.args.first().cloned().unwrap_or_default(),
            began,
            bundle_written_at: spec.written_at,
            snapshot: upper.filter_map(|option| option.strip_prefix("upperdir=")).next().map(PathBuf::from),
            trace: request.trace.clone(),
        });
        Ok(Specified { request, spec, about, began, reserved: self })
    }
}

/// Refuses to run in a process of level `has` what is to have a stronger wall. What asks for that was to be found out when
/// containerd started the shim: this holds where it could not be.
fn check_level(config: &Isolation, has: Level, spec: &TaskSpec) -> Result<()> {
    // A container belongs where its pod's sandbox is.
    let is_of_a_pod = matches!(spec.role, bundle::Role::InSandbox(_));
    if !is_of_a_pod && isolation::level(config, Level::Node, spec)? > has {
        return Err(not_in_a_cell());
    }
    Ok(())
}

impl Specified {
    /// Whether the container is a pod's sandbox (CRI's pause container).
    pub(super) fn is_sandbox(&self) -> bool {
        self.spec.role == bundle::Role::Sandbox
    }
}
