//! The access log of a service, which its environment asks for: a line for each request, at the response's end, in the
//! container's standard output.
//!
//! * `combined`: the form that web servers have by that name.
//! * `json`: one object a line, also with the parts of the request's time and the id of its trace.
//!
//! A client chooses most of a line, and how many there are. So each field has a bound and is escaped, and lines beyond
//! `http.access_log_lines_max` in a second, or beyond the room in the container's stdout, are left out and counted.

use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use parking_lot::Mutex;
use serde_json::json;

use crate::exchange::Summary;
use crate::request::Client;
use crate::service::Service;
use hearth_base::env::last;
use hearth_base::error::{Error, Result};
use hearth_base::rate::{Admission, Rate};
use hearth_observe::metrics::REQUEST_PHASES;

/// The environment variable that asks for the log.
pub const FORMAT: &str = "HEARTH_HTTP_ACCESS_LOG";

/// The longest path and query in a line, in bytes before they are escaped.
const PATH_BYTES_MAX: usize = 2_048;

/// The longest of any other field, in bytes before it is escaped.
const FIELD_BYTES_MAX: usize = 512;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Combined,
    Json,
}

/// The access log of one container.
#[derive(Debug)]
pub struct AccessLog {
    format: Format,
    written: Mutex<Written>,
}

#[derive(Debug, Default)]
struct Written {
    rate: Rate,
    /// Lines that found no room in the container's stdout, since that was last told.
    without_room: u64,
}

/// The fields of a line that come from the request's head.
#[derive(Debug)]
pub struct Entry {
    from: Option<IpAddr>,
    is_secure: bool,
    method: String,
    path: String,
    protocol: &'static str,
    host: Option<String>,
    referer: Option<String>,
    user_agent: Option<String>,
}

impl AccessLog {
    /// As the environment asks for it; none if it does not.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable.
    pub fn of(env: &[(String, String)]) -> Result<Option<AccessLog>> {
        let format = match last(env, FORMAT).map(str::trim) {
            None | Some("" | "off") => return Ok(None),
            Some("combined") => Format::Combined,
            Some("json") => Format::Json,
            Some(value) => {
                return Err(Error::InvalidArgument(format!(
                    "{FORMAT}={value:?} is not \"combined\", \"json\" or \"off\""
                )));
            }
        };
        Ok(Some(AccessLog { format, written: Mutex::default() }))
    }

    /// Writes the line of a request that has come to its end.
    pub fn write(&self, service: &Service, entry: &Entry, summary: &Summary) {
        // In a statement of its own: the lock is released before anything is written.
        let admission = self.written.lock().rate.admit(service.http.access_log_lines_max(), Instant::now());
        let Admission::Admitted { left_out } = admission else { return };
        let now = SystemTime::now();
        let line = match self.format {
            Format::Combined => entry.combined(summary, now),
            Format::Json => entry.json(summary, now),
        };
        let has_room = service.container.stdio.write_stdout_line(line);
        let left_out = {
            let mut written = self.written.lock();
            written.without_room += left_out + u64::from(!has_room);
            if has_room { std::mem::take(&mut written.without_room) } else { 0 }
        };
        if left_out > 0 {
            service.notes.write(&service.container.stdio, &format!("{left_out} lines of the access log were left out"));
        }
    }
}

/// The first part of a text, of so many bytes.
fn bounded(text: &[u8], bytes_max: usize) -> String {
    String::from_utf8_lossy(&text[..text.len().min(bytes_max)]).into_owned()
}

impl Entry {
    /// Of a request that has just come.
    pub fn new(client: Client, request: &Request<Incoming>) -> Entry {
        let field =
            |name: HeaderName| request.headers().get(name).map(|value| bounded(value.as_bytes(), FIELD_BYTES_MAX));
        let authority =
            || request.uri().authority().map(|authority| bounded(authority.as_str().as_bytes(), FIELD_BYTES_MAX));
        let path = request.uri().path_and_query().map_or("*", |path| path.as_str());
        Entry {
            from: client.address.map(|address| address.ip().to_canonical()),
            is_secure: client.secure,
            method: bounded(request.method().as_str().as_bytes(), FIELD_BYTES_MAX),
            path: bounded(path.as_bytes(), PATH_BYTES_MAX),
            protocol: match request.version() {
                hyper::Version::HTTP_10 => "HTTP/1.0",
                hyper::Version::HTTP_11 => "HTTP/1.1",
                _ => "HTTP/2.0",
            },
            host: field(header::HOST).or_else(authority),
            referer: field(header::REFERER),
            user_agent: field(header::USER_AGENT),
        }
    }

    fn combined(&self, summary: &Summary, now: SystemTime) -> String {
        let from = self.from.map_or_else(|| "-".into(), |from| from.to_string());
        let field = |field: &Option<String>| field.as_deref().map_or_else(|| "-".into(), escaped);
        let (method, path, protocol) = (escaped(&self.method), escaped(&self.path), self.protocol);
        format!(
            "{from} - - [{}] \"{method} {path} {protocol}\" {} {} \"{}\" \"{}\"\n",
            clock(now),
            summary.status,
            summary.sent,
            field(&self.referer),
            field(&self.user_agent),
        )
    }

