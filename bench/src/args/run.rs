//! The commands: each sets up its measurement, prints and writes the report, and undoes everything.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{
    AllArgs, CommonArgs, DensityArgs, HttpArgs, NodeArgs, ProgramsArgs, ServedArgs, ServicesArgs, ShimArgs, ShowArgs,
    ShownArgs, SoakArgs, StartArgs, StormArgs, UpgradeArgs,
};
use crate::guest::Module;
use crate::output::JsonFile;
use crate::runtimes::Runtimes;
use crate::scenario::{BundleKind, Scenario};
use crate::scratch::{BundleStore, Scratch};
use crate::signals::Signals;
use crate::{density, floor, http, namespaces, node, programs, shim, signals, soak, start, storm, suite, upgrade};

impl AllArgs {
    /// The `all` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let options = suite::Options {
            quick: self.quick,
            hearthd: self.hearthd.map(existing).transpose()?,
            component: self.component.map(existing).transpose()?,
            large: self.large.map(existing).transpose()?,
            floor_shim: self.floor_shim.map(existing).transpose()?,
            scratch: self.common.scratch,
        };
        let suite = suite::run(&options)?;
        json.map_or(Ok(()), |json| json.write(&suite))?;
        self.shown.show(&suite)
    }
}

impl ShowArgs {
    /// The `show` command.
    ///
    /// # Errors
    /// If the report cannot be read.
    pub fn run(self) -> Result<()> {
        let path = self.report.display().to_string();
        let text = std::fs::read_to_string(&self.report).with_context(|| path.clone())?;
        let suite =
            serde_json::from_str(&text).with_context(|| format!("{path} is no report of `hearth-bench all`"))?;
        self.shown.show(&suite)
    }
}

impl ShownArgs {
    fn show(&self, suite: &suite::Suite) -> Result<()> {
        print!("{}", suite.markdown());
        self.plots.as_deref().map_or(Ok(()), |directory| suite.plots(directory))?;
        self.readme.as_deref().map_or(Ok(()), |readme| suite.write_readme(readme))?;
        match (&self.figures, &suite.programs) {
            (Some(page), Some(programs)) => suite::write_programs(page, programs),
            (None, _) | (_, None) => Ok(()),
        }
    }
}

