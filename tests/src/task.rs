//! `ctr run`, as a verb of a story.

use crate::ctr::{Ctr, Output, Running};
use crate::world::{Imported, Runtime, World};

/// A run, not yet made. Unless [`Self::detach`] is called the container is removed at its end.
#[must_use = "nothing runs before `run` or `spawn`"]
#[derive(Debug)]
pub struct Run<'a> {
    world: &'a World,
    image: Imported,
    id: String,
    detach: bool,
    flags: Vec<String>,
    command: Vec<String>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(world: &'a World, image: &Imported, id: &str) -> Self {
        Self { world, image: image.clone(), id: id.to_owned(), detach: false, flags: Vec::new(), command: Vec::new() }
    }

    /// Arguments after the image's entry point.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        // The arguments of `ctr run` replace the entry point.
        self.command = self.image.entry.clone();
        self.command.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Another command than the image's entry point.
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
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
        let runtime = self.world.runtime();
        let mut all = vec!["run", "--runtime", runtime.name()];
        if runtime == Runtime::Runc {
            // No cgroup: a killed test would leave it on the host. The host's pid namespace: as pid 1 of
            // its own a native program would ignore the signals it does not handle.
            all.extend(["--cgroup", "", "--with-ns", "pid:/proc/1/ns/pid"]);
        }
        if self.detach {
            all.push("--detach");
            if !self.flags.iter().any(|flag| flag == "--log-uri") {
                all.push("--null-io");
            }
        } else {
            all.push("--rm");
        }
        let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        all.extend(self.flags);
        all.extend([self.image.name, self.id]);
        all.extend(self.command);
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
