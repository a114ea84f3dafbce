//! stand-in
use std::path::{Path, PathBuf};
use crate::error::*;
use crate::metrics::Metrics;
/// p
pub struct Plan { pub path: PathBuf, pub rootfs: Vec<containerd_shim_protos::api::Mount> }
/// r
pub struct Root { path: PathBuf, mounted: bool }
impl Plan {
    /// p
    pub fn path(&self) -> &Path { &self.path }
    /// p
    pub fn perform(self, _: &Metrics) -> Result<Root> {
        let _ = std::fs::create_dir_all(&self.path);
        for m in &self.rootfs {
            let o = m.options.join(",");
            let r = std::process::Command::new("mount").args(["-t", &m.type_, "-o", &o, &m.source]).arg(&self.path).output().map_err(|e| Error::Internal(e.to_string()))?;
            if !r.status.success() { return Err(Error::Internal(String::from_utf8_lossy(&r.stderr).into())); }
        }
        Ok(Root { mounted: !self.rootfs.is_empty(), path: self.path })
    }
}
impl Root {
    /// p
    pub fn path(&self) -> &Path { &self.path }
    /// p
    pub fn is_bare(&self) -> bool { !self.mounted }
    /// p
    pub fn unmount(self) -> Result<()> { if self.mounted { let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH); } Ok(()) }
}
