//! The start times of pods with a pause container and of pods of hearthd's sandbox controller, in turn on one
//! containerd 2.x (`HEARTH_TEST_CONTAINERD`): `pod-times [PODS OF EACH KIND]`.

use std::time::{Duration, Instant};

use hearth_tests::daemons::{BY_PAUSE, BY_SANDBOXER, containerd_major};
use hearth_tests::{Guest, Imported, Node};

/// The parts of a pod's start that are measured.
const PARTS: [&str; 3] = ["RunPodSandbox", "CreateContainer, StartContainer", "both"];

fn main() {
    let count = std::env::args().nth(1).map_or(30, |text| text.parse().expect("the number of pods"));
    assert!(containerd_major() >= 2, "needs a containerd 2.x: set HEARTH_TEST_CONTAINERD");
    let node = Node::new();
    let image = node.program(&Guest::SLEEP);
    for host_network in [true, false] {
        let mut times = [const { [const { Vec::new() }; PARTS.len()] }; 2];
        for turn in 0..count + 1 {
            // Work that the removal of a pod leaves delays the next pod: each kind follows the other equally often.
            let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
            for kind in order {
                let parts = start(&node, &image, [BY_PAUSE, BY_SANDBOXER][kind], host_network);
                // The first of each is the warm-up.
                if turn > 0 {
                    times[kind].iter_mut().zip(parts).for_each(|(times, time)| times.push(time));
                }
            }
        }
        println!("{count} pods of each kind, network: {}", if host_network { "the node's" } else { "CNI bridge" });
        for (part, name) in PARTS.iter().enumerate() {
            let [pause, sandboxer] = [0, 1].map(|kind: usize| median(&mut times[kind][part]).as_secs_f64() * 1e3);
            println!("  {name:32} pause {pause:7.2} ms   sandboxer {sandboxer:7.2} ms   ({:.2})", sandboxer / pause);
        }
    }
}

/// Starts a pod of one container.
fn start(node: &Node, image: &Imported, handler: &str, host_network: bool) -> [Duration; PARTS.len()] {
    let begin = Instant::now();
    let pod = node.pod("timed").options(|options| {
        options.handler = handler.to_owned();
        options.host_network = host_network;
    });
    let pod = pod.run();
    let sandbox = begin.elapsed();
    let _container = pod.container("sleep", image).args(["3600"]).start();
    let both = begin.elapsed();
    [sandbox, both - sandbox, both]
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
