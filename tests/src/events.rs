//! containerd's events, followed with `ctr events`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::paths;
use crate::process::Process;
use crate::wait::{SHORT, within};
use crate::world::World;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// containerd's namespace.
    pub namespace: String,
    /// E.g. `/tasks/exit`.
    pub topic: String,
    /// Its fields.
    pub fields: Value,
}

impl Event {
    /// The container it is about (`container_id`, or `id` in events of containers); empty if none.
    pub fn container(&self) -> &str {
        ["container_id", "id"].into_iter().find_map(|name| self.fields.get(name)?.as_str()).unwrap_or_default()
    }

    /// The exit status of a `/tasks/exit`; 0 is left out of its JSON.
    pub fn exit_status(&self) -> u64 {
        self.fields.get("exit_status").and_then(Value::as_u64).unwrap_or(0)
    }

    fn parse(line: &str) -> Option<Self> {
        // 2026-11-22 17:03:43.25 +0000 UTC NAMESPACE TOPIC {…}
        let mut parts = line.splitn(7, ' ').skip(4);
        Some(Self {
            namespace: parts.next()?.to_owned(),
            topic: parts.next()?.to_owned(),
            fields: serde_json::from_str(parts.next()?).ok()?,
        })
    }
}

#[derive(Debug, Default)]
struct Seen {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

/// The events since it was made. When containerd ends, no more come.
#[derive(Debug)]
pub struct Events<'a> {
    // Held to be dropped, which kills `ctr events`.
    _process: Process,
    seen: Arc<Seen>,
    world: &'a World,
}

impl<'a> Events<'a> {
    /// Follows the events and returns when the first has come through.
    pub(crate) fn follow(world: &'a World) -> Self {
        let mut command = world.machine().command(paths::containerd("ctr"));
        command.arg("--address").arg(world.layout().containerd_socket()).arg("events").stdout(Stdio::piped());
        let mut process = Process::start("ctr events", &mut command);
        let stdout = process.child().stdout.take().expect("stdout is a pipe");
        let seen = Arc::new(Seen::default());
        let writer = Arc::clone(&seen);
        std::thread::spawn(move || {
            for event in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(event) = Event::parse(&event) {
                    writer.events.lock().expect("never poisoned").push(event);
                    writer.more.notify_all();
                }
            }
        });
        let events = Self { _process: process, seen, world };
        events.wait_until_subscribed();
        events
    }

    /// `ctr events` does not say when it is subscribed: label a namespace until that comes through.
    fn wait_until_subscribed(&self) {
        let mut probe = 0;
        let subscribed = within(SHORT, || {
            probe += 1;
            let name = format!("probe-{probe}");
            self.world.ctr(["namespaces", "create", &name]).ok();
            self.world.ctr(["namespaces", "remove", &name]).ok();
            self.wait(Duration::from_millis(50), |event| event.topic.starts_with("/namespaces/"))
        });
        assert!(subscribed.is_some(), "`ctr events` shows nothing");
    }

    /// Waits for an event; one that was seen before counts, too.
    ///
    /// # Panics
    /// With `description` and all events if it has not come within [`SHORT`].
    #[track_caller]
    pub fn wait_for(&self, description: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.wait(SHORT, matches)
            .unwrap_or_else(|| panic!("no event: {description}; the events are: {:#?}", self.all()))
    }

    /// Waits for the event of this topic about this container.
    #[track_caller]
    pub fn wait_for_topic(&self, topic: &str, container: &str) -> Event {
        self.wait_for(&format!("{topic} of {container}"), |event| {
            event.topic == topic && event.container() == container
        })
    }

    /// All events seen so far.
    pub fn all(&self) -> Vec<Event> {
        self.seen.events.lock().expect("never poisoned").clone()
    }

    /// The topics under `/tasks/` seen so far about one container, in their order.
    pub fn task_topics(&self, container: &str) -> Vec<String> {
        self.all()
            .into_iter()
            .filter(|event| event.topic.starts_with("/tasks/") && event.container() == container)
            .map(|event| event.topic)
            .collect()
    }

    fn wait(&self, deadline: Duration, matches: impl Fn(&Event) -> bool) -> Option<Event> {
        let end = Instant::now() + deadline;
        let mut events = self.seen.events.lock().expect("never poisoned");
        loop {
            if let Some(event) = events.iter().find(|event| matches(event)) {
                return Some(event.clone());
            }
            let left = end.checked_duration_since(Instant::now())?;
            events = self.seen.more.wait_timeout(events, left).expect("never poisoned").0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ctr_events_is_parsed() {
        let line = r#"2026-11-22 17:03:43.254399178 +0000 UTC stories /tasks/exit {"container_id":"a","id":"a","pid":7,"exit_status":137}"#;
        let event = Event::parse(line).expect("a well-formed line");
        assert_eq!((event.namespace.as_str(), event.topic.as_str()), ("stories", "/tasks/exit"));
        assert_eq!((event.container(), event.exit_status()), ("a", 137));
        assert_eq!(Event::parse("some other line"), None);
    }
}
