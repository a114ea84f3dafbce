//! The scheduler with futures in place of guests.

mod sockets;

use std::sync::mpsc;

use super::meter::thread_cpu_ns;
use super::*;
use hearth_base::tenant::{Kind, Limits, Tenant};
use hearth_os::identity::Identity;

fn unlimited() -> Arc<Tenant> {
    Tenant::unnamed(&Limits::none())
}

fn scheduler(runtime: &tokio::runtime::Runtime, workers: usize) -> Scheduler {
    let config = config::Scheduler { workers, ..Default::default() };
    Scheduler::start(&config, [], Arc::new(Metrics::new()), runtime.handle().clone()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(identity::become_daemon)
        .enable_all()
        .build()
        .unwrap()
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_thousand_guests_that_sleep_all_come_to_their_end() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 2);
    let (send, ends) = mpsc::channel();
    for i in 0..1000u64 {
        let send = send.clone();
        let future = async move {
            tokio::time::sleep(Duration::from_millis(i % 7)).await;
            i
        };
        scheduler.spawn(Arc::default(), future, move |end| send.send(end).unwrap());
    }
    let mut sum = 0;
    for _ in 0..1000 {
        match ends.recv_timeout(SOON).unwrap() {
            GuestEnd::Completed(i) => sum += i,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sum, 499_500);
    scheduler.stop();
}

#[test]
fn a_kill_ends_a_guest_that_waits_and_drops_what_it_holds() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let guest = Arc::new(Guest::default());
    let held = Arc::new(());
    let theirs = held.clone();
    let future = async move {
        std::future::pending::<()>().await;
        drop(theirs);
    };
    scheduler.spawn(guest.clone(), future, move |end| send.send(matches!(end, GuestEnd::Killed)).unwrap());
    guest.kill();
    assert!(ends.recv_timeout(SOON).unwrap());
    assert_eq!(Arc::strong_count(&held), 1);
    scheduler.stop();
}

#[test]
fn nothing_is_left_of_a_guest_that_has_ended() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let leader = Arc::new(Guest::default());
    let wait = || async { tokio::time::sleep(Duration::from_millis(1)).await };
    let guests = [Arc::new(Guest::default()), Arc::new(Guest::part(&leader))];
    let left = guests.each_ref().map(Arc::downgrade);
    let [alone, part] = guests;
    let also = send.clone();
    scheduler.spawn(alone, wait(), move |end| send.send(matches!(end, GuestEnd::Completed(()))).unwrap());
    scheduler.spawn_part(part, wait(), move |end| also.send(matches!(end, GuestEnd::Completed(()))).unwrap());
    assert!(ends.recv_timeout(SOON).unwrap() && ends.recv_timeout(SOON).unwrap());
    // The worker drops the task after it has told of the end.
    scheduler.stop();
    assert!(left.iter().all(|guest| guest.upgrade().is_none()), "a guest is still there after its end");
}

#[test]
fn a_panic_ends_its_own_guest_only() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let also = send.clone();
    scheduler.spawn(Arc::default(), async { panic!("boom") }, move |end: GuestEnd<()>| {
        send.send(format!("{end:?}")).unwrap()
    });
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "Panicked(\"boom\")");
    scheduler.spawn(Arc::default(), async {}, move |end| also.send(format!("{end:?}")).unwrap());
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "Completed(())");
    scheduler.stop();
}

#[test]
fn a_worker_blocked_in_a_system_call_is_replaced_and_goes_when_it_comes_back() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (release, blocked_on) = mpsc::channel::<()>();
    let (send, ends) = mpsc::channel();
    let also = send.clone();
    let future = async move { blocked_on.recv().unwrap() };
    scheduler.spawn(Arc::default(), future, move |_| also.send("blocked").unwrap());
    scheduler.spawn(Arc::default(), async {}, move |_| send.send("other").unwrap());
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "other", "the only worker is blocked, another takes over");
    release.send(()).unwrap();
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "blocked");
    let deadline = Instant::now() + SOON;
    while scheduler.shared.workers.lock().slots.len() > 1 {
        assert!(Instant::now() < deadline, "the surplus worker never left");
        std::thread::yield_now();
    }
    scheduler.stop();
}

