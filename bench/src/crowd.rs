//! Many tasks of one daemon at once: several connections, pods started by the hundred, and the resources of a daemon's
//! process.
//!
//! Failure paths: the first call that fails ends the run, with the task's id.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, KillRequest, StartRequest, WaitRequest};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use ttrpc::context;

use crate::bundle::{Bundle, BundleImage, PodFiles, Recipe, make_dir};
use crate::lane::{BundleImages, Endpoint, Lane, Setup, StartTimes};
use crate::progress::{progress, progress_done};

/// SIGKILL of `kill(2)`.
const SIGKILL: u32 = 9;

/// Starts, or ends, under way at the same time while a crowd comes or goes.
const AT_ONCE: usize = 32;

/// Creates and starts a task.
pub async fn start(client: &TaskClient, create: &CreateTaskRequest) -> Result<()> {
    let start = StartRequest { id: create.id.clone(), ..StartRequest::default() };
    let pair = async {
        client.create(context::Context::default(), create).await.context("Create")?;
        client.start(context::Context::default(), &start).await.context("Start")?;
        Ok(())
    };
    let started: Result<()> = pair.await;
    started.with_context(|| format!("task {}", create.id))
}

/// Waits for a task's end and deletes it; returns its exit status.
pub async fn finish(client: &TaskClient, id: &str) -> Result<u32> {
    let (wait, delete) = (
        WaitRequest { id: id.to_owned(), ..WaitRequest::default() },
        DeleteRequest { id: id.to_owned(), ..DeleteRequest::default() },
    );
    let ended = async {
        let status = client.wait(context::Context::default(), &wait).await.context("Wait")?.exit_status;
        client.delete(context::Context::default(), &delete).await.context("Delete")?;
        Ok(status)
    };
    let ended: Result<u32> = ended.await;
    ended.with_context(|| format!("task {id}"))
}

/// Deletes a task that has ended or was never started.
pub async fn remove(client: &TaskClient, id: &str) -> Result<()> {
    let delete = DeleteRequest { id: id.to_owned(), ..DeleteRequest::default() };
    client.delete(context::Context::default(), &delete).await.with_context(|| format!("Delete of task {id}"))?;
    Ok(())
}

/// Kills a task, waits for its end and deletes it.
pub async fn end(client: &TaskClient, id: &str) -> Result<()> {
    let kill = KillRequest { id: id.to_owned(), signal: SIGKILL, all: true, ..KillRequest::default() };
    client.kill(context::Context::default(), &kill).await.with_context(|| format!("Kill of task {id}"))?;
    finish(client, id).await.map(|_| ())
}

/// Connects so many clients.
///
/// # Errors
/// If nothing listens at `address`.
pub async fn connect(address: &str, clients: usize) -> Result<Vec<TaskClient>> {
    let mut all = Vec::with_capacity(clients);
    for _ in 0..clients {
        let client = Client::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        all.push(TaskClient::new(client));
    }
    Ok(all)
}

/// Idle pods: a sandbox and a container in it, each a task of its own, with a CRI-like bundle.
pub struct IdlePods {
    clients: Vec<TaskClient>,
    dir: PathBuf,
    image: BundleImage,
    files: PodFiles,
    /// Whether containers have FIFOs for stdout and stderr.
    stdio: bool,
    /// Kept for their FIFOs, which stay unread, as a log without a follower.
    bundles: Vec<Bundle>,
}

