//! The stories of a node, in their order: each finds the node as the one before has left it.

use crate::machine::Machine;

/// A story.
pub type Story = fn(&mut Machine);

/// All of them.
pub const STORIES: &[(&str, Story)] = &[
    ("the node is as nodes in the field are", node),
    ("a package is installed and containerd gets its handler", install),
    ("the unit and the package set the limits that hearthd needs", limits),
    ("a container runs, and is killed", container),
    ("pods have limits and statistics, and end out of memory", pods),
    ("native containers of a pod are in the pod's control group", native),
    ("a restart of the service and an upgrade of the package end no container", upgrade),
    ("a power cut amid starts and compiles leaves nothing stale", power_cut_amid_starts),
    ("a power cut amid an upgrade is mended by dpkg", power_cut_amid_upgrade),
    ("a reboot starts hearthd before containerd", reboot),
    ("the clock jumps a day forward and back", clock),
    ("the node runs out of memory", memory_pressure),
    ("hearthd works with a read-only /usr", read_only_usr),
    ("the package is removed", remove),
];

/// The start of a container, to its end.
const HELLO: &str = "ctr run --rm --runtime io.containerd.hearth.v1 hearth.test/hello:1";

fn hello(machine: &mut Machine, id: &str) {
    let text = machine.ok(&format!("{HELLO} {id} /hello.wasm one"));
    assert!(text.contains("hello from C") && text.contains("arg 1: one"), "{text}");
}

/// A container that sleeps.
fn sleep(machine: &mut Machine, id: &str) {
    machine.ok(&format!(
        "ctr run --detach --null-io --runtime io.containerd.hearth.v1 hearth.test/sleep:1 {id} /sleep.wasm 3600"
    ));
}

/// Kills a container, and removes it when it has ended.
fn end(machine: &mut Machine, id: &str) {
    machine.ok(&format!("ctr tasks kill --signal SIGKILL {id}"));
    machine.until("it ends", &format!("ctr tasks rm {id}; ctr containers rm {id}; ! ctr containers ls | grep {id}"));
}

/// Imports the images into containerd's two namespaces.
fn import(machine: &mut Machine) {
    for guest in ["hello", "sleep", "grow", "exit", "pause", "peer"] {
        for namespace in ["default", "k8s.io"] {
            machine.ok(&format!("ctr --namespace {namespace} images import /check/{guest}.tar"));
        }
    }
}

/// Checks that hearthd and containerd serve.
fn both_serve(machine: &mut Machine) {
    machine.until("both daemons serve", "systemctl is-active hearthd.service containerd.service && hearthctl status");
}

fn node(machine: &mut Machine) {
    machine.until("systemd is up", "systemctl is-system-running | grep -E 'running|degraded'");
    let file_system = machine.ok("stat --file-system --format %T /sys/fs/cgroup");
    assert_eq!(file_system.trim(), "cgroup2fs", "pure cgroup v2");
    assert!(machine.ok("cat /sys/kernel/security/lsm").contains("apparmor"));
    assert!(machine.ok("cat /proc/sys/user/max_user_namespaces").trim() != "0");
    machine.until("containerd serves", "ctr version");
}

fn install(machine: &mut Machine) {
    machine.ok("apt-get install --yes --no-install-recommends /check/hearth.deb");
    machine.ok("hearthctl install containerd && systemctl restart containerd");
    both_serve(machine);
    import(machine);
    let check = machine.run("hearthctl check");
    // (A warning about the clock, which nothing synchronises here.)
    assert!(!check.text.lines().any(|line| line.starts_with("fail")), "{}", check.text);
    assert!(check.text.contains("ok    runtime handler"), "{}", check.text);
}

fn limits(machine: &mut Machine) {
    let daemon = "pid=$(hearthctl generations | awk '$4 == \"yes\" { print $2 }')";
    let files = machine.ok(&format!("{daemon}; awk '/Max open files/ {{ print $4, $5 }}' /proc/$pid/limits"));
    assert_eq!(files.trim(), "1048576 1048576");
    assert_eq!(machine.ok("cat /proc/sys/vm/max_map_count").trim(), "1048576");
    let score = machine.ok(&format!("{daemon}; cat /proc/$pid/oom_score_adj"));
    assert_eq!(score.trim(), "-999");
    let cgroup = machine.ok(&format!("{daemon}; cat /proc/$pid/cgroup"));
    assert!(cgroup.trim().ends_with("hearthd.service"), "{cgroup}");
}

