//! The order of compiles: turns in fair shares by namespace and pod, each for a time.
//!
//! ```text
//!   wait ──▶ waiting ──pick──▶ running ──▶ end: the turn goes on
//!               ▲                 │ its time is over, and another compile may run
//!               └──── parked ◀────┘ (its process is stopped and keeps its memory)
//! ```
//!
//! * A turn goes to the namespace whose last turn is longest ago. Within a namespace it goes to the compile that has run the
//!   least, so that a small module does not wait for the end of a large one, and then to the pod whose last turn is longest ago.
//! * A compile that has had its turn is parked if another one may run. It goes on when its turn comes again.
//! * A parked process keeps its memory. So there are at most `parked_max` of them. If any may be parked, one process,
//!   running or parked, is left to other namespaces than the one that has all the rest. If no more may be parked, the compile that runs keeps its turn
//!   to its end.
//!
//! Several namespaces can wait for one compile: it has the best place among theirs.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::pace::Pace;

/// Namespaces and pods whose last turn is remembered.
const REMEMBERED_MAX: usize = 1_024;

/// A namespace and pod that a compile is for. The default is the daemon itself, for work that no pod waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The Kubernetes namespace; containerd's for a container without a pod.
    pub namespace: Arc<str>,
    /// The pod, or the container without a pod.
    pub pod: Arc<str>,
}

impl Owner {
    /// A pod, or a container without one, in a namespace.
    pub fn new(namespace: &str, pod: &str) -> Owner {
        Owner { namespace: namespace.into(), pod: pod.into() }
    }
}

/// Turns of one kind of compiles.
pub(super) struct Turns {
    parked_max: usize,
    /// Processes that one namespace may have, parked ones included.
    started_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: usize,
    /// The number of the last turn or compile.
    last: u64,
    waiting: Vec<Waiting>,
    /// Compiles with a process, by number: the namespace that each counts for.
    started: HashMap<u64, Arc<str>>,
    parked: usize,
    /// When each had its last turn, by the turn's number.
    namespaces: HashMap<Arc<str>, u64>,
    pods: HashMap<Owner, u64>,
}

/// A compile that waits for a turn.
struct Waiting {
    compile: u64,
    pace: Arc<Pace>,
    /// How long it has run.
    used: Duration,
    tell: oneshot::Sender<()>,
}

impl Turns {
    /// So many turns at once, and so many compiles that are parked.
    pub(super) fn new(turns: usize, parked_max: usize) -> Arc<Turns> {
        let started_max = turns.max(turns.saturating_add(parked_max).saturating_sub(1));
        Arc::new(Turns { parked_max, started_max, state: Mutex::new(State { free: turns, ..State::default() }) })
    }

    /// Waits for the first turn of a compile, on behalf of those that `pace` knows to wait for it.
    pub(super) async fn wait(self: &Arc<Turns>, pace: &Arc<Pace>) -> Turn {
        let (tell, told) = oneshot::channel();
        let compile = {
            let mut state = self.state.lock();
            state.last += 1;
            let compile = state.last;
            state.waiting.push(Waiting { compile, pace: pace.clone(), used: Duration::ZERO, tell });
            compile
        };
        // Takes it out of the queue, or gives the turn on, if the caller goes away.
        let turn = Turn { turns: self.clone(), compile, pace: pace.clone() };
        self.pass_on();
        // The sender is dropped only after it was used.
        let _ = told.await;
        turn
    }

    /// Gives free turns to compiles that wait.
    fn pass_on(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(next) = state.pick(self.started_max).filter(|_| state.free > 0) else { return };
            let Waiting { compile, tell, .. } = state.grant(next);
            drop(state);
            if tell.send(()).is_err() {
                // It is dropped just now, and its `Turn` finds it among the started ones.
                tracing::debug!(compile, "a turn was given to a compile that has gone");
            }
        }
    }

    /// Whether a compile that has run for `used` should stop for another one.
    fn must_end(&self, compile: u64, pace: &Pace, used: Duration) -> bool {
        let state = self.state.lock();
        let own = owners(pace).into_iter().map(|owner| state.rank(&owner, used, compile)).min();
        let next = state.pick(self.started_max).map(|pick| pick.rank);
        state.parked < self.parked_max && next.is_some_and(|next| own.is_none_or(|own| next < own))
    }
}

/// A compile in the queue, and the owner that it would be next for.
struct Pick {
    rank: Rank,
    index: usize,
    owner: Owner,
}

