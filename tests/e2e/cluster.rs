//! A Kubernetes of one node, on a private machine with containerd and `hearthd`.
//!
//! ```text
//!   kubectl ─▶ kube-apiserver ─▶ etcd          all in the machine's namespaces (pid, mount, network):
//!                 ▲   ▲   ▲                    127.0.0.1 is its own, and so are packet filters,
//!     scheduler ──┘   │   └── kubelet ─▶ containerd ─▶ shim ─▶ hearthd
//!     controllers ────┘           └ kube-proxy
//! ```
//!
//! The programs log into the machine's directory. A program that is not ready in time is a panic with the end
//! of its log. Dropping the cluster stops them, and then checks what [`Node`] does: no pod, mount, process,
//! cgroup, socket or network namespace is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_tests::daemons::{self, HearthdOptions};
use hearth_tests::process::Process;
use hearth_tests::wait::polling_every;
use hearth_tests::{Ctr, Node};
use serde_json::{Value, json};

use crate::certificates::Authority;

/// The node's name.
pub const NODE: &str = "e2e";

/// The node's own address, on an interface of the private network.
pub const NODE_ADDRESS: &str = "10.88.0.1";

/// How many pods the kubelet takes.
const PODS_MAX: u32 = 250;

/// The pause between two calls of kubectl, each of which takes a tenth of a second of a core.
const PAUSE: Duration = Duration::from_millis(250);

/// The deadline of every step of Kubernetes. It is long, as stories run on busy machines, too.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// Where the API server listens.
const SERVER: &str = "https://127.0.0.1:6443";