#[test]
fn a_container_that_blocks_its_workers_holds_back_its_own_guests_alone() {
    let runtime = runtime();
    let config = config::Scheduler { workers: 1, workers_max: 8, ..config::Scheduler::default() };
    let metrics = Arc::new(Metrics::new());
    let scheduler = Scheduler::start(&config, [], metrics.clone(), runtime.handle().clone()).unwrap();
    let tenant = Tenant::unnamed(&Limits::none().with(Kind::BlockedWorkers, 2));
    let leader = Arc::new(Guest::new(Identity::default(), CpuLimits::default(), tenant.clone()));
    let (send, ends) = mpsc::channel();
    let (releases, guests): (Vec<_>, Vec<_>) = (0..16)
        .map(|_| {
            let (release, blocked_on) = mpsc::channel::<()>();
            let guest = Arc::new(Guest::part(&leader));
            let send = send.clone();
            let future = async move { blocked_on.recv().is_ok() };
            scheduler.spawn_part(guest.clone(), future, move |end| send.send(format!("{end:?}")).unwrap());
            (release, guest)
        })
        .unzip();
    // Of the sixteen two are blocked; what others do goes on, again and again.
    for _ in 0..20 {
        let (other, done) = mpsc::channel();
        scheduler.spawn(Arc::default(), async {}, move |_| other.send(()).unwrap());
        done.recv_timeout(SOON).unwrap();
    }
    let blocked = scheduler.shared.workers.lock().slots.iter().filter(|slot| slot.is_blocked()).count();
    assert!(blocked <= 3, "{blocked} workers are blocked: two, and one that is not found out yet");
    assert!(metrics.scheduler.held.get() > 0 && tenant.refused(Kind::BlockedWorkers) > 0);
    // A guest that waits for its turn is killed at once.
    guests.last().unwrap().kill();
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "Killed");
    // Each that comes back lets another one in.
    for release in &releases[..15] {
        release.send(()).unwrap();
    }
    for _ in 0..15 {
        assert_eq!(ends.recv_timeout(SOON).unwrap(), "Completed(true)");
    }
    let deadline = Instant::now() + SOON;
    while tenant.used(Kind::BlockedWorkers) > 0 {
        assert!(Instant::now() < deadline, "a worker that came back still counts");
        std::thread::yield_now();
    }
    scheduler.stop();
}

#[test]
fn a_call_that_computes_for_long_stalls_no_other_guest() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let also = send.clone();
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let nice = || rustix::process::getpriority_process(None).unwrap();
    let call = async move {
        while !until.load(Ordering::Relaxed) {}
        nice()
    };
    scheduler.spawn(Arc::default(), call, move |end| also.send(("long", format!("{end:?}"))).unwrap());
    scheduler
        .spawn(Arc::default(), async move { nice() }, move |end| send.send(("other", format!("{end:?}"))).unwrap());
    let (name, own) = ends.recv_timeout(SOON).unwrap();
    assert_eq!(name, "other", "the only worker computes, another takes over");
    over.store(true, Ordering::Relaxed);
    let (name, least) = ends.recv_timeout(SOON).unwrap();
    assert_eq!(name, "long");
    assert_ne!(least, own, "it gave way");
    let deadline = Instant::now() + SOON;
    while scheduler.shared.workers.lock().slots.len() > 1 {
        assert!(Instant::now() < deadline, "the surplus worker never left");
        std::thread::yield_now();
    }
    scheduler.stop();
}

#[test]
fn a_kill_interrupts_a_guest_inside_a_system_call() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let (reader, _writer) = std::io::pipe().unwrap();
    let guest = Arc::new(Guest::default());
    let (began, has_begun) = mpsc::channel();
    let future = async move {
        began.send(()).unwrap();
        rustix::io::read(&reader, &mut [0u8; 1]).unwrap_err()
    };
    scheduler.spawn(guest.clone(), future, move |end| send.send(format!("{end:?}")).unwrap());
    has_begun.recv_timeout(SOON).unwrap();
    guest.kill();
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "Killed");
    scheduler.stop();
}

#[test]
fn cpu_time_is_charged_to_the_guest_that_used_it() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let guest = Arc::new(Guest::default());
    let future = async {
        let began = thread_cpu_ns();
        while thread_cpu_ns() - began < 5_000_000 {}
    };
    scheduler.spawn(guest.clone(), future, move |_| send.send(()).unwrap());
    ends.recv_timeout(SOON).unwrap();
    assert!(guest.cpu_time() >= Duration::from_millis(5), "{:?}", guest.cpu_time());
    scheduler.stop();
}

