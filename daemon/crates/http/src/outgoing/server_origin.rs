//! The server that a guest's request names: scheme, host and port.

use std::fmt;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use wasmtime_wasi_http::Error;

use hearth_base::destinations::without_brackets;

/// Scheme, host and port of a request (RFC 6454, 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOrigin {
    /// Whether the scheme is `https`.
    pub secure: bool,
    /// A name or an address, in lower case and without brackets.
    pub host: String,
    /// The port; the scheme's own if the request names none.
    pub port: u16,
}

impl ServerOrigin {
    /// The origin of a request's URI.
    ///
    /// # Errors
    /// `HTTP-request-URI-invalid` if it names no host, or a user.
    pub fn of(uri: &Uri) -> Result<ServerOrigin, Error> {
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(Error::HttpRequestUriInvalid);
        }
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(ServerOrigin { secure, host: bare_host(authority), port })
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl fmt::Display for ServerOrigin {
    /// As `https://HOST:PORT`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme(), self.host, self.port)
    }
}

/// The host of an authority, in lower case and without brackets.
pub(super) fn bare_host(authority: &Authority) -> String {
    without_brackets(authority.host()).to_ascii_lowercase()
}
