//! A hundred pods at once, on Hearth and on runc in turn, and where the time goes.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, Instant};

use hearth_tests::metrics::Metrics;

use crate::cluster::NODE;
use crate::images::{NATIVE_TCP, TCP};
use crate::story::{Story, connect, items, number, text};

/// The number of pods at once.
const PODS: usize = 100;

/// The number of turns of each runtime.
const TURNS: usize = 2;

/// kubelet's calls to containerd for a new pod, with their names in kubelet's metrics.
const OPERATIONS: [(&str, &str); 3] = [
    ("RunPodSandbox", "run_podsandbox"),
    ("CreateContainer", "create_container"),
    ("StartContainer", "start_container"),
];

/// The same C source, as a component and as a native program.
const RUNTIMES: [(&str, &str, &str); 2] = [("hearth", "runtimeClassName: hearth", TCP), ("runc", "", NATIVE_TCP)];

/// The times of one turn.
struct Turn {
    applied: Duration,
    ready: Duration,
    gone: Duration,
    /// The mean of each of [`OPERATIONS`].
    calls: Vec<Duration>,
    /// CPU time by program until all were Ready, the largest first.
    cpu: Vec<(String, f64)>,
}

pub fn a_hundred_pods_come_and_go(story: &mut Story<'_>) {
    // (Sandboxes that have stopped are removed by kubelet's housekeeping, once a minute.)
    story.wait("nothing else runs", || {
        let pods = story.cluster.node().pods();
        (!pods.values().any(|ready| *ready)).then_some(())
    });
    // The first of each compiles, unpacks and warms up.
    for (name, class, image) in RUNTIMES {
        turn(story, name, class, image, 1);
    }
    let mut ready: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..TURNS {
        for (name, class, image) in RUNTIMES {
            let turn = turn(story, name, class, image, PODS);
            ready.entry(name).or_default().push(turn.ready.as_secs_f64());
            let calls =
                OPERATIONS.iter().zip(&turn.calls).map(|((name, _), mean)| format!("{name} {} ms", mean.as_millis()));
            let calls = calls.collect::<Vec<_>>().join(", ");
            let cpu =
                turn.cpu.iter().take(8).map(|(name, time)| format!("{name} {time:.1}")).collect::<Vec<_>>().join(", ");
            let [applied, all, gone] = [turn.applied, turn.ready, turn.gone].map(|time| time.as_secs_f64());
            story.note(format!(
                "{PODS} pods on {name}: applied in {applied:.1} s, all Ready {all:.1} s after the apply, reached by \
                 address, gone {gone:.1} s after the deletion"
            ));
            story.note(format!("  kubelet's calls, mean: {calls}"));
            story.note(format!("  CPU seconds until all were Ready: {cpu}"));
        }
    }
    let mean = |name: &str| ready[name].iter().sum::<f64>() / TURNS as f64;
    story.note(format!("all Ready, hearth to runc: {:.2}", mean("hearth") / mean("runc")));
}

fn turn(story: &Story<'_>, name: &str, class: &str, image: &str, pods: usize) -> Turn {
    let manifest = format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd-{name}}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: crowd-{name}}}}}
  template:
    metadata: {{labels: {{app: crowd-{name}}}}}
    spec:
      {class}
      terminationGracePeriodSeconds: 1
      containers: [{{name: server, image: '{image}', args: ["8080"]}}]
"#
    );
    let deployment = format!("deployment/crowd-{name}");
    let selector = format!("app=crowd-{name}");
    let (calls, cpu) = (kubelets_calls(story), cpu_by_program(story));
    let begun = Instant::now();
    story.apply(&manifest);
    let applied = begun.elapsed();
    story.wait("all pods are Ready", || {
        (number(&story.get(&[&deployment])?, "/status/readyReplicas") == pods as i64).then_some(())
    });
    let ready = begun.elapsed();
    let cpu = grown(&cpu, &cpu_by_program(story));
    let calls = mean(&calls, &kubelets_calls(story));
    reach(story, &selector, pods);
    let begun = Instant::now();
    story.said(["delete", &deployment]);
    story.wait("they are gone", || {
        items(&story.get(&["pods", "--selector", &selector])?).next().is_none().then_some(())
    });
    Turn { applied, ready, gone: begun.elapsed(), calls, cpu }
}

/// Greets each pod at its own address.
fn reach(story: &Story<'_>, selector: &str, pods: usize) {
    let known = story.known(&["pods", "--selector", selector]);
    let addresses: std::collections::BTreeSet<_> = items(&known).map(|pod| text(pod, "/status/podIP")).collect();
    assert_eq!(addresses.len(), pods, "each has an address of its own");
    story.cluster.node().machine().in_network(|| {
        for address in &addresses {
            let mut said = String::new();
            let read = connect(&format!("{address}:8080")).and_then(|mut stream| stream.read_to_string(&mut said));
            read.unwrap_or_else(|error| panic!("{address}: {error}"));
            assert_eq!(said, "hello over TCP\n", "{address}");
        }
    });
}

/// Count and sum in seconds of each of [`OPERATIONS`] that kubelet has made.
fn kubelets_calls(story: &Story<'_>) -> Vec<(f64, f64)> {
    let metrics = Metrics::parse(&story.said(["get", "--raw", &format!("/api/v1/nodes/{NODE}/proxy/metrics")]));
    let of = |operation: &str, part: &str| {
        let name = format!("kubelet_runtime_operations_duration_seconds_{part}");
        metrics.sum(&name, &[("operation_type", operation)])
    };
    OPERATIONS.iter().map(|(_, operation)| (of(operation, "count"), of(operation, "sum"))).collect()
}

fn mean(before: &[(f64, f64)], after: &[(f64, f64)]) -> Vec<Duration> {
    let one = |((count, sum), (later_count, later_sum)): (&(f64, f64), &(f64, f64))| {
        Duration::from_secs_f64((later_sum - sum).max(0.0) / (later_count - count).max(1.0))
    };
    before.iter().zip(after).map(one).collect()
}

/// The CPU time of all processes on the machine and of their children that have ended, in seconds.
fn cpu_by_program(story: &Story<'_>) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for (pid, _) in story.cluster.node().machine().processes() {
        // It has ended: its parent has its time.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, fields)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else { continue };
        // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), where the state is the third.
        let ticks: u64 = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        *all.entry(name.to_owned()).or_insert(0.0) += ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    }
    all
}

fn grown(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let difference = |(name, time): (&String, &f64)| (name.clone(), time - before.get(name).unwrap_or(&0.0));
    let mut grown: Vec<_> = after.iter().map(difference).filter(|(_, time)| *time > 0.05).collect();
    grown.sort_by(|one, other| other.1.total_cmp(&one.1));
    grown
}
