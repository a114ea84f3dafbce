//! Pods that hearthd's own sandbox controller makes, for a containerd 2.x with `HEARTH_TEST_SANDBOXER=1`. The stories
//! about all pods, in `pods`, `native`, `pod_network` and `http`, run with it, too.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use containerd_client::services::v1::sandbox::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest, ControllerShutdownRequest,
    ControllerStartRequest, ControllerStatusRequest, ControllerStopRequest, ControllerUpdateRequest,
    ControllerWaitRequest,
};
use hearth_tests::daemons::with_sandboxer;
use hearth_tests::{Guest, Image, Node, SHORT, World, eventually, paths};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Skips a story where containerd makes the pods, with pause containers.
macro_rules! only_with_sandboxer {
    () => {
        crate::skip_unless!(with_sandboxer(), "it needs a containerd 2.x and HEARTH_TEST_SANDBOXER=1")
    };
}

macro_rules! ask {
    ($controller:expr, $namespace:expr, $method:ident($message:expr)) => {
        $controller.ask($namespace, $message, |mut client, request| async move { client.$method(request).await })
    };
}

#[test]
fn a_pod_costs_no_process_of_containerds() {
    only_with_sandboxer!();
    let mut node = Node::new();
    let execs = node.path("execs");
    let real = paths::shim_directory().join("containerd-shim-hearth-v1");
    let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n", execs.display(), real.display());
    let shim = node.write("recorded/containerd-shim-hearth-v1", script.as_bytes());
    fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
    node.stop_containerd();
    node.start_containerd_finding(&[shim.parent().expect("it is in a directory").to_owned()]);
    node.cri().wait_until_ready();
    let hello = node.program(&Guest::HELLO);
    for name in ["first", "second"] {
        let pod = node.pod(name).run();
        for attempt in 0..2 {
            assert_eq!(pod.container("hello", &hello).start().wait(), 0, "{attempt}");
        }
    }
    assert_eq!(fs::read_to_string(&execs).unwrap_or_default(), "", "containerd has started the shim");
    // The recording works: a task outside of a pod starts the shim.
    let alone = (*node).program(&Guest::EXIT);
    node.run(&alone, "alone").args(["0"]).ok();
    assert!(fs::read_to_string(&execs).unwrap_or_default().contains("start"));
}

#[test]
fn pods_of_a_daemon_that_is_gone_are_not_ready_and_can_be_removed() {
    only_with_sandboxer!();
    let mut node = Node::new();
    let image = node.program(&Guest::SLEEP);
    let pods = [node.pod("networked").run(), node.pod("outside").options(|options| options.host_network = true).run()];
    let containers = pods.each_ref().map(|pod| pod.container("sleep", &image).args(["3600"]).start());
    for container in &containers {
        container.wait_for_stdout("asleep");
    }
    node.kill_hearthd();
    for container in &containers {
        eventually("its end is known", SHORT, || (!container.is_running()).then_some(()));
        assert_ne!(container.wait(), 0);
    }
    node.start_hearthd();
    for pod in &pods {
        eventually("the pod is known to be gone", SHORT, || (!node.pods()[pod.id()]).then_some(()));
        assert!(!pod.is_ready());
    }
    // kubelet makes a new pod then.
    let next = node.pod("next").run();
    let container = next.container("sleep", &image).args(["0"]).start();
    assert_eq!(container.wait(), 0);
}

#[test]
fn a_daemon_that_stops_ends_its_pods() {
    only_with_sandboxer!();
    let mut node = Node::new();
    let image = node.program(&Guest::SLEEP);
    let pod = node.pod("stopped").run();
    let container = pod.container("sleep", &image).args(["3600"]).start();
    container.wait_for_stdout("asleep");
    node.stop_hearthd();
    assert_eq!(container.wait(), 137);
    eventually("the pod is known to be gone", SHORT, || (!node.pods()[pod.id()]).then_some(()));
    node.start_hearthd();
    // containerd connects again after a pause, and refuses calls before that.
    eventually("containerd has found the next daemon", SHORT, || node.pod("next").try_run().ok());
}

#[test]
fn pods_outlive_restarts_of_containerd() {
    only_with_sandboxer!();
    let mut node = Node::new();
    let image = node.program(&Guest::SLEEP);
    let kept = node.pod("kept").options(|options| options.host_network = true).run();
    let ended = node.pod("ended").run();
    let container = kept.container("sleep", &image).args(["3600"]).start();
    container.wait_for_stdout("asleep");
    ended.stop();
    for kill in [true, false] {
        if kill {
            node.kill_containerd();
        } else {
            node.stop_containerd();
        }
        node.start_containerd();
        node.cri().wait_until_ready();
        assert_eq!((node.pods()[kept.id()], node.pods()[ended.id()]), (true, false));
        assert!(container.is_running());
    }
    let error = ended.container("late", &image).create().try_start().expect_err("its pod has ended");
    assert!(error.status.message().contains("not running"), "{error}");
    assert_eq!(kept.container("late", &image).args(["0"]).start().wait(), 0);
}