impl IdlePods {
    /// None yet, of this image and with these files, with bundles in a new directory.
    ///
    /// # Errors
    /// Of the file system, or if nothing listens at `address`.
    pub async fn new(
        address: &str,
        dir: PathBuf,
        files: PodFiles,
        image: BundleImage,
        stdio: bool,
    ) -> Result<IdlePods> {
        make_dir(&dir)?;
        Ok(IdlePods { clients: connect(address, 4).await?, dir, image, files, stdio, bundles: Vec::new() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bundles.len()
    }

    /// Starts pods until there are this many; returns the time of the starts.
    ///
    /// # Errors
    /// The first call that fails.
    pub async fn grow(&mut self, pods: usize) -> Result<Duration> {
        let mut took = Duration::ZERO;
        while self.len() < pods {
            progress(&format!("{} of {pods} pods", self.len()));
            let mut prepared = Vec::new();
            for number in self.len()..pods.min(self.len() + 250) {
                prepared.push(self.prepare(number)?);
            }
            let began = Instant::now();
            let starts = prepared.iter().enumerate().map(async |(number, (sandbox, bundle))| {
                let client = &self.clients[number % self.clients.len()];
                start(client, sandbox).await?;
                start(client, &bundle.create).await
            });
            stream::iter(starts).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            took += began.elapsed();
            self.bundles.extend(prepared.into_iter().map(|(_, bundle)| bundle));
        }
        progress_done();
        Ok(took)
    }

    fn prepare(&self, number: usize) -> Result<(CreateTaskRequest, Bundle)> {
        let pod = self.files.with_sandbox(&sandbox_id(number));
        let sandbox = pod.sandbox_bundle(&self.dir.join(format!("{number}s")))?;
        let dir = self.dir.join(number.to_string());
        let bundle = Bundle::create(dir, &container_id(number), self.image.clone(), &Recipe::Cri(pod))?;
        Ok((sandbox, if self.stdio { bundle } else { bundle.without_stdio() }))
    }

    /// Ends all pods; returns the time of the ends.
    ///
    /// # Errors
    /// The first call that fails.
    pub async fn end(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let pods = self.len();
        let ends = (0..pods).map(async |number| {
            let client = &self.clients[number % self.clients.len()];
            end(client, &container_id(number)).await?;
            end(client, &sandbox_id(number)).await
        });
        let mut ends = stream::iter(ends).buffer_unordered(AT_ONCE).enumerate();
        while let Some((done, ended)) = ends.next().await {
            ended?;
            if done % 100 == 0 {
                progress(&format!("{done} of {pods} pods ended"));
            }
        }
        progress_done();
        drop(ends);
        self.bundles.clear();
        Ok(began.elapsed())
    }
}

fn sandbox_id(number: usize) -> String {
    format!("pod-{number}")
}

fn container_id(number: usize) -> String {
    format!("app-{number}")
}

/// One client that starts short tasks, one after another, and measures each.
pub struct Probe(Lane);

impl Probe {
    /// Of `image`, with bundles of this recipe in a new directory.
    ///
    /// # Errors
    /// If nothing listens at `address`.
    pub async fn new(address: &str, dir: PathBuf, images: BundleImages, recipe: Recipe) -> Result<Probe> {
        let runtime = tokio::runtime::Handle::current();
        let setup = Setup { endpoint: Endpoint::Hearthd, alone: true, runtime, dir, recipe, images };
        Ok(Probe(Lane::connect(setup, address).await?))
    }

    /// This number of starts.
    ///
    /// # Errors
    /// The first that fails.
    pub async fn starts(&mut self, starts: usize) -> Result<Vec<StartTimes>> {
        let mut samples = Vec::with_capacity(starts);
        for _ in 0..starts {
            samples.push(self.start().await?);
        }
        Ok(samples)
    }

    /// One start.
    ///
    /// # Errors
    /// If it fails.
    pub async fn start(&mut self) -> Result<StartTimes> {
        let bundle = self.0.prepare()?;
        let measured = self.0.measure(bundle).await?;
        self.0.finish(measured).await
    }
}

/// The resources of a process.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Its proportional set size, in bytes.
    pub pss_bytes: u64,
    /// Of that, memory that belongs to no file, in bytes.
    #[serde(default)]
    pub anonymous_bytes: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory mappings.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
    /// Mounts in its namespace.
    pub mounts: usize,
}

impl Footprint {
    /// Of this process.
    ///
    /// # Errors
    /// If it is gone.
    pub fn of(pid: u32) -> Result<Footprint> {
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let count = |name: &str| -> Result<usize> { Ok(fs::read_dir(path(name)).with_context(|| path(name))?.count()) };
        let lines = |name: &str| -> Result<usize> {
            let text = fs::read(path(name)).with_context(|| path(name))?;
            Ok(text.iter().filter(|&&byte| byte == b'\n').count())
        };
        let rollup = rollup(pid)?;
        Ok(Footprint {
            pss_bytes: bytes_in(&rollup, "Pss").context("the kernel tells no Pss")?,
            anonymous_bytes: bytes_in(&rollup, "Anonymous").context("the kernel tells no Anonymous")?,
            descriptors: count("fd")?,
            mappings: lines("maps")?,
            threads: count("task")?,
            mounts: lines("mountinfo")?,
        })
    }
}

/// A process's proportional set size, in bytes.
///
/// # Errors
/// If it is gone, or the kernel has no such file.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    bytes_in(&rollup(pid)?, "Pss").context("the kernel tells no Pss")
}

fn rollup(pid: u32) -> Result<String> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn bytes_in(rollup: &str, key: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Lets this process open as many files as it may.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// An image of one program in a new directory below `dir`.
///
/// # Errors
/// Of the file system.
pub fn image(dir: &Path, name: &str, module: &crate::guest::Module) -> Result<BundleImage> {
    BundleImage::create(dir.join(name), module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_gives_its_pss_in_bytes() {
        let text = "00400000-7fff [rollup]\nRss:      10 kB\nPss:              7 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(bytes_in(text, "Pss"), Some(7 * 1024));
        assert_eq!(bytes_in("Rss: 1 kB\n", "Pss"), None);
    }

    #[test]
    fn this_process_has_a_footprint() {
        let footprint = Footprint::of(std::process::id()).unwrap();
        assert!(footprint.pss_bytes > 100_000 && footprint.descriptors > 2 && footprint.mappings > 10);
    }
}
