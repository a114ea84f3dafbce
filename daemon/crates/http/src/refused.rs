//! Answers that the daemon gives instead of a guest: a status code and one line of text.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

/// An answer of the daemon's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The status code.
    pub status: StatusCode,
    text: &'static str,
}

/// A limit of the service or of the node is reached.
pub const BUSY: Refused = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once");
/// The container has no memory for another instance.
pub const NO_MEMORY: Refused =
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the service has no memory for another request");
/// The container ends.
pub const ENDING: Refused = Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the service is ending");
/// The guest failed.
pub const FAILED: Refused = Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the service failed");
/// The guest returned without a response.
pub const NO_RESPONSE: Refused = Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the service gave no response");
/// The guest did not answer in time.
pub const TOO_SLOW: Refused = Refused::new(StatusCode::GATEWAY_TIMEOUT, "the service took too long");

impl Refused {
    /// An answer with this status code and this text.
    pub const fn new(status: StatusCode, text: &'static str) -> Refused {
        Refused { status, text }
    }

    /// Its line of text.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// The response. With 503 the client is asked to try again after a second.
    pub fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", self.text))));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_503_asks_the_client_to_try_again() {
        assert_eq!(BUSY.response().headers()[header::RETRY_AFTER], "1");
        assert_eq!(NO_MEMORY.response().headers()[header::RETRY_AFTER], "1");
        assert!(!FAILED.response().headers().contains_key(header::RETRY_AFTER));
        assert_eq!(TOO_SLOW.response().status(), StatusCode::GATEWAY_TIMEOUT);
    }
}
