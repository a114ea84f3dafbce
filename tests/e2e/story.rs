//! A story's tools: a namespace of Kubernetes of its own, kubectl in it, and requests from the node's network.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use hearth_tests::wait::polling_every;
use hearth_tests::{Ctr, SHORT};
use serde_json::Value;

use crate::cluster::{Cluster, DEADLINE, NODE, condition};

/// How long a server may take to answer, or to take a connection.
const ANSWER: Duration = Duration::from_secs(10);

/// A story under way.
#[derive(Debug)]
pub struct Story<'a> {
    /// The cluster of the story.
    pub cluster: &'a mut Cluster,
    namespace: String,
    /// Its measurements: lines below the report's table.
    pub notes: Vec<String>,
}

impl<'a> Story<'a> {
    /// Begins in a new namespace.
    ///
    /// # Panics
    /// If there is none with a service account in time.
    pub fn begin(cluster: &'a mut Cluster, name: &str) -> Self {
        let story = Self { cluster, namespace: namespace(name), notes: Vec::new() };
        story.cluster.kubectl(["create", "namespace", &story.namespace]).ok();
        // Without it no pod is admitted.
        story.cluster.wait("the namespace has its service account", || story.get(&["serviceaccount", "default"]));
        story
    }

    /// Prints a measurement at once, and again below the report's table.
    pub fn note(&mut self, line: impl Into<String>) {
        let line = line.into();
        println!("    {line}");
        self.notes.push(line);
    }