/// The number of upgrades under load.
const UPGRADES: usize = 4;

/// The least number of pods that live and end between two upgrades.
const PODS_BETWEEN: usize = 3;

#[test]
fn upgrades_under_load_fail_no_pod_and_the_old_daemon_answers_for_its_own() {
    only_with_sandboxer!();
    let mut node = Node::new();
    let (sleep, exit) = (node.program(&Guest::SLEEP), node.program(&Guest::EXIT));
    let kept = node.pod("kept").run();
    let container = kept.container("sleep", &sleep).args(["3600"]).start();
    container.wait_for_stdout("asleep");
    let (over, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let pod = node.pod(&format!("short-{number}")).options(|options| options.host_network = true).run();
                assert_eq!(pod.container("exit", &exit).args(["5"]).start().wait(), 5);
                pod.stop();
                drop(pod);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..UPGRADES {
            let before = done.load(Ordering::Relaxed);
            eventually("pods come and go", SHORT, || {
                (load.is_finished() || done.load(Ordering::Relaxed) >= before + PODS_BETWEEN).then_some(())
            });
            node.upgrade_hearthd();
        }
        over.store(true, Ordering::Relaxed);
        load.join().expect("no pod is refused, and every container ends as it should");
    });
    // All daemons between the first and the last have ended: each pod was made by the daemon in charge.
    eventually("the daemons without pods end", SHORT, || (node.older_hearthds() == 1).then_some(()));
    // A containerd without a connection to the old daemon reaches it through the new one: for the pod's state, its end
    // and its removal.
    node.restart_containerd();
    assert!(kept.is_ready());
    assert!(container.is_running());
    assert_eq!(kept.container("late", &exit).args(["6"]).start().wait(), 6);
    let request = ControllerMetricsRequest { sandbox_id: kept.id().into(), ..Default::default() };
    let metrics = ask!(Controller::of(&node), "k8s.io", metrics(request)).expect("the old daemon answers");
    assert_eq!(metrics.metrics.map(|metrics| metrics.id).as_deref(), Some(kept.id()));
    let listed = node.ask(&["ps", "--all"]);
    let pod = listed.as_array().expect("a list").iter().find(|task| task["id"] == kept.id());
    assert_eq!(
        pod.map(|pod| (&pod["pod"]["name"], &pod["state"])),
        Some((&"kept".into(), &"running".into())),
        "{listed}"
    );
    kept.stop();
    assert_eq!(container.wait(), 137);
    assert!(!kept.is_ready());
    drop(container);
    drop(kept);
    eventually("the old hearthd leaves", SHORT, || (node.older_hearthds() == 0).then_some(()));
}

/// The controller, asked as containerd asks it.
struct Controller {
    runtime: tokio::runtime::Runtime,
    client: ControllerClient<Channel>,
}

impl Controller {
    fn of(world: &World) -> Controller {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(containerd_client::connect(world.layout().sandboxer_socket())).unwrap();
        Controller { runtime, client: ControllerClient::new(channel) }
    }