/// The last turn of the namespace, how long the compile has run, the last turn of the pod, the compile's number.
type Rank = (u64, Duration, u64, u64);

/// Those that a compile is for.
fn owners(pace: &Pace) -> Vec<Owner> {
    let owners = pace.owners();
    if owners.is_empty() { vec![Owner::default()] } else { owners }
}

impl State {
    /// The compile that is next, whether or not a turn is free.
    fn pick(&self, started_max: usize) -> Option<Pick> {
        let mut best: Option<Pick> = None;
        for (index, waiting) in self.waiting.iter().enumerate() {
            let is_started = self.started.contains_key(&waiting.compile);
            for owner in owners(&waiting.pace) {
                let of_namespace = || self.started.values().filter(|namespace| **namespace == owner.namespace).count();
                if !is_started && of_namespace() >= started_max {
                    continue;
                }
                let rank = self.rank(&owner, waiting.used, waiting.compile);
                if best.as_ref().is_none_or(|best| rank < best.rank) {
                    best = Some(Pick { rank, index, owner });
                }
            }
        }
        best
    }

    fn rank(&self, owner: &Owner, used: Duration, compile: u64) -> Rank {
        let last = |turn: Option<&u64>| turn.copied().unwrap_or_default();
        (last(self.namespaces.get(&owner.namespace)), used, last(self.pods.get(owner)), compile)
    }

    fn grant(&mut self, Pick { index, owner, .. }: Pick) -> Waiting {
        let waiting = self.waiting.swap_remove(index);
        self.last += 1;
        self.free -= 1;
        if self.started.insert(waiting.compile, owner.namespace.clone()).is_some() {
            self.parked -= 1;
        }
        remember(&mut self.namespaces, owner.namespace.clone(), self.last);
        remember(&mut self.pods, owner, self.last);
        waiting
    }
}

/// Records a turn; forgets the oldest beyond [`REMEMBERED_MAX`].
fn remember<K: Eq + Hash + Clone>(turns: &mut HashMap<K, u64>, key: K, turn: u64) {
    turns.insert(key, turn);
    if turns.len() > REMEMBERED_MAX {
        let oldest = turns.iter().min_by_key(|(_, turn)| **turn).map(|(key, _)| key.clone());
        oldest.map(|key| turns.remove(&key));
    }
}

/// A compile's turn; given on when it is dropped.
pub(super) struct Turn {
    turns: Arc<Turns>,
    compile: u64,
    pace: Arc<Pace>,
}

impl Turn {
    /// Whether the compile, which has run for `used`, should be parked.
    pub(super) fn must_end(&self, used: Duration) -> bool {
        self.turns.must_end(self.compile, &self.pace, used)
    }

    /// Gives the turn to another compile and waits for the next one. The process is stopped. `used`: how long it has run.
    /// Blocks.
    pub(super) fn park(&self, used: Duration) {
        let (tell, told) = oneshot::channel();
        {
            let mut state = self.turns.state.lock();
            state.free += 1;
            state.parked += 1;
            state.waiting.push(Waiting { compile: self.compile, pace: self.pace.clone(), used, tell });
        }
        self.turns.pass_on();
        // The sender is dropped only after it was used.
        let _ = told.blocking_recv();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.state.lock();
            state.waiting.retain(|waiting| waiting.compile != self.compile);
            if state.started.remove(&self.compile).is_some() {
                state.free += 1;
            }
        }
        self.turns.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;
    use crate::modules::pace::Urgency;

    type Wait<'a> = Pin<Box<dyn Future<Output = Turn> + Send + 'a>>;