impl StartArgs {
    /// The `start` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let scenarios = Scenario::matching(&self.scenarios).map_err(anyhow::Error::msg)?;
        let hearthd = match (self.floor_only, self.hearthd) {
            (true, _) => None,
            (false, path) => Some(hearthd(path)?),
        };
        let module = match &self.module {
            Some(path) => Module::read(path)?,
            None => Module::hello()?,
        };
        let mounts = scenarios.iter().any(|scenario| scenario.bundle == BundleKind::Cri);
        let private = mounts || hearthd.is_some();
        if private {
            namespaces::enter_private_mount_namespace()?;
        }
        let store = match private && !self.bundles_on_disk {
            true => BundleStore::Memory,
            false => BundleStore::Disk,
        };
        let against = self.against.map(existing).transpose()?;
        let options = start::Options { scenarios, hearthd, against, module, quick: self.quick, store };
        self.common.run(store, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = start::run(&options, scratch, runtimes).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl ShimArgs {
    /// The `shim` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let shim = match self.shim {
            Some(path) => existing(path)?,
            None => beside_this_program("containerd-shim-hearth-v1", "--shim")?,
        };
        let hearthd = self.hearthd.map(existing).transpose()?;
        if hearthd.is_some() {
            namespaces::enter_private_mount_namespace()?;
        }
        let options = shim::Options { shim, hearthd, runs: self.runs as usize };
        self.common.run(BundleStore::Disk, async |scratch: &Scratch, _: &Runtimes| {
            let report = shim::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl UpgradeArgs {
    /// The `upgrade` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let hearthd = match self.hearthd {
            Some(path) => existing(path)?,
            None => beside_this_program("hearthd", "--hearthd")?,
        };
        namespaces::enter_private_mount_namespace()?;
        let options = upgrade::Options {
            hearthd,
            upgrades: self.upgrades as usize,
            pods: self.pods,
            pace: Duration::from_secs(1).checked_div(self.rate).unwrap_or_default(),
        };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = upgrade::run(&options, scratch, runtimes).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl DensityArgs {
    /// The `density` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let hearthd = hearthd(self.hearthd)?;
        namespaces::enter_private_mount_namespace()?;
        let options = density::Options { hearthd, pods: self.pods, stdio: self.stdio, starts: self.starts as usize };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = density::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl StormArgs {
    /// The `storm` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let hearthd = hearthd(self.hearthd)?;
        let large = self.large.unwrap_or_else(|| hearth_tests::Guest::BIG.wasm());
        namespaces::enter_private_mount_namespace()?;
        let options = storm::Options {
            hearthd,
            tasks: self.tasks as usize,
            bursts: self.bursts as usize,
            starts: self.starts as usize,
            large: Module::read(&large)?,
        };
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, runtimes: &Runtimes| {
            let report = storm::run(&options, scratch, runtimes.for_clients(usize::MAX)).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl NodeArgs {
    /// The `node` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let floor_shim = match self.floor_shim {
            Some(path) => existing(path)?,
            None => beside_this_program(floor::SHIM, "--floor-shim")?,
        };
        let scratch = Scratch::create(self.common.scratch.as_deref(), BundleStore::Disk)?;
        signals::remove_and_exit_on_signal(scratch.path().to_owned())?;
        let mut plan = if self.quick { node::NodePlan::QUICK } else { node::NodePlan::FULL };
        if let Some(pods) = self.idle_pods {
            plan.idle_pods = pods as usize;
        }
        let options = node::Options {
            hearthd: hearthd(self.hearthd)?,
            floor_shim,
            floor_directory: scratch.bundles().to_owned(),
            component: self.component.map(existing).transpose()?,
            plan,
        };
        let report = node::run(&options);
        let removed = scratch.remove();
        let report = report?;
        print!("{}", report.markdown());
        json.map_or(Ok(()), |json| json.write(&report))?;
        removed
    }
}

impl ProgramsArgs {
    /// The `programs` command.
    ///
    /// # Errors
    /// The first failure.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let report = programs::run(hearthd(self.hearthd)?)?;
        print!("{}", report.markdown());
        json.map_or(Ok(()), |json| json.write(&report))?;
        self.figures.as_deref().map_or(Ok(()), |page| suite::write_programs(page, &report))
    }
}

impl SoakArgs {
    /// The `soak` command.
    ///
    /// # Errors
    /// The first failure.
    pub fn run(self) -> Result<()> {
        let json = self.common.json.as_deref().map(JsonFile::at).transpose()?;
        let options =
            soak::Options { hearthd: hearthd(self.hearthd)?, pods: self.pods, every: self.every, cri: self.cri };
        let report = soak::run(&options)?;
        print!("{}", report.markdown());
        json.map_or(Ok(()), |json| json.write(&report))
    }
}

impl HttpArgs {
    /// The `http` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let (component, path) = self.served.found()?;
        let options = http::Options {
            hearthd: hearthd(self.hearthd)?,
            against: self.against.map(existing).transpose()?,
            wasmtime: self.wasmtime.map(existing).transpose()?,
            component,
            path,
            also: self.also.into_iter().map(existing).collect::<Result<_>>()?,
            quick: self.quick,
        };
        namespaces::enter_private_mount_namespace()?;
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = http::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl ServedArgs {
    /// The component's file, and the path of the requests.
    fn found(self) -> Result<(PathBuf, String)> {
        let path = self.path.unwrap_or_else(|| if self.component.is_some() { "/" } else { "/count" }.into());
        ensure!(path.starts_with('/'), "--path {path} does not begin with a slash");
        Ok((self.component.map_or_else(|| Ok(hearth_tests::Guest::HTTP.wasm()), existing)?, path))
    }
}

impl ServicesArgs {
    /// The `services` command.
    ///
    /// # Errors
    /// The first failure, or a signal.
    pub fn run(self) -> Result<()> {
        let (component, path) = self.served.found()?;
        let options = http::idle::Options {
            hearthd: hearthd(self.hearthd)?,
            component,
            path,
            services: self.services,
            components: self.components,
        };
        namespaces::enter_private_mount_namespace()?;
        self.common.run(BundleStore::Memory, async |scratch: &Scratch, _: &Runtimes| {
            let report = http::idle::run(&options, scratch).await?;
            let text = report.markdown();
            Ok((report, text))
        })
    }
}

impl CommonArgs {
    /// Runs a measurement in a scratch directory until it is done or a signal comes, undoes everything, and then prints
    /// and writes its report.
    fn run<R, M>(self, store: BundleStore, measure: M) -> Result<()>
    where
        R: Serialize,
        M: AsyncFnOnce(&Scratch, &Runtimes) -> Result<(R, String)>,
    {
        let json = self.json.as_deref().map(JsonFile::at).transpose()?;
        let scratch = Scratch::create(self.scratch.as_deref(), store)?;
        let runtimes = Runtimes::build()?;
        let measured = measure(&scratch, &runtimes);
        let result = runtimes.alone.block_on(until_interrupted(measured));
        // Clients' tasks hold mounts and files in the scratch directory.
        drop(runtimes);
        let removed = scratch.remove();
        let (report, text) = result?;
        print!("{text}");
        json.map_or(Ok(()), |json| json.write(&report))?;
        removed
    }
}

async fn until_interrupted<R>(work: impl Future<Output = Result<R>>) -> Result<R> {
    let mut signals = Signals::watch()?;
    tokio::select! {
        interrupted = signals.first() => Err(interrupted.into()),
        result = work => result,
    }
}

fn hearthd(path: Option<PathBuf>) -> Result<PathBuf> {
    path.map_or_else(|| beside_this_program("hearthd", "--hearthd"), existing)
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "there is no file {}", path.display());
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

fn beside_this_program(name: &str, flags: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let path = own.with_file_name(name);
    ensure!(path.is_file(), "there is no {}: build it, or say {flags}", path.display());
    Ok(path)
}