    /// The story's namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// kubectl in the story's namespace.
    pub fn kubectl<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> Ctr<'_> {
        let namespace = ["--namespace".to_owned(), self.namespace.clone()];
        self.cluster.kubectl(namespace.into_iter().chain(arguments.into_iter().map(Into::into)))
    }

    /// kubectl's stdout; the call must succeed.
    #[track_caller]
    pub fn said<S: Into<String>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.kubectl(arguments).ok().stdout()
    }

    /// `kubectl apply -f -`.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.kubectl(["apply", "-f", "-"]).stdin(manifest).ok();
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Option<Value> {
        self.cluster.get(&[&["--namespace", &self.namespace], arguments].concat())
    }

    /// As [`Self::get`], for an object that must exist.
    #[track_caller]
    pub fn known(&self, arguments: &[&str]) -> Value {
        self.get(arguments).unwrap_or_else(|| panic!("there is no {}", arguments.join(" ")))
    }

    /// Polls until there is a value.
    #[track_caller]
    pub fn wait<T>(&self, description: &str, condition: impl FnMut() -> Option<T>) -> T {
        self.cluster.wait(description, condition)
    }

    /// Waits until pods are Ready: `pod/NAME`, or `--selector=…`.
    #[track_caller]
    pub fn wait_ready(&self, pods: &str) {
        let which = if pods.starts_with("--") { vec!["pod", pods] } else { vec![pods] };
        self.kubectl([&["wait", "--for=condition=Ready", "--timeout=280s"][..], &which].concat()).ok();
    }

    /// Waits until a pod is in this phase, and gives it.
    #[track_caller]
    pub fn wait_phase(&self, pod: &str, phase: &str) -> Value {
        let mut last = Value::Null;
        let found = polling_every(Duration::from_millis(250), DEADLINE, || {
            last = self.get(&["pod", pod])?;
            (last.pointer("/status/phase")? == phase).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("pod {pod} is not {phase}: {:#}", last["status"]))
    }

    /// Waits until kubectl's output contains `text`, and returns all of it.
    #[track_caller]
    pub fn wait_said(&self, arguments: &[&str], text: &str) -> String {
        let mut last = String::new();
        let found = polling_every(Duration::from_millis(500), DEADLINE, || {
            let output = self.kubectl(arguments.iter().copied()).run();
            last = output.stdout() + &output.stderr();
            last.contains(text).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("`kubectl {}` does not say {text:?}, but:\n{last}", arguments.join(" ")))
    }

    /// The address of a pod.
    #[track_caller]
    pub fn address(&self, pod: &str) -> String {
        self.wait("the pod has an address", || {
            Some(self.get(&["pod", pod])?.pointer("/status/podIP")?.as_str()?.to_owned())
        })
    }

    /// The address of a service.
    #[track_caller]
    pub fn service(&self, name: &str) -> String {
        let service = self.known(&["service", name]);
        service.pointer("/spec/clusterIP").and_then(Value::as_str).expect("the API server gives it one").to_owned()
    }

    /// The names of the pods of a label that are not being deleted.
    pub fn pods(&self, selector: &str) -> Vec<String> {
        let pods = self.known(&["pods", "--selector", selector]);
        let alive = |pod: &&Value| pod.pointer("/metadata/deletionTimestamp").is_none();
        let name = |pod: &Value| Some(pod.pointer("/metadata/name")?.as_str()?.to_owned());
        items(&pods).filter(alive).filter_map(name).collect()
    }

    /// How many pods of a label are Ready.
    pub fn ready(&self, selector: &str) -> usize {
        self.get(&["pods", "--selector", selector]).map_or(0, |pods| {
            items(&pods).filter(|pod| condition(pod, "Ready").is_some_and(|ready| ready == "True")).count()
        })
    }

    /// GET from the node's network: the status and the body.
    ///
    /// # Errors
    /// The connection's error.
    pub fn fetch(&self, address: &str, path: &str) -> std::io::Result<(u16, String)> {
        self.cluster.node().machine().in_network(|| fetch(address, path))
    }

    /// GET until it is answered with 200 and this text.
    #[track_caller]
    pub fn wait_fetch(&self, address: &str, path: &str, text: &str) {
        let mut last = String::new();
        let found = polling_every(Duration::from_millis(100), DEADLINE, || {
            let answer = self.fetch(address, path);
            last = format!("{answer:?}");
            answer.is_ok_and(|(status, body)| status == 200 && body.contains(text)).then_some(())
        });
        assert!(found.is_some(), "http://{address}{path} does not answer with {text:?}, but: {last}");
    }
}

/// Ends a story, whether it passed or failed: deletes its namespace with all objects, and uncordons the node.
pub fn end(cluster: &Cluster, name: &str) {
    cluster.kubectl(["uncordon", NODE]).run();
    cluster.kubectl(["delete", "namespace", &namespace(name), "--wait=false"]).run();
}

/// The namespace of a story: a name of at most 63 characters, of which none is an underscore.
fn namespace(story: &str) -> String {
    let mut namespace = story.replace("::", "-").replace('_', "-");
    namespace.truncate(50);
    namespace.trim_end_matches('-').to_owned()
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// The status of a container of a pod: an ordinary, init or ephemeral one.
pub fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .filter_map(|kind| pod["status"][kind].as_array())
        .flatten()
        .find(|status| status["name"] == name)
}

/// Checks that kubectl's text has each of these lines, however it aligns them.
#[track_caller]
pub fn assert_shows(text: &str, lines: &[&str]) {
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in lines {
        assert!(squeezed.contains(line), "no {line:?} in:\n{text}");
    }
}

/// Text at a path of an object; empty if there is none.
pub fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A number at a path of an object; 0 if there is none.
pub fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// GET without keeping the connection: the status and the body.
///
/// # Errors
/// The connection's error; also for bytes that are not an HTTP response.
pub fn fetch(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parsed = || {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Some((status, if chunked { unchunked(body) } else { body.to_owned() }))
    };
    parsed().ok_or_else(|| std::io::Error::other(format!("not an answer: {answer:?}")))
}

/// A connection. The server must accept it within [`ANSWER`].
///
/// # Errors
/// The connection's error.
pub fn connect(address: &str) -> std::io::Result<TcpStream> {
    let address = address.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address"))?;
    let stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(SHORT))?;
    Ok(stream)
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let Some(piece) = rest.get(..size).filter(|piece| !piece.is_empty()) else { break };
        text += piece;
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(unchunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
