//! One client: a connection, and one start after another on it.
//!
//! A start has three parts, of which only the second is measured: [`Lane::prepare`] makes the
//! bundle, [`Lane::measure`] creates and starts the task, [`Lane::finish`] waits for its end,
//! deletes it and removes the bundle. At the floor the same calls go to the null server, and the
//! mounts that the daemon would make are made here.
//!
//! Failure paths: any call that fails, and a guest that ends with a status other than 0, end the
//! run, with the task's id.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::{DeleteRequest, StartRequest, WaitRequest};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use ttrpc::context;

use crate::bundle::{Bundle, BundleImage, Recipe, make_dir, remove_dir};
use crate::guest::Module;
use crate::rootfs::{FloorMade, FloorPlan, FloorTimes};

/// The server that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The daemon.
    Hearthd,
    /// Another build of the daemon.
    Other,
    /// The null server, with mounts and FIFOs made by the lane itself.
    Floor,
}

/// The image of each start.
pub enum BundleImages {
    /// Always this one.
    Same(BundleImage),
    /// A new one for each start, written to the directory and removed afterwards.
    Fresh(PathBuf, Module),
    /// These in turn.
    Listed(VecDeque<BundleImage>),
}

/// The times of one start.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// Create's round trip.
    pub create: Duration,
    /// Start's round trip.
    pub start: Duration,
    /// From the beginning (at the floor: of its own work) to Start's reply.
    pub reply: Duration,
    /// From the beginning to the guest's first byte, where the bundle has FIFOs and a guest.
    pub first_byte: Option<Duration>,
    /// The floor's mounts and FIFO opens.
    pub floor: Option<FloorTimes>,
    /// The floor's unmount, which is after the guest's end and in no sum.
    pub unmount: Option<Duration>,
}

/// How a client is set up.
pub struct Setup {
    /// The server that answers it.
    pub endpoint: Endpoint,
    /// Whether it is the only client of its side.
    pub alone: bool,
    /// The runtime it runs on.
    pub runtime: Handle,
    /// Its directory, which must not exist yet; its last component makes task ids unique.
    pub dir: PathBuf,
    /// The kind of bundle that it starts.
    pub recipe: Recipe,
    /// Where its images come from.
    pub images: BundleImages,
}

/// One client.
pub struct Lane {
    setup: Setup,
    name: String,
    task: TaskClient,
    turn: u64,
}

/// A task that was measured and is to be finished.
pub struct Measured {
    bundle: Bundle,
    made: Option<FloorMade>,
    sample: StartTimes,
}

impl BundleImages {
    fn take(&mut self, turn: u64) -> Result<BundleImage> {
        match self {
            BundleImages::Same(image) => Ok(image.clone()),
            BundleImages::Fresh(dir, module) => {
                BundleImage::create(dir.join(format!("image-{turn}")), &module.never_seen())
            }
            BundleImages::Listed(images) => images.pop_front().context("the list of images is empty"),
        }
    }

    fn give_back(&mut self, image: BundleImage) -> Result<()> {
        match self {
            BundleImages::Same(_) => Ok(()),
            BundleImages::Fresh(..) => remove_dir(image.dir()),
            BundleImages::Listed(images) => {
                images.push_back(image);
                Ok(())
            }
        }
    }
}

impl Lane {
    /// A client of `address`.
    ///
    /// # Errors
    /// If nothing listens there.
    pub async fn connect(setup: Setup, address: &str) -> Result<Lane> {
        make_dir(&setup.dir)?;
        let name = setup.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let task = dial(&setup.runtime, address).await?;
        Ok(Lane { setup, name, task, turn: 0 })
    }

    /// Dials again: the daemon was launched anew.
    ///
    /// # Errors
    /// If nothing listens there.
    pub async fn reconnect(&mut self, address: &str) -> Result<()> {
        self.task = dial(&self.setup.runtime, address).await?;
        Ok(())
    }

