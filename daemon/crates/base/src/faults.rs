//! Fault points: places in the daemon's code at which a test kills the daemon. Only builds with the feature `faults`
//! have them; no package contains such a build. Elsewhere [`at`] compiles to nothing.

/// The phases of a task's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Create has reserved the id and room for events.
    Reserved,
    /// The spec is read, the network joined or made.
    Joined,
    /// The root is mounted for a program that is not known yet.
    Mounted,
    /// A compile process runs.
    Compiling,
    /// The program is found.
    Located,
    /// The task's FIFOs are open.
    Opened,
    /// The task is known, and containerd is about to be answered.
    Created,
    /// Start has been called.
    Starting,
    /// The guest has its root, and gets an instance.
    Instantiating,
    /// The guest is about to run.
    Started,
    /// The guest has ended, and no client has been told yet.
    Ended,
    /// The task's root is unmounted, and Delete about to be answered.
    Deleted,
}

impl Point {
    /// All points, each with the name that [`VARIABLE`] takes and [`LIST_FLAG`] prints.
    #[cfg(feature = "faults")]
    pub const ALL: [(Point, &'static str); 12] = [
        (Point::Reserved, "reserved"),
        (Point::Joined, "joined"),
        (Point::Mounted, "mounted"),
        (Point::Compiling, "compiling"),
        (Point::Located, "located"),
        (Point::Opened, "opened"),
        (Point::Created, "created"),
        (Point::Starting, "starting"),
        (Point::Instantiating, "instantiating"),
        (Point::Started, "started"),
        (Point::Ended, "ended"),
        (Point::Deleted, "deleted"),
    ];
}

/// The environment variable that names the point at which the daemon is killed, when it first reaches the point.
#[cfg(feature = "faults")]
pub const VARIABLE: &str = "HEARTH_FAULT";

/// The argument of `hearthd-faults` that makes it print the name of each point instead of running the daemon.
#[cfg(feature = "faults")]
pub const LIST_FLAG: &str = "--list-fault-points";

/// Kills the daemon with SIGKILL if [`VARIABLE`] names this point.
#[cfg(feature = "faults")]
#[allow(clippy::disallowed_methods, reason = "the process kills itself, in test builds only")]
pub fn at(point: Point) {
    use std::sync::LazyLock;
    static WANTED: LazyLock<Option<Point>> = LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Point::ALL.iter().find_map(|(point, known)| (*known == name).then_some(*point))
    });
    if *WANTED == Some(point) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // This thread does nothing more until the signal arrives.
        std::thread::park();
    }
}

/// Does nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn at(_: Point) {}
