//! The floor's own work: the mounts and FIFO opens that a bundle asks for, made with the fewest system
//! calls, by this program in its own mount namespace. Each step is timed.
//!
//! Failure paths: the kernel's errors, with the path; all mounts made before are undone.

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
    /// The source of the bind.
    pub source: PathBuf,
    /// Where the guest sees it; absolute.
    pub destination: &'static str,
    /// A directory rather than a file.
    pub directory: bool,
    /// Mounted read-only.
    pub read_only: bool,
}

/// The kernel's work that a bundle with stdio needs before its guest can run.
#[derive(Debug, Clone)]
pub struct FloorPlan {
    /// The mounts of a CRI-like bundle.
    pub root: Option<RootPlan>,
    /// stdout's and stderr's FIFO.
    pub fifos: [PathBuf; 2],
}

/// The mounts of a CRI-like bundle.
#[derive(Debug, Clone)]
pub struct RootPlan {
    /// Options of the read-write overlay.
    pub overlay_options: CString,
    /// Where it is mounted.
    pub target: PathBuf,
    /// The binds into it.
    pub volumes: Vec<Volume>,
}

/// How long the floor's own work took.
#[derive(Debug, Clone, Copy)]
pub struct FloorTimes {
    /// The mounts, if there were any.
    pub mounts: Option<MountTimes>,
    /// Opening both FIFOs, as the daemon has to.
    pub fifos: Duration,
}

/// How long each mount took.
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
}

/// The mounts and open FIFOs of the floor. Dropping it undoes them.
pub struct FloorMade {
    /// Closed before the root is unmounted.
    _fifos: [File; 2],
    root: Option<MountedRoot>,
}

struct MountedRoot(PathBuf);

impl FloorPlan {
    /// Makes it so, on the calling thread.
    ///
    /// # Errors
    /// Of the kernel, with the path.
    pub fn make(&self) -> Result<(FloorMade, FloorTimes)> {
        let (root, mounts) = self.root.as_ref().map(RootPlan::mount).transpose()?.unzip();
        let begin = Instant::now();
        let [stdout, stderr] = &self.fifos;
        let fifos = [open_fifo(stdout)?, open_fifo(stderr)?];
        Ok((FloorMade { _fifos: fifos, root }, FloorTimes { mounts, fifos: begin.elapsed() }))
    }
}

impl FloorMade {
    /// Undoes it; how long the unmount took, if there was one.
    pub fn undo(self) -> Option<Duration> {
        self.root.map(|root| {
            let begin = Instant::now();
            drop(root);
            begin.elapsed()
        })
    }
}

impl RootPlan {
    fn mount(&self) -> Result<(MountedRoot, MountTimes)> {
        let mut clock = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now - std::mem::replace(&mut clock, now)
        };
        let options = self.overlay_options.as_c_str();
        rustix::mount::mount("overlay", &self.target, "overlay", MountFlags::empty(), options).with_context(|| {
            format!(
                "cannot mount an overlay on {}: leave out --bundles-on-disk, or choose a \
                     --scratch on a file system that can be an overlay's upper layer",
                self.target.display()
            )
        })?;
        // From here on the target is unmounted whatever fails.
        let root = MountedRoot(self.target.clone());
        let overlay = lap();
        self.mount_dev()?;
        let dev = lap();
        self.volumes.iter().try_for_each(|volume| self.make_mount_point(volume))?;
        let mount_points = lap();
        self.volumes.iter().try_for_each(|volume| self.bind(volume))?;
        Ok((root, MountTimes { overlay, dev, mount_points, binds: lap() }))
    }

    fn mount_dev(&self) -> Result<()> {
        let dev = self.target.join("dev");
        fs::create_dir(&dev).with_context(|| format!("cannot make {}", dev.display()))?;
        rustix::mount::mount("tmpfs", &dev, "tmpfs", MountFlags::NOSUID, c"mode=755,size=65536k")
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
        bind().with_context(|| format!("cannot bind {} on {}", volume.source.display(), point.display()))
    }

    fn inside(&self, volume: &Volume) -> PathBuf {
        self.target.join(volume.destination.trim_start_matches('/'))
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        // Detaches the whole tree at once.
        if let Err(error) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("hearth-bench: cannot unmount {}: {error}", self.0.display());
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
