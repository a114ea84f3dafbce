//! Pods and the network: ports, names, kernel settings and statistics.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use hearth_tests::cri::v1;
use hearth_tests::dns::{NameServer, Record};
use hearth_tests::process::Process;
use hearth_tests::{Guest, Image, Imported, Node, Pod, SHORT, eventually};

use crate::only_on_hearth;

/// The machine's own address on the pods' bridge.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 1);

/// The greeting of the TCP program.
const GREETING: &str = "hello over TCP\n";

/// The greeting at an address, read from the node.
fn greeting(node: &Node, address: &str) -> std::io::Result<String> {
    node.machine().in_network(|| {
        let mut text = String::new();
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SHORT))?;
        stream.read_to_string(&mut text).map(|_| text)
    })
}

#[test]
fn two_pods_listen_on_the_same_port() {
    let node = Node::new();
    let tcp = node.program(&Guest::TCP);
    let pods = [node.pod("first").run(), node.pod("second").run()];
    for pod in &pods {
        pod.container("tcp", &tcp).args(["8080"]).start().wait_for_stdout("listening");
    }
    for pod in &pods {
        assert_eq!(greeting(&node, &format!("{}:8080", pod.ip())).unwrap(), GREETING);
    }
}

#[test]
fn a_pod_in_the_nodes_network_serves_at_the_nodes_address() {
    let node = Node::new();
    let tcp = node.program(&Guest::TCP);
    let pod = node.pod("outside").options(|options| options.host_network = true).run();
    let container = pod.container("tcp", &tcp).args(["8080"]).start();
    container.wait_for_stdout("listening");
    assert_eq!(greeting(&node, "127.0.0.1:8080").unwrap(), GREETING);
    container.stop(1);
    assert!(greeting(&node, "127.0.0.1:8080").is_err(), "the port is free again");
}

#[test]
fn a_port_is_forwarded() {
    let node = Node::new();
    let tcp = node.program(&Guest::TCP);
    let pods = [node.pod("inside").run(), node.pod("outside").options(|options| options.host_network = true).run()];
    for pod in &pods {
        pod.container("tcp", &tcp).args(["8080"]).start().wait_for_stdout("listening");
        for _ in 0..2 {
            let mut forwarded = pod.forward(&node, 8080);
            assert_eq!(forwarded.read_to_end().as_deref(), Ok(GREETING));
        }
        let error = pod.forward(&node, 8081).read_to_end().expect_err("no process listens there");
        assert!(error.contains("8081"), "{error}");
    }
}

