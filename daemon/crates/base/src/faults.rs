//! Points at which a test kills the daemon. They are in builds with the feature `faults` alone, which what is
//! shipped is not one of; elsewhere [`at`] is nothing.

/// The phases of a task's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Create has taken the id and room for events.
    Reserved,
    /// The spec is read, the network joined or made.
    Joined,
    /// The root of a program that is not known yet is mounted.
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
    /// The guest has ended, and nobody knows yet.
    Ended,
    /// The task's root is unmounted, and Delete about to be answered.
    Deleted,
}

impl Point {
    /// All, with the names that the environment variable takes.
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

/// Names the point at which the daemon is killed, when it is reached for the first time.
#[cfg(feature = "faults")]
pub const VARIABLE: &str = "HEARTH_FAULT";

/// Kills the daemon, as SIGKILL does it, if this is the point.
#[cfg(feature = "faults")]
pub fn at(point: Point) {
    use std::sync::LazyLock;
    static WANTED: LazyLock<Option<Point>> = LazyLock::new(|| {
        let name = std::env::var(VARIABLE).ok()?;
        Point::ALL.iter().find_map(|(point, known)| (*known == name).then_some(*point))
    });
    if *WANTED == Some(point) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Nothing more is done by this thread, until the signal arrives.
        std::thread::park();
    }
}

/// Nothing.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn at(_: Point) {}