fn container(machine: &mut Machine) {
    hello(machine, "first");
    hello(machine, "second");
    sleep(machine, "sleeps");
    let metrics = machine.ok("ctr tasks metrics --format json sleeps");
    // The form of cgroup v2 has `usage_limit`, that of v1 nested objects.
    assert!(metrics.contains("usage_limit"), "{metrics}");
    machine.ok("ctr tasks kill --signal SIGKILL sleeps");
    machine.until("it has ended", "ctr tasks ls | grep -E '^sleeps .*STOPPED'");
    assert_eq!(machine.run("ctr tasks rm sleeps; ctr containers rm sleeps").code, 0);
}

fn pods(machine: &mut Machine) {
    machine.ok("pod=$(/check/pods pod limited)
         holds=$(/check/pods run $pod holds hearth.test/grow:1 67108864 20 3600)
         dies=$(/check/pods run $pod dies hearth.test/grow:1 16777216 64 abort)
         echo $pod >/run/pod; echo $holds >/run/holds; echo $dies >/run/dies");
    let text = machine.until(
        "its memory is told",
        "/check/pods stats $(cat /run/holds) | awk '$1 > 20000000 { print; found = 1 } END { exit !found }'",
    );
    let cpu: u64 = text.split_whitespace().nth(1).and_then(|cpu| cpu.parse().ok()).expect("a number");
    assert!(cpu > 0, "{text}");
    let status = machine.until("it ends", "/check/pods status $(cat /run/dies) | grep -i exited");
    assert!(status.contains("OOMKilled"), "{status}");
    // The pod's own control group has none of the guest's memory: hearthd's has.
    machine.ok("test $(cat /sys/fs/cgroup/system.slice/hearthd.service/memory.current) -gt 20000000");
    machine.ok("/check/pods remove $(cat /run/pod)");
}

fn native(machine: &mut Machine) {
    machine.ok("pod=$(/check/pods pod native)
         id=$(/check/pods run $pod sleeps hearth.test/peer:1 33554432 sleep)
         until grep -q asleep /var/log/pods/sleeps/sleeps.log; do sleep 0.5; done
         test -s /sys/fs/cgroup/pods/$id/cgroup.procs
         test $(cat /sys/fs/cgroup/pods/$id/memory.max) = 33554432
         # Under AppArmor, as containerd has it for every native container.
         grep -q cri-containerd.apparmor.d /proc/$(head -n 1 /sys/fs/cgroup/pods/$id/cgroup.procs)/attr/current
         /check/pods remove $pod
         test ! -e /sys/fs/cgroup/pods/$id");
}

fn upgrade(machine: &mut Machine) {
    sleep(machine, "kept");
    machine.ok("systemctl restart hearthd");
    machine.ok("ctr tasks ls | grep -E '^kept .*RUNNING'");
    machine.ok("apt-get install --yes --no-install-recommends /check/newer.deb");
    machine.ok("ctr tasks ls | grep -E '^kept .*RUNNING'");
    hello(machine, "upgraded");
    assert_eq!(
        machine.ok("hearthctl generations | tail -n +2 | wc -l").trim(),
        "2",
        "the old daemon serves its container"
    );
    machine.ok("ctr tasks kill --signal SIGKILL kept");
    machine.until(
        "the container is removed",
        "ctr tasks rm --force kept; ctr containers rm kept; ! ctr containers ls | grep kept",
    );
    machine.until("the old daemon leaves", "test $(hearthctl generations | tail -n +2 | wc -l) = 1");
}

/// Starts of modules that are all different, without end: compiles, artifacts, snapshots.
const LOAD: &str = "n=0
while :; do
    for module in /check/modules/*.wasm; do
        n=$((n + 1)); id=load-$n
        mkdir -p /var/lib/load/$n && cp $module /var/lib/load/$n/hello.wasm
        ctr run --rm --null-io --runtime io.containerd.hearth.v1 --rootfs /var/lib/load/$n $id /hello.wasm
        echo $n >/run/loaded
    done
done";

fn power_cut_amid_starts(machine: &mut Machine) {
    machine.begin(LOAD);
    machine.until("the load runs", "test $(cat /run/loaded) -ge 3");
    sleep(machine, "lost");
    machine.cut_power();
    both_serve(machine);
    // An artifact is whole, or it is compiled again.
    let verified = machine.run("hearthctl modules verify");
    assert!(verified.code == 0, "{}", verified.text);
    // containerd knows the container; its task was of another boot.
    assert!(!machine.ok("ctr tasks ls").contains("RUNNING"));
    machine.ok("ctr tasks rm --force lost || true; ctr containers rm lost");
    hello(machine, "after-the-cut");
    for number in [0, 1, 2] {
        machine.ok(&format!(
            "mkdir -p /var/lib/again/{number} && cp /check/modules/{number}.wasm /var/lib/again/{number}/hello.wasm
             ctr run --rm --runtime io.containerd.hearth.v1 --rootfs /var/lib/again/{number} again-{number} /hello.wasm"
        ));
    }
    let left = machine.ok("find /run/hearth/s -mindepth 1 -maxdepth 1 | wc -l; grep -c /rootfs /proc/mounts || true");
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["1", "0"], "state of the boot before");
}

fn power_cut_amid_upgrade(machine: &mut Machine) {
    machine.begin(
        "while :; do dpkg --install /check/hearth.deb; dpkg --install /check/newer.deb; echo done >/run/turned; done",
    );
    machine.until("packages are being changed", "test -e /run/turned");
    machine.cut_power();
    // What an administrator does, and what dpkg itself advises.
    machine.ok("dpkg --configure --pending; dpkg --install /check/newer.deb; sync");
    machine.ok("test -z \"$(dpkg --audit)\"");
    machine.ok("systemctl restart containerd");
    both_serve(machine);
    hello(machine, "after-dpkg");
}

fn reboot(machine: &mut Machine) {
    machine.ok("cat /proc/sys/kernel/random/boot_id >/var/boot; sync");
    machine.begin("sleep 1; systemctl reboot");
    machine.wait_for_another_boot("/var/boot");
    both_serve(machine);
    let order = machine.ok(
        "for unit in hearthd containerd; do systemctl show --property ActiveEnterTimestampMonotonic --value $unit; done",
    );
    let times: Vec<u64> = order.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    assert!(times.len() == 2 && times[0] <= times[1], "containerd asks for its tasks when it starts: {order}");
    hello(machine, "rebooted");
}

fn clock(machine: &mut Machine) {
    sleep(machine, "timed");
    for jump in ["+1 day", "-1 day", "-1 day", "+1 day"] {
        machine.ok(&format!("date --set '{jump}'"));
        hello(machine, "jumped");
        machine.ok("hearthctl ps | grep timed && hearthctl trace --last 1 && hearthctl check");
        machine.ok("ctr tasks ls | grep -E '^timed .*RUNNING'");
    }
    end(machine, "timed");
}

fn memory_pressure(machine: &mut Machine) {
    sleep(machine, "spared");
    // `tail` keeps a line without end. The kernel ends it, and not hearthd. (A unit of its own: systemd stops all of one
    // that the kernel takes a process from.)
    let hog = machine.run("systemd-run --quiet --wait tail /dev/zero");
    assert_ne!(hog.code, 0, "{}", hog.text);
    assert!(machine.ok("dmesg").contains("Out of memory"), "the node did not run out of memory");
    machine.ok("ctr tasks ls | grep -E '^spared .*RUNNING'");
    hello(machine, "after-the-pressure");
    end(machine, "spared");
}

fn read_only_usr(machine: &mut Machine) {
    machine.ok("mount --bind /usr /usr && mount -o remount,bind,ro /usr && ! touch /usr/written");
    machine.ok("systemctl restart hearthd");
    both_serve(machine);
    hello(machine, "read-only");
    machine.ok("mkdir -p /var/lib/fresh && cp /check/modules/39.wasm /var/lib/fresh/hello.wasm
         ctr run --rm --runtime io.containerd.hearth.v1 --rootfs /var/lib/fresh fresh /hello.wasm");
    machine.ok("umount --lazy /usr");
}

fn remove(machine: &mut Machine) {
    machine.ok("hearthctl uninstall containerd && systemctl restart containerd");
    machine.ok("apt-get purge --yes hearth");
    let left =
        machine.ok("ls -d /run/hearth /var/lib/hearth /etc/hearth 2>/dev/null || true; pgrep -a hearthd || true");
    assert_eq!(left.trim(), "");
}