#[test]
fn names_are_looked_up_as_the_pod_says() {
    only_on_hearth!();
    let node = Node::new();
    let net = node.program(&Guest::NET);
    let address = |last| Record::Address(Ipv4Addr::new(10, 1, 0, last));
    let records = [
        ("web.stories.svc.test", address(1)),
        ("web.other.svc.test", address(2)),
        ("db.prod.example.test", address(3)),
        ("silent.test", Record::Silence),
    ];
    // The bridge, and with it the address, comes with the first pod.
    let pod = |name: &str| {
        let words = |text: &str| text.split_whitespace().map(String::from).collect();
        let dns = v1::DnsConfig {
            servers: vec![GATEWAY.to_string()],
            searches: words("stories.svc.test svc.test"),
            options: words("ndots:2"),
        };
        node.pod(name).options(|options| options.dns = Some(dns)).run()
    };
    let pod = pod("names");
    let server = node.machine().in_network(|| NameServer::start(SocketAddr::from((GATEWAY, 53)), &records));
    let look_up_with = |name: &str, resolver: Option<&Path>| {
        let mut plan = pod.container("lookup", &net).args(["lookup", name]);
        if let Some(path) = resolver {
            plan = plan.read_only_volume(path, "/etc/resolv.conf");
        }
        let container = plan.start();
        let code = container.wait();
        (code, container.stdout(), container.stderr(), server.asked())
    };
    let look_up = |name: &str| look_up_with(name, None);
    // The search list, as ndots has it: a name with fewer dots is tried below each domain first.
    let (code, found, error, asked) = look_up("web");
    assert_eq!((code, found.as_str()), (0, "10.1.0.1\n"), "{error}");
    assert_eq!(asked, ["web.stories.svc.test"]);
    let (code, found, error, asked) = look_up("web.other");
    assert_eq!((code, found.as_str()), (0, "10.1.0.2\n"), "{error}");
    assert_eq!(asked, ["web.other.stories.svc.test", "web.other.svc.test"]);
    // A name with at least that many dots is tried as it is first; a name with a dot at its end is tried only so.
    let (code, found, error, asked) = look_up("db.prod.example.test");
    assert_eq!((code, found.as_str()), (0, "10.1.0.3\n"), "{error}");
    assert_eq!(asked, ["db.prod.example.test"]);
    let (code, _, _, asked) = look_up("web.");
    assert!(code != 0 && asked == ["web"], "{code}: {asked:?}");
    let (code, _, error, _) = look_up("no-such");
    assert!(code != 0 && error.contains("no-such: name unresolvable"), "{code}: {error}");
    // The wait for a silent server is as long as the pod's resolv.conf says.
    let impatient =
        node.write("resolv.conf", format!("nameserver {GATEWAY}\noptions timeout:1 attempts:1\n").as_bytes());
    let began = std::time::Instant::now();
    let (code, _, error, asked) = look_up_with("silent.test.", Some(&impatient));
    assert!(code != 0 && error.contains("temporary resolver failure"), "{code}: {error}");
    assert_eq!(asked, ["silent.test"]);
    assert!(began.elapsed() < SHORT, "{:?}", began.elapsed());
}

#[test]
fn aliases_are_found_and_a_nonsensical_resolv_conf_harms_only_its_own_pod() {
    only_on_hearth!();
    let node = Node::new();
    let net = node.program(&Guest::NET);
    // As kubelet writes a pod's hostAliases.
    let hosts =
        node.write("hosts", b"127.0.0.1\tlocalhost\n# Entries added by HostAliases.\n10.1.2.3\tdb\tdb.internal\n");
    let nonsense = node.write("resolv.conf", b"nameserver not-an-address\n\xff\xfe options ndots:many\nsearch\n");
    let pod = node.pod("aliased").run();
    let look_up = |name: &str, resolver: Option<&Path>| {
        let mut plan = pod.container("lookup", &net).args(["lookup", name]).volume(&hosts, "/etc/hosts");
        if let Some(path) = resolver {
            plan = plan.read_only_volume(path, "/etc/resolv.conf");
        }
        let container = plan.start();
        (container.wait(), container.stdout(), container.stderr())
    };
    for resolver in [None, Some(nonsense.as_path())] {
        for name in ["db", "db.internal"] {
            assert_eq!(look_up(name, resolver), (0, "10.1.2.3\n".into(), String::new()), "{name}");
        }
    }
    let (code, _, error) = look_up("elsewhere", Some(&nonsense));
    assert!(code != 0 && error.starts_with("elsewhere: "), "{code}: {error}");
    assert!(pod.is_ready());
}

