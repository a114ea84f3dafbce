use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake};

use parking_lot::Mutex;

use super::*;

/// The least limit that the kind has in the default configuration: no ordinary pod meets it.
fn least(kind: Kind) -> u64 {
    match kind {
        // 256 requests to a component with two memories, none of them in the pool.
        Kind::AddressSpace => 3 << 40,
        Kind::Mappings => 3_000,
        Kind::Compiles => 4,
        Kind::Descriptors => 1_024,
        Kind::BlockedWorkers => 16,
        Kind::Lookups => 8,
        Kind::HttpRequests => 128,
        Kind::ComponentCalls => 128,
        Kind::HttpConnections => 512,
        Kind::OutgoingConnections => 128,
        Kind::Execs => 32,
    }
}

fn container(id: &str, pod: Option<Arc<PodTenant>>, limits: &Limits) -> Arc<Tenant> {
    Tenant::new("k8s.io".into(), id.into(), pod, limits, Arc::default())
}

#[test]
fn a_container_that_has_used_up_any_kind_keeps_no_other_from_it() {
    let limits = Limits::of(&Config::default());
    let pods: [_; 2] = std::array::from_fn(|_| Arc::new(PodTenant::new(&limits)));
    for kind in Kind::ALL.iter().copied() {
        let limit = limits.get(kind);
        assert!(limit >= least(kind), "{kind:?} is {limit}");
        for of_pod in [false, true] {
            let pod = |number: usize| of_pod.then(|| pods[number].clone());
            let (greedy, other) = (container("greedy", pod(0), &limits), container("other", pod(1), &limits));
            let all = greedy.take(kind, limit).unwrap();
            let refused = greedy.take(kind, 1).unwrap_err();
            assert_eq!(refused, Refused { kind, limit, of_pod: false });
            assert!(refused.to_string().contains(kind.key()), "{refused}");
            assert!(greedy.is_full(kind) && greedy.refused(kind) == 1);
            let theirs = other.take(kind, limit).unwrap();
            assert_eq!(theirs.amount(), limit);
            drop(all);
            assert_eq!((greedy.used(kind), other.used(kind)), (0, limit), "{kind:?}");
            drop(greedy.take(kind, 1).unwrap());
        }
    }
}

#[test]
fn no_pod_blocks_all_workers() {
    for workers_max in [1, 4, 512] {
        let mut config = Config::default();
        config.scheduler.workers_max = workers_max;
        config.tenant.blocked_workers_max = 1_000;
        let limits = Limits::of(&config);
        let kind = Kind::BlockedWorkers as usize;
        let half = (workers_max as u64 / 2).max(1);
        assert!(limits.each[kind] <= half && limits.of_pod[kind] == half, "{limits:?}");
    }
}

#[test]
fn the_containers_of_a_pod_have_a_few_times_the_limit_of_one() {
    let limits = Limits::none().with(Kind::Execs, 10).with_pod(Kind::Execs, 20);
    let pod = Arc::new(PodTenant::new(&limits));
    let containers: Vec<_> = (0..3).map(|number| container(&number.to_string(), Some(pod.clone()), &limits)).collect();
    let mut held: Vec<_> = containers[..2].iter().map(|container| container.take(Kind::Execs, 10).unwrap()).collect();
    let refused = containers[2].take(Kind::Execs, 1).unwrap_err();
    assert_eq!(refused, Refused { kind: Kind::Execs, limit: 20, of_pod: true });
    assert!(refused.to_string().contains("tenant.pod_factor"), "{refused}");
    assert_eq!(containers[2].used(Kind::Execs), 0);
    held.pop();
    drop(containers[2].take(Kind::Execs, 10).unwrap());
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_is_given_back_goes_to_the_first_that_waits() {
    let tenant = Tenant::unnamed(&Limits::none().with(Kind::Lookups, 1));
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let context = &mut Context::from_waker(&waker);
    let held = tenant.take(Kind::Lookups, 1).unwrap();
    let mut first = pin!(tenant.wait(Kind::Lookups, 1));
    let second = tenant.wait(Kind::Lookups, 1);
    let mut second = Box::pin(second);
    let mut third = pin!(tenant.wait(Kind::Lookups, 1));
    assert!(first.as_mut().poll(context).is_pending() && second.as_mut().poll(context).is_pending());
    assert!(third.as_mut().poll(context).is_pending());
    assert_eq!(tenant.refused(Kind::Lookups), 3);
    drop(held);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(tenant.take(Kind::Lookups, 1).is_err(), "it is the first one's already");
    let Poll::Ready(held) = first.as_mut().poll(context) else { panic!() };
    drop(held);
    // Granted, and dropped before it is polled.
    drop(second);
    let Poll::Ready(held) = third.as_mut().poll(context) else { panic!("the grant went on") };
    drop(held);
    assert_eq!(tenant.used(Kind::Lookups), 0);
}

#[test]
fn a_container_of_the_pod_gets_what_another_one_gives_back() {
    let limits = Limits::none().with(Kind::Lookups, 2).with_pod(Kind::Lookups, 2);
    let pod = Arc::new(PodTenant::new(&limits));
    let [one, other] = ["one", "other"].map(|id| container(id, Some(pod.clone()), &limits));
    let held = one.take(Kind::Lookups, 2).unwrap();
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    assert!(other.is_held(Kind::Lookups, &waker), "the pod has as many as it may");
    let mut waits = pin!(other.wait(Kind::Lookups, 1));
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(held);
    assert_eq!(count.0.load(Ordering::Relaxed), 2, "both are woken");
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    assert!(!other.is_held(Kind::Lookups, &waker));
}

#[test]
fn many_threads_take_and_wait_and_in_the_end_all_is_given_back() {
    let tenant = Tenant::unnamed(&Limits::none().with(Kind::Execs, 3));
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                for _ in 0..2_000 {
                    let mut wait = pin!(tenant.wait(Kind::Execs, 1));
                    let permit = loop {
                        match wait.as_mut().poll(&mut Context::from_waker(&waker)) {
                            Poll::Ready(permit) => break permit,
                            Poll::Pending => std::thread::park(),
                        }
                    };
                    assert!(tenant.used(Kind::Execs) <= 3);
                    drop(permit);
                }
            });
        }
    });
    assert_eq!(tenant.used(Kind::Execs), 0);
}

struct Told(Mutex<Vec<String>>);

impl Notes for Told {
    fn note(&self, text: &str) {
        self.0.lock().push(text.into());
    }
}

#[test]
fn the_first_refusal_of_a_kind_is_told() {
    let tenant = Tenant::unnamed(&Limits::none().with(Kind::Execs, 1).with(Kind::Lookups, 1));
    let told = Arc::new(Told(Mutex::default()));
    let notes: Arc<dyn Notes> = told.clone();
    tenant.set_notes(Arc::downgrade(&notes));
    for kind in [Kind::Execs, Kind::Execs, Kind::Lookups, Kind::Execs] {
        tenant.take(kind, 2).unwrap_err();
    }
    let told = told.0.lock();
    let keys: Vec<_> = told.iter().map(|line| line.split(['(', ')']).nth(1).unwrap()).collect();
    assert_eq!(keys, [Kind::Execs.key(), Kind::Lookups.key()], "{told:?}");
    assert_eq!((tenant.refused(Kind::Execs), tenant.refused(Kind::Lookups)), (3, 1));
}
