//! containerd's namespace as a type. Many calls take it beside the id of a task or the name of an image; the compiler
//! refuses a swap.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A namespace of containerd (`k8s.io`, `moby`, `default`): ids of tasks and names of images are unique in it. It is
/// neither a namespace of Kubernetes nor one of the kernel. A copy is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerdNamespace(Arc<str>);

impl From<&str> for ContainerdNamespace {
    fn from(name: &str) -> ContainerdNamespace {
        ContainerdNamespace(name.into())
    }
}

impl Deref for ContainerdNamespace {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerdNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for ContainerdNamespace {
    /// As the name: messages quote it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