#[test]
fn kernel_settings_of_a_pod_are_its_own() {
    only_on_hearth!();
    let node = Node::new();
    let peer = node.import(&Image::of_file("peer", "/peer", Guest::PEER.native_bytes()));
    let net = node.program(&Guest::NET);
    let pod = |name: &str, sysctls: &[(&str, &str)]| {
        let sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        node.pod(name).options(|options| options.sysctls = sysctls).try_run()
    };
    let of_node = |name: &str| {
        node.machine().in_network(|| fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).unwrap())
    };
    let settings =
        [("net.core.somaxconn", "321"), ("kernel.shmmni", "77"), ("net.ipv4.ip_unprivileged_port_start", "80")];
    let before = settings.map(|(name, _)| of_node(name));
    let set = pod("set", &settings).unwrap();
    for (name, value) in settings {
        let container = set.container("sysctl", &peer).args(["sysctl", &name.replace('.', "/")]).start();
        assert_eq!((container.wait(), container.stdout().trim_end()), (0, value), "{:?}", container.log());
    }
    assert_eq!(settings.map(|(name, _)| of_node(name)), before, "the node's stay as they were");
    // The setting holds for a guest that is not root.
    let listen = set.container("listen", &net).args(["listen", "80", "x"]).options(|options| options.user = Some(1000));
    listen.start().wait_for_stdout("listening");
    // Settings of the whole node are refused, and so are settings that the kernel does not have.
    for (name, value) in [("vm.swappiness", "1"), ("net.ipv4.no_such_setting", "1"), ("net.core.somaxconn", "many")] {
        let error = pod("refused", &[(name, value)]).expect_err("it is no pod's to set");
        let last = name.rsplit('.').next().expect("a name has parts");
        assert!(error.status.message().contains("sysctl") && error.status.message().contains(last), "{error}");
    }
    let outside = node.pod("outside").options(|options| {
        options.host_network = true;
        options.sysctls = BTreeMap::from([("net.core.somaxconn".into(), "321".into())]);
    });
    let error = outside.try_run().expect_err("the network is the node's");
    assert!(error.status.message().contains("would change the node"), "{error}");
}

#[test]
fn a_pod_whose_network_namespace_is_gone_takes_no_containers() {
    only_on_hearth!();
    let node = Node::new();
    let hello = node.program(&Guest::HELLO);
    let peer = node.import(&Image::of_file("peer", "/peer", Guest::PEER.native_bytes()));
    let before = node.network_namespaces();
    let lost = node.pod("lost").run();
    let beside = node.pod("beside").run();
    let names = node.network_namespaces();
    let ours = node.machine().in_network(|| {
        let is_of_lost = |name: &String| !before.contains(name) && namespace_has(&node, name, &lost.ip());
        names.iter().find(|name| is_of_lost(name)).cloned()
    });
    let path = format!("/run/netns/{}", ours.expect("the pod has a network namespace"));
    let status = Process::start("umount", node.machine().command("umount").args(["--lazy", &path])).wait(SHORT);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    for image in [&hello, &peer] {
        let error = lost.container("late", image).create().try_start().expect_err("its network is gone");
        let message = error.status.message();
        assert!(message.contains(&path) && message.contains("delete the pod"), "{message}");
    }
    assert_eq!(beside.container("hello", &hello).start().wait(), 0);
}

/// Whether the namespace has this address.
fn namespace_has(node: &Node, name: &str, address: &str) -> bool {
    let mut command = node.machine().command("nsenter");
    command.args([&format!("--net=/run/netns/{name}"), "ip", "-o", "addr"]);
    let output = command.output().expect("nsenter starts");
    String::from_utf8_lossy(&output.stdout).contains(&format!("{address}/"))
}

#[test]
fn the_statistics_of_a_pod_have_its_containers_and_its_network() {
    const TAKEN: f64 = 64.0 * 1024.0 * 1024.0;
    let node = Node::new();
    let (grow, tcp) = (node.program(&Guest::GROW), node.program(&Guest::TCP));
    let pod = node.pod("measured").run();
    make_cgroup(&node);
    let grown = pod.container("grown", &grow).args(["64", "3600"]).start();
    grown.wait_for_stdout("got 64 MiB");
    let server = pod.container("tcp", &tcp).args(["8080"]).start();
    server.wait_for_stdout("listening");
    let of_pod = || node.pod_stats().remove(pod.id()).expect("it is ready");
    let received = |stats: &v1::LinuxPodSandboxStats| {
        let interface = stats.network.clone().and_then(|network| network.default_interface).expect("it has a network");
        interface.rx_bytes.expect("they are counted").value
    };
    let before = of_pod();
    assert_eq!(greeting(&node, &format!("{}:8080", pod.ip())).unwrap(), GREETING);
    let after = of_pod();
    assert!(received(&after) > received(&before), "{before:?} {after:?}");
    let by_id: BTreeMap<_, _> =
        after.containers.into_iter().filter_map(|stats| Some((stats.attributes.clone()?.id, stats))).collect();
    assert_eq!(by_id.len(), 2);
    let memory = by_id[grown.id()].memory.and_then(|memory| memory.working_set_bytes).expect("it is told");
    assert!((memory.value as f64 / TAKEN - 1.0).abs() < 0.05, "{memory:?}");
}

