//! The floor's mounts: what a CRI-like bundle asks for, made with the fewest system calls, by this
//! program in its own mount namespace. Each step is timed.
//!
//! Failure paths: the kernel's errors, with the path; what is mounted by then is unmounted.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags};

/// A bind mount of a file or a directory.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What is bound.
    pub source: PathBuf,
    /// Where the guest sees it; absolute.
    pub destination: &'static str,
    /// A directory rather than a file.
    pub directory: bool,
    /// Mounted read-only.
    pub read_only: bool,
}

/// Everything a CRI-like bundle wants of the kernel before its guest can run.
#[derive(Debug, Clone)]
pub struct RootPlan {
    /// Options of the read-write overlay.
    pub overlay_options: CString,
    /// Where it is mounted.
    pub target: PathBuf,
    /// What is bound into it.
    pub volumes: Vec<Volume>,
    /// stdout's and stderr's FIFO.
    pub fifos: [PathBuf; 2],
}

/// How long each step took.
#[derive(Debug, Clone, Copy)]
pub struct MountTimes {
    /// The overlay.
    pub overlay: Duration,
    /// The tmpfs at `/dev` and its mount point.
    pub dev: Duration,
    /// Files and directories to mount on, which an image made of a module alone has not.
    pub mount_points: Duration,
    /// The binds.
    pub binds: Duration,
    /// Opening both FIFOs, as the daemon has to.
    pub fifos: Duration,
}

/// A mounted root file system with open FIFOs, unmounted when dropped.
pub struct MountedRoot {
    target: PathBuf,
    /// Open as long as the root is mounted.
    fifos: Vec<File>,
}

impl RootPlan {
    /// Makes it so, on the calling thread.
    ///
    /// # Errors
    /// Of the kernel, with the path.
    pub fn mount(&self) -> Result<(MountedRoot, MountTimes)> {
        let mut clock = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now - std::mem::replace(&mut clock, now)
        };
        rustix::mount::mount(
            "overlay",
            &self.target,
            "overlay",
            MountFlags::empty(),
            self.overlay_options.as_c_str(),
        )
        .with_context(|| {
            format!(
                "cannot mount an overlay on {}: choose a --scratch on a file system that can be an \
                 overlay's upper layer, such as ext4, xfs or tmpfs",
                self.target.display()
            )
        })?;
        // From here on the target is unmounted whatever fails.
        let mut root = MountedRoot {
            target: self.target.clone(),
            fifos: Vec::with_capacity(2),
        };
        let overlay = lap();
        self.mount_dev()?;
        let dev = lap();
        self.volumes
            .iter()
            .try_for_each(|volume| self.make_mount_point(volume))?;
        let mount_points = lap();
        self.volumes
            .iter()
            .try_for_each(|volume| self.bind(volume))?;
        let binds = lap();
        for path in &self.fifos {
            root.fifos.push(open_fifo(path)?);
        }
        Ok((
            root,
            MountTimes {
                overlay,
                dev,
                mount_points,
                binds,
                fifos: lap(),
            },
        ))
    }

    fn mount_dev(&self) -> Result<()> {
        let dev = self.target.join("dev");
        fs::create_dir(&dev).with_context(|| format!("cannot make {}", dev.display()))?;
        rustix::mount::mount(
            "tmpfs",
            &dev,
            "tmpfs",
            MountFlags::NOSUID,
            c"mode=755,size=65536k",
        )
        .with_context(|| format!("cannot mount a tmpfs on {}", dev.display()))
    }

    fn make_mount_point(&self, volume: &Volume) -> Result<()> {
        let point = self.inside(volume);
        let make = || {
            if volume.directory {
                return fs::create_dir_all(&point);
            }
            // Mostly the directory is there already: the file first, the directory if that failed.
            File::create(&point).map(drop).or_else(|_| {
                fs::create_dir_all(point.parent().unwrap_or(&self.target))?;
                File::create(&point).map(drop)
            })
        };
        make().with_context(|| format!("cannot make the mount point {}", point.display()))
    }

    fn bind(&self, volume: &Volume) -> Result<()> {
        let point = self.inside(volume);
        let bind = || {
            rustix::mount::mount_bind_recursive(&volume.source, &point)?;
            if volume.read_only {
                let flags = MountFlags::BIND | MountFlags::RDONLY;
                rustix::mount::mount_remount(&point, flags, c"")?;
            }
            Ok::<_, rustix::io::Errno>(())
        };
        bind().with_context(|| {
            format!(
                "cannot bind {} on {}",
                volume.source.display(),
                point.display()
            )
        })
    }

    fn inside(&self, volume: &Volume) -> PathBuf {
        self.target.join(volume.destination.trim_start_matches('/'))
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        self.fifos.clear();
        // Detaches the whole tree at once.
        if let Err(error) = rustix::mount::unmount(&self.target, UnmountFlags::DETACH) {
            eprintln!(
                "hearth-bench: cannot unmount {}: {error}",
                self.target.display()
            );
        }
    }
}

/// Read-write, so that neither side waits for the other.
fn open_fifo(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .with_context(|| format!("cannot open FIFO {}", path.display()))
}