/// A part of `container` that says its name, and then begins the next with one letter less.
fn chain(scheduler: &Arc<Scheduler>, container: &Arc<Guest>, names: &'static str, send: mpsc::Sender<String>) {
    let (again, leader) = (scheduler.clone(), container.clone());
    let part = async move {
        let (name, rest) = names.split_at(1);
        send.send(name.to_owned()).unwrap();
        if !rest.is_empty() {
            chain(&again, &leader, rest, send);
        }
    };
    scheduler.spawn_part(Arc::new(Guest::part(container)), part, |_| ());
}

#[test]
fn a_worker_goes_on_to_parts_of_the_same_container_but_not_for_ever() {
    let runtime = runtime();
    let scheduler = Arc::new(scheduler(&runtime, 1));
    let (send, said) = mpsc::channel();
    let (container, inside, also) = (Arc::new(Guest::default()), scheduler.clone(), send.clone());
    let leader = container.clone();
    let first = async move {
        let stranger = also.clone();
        inside.spawn(Arc::default(), async {}, move |_| stranger.send("stranger".into()).unwrap());
        chain(&inside, &leader, "abcd", also);
    };
    scheduler.spawn_part(Arc::new(Guest::part(&container)), first, |_| ());
    let order: Vec<_> = (0..5).map(|_| said.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(order, ["a", "b", "stranger", "c", "d"]);
    scheduler.stop();
}

#[test]
fn what_a_worker_has_kept_for_itself_is_not_kept_waiting() {
    let runtime = runtime();
    let scheduler = Arc::new(scheduler(&runtime, 1));
    let (send, ends) = mpsc::channel();
    let (container, inside) = (Arc::new(Guest::default()), scheduler.clone());
    let leader = container.clone();
    let first = async move {
        let (say, said) = mpsc::channel();
        inside.spawn_part(Arc::new(Guest::part(&leader)), async {}, move |_| say.send(()).unwrap());
        // A system call that ends only when the other has run.
        said.recv_timeout(SOON).is_ok()
    };
    scheduler.spawn_part(Arc::new(Guest::part(&container)), first, move |end| send.send(format!("{end:?}")).unwrap());
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "Completed(true)");
    scheduler.stop();
}

/// A guest that computes, as the scheduler sees it: it checks for interruption about ten times a tick.
async fn compute(mut tick: impl FnMut() -> wasmtime::Result<UpdateDeadline>) {
    loop {
        let until = thread_cpu_ns() + 100_000;
        while thread_cpu_ns() < until {}
        match tick() {
            Ok(UpdateDeadline::Continue(_)) => {}
            Ok(_) => tokio::task::yield_now().await,
            Err(_) => return,
        }
    }
}

/// Tests that measure CPU time would take it from each other.
static CORES: Mutex<()> = Mutex::new(());

fn cpu(weight: u64, quota: Option<Quota>) -> Arc<Guest> {
    Arc::new(Guest::new(Identity::default(), CpuLimits { weight, quota }, unlimited()))
}

/// Starts guests that compute.
fn busy(scheduler: &Scheduler, guests: &[Arc<Guest>]) {
    for guest in guests {
        scheduler.spawn(guest.clone(), compute(scheduler.tick(guest)), |_| ());
    }
}

/// CPU time of guests over the next `span`, in milliseconds, with the wall time it took.
fn used_over(span: Duration, guests: &[Arc<Guest>]) -> (Vec<f64>, f64) {
    let now = || guests.iter().map(|guest| guest.cpu_time().as_secs_f64() * 1e3).collect::<Vec<_>>();
    let (before, began) = (now(), Instant::now());
    std::thread::sleep(span);
    (now().iter().zip(&before).map(|(after, before)| after - before).collect(), began.elapsed().as_secs_f64() * 1e3)
}

fn end(scheduler: &Scheduler, guests: &[Arc<Guest>]) {
    guests.iter().for_each(|guest| guest.kill());
    scheduler.stop();
}

