//! Parses the stdio strings of a Create request.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use hearth_base::error::{Error, Result};

/// The target of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The empty string: nowhere.
    Null,
    /// An absolute path.
    Fifo(PathBuf),
    /// `file:///path`.
    File(PathBuf),
    /// `binary:///path?key=value&…`: a log program with its arguments.
    Program {
        /// The program's file.
        path: PathBuf,
        /// Key, value, key, value, …
        args: Vec<String>,
    },
}

impl Target {
    /// Parses the request's string for the stream `name`, as containerd's runc shim does.
    ///
    /// # Errors
    /// `InvalidArgument`, with the stream and the possible forms.
    pub(super) fn parse(name: &str, text: &str) -> Result<Target> {
        let wrong = |what: &str| {
            Error::InvalidArgument(format!(
                "{name}: {text:?} {what}; give the absolute path of a FIFO, file:///path, binary:///path?arguments, or nothing"
            ))
        };
        if text.contains('\0') {
            return Err(wrong("has a NUL character"));
        }
        if text.is_empty() {
            return Ok(Target::Null);
        }
        if text.starts_with('/') {
            return Ok(Target::Fifo(text.into()));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("is neither a path nor a URI"))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') {
            return Err(wrong("has something before the path's first slash"));
        }
        let path: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
        if path.contains(&0) {
            return Err(wrong("has a NUL character"));
        }
        let path = PathBuf::from(OsString::from_vec(path));
        match scheme {
            "file" => Ok(Target::File(path)),
            "binary" => Ok(Target::Program { path, args: arguments(query) }),
            _ => Err(wrong("has an unknown scheme")),
        }
    }
}

/// Each key followed by its value. Of a repeated key only the first counts. A missing value is an empty argument.
fn arguments(query: &str) -> Vec<String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if !pairs.iter().any(|(known, _)| *known == key) {
            pairs.push((key.into_owned(), value.into_owned()));
        }
    }
    pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_a_create_request() {
        let program = |path: &str, args: &[&str]| Target::Program {
            path: path.into(),
            args: args.iter().map(|arg| arg.to_string()).collect(),
        };
        let cases = [
            ("", Target::Null),
            ("/run/containerd/fifo/1/x-stdout", Target::Fifo("/run/containerd/fifo/1/x-stdout".into())),
            ("/odd?name#1", Target::Fifo("/odd?name#1".into())),
            ("file:///var/log/a%20b.log", Target::File("/var/log/a b.log".into())),
            ("file:///x?ignored", Target::File("/x".into())),
            ("binary:///usr/bin/logger", program("/usr/bin/logger", &[])),
            ("binary:///l?id=a%2Fb+c&--flag&id=again", program("/l", &["id", "a/b c", "--flag", ""])),
            (
                "binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fn",
                program("/usr/bin/nerdctl", &["_NERDCTL_INTERNAL_LOGGING", "/var/lib/n"]),
            ),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse("stdout", text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("relative", "\"relative\" is neither a path nor a URI"),
            ("tcp:///x", "has an unknown scheme"),
            ("file://host/x", "has something before the path's first slash"),
            ("binary://x", "has something before"),
            ("file:///a%00b", "has a NUL"),
            ("/a\0b", "has a NUL"),
        ];
        for (text, want) in cases {
            let error = Target::parse("stdin", text).unwrap_err().to_string();
            assert!(error.starts_with("stdin: ") && error.contains(want), "{text}: {error}");
        }
    }
}