/// Kernel parameters that kubelet sets, and the value it wants. They are the host's, so it is shown files that
/// have the value already.
const KERNEL_PARAMETERS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Prepares the private machine beyond the needs of the stories on CRI: an address of the node's own, and the
/// directories that kubelet has no setting for.
const PREPARE: &str = r#"
set -eu
# (A bridge without ports: not every kernel has dummies.)
ip link add node0 type bridge
ip addr add "$1/24" dev node0
ip link set node0 up
# Addresses of services are nowhere: kube-proxy's rules change them on the way out, if there is one.
ip route add default dev node0
mount -t tmpfs tmpfs /var/log
mkdir -p /run/parameters
shift
for parameter; do
    path=${parameter%%=*} file=/run/parameters/${path//\//-}
    [ ! -e "/proc/sys/$path" ] || { echo "${parameter#*=}" >"$file" && mount --bind "$file" "/proc/sys/$path"; }
done
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    [ ! -e "$hierarchy/cgroup.procs" ] || mkdir -p "$hierarchy$CGROUP"
done
"#;

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Kubernetes' programs, in the order of their start; stopped in the opposite one.
    parts: Vec<(&'static str, Process)>,
    programs: PathBuf,
    admin: String,
    node: Node,
}

impl Cluster {
    /// Everything up, the node Ready, and the project's own `deploy/kubernetes` applied.
    ///
    /// # Panics
    /// With the name of the program that is not ready, and the end of its log.
    pub fn new(programs: &Path) -> Self {
        let node = Node::with(HearthdOptions::default());
        let authority = Authority::new(node.path("certificates"));
        let admin = authority.kubeconfig("admin", "system:masters", "admin", SERVER);
        let mut cluster = Self { parts: Vec::new(), programs: programs.to_owned(), admin, node };
        cluster.prepare();
        cluster.start_control_plane(&authority);
        cluster.start_node(&authority);
        cluster.wait("the node is Ready", || {
            let node = cluster.get(&["node", NODE])?;
            condition(&node, "Ready").filter(|ready| ready == "True").map(drop)
        });
        cluster.kubectl(["label", "node", NODE, "hearth-runtime=true"]).ok();
        let manifests = hearth_tests::paths::repository().join("deploy/kubernetes");
        cluster.kubectl(["apply", "-k", &manifests.display().to_string()]).ok();
        cluster
    }

    /// The node: its daemons and images.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// As [`Self::node`], to stop and start daemons.
    pub fn node_mut(&mut self) -> &mut Node {
        &mut self.node
    }

    fn prepare(&self) {
        let mut command = self.node.machine().command("bash");
        command.args(["-c", PREPARE, "prepare", NODE_ADDRESS]).env("CGROUP", self.node.machine().cgroup());
        command.args(KERNEL_PARAMETERS.map(|(path, value)| format!("{path}={value}")));
        let status = command.status().expect("nsenter starts");
        assert!(status.success(), "the private machine cannot be prepared (see the error above)");
    }

    /// A file in the machine's directory.
    fn file(&self, name: &str, content: &Value) -> String {
        self.node.write(name, content.to_string().as_bytes()).display().to_string()
    }

    /// A directory in the machine's.
    fn directory(&self, name: &str) -> String {
        let path = self.node.path(name);
        fs::create_dir_all(&path).expect("the machine's directory is writable");
        path.display().to_string()
    }

    fn start(&mut self, name: &'static str, arguments: &[String]) {
        let mut command = self.node.machine().command(self.programs.join(name));
        command.args(arguments);
        let log = self.log(name);
        let process = Process::start(name, daemons::logged(&mut command, &log));
        self.parts.push((name, process));
    }

    fn log(&self, name: &str) -> PathBuf {
        self.node.path(&format!("{name}.log"))
    }

    fn start_control_plane(&mut self, authority: &Authority) {
        let etcd = self.directory("etcd");
        self.start(
            "etcd",
            &[
                format!("--data-dir={etcd}"),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
            ],
        );
        let names = format!("IP:127.0.0.1,IP:{NODE_ADDRESS},IP:10.96.0.1,DNS:kubernetes.default.svc");
        authority.sign("server", "e2e", "kube-apiserver", &names);
        authority.sign("kubelet-client", "system:masters", "kube-apiserver-kubelet-client", "");
        let (ca, key, accounts) = (authority.certificate("ca"), authority.key("ca"), authority.key("accounts"));
        self.start(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379".into(),
                "--bind-address=127.0.0.1".into(),
                format!("--advertise-address={NODE_ADDRESS}"),
                "--insecure-port=0".into(),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--allow-privileged=true".into(),
                format!("--client-ca-file={ca}"),
                format!("--tls-cert-file={}", authority.certificate("server")),
                format!("--tls-private-key-file={}", authority.key("server")),
                format!("--kubelet-client-certificate={}", authority.certificate("kubelet-client")),
                format!("--kubelet-client-key={}", authority.key("kubelet-client")),
                format!("--kubelet-certificate-authority={ca}"),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--service-account-key-file={}", authority.certificate("accounts")),
                format!("--service-account-signing-key-file={accounts}"),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                "--feature-gates=EphemeralContainers=true".into(),
            ],
        );
        self.wait_for_server();
        let user = |name: &str| authority.kubeconfig(name, "e2e", &format!("system:{name}"), SERVER);
        let configs = [user("kube-controller-manager"), user("kube-scheduler")];
        self.start(
            "kube-controller-manager",
            &[
                format!("--kubeconfig={}", configs[0]),
                "--leader-elect=false".into(),
                "--port=0".into(),
                "--bind-address=127.0.0.1".into(),
                format!("--root-ca-file={ca}"),
                format!("--cluster-signing-cert-file={ca}"),
                format!("--cluster-signing-key-file={key}"),
                format!("--service-account-private-key-file={accounts}"),
                "--use-service-account-credentials=true".into(),
                format!("--flex-volume-plugin-dir={}", self.directory("volume-plugins")),
                // As many as kubelet may.
                "--kube-api-qps=50".into(),
                "--kube-api-burst=100".into(),
            ],
        );
        self.start(
            "kube-scheduler",
            &[
                format!("--kubeconfig={}", configs[1]),
                "--leader-elect=false".into(),
                "--port=0".into(),
                "--bind-address=127.0.0.1".into(),
            ],
        );
    }

    fn start_node(&mut self, authority: &Authority) {
        authority.sign("kubelet-server", "e2e", "kubelet", &format!("IP:{NODE_ADDRESS},DNS:{NODE}"));
        let user = authority.kubeconfig("kubelet", "system:nodes", &format!("system:node:{NODE}"), SERVER);
        let names = self.node.write("resolv.conf", b"nameserver 127.0.0.1\n").display().to_string();
        let config = self.file("kubelet.json", &self.kubelet_config(authority, &names));
        self.start(
            "kubelet",
            &[
                format!("--config={config}"),
                format!("--kubeconfig={user}"),
                format!("--hostname-override={NODE}"),
                format!("--node-ip={NODE_ADDRESS}"),
                format!("--root-dir={}", self.directory("kubelet")),
                format!("--cert-dir={}", self.directory("kubelet-certificates")),
                "--container-runtime=remote".into(),
                format!("--container-runtime-endpoint=unix://{}", self.node.layout().containerd_socket().display()),
            ],
        );
        let user = authority.kubeconfig("kube-proxy", "e2e", "system:kube-proxy", SERVER);
        let config = self.file(
            "kube-proxy.json",
            &json!({
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "clientConnection": {"kubeconfig": user},
                "hostnameOverride": NODE,
                "mode": "iptables",
                "oomScoreAdj": 0,
                // The tables of connections have one size for the whole host.
                "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
                "healthzBindAddress": "127.0.0.1:10256",
                "metricsBindAddress": "127.0.0.1:10249",
            }),
        );
        self.start("kube-proxy", &[format!("--config={config}")]);
    }

    fn kubelet_config(&self, authority: &Authority, names: &str) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": false},
                "x509": {"clientCAFile": authority.certificate("ca")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": authority.certificate("kubelet-server"),
            "tlsPrivateKeyFile": authority.key("kubelet-server"),
            "readOnlyPort": 0,
            "healthzBindAddress": "127.0.0.1",
            "resolvConf": names,
            "maxPods": PODS_MAX,
            // The defaults of later versions. 1.20 has 5 and 10, which would delay 100 pods.
            "kubeAPIQPS": 50,
            "kubeAPIBurst": 100,
            "eventRecordQPS": 50,
            "eventBurst": 500,
            // No such server runs. Without the setting, kubelet would report its absence in an event at each sync of a
            // pod.
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            // A running guest sees a changed ConfigMap after at most so long and the cache's time.
            "syncFrequency": "5s",
            "volumePluginDir": self.directory("volume-plugins"),
            "featureGates": {"EphemeralContainers": true},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.node.machine().cgroup(),
            // The host may be a container: its kubelet owns the tree of cgroups.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "oomScoreAdj": 0,
            "failSwapOn": false,
            // The fill level of the host's disk must not evict pods.
            "evictionHard": {},
            "imageGCHighThresholdPercent": 100,
        })
    }

    fn wait_for_server(&mut self) {
        let ready = polling_every(PAUSE, DEADLINE, || {
            for (name, process) in &mut self.parts {
                let log = self.node.path(&format!("{name}.log"));
                assert!(process.status().is_none(), "{name} has ended:\n{}", daemons::tail(&log));
            }
            let asked = call(&self.node, &self.programs, &self.admin, vec!["get".into(), "--raw=/readyz".into()]).run();
            asked.status.success().then_some(())
        });
        assert!(ready.is_some(), "kube-apiserver is not ready:\n{}", daemons::tail(&self.log("kube-apiserver")));
    }

    // --- kubectl ---------------------------------------------------------------------------------

    /// kubectl with these arguments.
    pub fn kubectl<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        let arguments = arguments.into_iter().map(Into::into).collect();
        call(&self.node, &self.programs, &self.admin, arguments).deadline(DEADLINE)
    }

    /// `kubectl get … -o json`; `None` if there is no such object.
    pub fn get(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.kubectl([&["get", "-o", "json"], arguments].concat()).run();
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Polls by kubectl until there is a value.
    ///
    /// # Panics
    /// With `description` after [`DEADLINE`].
    #[track_caller]
    pub fn wait<T>(&self, description: &str, condition: impl FnMut() -> Option<T>) -> T {
        polling_every(PAUSE, DEADLINE, condition)
            .unwrap_or_else(|| panic!("not within {} s: {description}", DEADLINE.as_secs()))
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Keeps the evidence of a failure: the logs of all programs, and kubectl's view of the cluster.
    pub fn keep_logs(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("the target directory is writable");
        for entry in fs::read_dir(self.node.machine().directory()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                // A log that cannot be copied is no reason to lose the others.
                let _ = fs::copy(entry.path(), directory.join(entry.file_name()));
            }
        }
        let asked: [(&str, &[&str]); 4] = [
            ("events", &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]),
            ("pods", &["describe", "pods", "--all-namespaces"]),
            ("node", &["describe", "node", NODE]),
            ("all", &["get", "all", "--all-namespaces", "-o", "wide"]),
        ];
        for (name, arguments) in asked {
            let output = self.kubectl(arguments.iter().copied()).run();
            let _ = fs::write(directory.join(format!("{name}.txt")), [output.stdout, output.stderr].concat());
        }
    }

    /// Deletes the objects that stories have left in Kubernetes, and waits until containerd has no pod.
    pub fn empty(&self) {
        self.kubectl(["delete", "all", "--all", "--all-namespaces", "--grace-period=1", "--wait=false"]).run();
        self.wait("all pods are gone from containerd", || self.node.pods().is_empty().then_some(()));
        let table = format!("/proc/{}/mountinfo", self.node.machine().init());
        let volumes = self.node.path("kubelet/pods").display().to_string();
        self.wait("kubelet has unmounted all volumes", || {
            (!fs::read_to_string(&table).ok()?.contains(&volumes)).then_some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The cluster failed before the first story.
            self.keep_logs(&hearth_tests::paths::target().join("e2e/start"));
        }
        while let Some((_, process)) = self.parts.pop() {
            process.kill();
        }
    }
}

fn call<'a>(node: &'a Node, programs: &Path, admin: &str, arguments: Vec<String>) -> Ctr<'a> {
    let cache = node.path("kubectl").display().to_string();
    let mut all = vec!["--kubeconfig".into(), admin.to_owned(), "--cache-dir".into(), cache];
    all.extend(arguments);
    Ctr::program(node.machine(), programs.join("kubectl"), all)
}

/// The status of a condition: `True`, `False` or `Unknown`.
pub fn condition(object: &Value, name: &str) -> Option<String> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == name)?;
    Some(found["status"].as_str()?.to_owned())
}