#[test]
fn busy_guests_share_by_their_weights() {
    let _cores = CORES.lock();
    // One worker; and all of several guests each on two, where no guest could use more than one.
    for (workers, each) in [(1, 1), (2, 4)] {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, workers);
        let guests: Vec<_> = (0..2 * each).map(|i| cpu(if i < each { 1_024 } else { 512 }, None)).collect();
        busy(&scheduler, &guests);
        let (used, _) = used_over(Duration::from_millis(1_500), &guests);
        let (heavy, light) = (used[..each].iter().sum::<f64>(), used[each..].iter().sum::<f64>());
        let ratio = heavy / light;
        assert!((1.8..=2.2).contains(&ratio), "{workers} workers: {ratio} of {used:?}");
        end(&scheduler, &guests);
    }
}

#[test]
fn a_guest_that_naps_whenever_its_slice_ends_gets_no_more_than_its_share() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let guests = [cpu(1_024, None), cpu(1_024, None)];
    busy(&scheduler, &guests[..1]);
    let napping = async {
        loop {
            let until = thread_cpu_ns() + 3_000_000;
            while thread_cpu_ns() < until {}
            tokio::time::sleep(Duration::from_micros(10)).await;
        }
    };
    scheduler.spawn(guests[1].clone(), napping, |_: GuestEnd<()>| ());
    let (used, _) = used_over(Duration::from_millis(1_500), &guests);
    assert!(used[1] < 1.2 * used[0], "{used:?}");
    end(&scheduler, &guests);
}

#[test]
fn a_start_does_not_wait_for_those_that_compute() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    // Heavy ones that slept on their account would have the least virtual time of all.
    let guests: Vec<_> = (0..8).map(|_| cpu(262_144, None)).collect();
    busy(&scheduler, &guests);
    std::thread::sleep(Duration::from_millis(200));
    let mut waits: Vec<_> = (0..20)
        .map(|_| {
            let (send, ends) = mpsc::channel();
            let began = Instant::now();
            scheduler.spawn(cpu(2, None), async {}, move |_| send.send(began.elapsed()).unwrap());
            ends.recv_timeout(SOON).unwrap()
        })
        .collect();
    waits.sort_unstable();
    // The guests here look up every 0.1 ms.
    assert!(waits[waits.len() / 2] < Duration::from_millis(5), "{waits:?}");
    end(&scheduler, &guests);
}

const TENTH: Option<Quota> = Some(Quota { budget_ns: 10_000_000, period_ns: 100_000_000 });

#[test]
fn a_quota_of_a_tenth_of_a_core_is_kept() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 2);
    let guests: Vec<_> = (0..3).map(|_| cpu(1_024, TENTH)).collect();
    busy(&scheduler, &guests);
    let (used, took) = used_over(Duration::from_secs(2), &guests);
    for (guest, used) in guests.iter().zip(used) {
        let throttling = guest.throttling();
        // Never more than its tenth, one period's budget at either end aside. In each period that ended
        // with a wait it had all of it; a machine with much else to do leaves it fewer of them.
        assert!(used <= 0.11 * took, "{used} ms in {took}");
        assert!(used >= 0.9 * 10.0 * (throttling.throttled_periods - 1) as f64, "{used} ms, {throttling:?}");
        assert!(throttling.throttled_periods >= 3 && throttling.periods >= throttling.throttled_periods);
        assert!(throttling.throttled_ns > 100_000_000, "{throttling:?}");
    }
    assert!(scheduler.shared.metrics.scheduler.throttled.get() >= 9);
    // The limit goes, and with it the waits.
    guests[0].set_cpu(CpuLimits::default());
    let (before, deadline) = (guests[0].throttling().throttled_periods, Instant::now() + SOON);
    while used_over(Duration::from_millis(100), &guests).0[0] < 15.0 {
        assert!(Instant::now() < deadline, "it gets no more than before");
    }
    assert_eq!(guests[0].throttling().throttled_periods, before);
    end(&scheduler, &guests);
}