/// Makes the pod's control group as kubelet does; CRI reads it.
fn make_cgroup(node: &Node) {
    let root = Path::new("/sys/fs/cgroup");
    let name = node.machine().cgroup();
    let name = name.trim_start_matches('/');
    let unified = root.join("cgroup.controllers").exists();
    let hierarchies: Vec<PathBuf> = match unified {
        true => vec![root.to_owned()],
        false => fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect(),
    };
    for hierarchy in hierarchies {
        let made = fs::create_dir(hierarchy.join(name));
        assert!(made.is_ok() || hierarchy.join(name).exists() || !unified, "{}: {made:?}", hierarchy.display());
    }
}

#[test]
fn a_hundred_pods_serve_at_their_addresses_and_leave_nothing() {
    // Starting all at once would run hundreds of processes of CNI.
    const THREADS: usize = 8;
    const PODS: usize = 100;
    let node = Node::new();
    let tcp = node.program(&Guest::TCP);
    let each = |work: &(dyn Fn(usize) + Sync)| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || (thread..PODS).step_by(THREADS).for_each(work));
            }
        });
    };
    let pods: Vec<std::sync::Mutex<Option<Pod>>> = (0..PODS).map(|_| std::sync::Mutex::default()).collect();
    each(&|index| {
        let pod = serving(&node, &tcp, index);
        *pods[index].lock().expect("no thread panics with the lock held") = Some(pod);
    });
    let addresses: std::collections::BTreeSet<String> =
        pods.iter().map(|pod| pod.lock().unwrap().as_ref().unwrap().ip()).collect();
    assert_eq!(addresses.len(), PODS);
    assert!(node.pods().len() == PODS && node.pods().values().all(|ready| *ready));
    for address in &addresses {
        assert_eq!(greeting(&node, &format!("{address}:8080")).unwrap(), GREETING, "{address}");
    }
    each(&|index| drop(pods[index].lock().expect("no thread panics with the lock held").take()));
    assert_eq!(node.pods(), BTreeMap::new());
    assert_eq!(node.network_namespaces(), Vec::<String>::new());
    assert_eq!(leases(&node.layout().addresses()), Vec::<String>::new());
    let fifos = eventually("no FIFO is left", SHORT, || {
        let left = fifos(&node.layout().containerd_state());
        left.is_empty().then_some(left)
    });
    assert_eq!(fifos, Vec::<PathBuf>::new());
    let output = node.machine().command("ip").args(["-o", "link"]).output().expect("ip starts");
    let links = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!links.contains("veth"), "{links}");
    // (The end of each story checks mounts, sockets, cgroups and processes.)
}

/// A pod that listens on its port 8080.
fn serving(node: &Node, image: &Imported, index: usize) -> Pod {
    let pod = node.pod(&format!("pod-{index}")).run();
    let container = pod.container("tcp", image).args(["8080"]).start();
    container.wait_for_stdout("listening");
    pod
}

/// The addresses that host-local has given away: a file for each, named by it.
fn leases(directory: &Path) -> Vec<String> {
    let networks = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten().flatten());
    files.map(|file| file.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with("10.")).collect()
}

/// The FIFOs below a directory.
fn fifos(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(fifos(&entry.path())),
            Ok(kind) if kind.is_fifo() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}