    fn json(&self, summary: &Summary, now: SystemTime) -> String {
        let mut line = json!({
            "time": humantime::format_rfc3339_micros(now).to_string(),
            "remote_addr": self.from.map(|from| from.to_string()),
            "method": self.method,
            "path": self.path,
            "protocol": self.protocol,
            "host": self.host,
            "tls": self.is_secure,
            "status": summary.status,
            "bytes": summary.sent,
            "whole": summary.is_whole,
            "seconds": summary.took.as_secs_f64(),
            "trace_id": summary.trace.map(|id| format!("{id:032x}")),
            "referer": self.referer,
            "user_agent": self.user_agent,
        });
        for (name, took) in REQUEST_PHASES.iter().zip(summary.phases) {
            line[format!("{name}_seconds")] = took.map(|took| took.as_secs_f64()).into();
        }
        format!("{}\n", harmless(&line.to_string()))
    }
}

/// JSON whose texts have no character that a terminal obeys: JSON itself escapes only those of ASCII.
fn harmless(json: &str) -> String {
    let is_obeyed = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match is_obeyed(c) {
            true => out += &format!("\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out
}

/// A field between quotes: neither it nor a line ends early, and a terminal obeys none of its characters.
fn escaped(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    for byte in field.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out += &format!("\\x{byte:02x}"),
        }
    }
    out
}

/// The time as logs of web servers have it, in UTC: `10/Oct/2000:13:55:36 +0000`.
fn clock(now: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // `2000-10-10T13:55:36Z`
    let text = humantime::format_rfc3339_seconds(now).to_string();
    let (date, time) = text.trim_end_matches('Z').split_once('T').unwrap_or_default();
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next(), parts.next(), parts.next());
    let month = month.and_then(|month| MONTHS.get(month.parse::<usize>().ok()?.checked_sub(1)?));
    format!("{}/{}/{}:{time} +0000", day.unwrap_or_default(), month.unwrap_or(&"-"), year.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn entry() -> Entry {
        Entry {
            from: Some([10, 0, 0, 7].into()),
            is_secure: true,
            method: "GET".into(),
            path: "/a?b=\"c".into(),
            protocol: "HTTP/1.1",
            host: Some("here".into()),
            referer: None,
            user_agent: Some("cu\"rl\\\n\u{1b}[2Jé".into()),
        }
    }

    fn summary() -> Summary {
        let ms = Duration::from_millis(1);
        let phases = [Some(ms), Some(2 * ms), Some(3 * ms), None];
        Summary { status: 200, sent: 2_326, is_whole: true, took: 6 * ms, phases, trace: Some(0xabc) }
    }

    #[test]
    fn a_line_is_one_line_whatever_its_client_sends() {
        let at = UNIX_EPOCH + Duration::from_secs(971_186_136);
        assert_eq!(
            entry().combined(&summary(), at),
            "10.0.0.7 - - [10/Oct/2000:13:55:36 +0000] \"GET /a?b=\\\"c HTTP/1.1\" 200 2326 \"-\" \
             \"cu\\\"rl\\\\\\x0a\\x1b[2J\\xc3\\xa9\"\n"
        );
        let line = entry().json(&summary(), at);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&read["path"], &read["user_agent"]), (&"/a?b=\"c".into(), &"cu\"rl\\\n\u{1b}[2Jé".into()));
        assert_eq!((&read["instance_seconds"], &read["body_seconds"]), (&0.002.into(), &serde_json::Value::Null));
        assert_eq!(read["trace_id"], "00000000000000000000000000000abc");
        assert!(!line.contains('\u{1b}'), "{line}");
        let obeyed = Entry { user_agent: Some("\u{9b}2J\u{202e}".into()), ..entry() }.json(&summary(), at);
        assert!(obeyed.contains("\\u009b2J\\u202e"), "{obeyed}");
    }

    #[test]
    fn a_field_is_bounded() {
        assert_eq!(bounded(&[b'x'; 9], 4), "xxxx");
        assert_eq!(bounded("aé".as_bytes(), 2), "a\u{fffd}");
    }

    #[test]
    fn the_environment_asks_in_one_word() {
        let of = |value: &str| AccessLog::of(&[(FORMAT.into(), value.into())]);
        assert!(AccessLog::of(&[]).unwrap().is_none() && of("off").unwrap().is_none());
        assert_eq!(of("combined").unwrap().unwrap().format, Format::Combined);
        assert_eq!(of(" json ").unwrap().unwrap().format, Format::Json);
        let error = of("xml").unwrap_err().to_string();
        assert!(error.contains("HEARTH_HTTP_ACCESS_LOG=\"xml\""), "{error}");
    }
}