    fn ask<Q, A, F>(
        &self,
        namespace: &str,
        message: Q,
        ask: impl FnOnce(ControllerClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        if !namespace.is_empty() {
            request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
        }
        self.runtime.block_on(ask(self.client.clone(), request)).map(tonic::Response::into_inner)
    }
}

#[test]
fn wrong_requests_are_refused_and_harm_no_pod() {
    only_with_sandboxer!();
    let node = Node::new();
    let pod = node.pod("living").run();
    let id = || pod.id().to_owned();
    let controller = Controller::of(&node);
    let status = |namespace: &str, sandbox_id: String| {
        let request = ControllerStatusRequest { sandbox_id, verbose: true, ..Default::default() };
        ask!(controller, namespace, status(request))
    };
    let found = status("k8s.io", id()).unwrap();
    assert_eq!((found.state.as_str(), found.version), ("SANDBOX_READY", 3));
    assert!(found.address.starts_with("ttrpc+unix:///") && found.info["info"].contains("/run/netns/"), "{found:?}");
    let platform =
        ask!(controller, "k8s.io", platform(ControllerPlatformRequest { sandbox_id: id(), ..Default::default() }));
    assert_eq!(platform.unwrap().platform.unwrap().os, "linux");
    let metrics =
        ask!(controller, "k8s.io", metrics(ControllerMetricsRequest { sandbox_id: id(), ..Default::default() }));
    assert!(metrics.unwrap().metrics.unwrap().data.unwrap().type_url.starts_with("io.containerd.cgroups.v"));
    ask!(controller, "k8s.io", update(ControllerUpdateRequest { sandbox_id: id(), ..Default::default() })).unwrap();

    // A pod belongs to its namespace.
    assert_eq!(status("moby", id()).unwrap_err().code(), Code::NotFound);
    assert_eq!(status("k8s.io", "no-such".into()).unwrap_err().code(), Code::NotFound);
    let nameless = status("", id()).unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
    assert!(nameless.message().contains("containerd-namespace"), "{nameless}");
    let stop = ControllerStopRequest { sandbox_id: id(), ..Default::default() };
    assert_eq!(ask!(controller, "moby", stop(stop)).unwrap_err().code(), Code::NotFound);
    let shutdown = ControllerShutdownRequest { sandbox_id: "no-such".into(), ..Default::default() };
    assert_eq!(ask!(controller, "k8s.io", shutdown(shutdown)).unwrap_err().code(), Code::NotFound);
    let wait = ControllerWaitRequest { sandbox_id: "no-such".into(), ..Default::default() };
    assert_eq!(ask!(controller, "k8s.io", wait(wait)).unwrap_err().code(), Code::NotFound);
    let start = ControllerStartRequest { sandbox_id: id(), ..Default::default() };
    assert_eq!(ask!(controller, "k8s.io", start(start)).unwrap_err().code(), Code::FailedPrecondition);

    let create = |sandbox_id: String, type_url: &str| {
        let options = Some(prost_types::Any { type_url: type_url.into(), value: Vec::new() });
        ask!(controller, "k8s.io", create(ControllerCreateRequest { sandbox_id, options, ..Default::default() }))
    };
    for (type_url, words) in [("x.Other", "PodSandboxConfig"), ("runtime.v1.PodSandboxConfig", "network namespace")] {
        let refused = create("other".into(), type_url).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(words), "{refused}");
    }
    let outside = |sandbox_id: String| {
        use hearth_tests::cri::v1::{
            LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
        };
        use prost::Message;
        let mut modes = NamespaceOption::default();
        modes.set_network(NamespaceMode::Node);
        let security_context =
            Some(LinuxSandboxSecurityContext { namespace_options: Some(modes), ..Default::default() });
        let linux = Some(LinuxPodSandboxConfig { security_context, ..Default::default() });
        let value = PodSandboxConfig { linux, ..Default::default() }.encode_to_vec();
        let options = Some(prost_types::Any { type_url: "runtime.v1.PodSandboxConfig".into(), value });
        ControllerCreateRequest { sandbox_id, options, ..Default::default() }
    };
    assert_eq!(ask!(controller, "k8s.io", create(outside(id()))).unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(ask!(controller, "k8s.io", create(outside(String::new()))).unwrap_err().code(), Code::InvalidArgument);
    // In another namespace the id is free.
    ask!(controller, "moby", create(outside(id()))).unwrap();
    ask!(controller, "moby", shutdown(ControllerShutdownRequest { sandbox_id: id(), ..Default::default() })).unwrap();
    assert!(pod.is_ready());
}

#[test]
fn only_root_may_ask() {
    only_with_sandboxer!();
    let node = Node::new();
    let socket = node.layout().sandboxer_socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    // The daemon checks the peer's user, too, should the socket's mode be changed.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let mut directory = socket.parent().expect("it is in a directory");
    while directory.starts_with(node.path("")) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        directory = directory.parent().expect("the machine's directory is in one");
    }
    let answer = std::thread::spawn(move || {
        // The credentials of this thread alone, which ends.
        rustix::thread::set_thread_groups(&[]).expect("root may");
        let (user, group) = (rustix::thread::Uid::from_raw(1000), rustix::thread::Gid::from_raw(1000));
        rustix::thread::set_thread_res_gid(group, group, group).expect("root may");
        rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
        let mut answer = Vec::new();
        UnixStream::connect(&socket)?.read_to_end(&mut answer).map(|_| answer)
    });
    assert_eq!(answer.join().expect("it does not panic").expect("it may connect"), b"");
    let image = node.import(&Image::of_file("hello", "/hello.wasm", Guest::HELLO.wasm_bytes()));
    assert_eq!(node.pod("after").run().container("hello", &image).start().wait(), 0);
}