    /// Makes the next bundle.
    ///
    /// # Errors
    /// Of the file system.
    pub fn prepare(&mut self) -> Result<Bundle> {
        // FIFOs are opened for the runtime that reads them.
        let _runtime = self.setup.runtime.enter();
        self.turn += 1;
        let id = format!("{}-{}", self.name, self.turn);
        let image = self.setup.images.take(self.turn)?;
        let dir = self.setup.dir.join(self.turn.to_string());
        Bundle::create(dir, &id, image, &self.setup.recipe)
    }

    /// Creates and starts it, on the clock.
    ///
    /// # Errors
    /// If a call is answered with an error, or a mount fails.
    pub async fn measure(&self, mut bundle: Bundle) -> Result<Measured> {
        let start = StartRequest { id: bundle.create.id.clone(), ..StartRequest::default() };
        let mut stdio = bundle.stdio.take().filter(|_| self.setup.endpoint != Endpoint::Floor);
        let plan = bundle.floor.clone().filter(|_| self.setup.endpoint == Endpoint::Floor);

        let begin = Instant::now();
        let (made, floor) = match plan {
            Some(plan) => Some(self.make(plan).await?),
            None => None,
        }
        .unzip();
        let pair = async {
            let create_begin = Instant::now();
            self.task.create(context::Context::default(), &bundle.create).await.context("Create")?;
            let start_begin = Instant::now();
            self.task.start(context::Context::default(), &start).await.context("Start")?;
            let end = Instant::now();
            Ok((start_begin - create_begin, end - start_begin, end - begin))
        };
        let first_byte = async {
            let Some(stdio) = &mut stdio else {
                return Ok(None);
            };
            stdio.stdout.read_exact(&mut [0]).await.context("the guest's stdout")?;
            Ok(Some(begin.elapsed()))
        };
        let measured: Result<_> = futures_util::future::try_join(pair, first_byte).await;
        let ((create, start, reply), first_byte) = measured.with_context(|| format!("task {}", bundle.create.id))?;
        bundle.stdio = stdio;
        let sample = StartTimes { create, start, reply, first_byte, floor, unmount: None };
        Ok(Measured { bundle, made, sample })
    }

    /// On this thread; but mounts in a crowd on another, since a thread that mounts would keep the
    /// others' replies waiting.
    async fn make(&self, plan: FloorPlan) -> Result<(FloorMade, FloorTimes)> {
        if self.setup.alone || plan.root.is_none() {
            return plan.make();
        }
        spawn_blocking(move || plan.make()).await?
    }

    /// Waits for its end, deletes it and removes the bundle.
    ///
    /// # Errors
    /// If a call is answered with an error, or the guest failed.
    pub async fn finish(&mut self, measured: Measured) -> Result<StartTimes> {
        let Measured { bundle, made, mut sample } = measured;
        let id = bundle.create.id.clone();
        let wait = WaitRequest { id: id.clone(), ..WaitRequest::default() };
        let ended = self.task.wait(context::Context::default(), &wait).await;
        let status = ended.with_context(|| format!("Wait of task {id}"))?.exit_status;
        ensure!(status == 0, "the guest of task {id} ended with status {status} instead of 0");
        let delete = DeleteRequest { id: id.clone(), ..DeleteRequest::default() };
        let deleted = self.task.delete(context::Context::default(), &delete).await;
        deleted.with_context(|| format!("Delete of task {id}"))?;
        sample.unmount = made.and_then(FloorMade::undo);
        self.setup.images.give_back(bundle.remove()?)?;
        Ok(sample)
    }
}

/// Connects on the runtime that the client's calls are made on.
async fn dial(runtime: &Handle, address: &str) -> Result<TaskClient> {
    let to = address.to_owned();
    let client = runtime.spawn(async move { Client::connect(&to).await }).await?;
    Ok(TaskClient::new(client.with_context(|| format!("cannot connect to {address}"))?))
}