    fn wait<'a>(turns: &'a Arc<Turns>, namespace: &str, pod: &str) -> Wait<'a> {
        let pace = Pace::new(Urgency::Start, vec![Owner::new(namespace, pod)]);
        Box::pin(async move { turns.wait(&pace).await })
    }

    /// Polls each, and returns the number of those that have a turn.
    fn granted(waits: &mut [Wait<'_>]) -> Vec<usize> {
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let with_turn = waits.iter_mut().enumerate().filter_map(|(index, wait)| match wait.as_mut().poll(context) {
            std::task::Poll::Ready(turn) => {
                drop(turn);
                Some(index)
            }
            std::task::Poll::Pending => None,
        });
        with_turn.collect()
    }

    async fn now(wait: Wait<'_>) -> Turn {
        tokio::time::timeout(Duration::ZERO, wait).await.expect("a turn is free")
    }

    #[tokio::test]
    async fn namespaces_take_turns_and_pods_within_them() {
        let turns = Turns::new(1, 0);
        let first = now(wait(&turns, "a", "1")).await;
        let names = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"), ("b", "1"), ("c", "1")];
        let mut waits: Vec<_> = names.iter().map(|(namespace, pod)| wait(&turns, namespace, pod)).collect();
        assert!(granted(&mut waits).is_empty());
        drop(first);
        let mut order = Vec::new();
        let mut left: Vec<usize> = (0..waits.len()).collect();
        while !left.is_empty() {
            // A poll of one that has ended would panic.
            let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
            let ready = left.iter().copied().find(|index| waits[*index].as_mut().poll(context).is_ready());
            let index = ready.expect("the turn goes on");
            order.push(index);
            left.retain(|other| *other != index);
        }
        assert_eq!(order, [3, 5, 2, 4, 0, 1]);
    }

    #[tokio::test]
    async fn a_compile_that_many_wait_for_has_the_best_of_their_places() {
        let turns = Turns::new(1, 0);
        let running = now(wait(&turns, "a", "1")).await;
        let pace = Pace::new(Urgency::Start, vec![Owner::new("a", "2")]);
        let mut waits = vec![wait(&turns, "b", "1")];
        let of_pace = pace.clone();
        let shared = turns.clone();
        waits.push(Box::pin(async move { shared.wait(&of_pace).await }));
        assert!(granted(&mut waits).is_empty());
        // Namespace c, which had no turn yet, waits for the other one's compile, which began to wait first.
        pace.join(&Pace::new(Urgency::Start, vec![Owner::new("c", "1")]));
        let later = wait(&turns, "c", "2");
        waits.push(later);
        assert!(granted(&mut waits[2..]).is_empty());
        drop(running);
        assert_eq!(granted(&mut waits[..1]), [0], "b waited before c");
        assert_eq!(granted(&mut waits[1..2]), [0]);
    }

    #[test]
    fn a_long_compile_is_parked_for_others_and_comes_back() {
        let turns = Turns::new(1, 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let long = runtime.block_on(now(wait(&turns, "a", "1")));
        assert!(!long.must_end(Duration::from_secs(2)), "no other waits");
        let mut waits = vec![wait(&turns, "b", "1"), wait(&turns, "c", "1")];
        assert!(granted(&mut waits).is_empty());
        assert!(long.must_end(Duration::from_secs(2)));
        let parked = std::thread::spawn(move || {
            long.park(Duration::from_secs(2));
            long
        });
        // b has the turn; it is short. Then c has it.
        while turns.state.lock().parked == 0 && !parked.is_finished() {
            std::thread::yield_now();
        }
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        let short = loop {
            if let std::task::Poll::Ready(turn) = waits[0].as_mut().poll(context) {
                break turn;
            }
        };
        assert!(!short.must_end(Duration::from_secs(2)), "no more may be parked");
        drop(short);
        let other = loop {
            if let std::task::Poll::Ready(turn) = waits[1].as_mut().poll(context) {
                break turn;
            }
        };
        drop(other);
        let long = parked.join().unwrap();
        drop(long);
        let state = turns.state.lock();
        assert_eq!((state.free, state.parked, state.started.len()), (1, 0, 0));
    }

    #[tokio::test]
    async fn a_namespace_has_so_many_processes_and_what_is_dropped_leaves_nothing() {
        let turns = Turns::new(2, 2);
        let held = [now(wait(&turns, "a", "1")).await, now(wait(&turns, "a", "2")).await];
        let mut waits = vec![wait(&turns, "a", "3"), wait(&turns, "a", "4")];
        assert!(granted(&mut waits).is_empty());
        assert!(held[0].must_end(Duration::from_secs(2)), "the third one of the namespace may be started");
        turns.state.lock().started.insert(99, "a".into());
        assert!(!held[0].must_end(Duration::from_secs(2)), "a fourth one may not");
        let mut other = vec![wait(&turns, "b", "1")];
        assert!(granted(&mut other).is_empty());
        assert!(held[0].must_end(Duration::ZERO), "one of another namespace may");
        turns.state.lock().started.remove(&99);
        drop((waits, other));
        drop(held);
        let state = turns.state.lock();
        assert_eq!((state.free, state.waiting.len(), state.started.len()), (2, 0, 0));
    }
}
