//! `ctr run`, as a story says it.

use crate::ctr::{Ctr, Output, Running};
use crate::world::World;

/// A run, not yet made. Unless [`Self::detach`] is called the container is removed at its end.
#[must_use = "nothing runs before `run` or `spawn`"]
#[derive(Debug)]
pub struct Run<'a> {
    world: &'a World,
    image: String,
    id: String,
    detach: bool,
    flags: Vec<String>,
    arguments: Vec<String>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(world: &'a World, image: &str, id: &str) -> Self {
        Self {
            world,
            image: image.to_owned(),
            id: id.to_owned(),
            detach: false,
            flags: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Arguments after the image's entry point.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// More flags of `ctr run`.
    pub fn flags<S: Into<String>>(mut self, flags: impl IntoIterator<Item = S>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// Leaves the task running, without stdio, and returns when it has started.
    pub fn detach(mut self) -> Self {
        self.detach = true;
        self
    }

    /// The call of `ctr`, for its stdin or another deadline.
    pub fn ctr(self) -> Ctr<'a> {
        // No cgroup: the stock runtime would leave one behind on the host if a test is killed.
        let mut all = vec!["run", "--runtime", self.world.runtime().name(), "--cgroup", ""];
        if self.detach {
            all.extend(["--detach", "--null-io"]);
        } else {
            all.push("--rm");
        }
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        all.extend(self.flags);
        all.extend([self.image, self.id]);
        all.extend(self.arguments);
        self.world.ctr(all)
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.ctr().run()
    }

    /// Runs it to its end, which must be a success.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.ctr().ok()
    }

    /// Starts it in the background.
    pub fn spawn(self) -> Running {
        self.ctr().spawn()
    }
}
