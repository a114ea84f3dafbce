use std::time::Duration;

use hearth_base::rate::WINDOW;

use super::kept::KEPT_BYTES_MAX;
use super::rates::{CONTAINER_LINES_LEAST, CONTAINER_LINES_MAX, NODE_LINES_MAX};
use super::*;

/// Lines that a test reads.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<(Vec<Line>, u64)>>);

impl LineSink for Written {
    fn write(&self, line: &Line) {
        self.0.lock().0.push(line.clone());
    }

    fn left_out(&self) {
        self.0.lock().1 += 1;
    }
}

/// The lines written for the events of `act`.
fn written(act: impl FnOnce()) -> (Vec<Line>, u64) {
    let sink = Written::default();
    let subscriber = Registry::default().with(Rated::new(sink.clone()));
    tracing::subscriber::with_default(subscriber, act);
    std::mem::take(&mut *sink.0.lock())
}

fn kept(max: usize, act: impl FnOnce()) -> Vec<LogLine> {
    let kept = Kept::new(max);
    let subscriber = Registry::default().with(Rated::new(kept.clone()));
    tracing::subscriber::with_default(subscriber, act);
    kept.lines(None, 0)
}

fn of_guest(task: &str) -> Line {
    Line::new(tracing::Level::INFO, GUEST, "trapped").with("namespace", "default").with("task", task)
}

/// How many of `lines` lines of one task are admitted, and the notices' texts.
fn admitted(rates: &mut Rates, task: &str, lines: u32, now: Instant) -> (u32, Vec<String>) {
    let (mut count, mut notices) = (0, Vec::new());
    for _ in 0..lines {
        let decision = rates.judge(&of_guest(task), now);
        notices.extend(decision.notices.iter().map(Line::text));
        count += u32::from(!decision.is_left_out);
    }
    (count, notices)
}

#[test]
fn a_container_that_triggers_many_lines_hides_neither_others_nor_warnings() {
    let (mut rates, now) = (Rates::default(), Instant::now());
    let (count, notices) = admitted(&mut rates, "loud", 200, now);
    assert_eq!(count, CONTAINER_LINES_MAX);
    assert_eq!(
        notices,
        ["a guest triggers too many lines: the rest of this second's are left out namespace=default task=loud"]
    );
    assert_eq!(admitted(&mut rates, "quiet", 3, now), (3, vec![]));
    let warning = Line::new(tracing::Level::WARN, "hearthd", "cannot accept");
    assert!((0..1_000).all(|_| !rates.judge(&warning, now).is_left_out));

    // How many were left out is told with the container's next line, or with any other's.
    let told = "lines that a guest triggered were left out namespace=default task=loud lines=180";
    let later = now + WINDOW;
    let decision = rates.judge(&warning, later);
    assert_eq!(decision.notices.iter().map(Line::text).collect::<Vec<_>>(), [told]);
    assert_eq!(admitted(&mut rates, "loud", 1, later), (1, vec![]));
}

#[test]
fn of_a_crowd_of_loud_containers_each_still_has_its_lines() {
    let (mut rates, now) = (Rates::default(), Instant::now());
    let crowd: Vec<_> = (0..100).map(|number| admitted(&mut rates, &format!("task-{number}"), 50, now).0).collect();
    assert!(crowd.iter().sum::<u32>() <= NODE_LINES_MAX + 100 * CONTAINER_LINES_LEAST, "{crowd:?}");
    assert!(crowd.iter().all(|&lines| lines >= CONTAINER_LINES_LEAST), "{crowd:?}");
    assert_eq!(admitted(&mut rates, "another", 1, now + WINDOW / 2).0, 1);
}

#[test]
fn counts_of_containers_that_are_gone_are_forgotten() {
    let (mut rates, mut now) = (Rates::default(), Instant::now());
    for round in 0..20 {
        for number in 0..5_000 {
            rates.judge(&of_guest(&format!("{round}-{number}")), now);
        }
        assert!(rates.len() <= 4_097, "{}", rates.len());
        now += WINDOW + Duration::from_millis(1);
    }
    rates.judge(&of_guest("last"), now);
    assert_eq!(rates.len(), 1);
}

