//! One line of the log: an event with its fields, each bounded and escaped, in the three forms in which it is shown.
//!
//! A field may hold the text of a guest. tracing-subscriber's own formats write it as it is, uncut and with its line
//! feeds; so lines are written here.

use std::fmt::Write as _;

use hearth_base::text::shown;
use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::metrics::level_name;

/// The most bytes of one field that are shown.
const FIELD_BYTES_MAX: usize = 2 << 10;

/// An event, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub level: Level,
    pub target: &'static str,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// A string: quoted.
    Text(String),
    /// The text of `Display` or `Debug`: quoted in JSON only.
    Plain(String),
    /// A number or a boolean.
    Token(String),
}

impl Value {
    fn text(&self) -> &str {
        match self {
            Value::Text(text) | Value::Plain(text) | Value::Token(text) => text,
        }
    }
}

impl Line {
    pub fn of(event: &Event<'_>) -> Line {
        let metadata = event.metadata();
        let mut line = Line {
            level: *metadata.level(),
            target: metadata.target(),
            message: String::new(),
            fields: Vec::with_capacity(metadata.fields().len()),
        };
        event.record(&mut line);
        line
    }

    /// A line that no event is behind.
    pub fn new(level: Level, target: &'static str, message: &str) -> Line {
        Line { level, target, message: message.into(), fields: Vec::new() }
    }

    /// The same with one more field.
    pub fn with(mut self, name: &'static str, value: &str) -> Line {
        self.fields.push((name, Value::Text(shown(value, FIELD_BYTES_MAX).into_owned())));
        self
    }

    /// The same with one more number.
    pub fn with_count(mut self, name: &'static str, value: u64) -> Line {
        self.fields.push((name, Value::Token(value.to_string())));
        self
    }

    /// The value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.text())
    }

    /// Message and fields, for hearthctl.
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            // Writing to a string cannot fail, here and below.
            let _ = write!(text, " {name}={}", value.text());
        }
        text
    }

    /// The line as a person reads it, in colours on a terminal.
    pub fn human(&self, is_terminal: bool) -> String {
        let paint = |code: &'static str| if is_terminal { code } else { "" };
        let (dim, italic, end) = (paint("\x1b[2m"), paint("\x1b[3m"), paint("\x1b[0m"));
        let (level, colour) = match self.level {
            Level::ERROR => ("ERROR", "\x1b[31m"),
            Level::WARN => (" WARN", "\x1b[33m"),
            Level::INFO => (" INFO", "\x1b[32m"),
            Level::DEBUG => ("DEBUG", "\x1b[34m"),
            Level::TRACE => ("TRACE", "\x1b[35m"),
        };
        let mut out = format!(
            "{dim}{}{end} {}{level}{end} {dim}{}:{end} {}",
            timestamp(),
            paint(colour),
            self.target,
            self.message
        );
        for (name, value) in &self.fields {
            let _ = write!(out, " {italic}{name}{end}{dim}={end}");
            match value {
                Value::Text(text) => quote(text, false, &mut out),
                Value::Plain(text) | Value::Token(text) => out.push_str(text),
            }
        }
        out.push('\n');
        out
    }

    /// The line as one JSON object, with tracing-subscriber's keys.
    pub fn json(&self) -> String {
        let level = level_name(self.level).to_uppercase();
        let mut out = format!("{{\"timestamp\":\"{}\",\"level\":\"{level}\",\"message\":", timestamp());
        quote(&self.message, true, &mut out);
        for (name, value) in &self.fields {
            let _ = write!(out, ",\"{name}\":");
            match value {
                Value::Token(token) => out.push_str(token),
                Value::Text(text) | Value::Plain(text) => quote(text, true, &mut out),
            }
        }
        let _ = writeln!(out, ",\"target\":\"{}\"}}", self.target);
        out
    }
}

/// Now, in UTC with microseconds.
fn timestamp() -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// A text without control characters as a string in quotes; in JSON, backslashes are escaped, too.
fn quote(text: &str, json: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        if c == '"' || (json && c == '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

impl Line {
    fn add(&mut self, field: &Field, text: &str, value: fn(String) -> Value) {
        let text = shown(text, FIELD_BYTES_MAX).into_owned();
        match field.name() {
            "message" => self.message = text,
            name => self.fields.push((name, value(text))),
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.add(field, &format!("{value:?}"), Value::Plain);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value, Value::Text);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string(), Value::Token);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string(), Value::Token);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string(), Value::Token);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        let kind = if value.is_finite() { Value::Token } else { Value::Plain };
        self.add(field, &value.to_string(), kind);
    }
}