#[test]
fn guests_that_wait_for_their_budget_cost_nothing() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let quota = Some(Quota { budget_ns: 1_000_000, period_ns: 1_000_000_000 });
    let guests: Vec<_> = (0..200).map(|_| cpu(1_024, quota)).collect();
    busy(&scheduler, &guests);
    let deadline = Instant::now() + SOON;
    while guests.iter().any(|guest| guest.throttling().throttled_periods == 0) {
        assert!(Instant::now() < deadline, "they never used up their budgets");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(scheduler.shared.queue.waiting(), 0);
    assert_eq!(scheduler.shared.polling.load(Ordering::SeqCst), 0);
    // Killed ones do not wait for their periods.
    let began = Instant::now();
    end(&scheduler, &guests);
    assert!(began.elapsed() < Duration::from_millis(900));
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let guests = [cpu(1_024, None)];
    busy(&scheduler, &guests);
    let guest = &guests[0];
    let ran = |than: Duration| {
        let deadline = Instant::now() + SOON;
        while guest.cpu_time() <= than {
            assert!(Instant::now() < deadline, "it does not run");
            std::thread::yield_now();
        }
    };
    ran(Duration::ZERO);
    guest.pause();
    while scheduler.shared.polling.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    let stopped = guest.cpu_time();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.cpu_time(), stopped);
    guest.resume();
    ran(stopped);
    guest.pause();
    let (send, ends) = mpsc::channel();
    let waiting = cpu(1_024, None);
    waiting.pause();
    scheduler.spawn(waiting.clone(), async {}, move |end| send.send(matches!(end, GuestEnd::Killed)).unwrap());
    waiting.kill();
    assert!(ends.recv_timeout(SOON).unwrap(), "a kill ends a paused guest");
    end(&scheduler, &guests);
}

mod identities {
    //! With real files; as root, like the daemon.

    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::path::{Path, PathBuf};

    use rustix::thread::CapabilitySet;

    use super::*;
    use hearth_base::bundle::{Capabilities, User};
    use hearth_os::credentials::{self, Credentials};
    use hearth_os::netns::NetNs;

    fn user(uid: u32, gid: u32, groups: &[u32], umask: Option<u32>) -> User {
        let effective = hearth_os::credentials::OF_GUESTS;
        let capabilities = Capabilities { effective, ..Capabilities::default() };
        User { uid, gid, groups: groups.into(), umask, capabilities }
    }

    fn guest(user: &User, network: Option<Arc<NetNs>>) -> Arc<Guest> {
        Arc::new(Guest::new(Identity::new(user, network).unwrap(), CpuLimits::default(), unlimited()))
    }