#[test]
fn the_rate_is_by_container_and_not_by_the_place_in_the_source() {
    let (lines, left_out) = written(|| {
        for task in ["a", "b"] {
            for _ in 0..100 {
                tracing::info!(target: GUEST, namespace = "default", task, "trapped");
            }
        }
    });
    let of = |task| lines.iter().filter(|line| line.field("task") == Some(task)).count();
    // Each has its lines and the notice that there are more.
    assert_eq!((of("a"), of("b"), left_out), (21, 21, 160));
}

#[test]
fn a_guests_text_is_one_bounded_line_in_every_format() {
    let text = format!("trap\n\x1b[2J\u{9b}\"{}", "x".repeat(1_980_000));
    let (lines, _) = written(|| tracing::info!(target: GUEST, task = "a", text, error = %text, code = 7, "ended"));
    let line = &lines[0];
    for written in [line.human(false), line.json(), line.text() + "\n"] {
        assert!(written.len() < 5_000, "{} bytes", written.len());
        assert!(!written.trim_end_matches('\n').contains(|c: char| c.is_control()), "{written}");
        assert!(written.contains("(1980012 bytes)") && written.contains("u{1b}[2J"), "{written}");
    }
    assert!(line.human(false).contains(" INFO hearthd::guest: ended task=\"a\" text=\"trap\\n\\u{1b}"), "{line:?}");
    let json = line.json();
    assert!(json.starts_with("{\"timestamp\":\"") && json.ends_with("\"code\":7,\"target\":\"hearthd::guest\"}\n"));
    assert!(json.contains(",\"level\":\"INFO\",\"message\":\"ended\",\"task\":\"a\",\"text\":\"trap\\\\n\\\\u{1b}[2J"));
    assert!(line.human(true).starts_with("\x1b[2m"), "a terminal has colours");
}

#[test]
fn the_last_lines_are_kept_with_their_tasks() {
    let lines = kept(3, || {
        tracing::info!(task = "a", "first");
        tracing::info!(task = %"b", code = 7, "second");
        tracing::debug!("third");
        tracing::warn!(task = "a", reason = "é".repeat(KEPT_BYTES_MAX), "fourth");
    });
    let seen: Vec<_> = lines.iter().map(|line| (line.number, line.task.as_deref(), line.level.as_str())).collect();
    assert_eq!(seen, [(2, Some("b"), "info"), (3, None, "debug"), (4, Some("a"), "warn")]);
    assert_eq!(lines[0].text, "second task=b code=7");
    assert!(lines[2].text.len() <= KEPT_BYTES_MAX);
}

#[test]
fn lines_about_tasks_do_not_push_out_the_daemons_warnings() {
    let lines = kept(10, || {
        tracing::warn!("a disk is full");
        for number in 0..1_000 {
            tracing::debug!(task = %number, "started");
            tracing::info!(target: GUEST, task = "a", "trapped");
        }
    });
    assert_eq!((lines.len(), lines[0].text.as_str()), (10, "a disk is full"));
    assert!(lines.is_sorted_by_key(|line| line.number));
    // Warnings alone do not take it all.
    let lines = kept(10, || {
        tracing::info!("one");
        (0..100).for_each(|_| tracing::error!("many"));
        (0..100).for_each(|_| tracing::info!("more"));
    });
    assert_eq!(lines.iter().filter(|line| line.text == "more").count(), 5);
    assert!(kept(0, || tracing::error!("none")).is_empty());
}

#[test]
fn the_name_of_the_daemon_stands_for_all_of_its_crates() {
    let filter = |text: &str| parse("log.level", text).unwrap().to_string();
    assert_eq!(filter("hearthd=debug"), "hearth=debug");
    assert_eq!(filter("hearthd"), filter("hearth"));
    // The target of guests' lines keeps its name.
    assert!(filter("info,hearthd::guest=warn").contains("hearthd::guest=warn"));
    assert!(parse("log.level", "hearthd=loud").unwrap_err().contains("log.level"));
}
