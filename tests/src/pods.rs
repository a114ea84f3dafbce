//! The calls that kubelet makes to CRI, as verbs of a story: pods, their containers, their logs and their end.
//!
//! Dropping a [`Pod`] stops and removes it with its containers. Dropping a [`Node`] checks that containerd has no pod
//! left, and then all that [`World`] checks: mounts, processes, sockets, cgroups, network namespaces.
//!
//! Files:
//!
//! * `container.rs`: a container: its options, its life, its log and its use.
//! * `pod.rs`: a pod: its options, its sandbox, and its end.

mod container;
mod pod;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::cri::{Cri, v1};
use crate::daemons::{self, HearthdOptions, PAUSE_IMAGE};
use crate::guests::Guest;
use crate::images::Image;
use crate::wait::{SHORT, eventually};
use crate::world::{Imported, World};
pub use container::{Container, ContainerOptions, ContainerPlan};
pub use pod::{Pod, PodOptions, PodPlan};

/// containerd's namespace of CRI.
pub const CRI_NAMESPACE: &str = "k8s.io";

/// A [`World`] whose containerd serves pods.
#[derive(Debug)]
pub struct Node {
    cri: Arc<Cri>,
    world: World,
}

impl Node {
    /// Both daemons up, the CRI plugin and its network ready.
    pub fn new() -> Self {
        Self::with(HearthdOptions::default())
    }

    /// As [`Self::new`], `hearthd` with options.
    pub fn with(options: HearthdOptions) -> Self {
        let world = World::for_pods(options);
        let cri = Arc::new(Cri::connect(&world.layout().containerd_socket()));
        cri.wait_until_ready();
        let node = Self { cri, world };
        // There is no registry: a pod with a pause container would fail without this import. containerd 2.3 wants the
        // image for every pod.
        if !daemons::with_sandboxer() || daemons::containerd_version() >= (2, 3, 0) {
            let pause = Guest::PAUSE.native_bytes();
            assert_eq!(node.import(&Image::of_file("pause", "/pause", pause)).name, PAUSE_IMAGE);
        }
        node
    }

    /// The client of CRI.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Imports a guest as an image of one file, in the form the runtime runs, for CRI.
    pub fn program(&self, guest: &Guest) -> Imported {
        self.import(&Image::of(guest, self.runtime()))
    }

    /// Imports an image for CRI.
    pub fn import(&self, image: &Image) -> Imported {
        let imported = self.world.import_in(CRI_NAMESPACE, image);
        // The plugin learns of it by an event.
        eventually("CRI knows the image", SHORT, || self.cri.has_image(image.name()).then_some(()));
        imported
    }

    /// A pod, not yet run, of the handler that runs the tasks.
    pub fn pod(&self, name: &str) -> PodPlan<'_> {
        PodPlan::new(self, name)
    }

    /// Stops containerd and starts it again; returns when it serves pods.
    pub fn restart_containerd(&mut self) {
        self.world.stop_containerd();
        self.world.start_containerd();
        self.cri.wait_until_ready();
    }

    /// containerd's pods: their ids, and whether each is ready.
    pub fn pods(&self) -> BTreeMap<String, bool> {
        let listed = self.cri.list_pods(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let ready = |pod: &v1::PodSandbox| pod.state() == v1::PodSandboxState::SandboxReady;
        listed.items.iter().map(|pod| (pod.id.clone(), ready(pod))).collect()
    }

    /// All pods' resource usage, by id.
    pub fn pod_stats(&self) -> BTreeMap<String, v1::LinuxPodSandboxStats> {
        let listed = self.cri.list_pod_stats(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let named = |stats: v1::PodSandboxStats| Some((stats.attributes?.id, stats.linux?));
        listed.stats.into_iter().filter_map(named).collect()
    }

    /// All running containers' resource usage, by id.
    pub fn stats(&self) -> BTreeMap<String, v1::ContainerStats> {
        let listed = self.cri.list_stats(v1::Empty {}).unwrap_or_else(|error| panic!("{error}"));
        let named = |stats: v1::ContainerStats| Some((stats.attributes.as_ref()?.id.clone(), stats));
        listed.stats.into_iter().filter_map(named).collect()
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Node {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.pods(), BTreeMap::new(), "a story's pods are removed before its node");
        }
    }
}