    /// Runs `job` as a guest of this user.
    fn run<T: Send + 'static>(
        scheduler: &Scheduler,
        guest: &Arc<Guest>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (send, ends) = mpsc::channel();
        let of = guest.clone();
        let future = async move {
            of.act_as_itself().unwrap();
            // What comes in a later poll is the guest's as well.
            tokio::task::yield_now().await;
            job()
        };
        scheduler.spawn(guest.clone(), future, move |end| {
            assert_eq!(who(), DAEMON, "the end is told by the daemon");
            send.send(end).unwrap();
        });
        match ends.recv_timeout(SOON).unwrap() {
            GuestEnd::Completed(done) => done,
            GuestEnd::Killed => panic!("killed"),
            GuestEnd::Panicked(text) => panic!("{text}"),
        }
    }

    const DAEMON: (u32, u32) = (0, 0);

    /// User and group that the kernel would give a file of this thread's.
    fn who() -> (u32, u32) {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let last = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        (last("Uid:"), last("Gid:"))
    }

    /// Files of root's, of 1000's and of group 3000's, in a directory all may write to.
    fn files() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        for (name, uid, gid, mode) in [("root", 0, 0, 0o600), ("own", 1_000, 0, 0o600), ("shared", 0, 3_000, 0o660)] {
            fs::write(path.join(name), name).unwrap();
            chown(path.join(name), Some(uid), Some(gid)).unwrap();
            fs::set_permissions(path.join(name), Permissions::from_mode(mode)).unwrap();
        }
        (dir, path)
    }

    fn readable(dir: &Path) -> Vec<&'static str> {
        ["root", "own", "shared"].into_iter().filter(|name| fs::read(dir.join(name)).is_ok()).collect()
    }

    #[test]
    fn a_guest_has_its_users_rights_to_files_and_the_daemon_keeps_its_own() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (_dir, dir) = files();
        type Owner = (u32, u32, u32);
        let cases: [(User, &[&str], Owner); 4] = [
            (user(0, 0, &[1, 2], None), &["root", "own", "shared"], (0, 0, 0o644)),
            (user(1_000, 1_000, &[], None), &["own"], (1_000, 1_000, 0o644)),
            (user(1_000, 100, &[3_000], Some(0o77)), &["own", "shared"], (1_000, 100, 0o600)),
            (user(2_000, 3_000, &[], Some(0o2)), &["shared"], (2_000, 3_000, 0o664)),
        ];
        for (i, (user, want, owner)) in cases.into_iter().enumerate() {
            let (dir, new) = (dir.clone(), dir.join(format!("new-{i}")));
            let path = new.clone();
            let can_read = run(&scheduler, &guest(&user, None), move || {
                fs::write(&path, "").unwrap();
                readable(&dir)
            });
            assert_eq!(can_read, want, "{user:?}");
            let made = fs::metadata(new).unwrap();
            assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), owner, "{user:?}");
        }
        scheduler.stop();
    }

    #[test]
    fn what_a_guest_holds_is_dropped_as_the_guest_and_a_panic_leaves_nothing_on() {
        struct Tells(mpsc::Sender<(u32, u32)>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.send(who()).unwrap();
            }
        }
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, dropped_by) = mpsc::channel();
        let user = user(1_000, 1_001, &[], None);
        for panics in [false, true] {
            let (guest, ended) = (guest(&user, None), mpsc::channel());
            let (of, held) = (guest.clone(), Tells(send.clone()));
            let future = async move {
                of.act_as_itself().unwrap();
                let _held = held;
                assert!(!panics, "as asked");
                std::future::pending::<()>().await;
            };
            scheduler.spawn(guest.clone(), future, move |_| ended.0.send(who()).unwrap());
            if !panics {
                guest.kill();
            }
            assert_eq!(ended.1.recv_timeout(SOON).unwrap(), DAEMON);
            let by = dropped_by.recv_timeout(SOON).unwrap();
            // Killed before its first poll it had not begun to act.
            assert!(by == (1_000, 1_001) || (!panics && by == DAEMON), "{by:?}");
        }
        scheduler.stop();
    }

    #[test]
    fn a_thread_that_a_poll_starts_is_the_daemons() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let namespace = other_network();
        let theirs = namespace.clone();
        let guest = guest(&user(1_000, 1_000, &[3_000], Some(0o77)), Some(namespace));
        let (send, ends) = mpsc::channel();
        let of = guest.clone();
        let future = async move {
            of.act_as_itself().unwrap();
            assert_eq!((who().0, NetNs::of_this_thread().unwrap() == *theirs), (1_000, true));
            // The first job of this runtime: its thread is started here.
            let job = || (who(), NetNs::of_this_thread().unwrap(), rights());
            let (blocking, network, rights) = tokio::task::spawn_blocking(job).await.unwrap();
            let here = (who(), NetNs::of_this_thread().unwrap() == *theirs);
            (blocking, network != *theirs, rights, here)
        };
        scheduler.spawn(guest, future, move |end| send.send(end).unwrap());
        let GuestEnd::Completed((blocking, at_home, theirs, here)) = ends.recv_timeout(SOON).unwrap() else {
            panic!("it did not end by itself");
        };
        assert_eq!((blocking, at_home), (DAEMON, true));
        let home = std::thread::spawn(|| {
            credentials::own_umask().unwrap();
            rights()
        });
        assert_eq!(theirs, home.join().unwrap(), "with its groups, umask and capabilities");
        assert_eq!(here, ((1_000, 1_000), true), "the guest's own thread has stayed what it was");
        scheduler.stop();
    }

    /// All that a thread may do to files, and its capabilities.
    fn rights() -> (Credentials, CapabilitySet) {
        (Credentials::of_this_thread().unwrap(), credentials::capabilities().unwrap().effective)
    }

    #[test]
    fn a_guest_has_the_capabilities_of_its_container_and_no_others() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let all = credentials::OF_GUESTS;
        let some = CapabilitySet::FOWNER | CapabilitySet::NET_BIND_SERVICE;
        let none = CapabilitySet::empty();
        let (_dir, dir) = files();
        // Each before and after others on the same worker.
        for (uid, effective, ambient, want) in [
            (0, all, none, all),
            (1_000, all, none, none),
            (0, none, none, none),
            (0, all, none, all),
            (0, some, none, some),
            (1_000, none, some, some),
            (1_000, none, all, all),
            (0, none, all, none),
            (0, all, none, all),
        ] {
            let capabilities = Capabilities { effective, ambient };
            let user = User { uid, gid: uid, groups: Vec::new(), umask: None, capabilities };
            let dir = dir.clone();
            let (now, files) = run(&scheduler, &guest(&user, None), move || {
                (credentials::capabilities().unwrap().effective, readable(&dir))
            });
            assert_eq!(now, want | credentials::TO_CHANGE, "{user:?}");
            let readable: &[&str] = match (uid, want == all) {
                (_, true) => &["root", "own", "shared"],
                (0, false) => &["root", "shared"],
                _ => &["own"],
            };
            assert_eq!(files, readable, "{user:?}");
        }
        scheduler.stop();
    }

    /// A network namespace that lives as long as this.
    fn other_network() -> Arc<NetNs> {
        #[allow(unsafe_code, reason = "unshare(2) of a namespace")]
        // SAFETY: the table of descriptors stays shared.
        let make = || unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
        std::thread::spawn(move || {
            make().unwrap();
            Arc::new(NetNs::of_this_thread().unwrap())
        })
        .join()
        .unwrap()
    }

    #[test]
    fn guests_of_many_identities_on_the_same_workers_never_mix() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 2);
        let networks: Vec<_> = (0..2).map(|_| other_network()).collect();
        let home = Arc::new(NetNs::of_this_thread().unwrap());
        let (send, ends) = mpsc::channel();
        const GUESTS: u32 = 40;
        for i in 0..GUESTS {
            let network = networks.get(i as usize % 3).cloned();
            let expected_network = network.clone().unwrap_or_else(|| home.clone());
            // Every fifth is root; some share a user but not a network, and the other way round.
            let id = if i % 5 == 0 { 0 } else { 1_000 + i % 7 };
            let guest = guest(&user(id, id, &[3_000 + i % 2], None), network);
            let (of, send) = (guest.clone(), send.clone());
            let future = async move {
                assert_eq!(who(), DAEMON);
                of.act_as_itself().unwrap();
                for round in 0..50u32 {
                    assert_eq!(who(), (id, id), "guest {i} in round {round}");
                    assert_eq!(NetNs::of_this_thread().unwrap(), *expected_network);
                    if round % 10 == i % 10 {
                        of.act_as_daemon();
                        assert_eq!(who(), DAEMON);
                        tokio::task::yield_now().await;
                        assert_eq!(who(), DAEMON);
                        of.act_as_itself().unwrap();
                    } else if round % 3 == 0 {
                        tokio::time::sleep(Duration::from_micros(u64::from(i))).await;
                    } else {
                        tokio::task::yield_now().await;
                    }
                }
            };
            scheduler.spawn(guest, future, move |end| send.send((who(), format!("{end:?}"))).unwrap());
        }
        for _ in 0..GUESTS {
            assert_eq!(ends.recv_timeout(SOON).unwrap(), (DAEMON, "Completed(())".to_string()));
        }
        scheduler.stop();
    }

    #[test]
    fn an_identity_that_the_kernel_refuses_ends_the_guest_and_spares_the_worker() {
        let runtime = runtime();
        let scheduler = scheduler(&runtime, 1);
        let (send, ends) = mpsc::channel();
        let impossible = Arc::new(Guest::new(Identity::impossible(), CpuLimits::default(), unlimited()));
        for careful in [true, false] {
            let (of, send) = (impossible.clone(), send.clone());
            let future = async move {
                let refused = of.act_as_itself().unwrap_err();
                assert_eq!(who(), DAEMON);
                if careful {
                    return refused.to_string();
                }
                tokio::task::yield_now().await;
                "it acted all the same".to_string()
            };
            scheduler.spawn(impossible.clone(), future, move |end| send.send(format!("{end:?}")).unwrap());
            let end = ends.recv_timeout(SOON).unwrap();
            assert!(end.contains("the kernel refuses user"), "{end}");
        }
        assert_eq!(run(&scheduler, &guest(&user(5, 6, &[], None), None), who), (5, 6));
        assert_eq!(run(&scheduler, &Arc::default(), who), DAEMON);
        scheduler.stop();
    }
}

#[test]
fn a_ticker_that_sleeps_is_seen_to_live_and_one_that_is_gone_is_not() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    for _ in 0..3 {
        // Long enough for it to fall asleep, since there is no guest.
        std::thread::sleep(Duration::from_millis(30));
        runtime.block_on(async { tokio::time::timeout(SOON, scheduler.ticked()).await }).expect("it lives");
    }
    scheduler.stop();
    let soon = Duration::from_millis(100);
    runtime.block_on(async { tokio::time::timeout(soon, scheduler.ticked()).await }).expect_err("it is gone");
}
