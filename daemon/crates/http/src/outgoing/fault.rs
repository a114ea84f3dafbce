//! Error codes of `wasi:http` for the ways in which an outgoing request fails.

use std::error::Error as StdError;
use std::io;

use hyper::StatusCode;
use tokio_rustls::rustls;
use wasmtime_wasi_http::Error;

use hearth_wasm::resolver::Unresolved;

/// The error of a name without addresses.
pub fn unresolved(why: Unresolved) -> Error {
    // The response codes of DNS (RFC 1035, 4.1.1), as tools like dig write them.
    let rcode = match why {
        Unresolved::Late => return Error::DnsTimeout,
        Unresolved::Invalid => return Error::HttpRequestUriInvalid,
        Unresolved::Unknown | Unresolved::NoAddress => "NXDOMAIN",
        Unresolved::Temporary => "SERVFAIL",
        Unresolved::Permanent | Unresolved::NoResolver => "REFUSED",
    };
    Error::DnsError { rcode: Some(rcode.into()), info_code: None }
}

/// The error of a connection that cannot be made.
pub fn connecting(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
        io::ErrorKind::HostUnreachable => Error::DestinationUnavailable,
        // A packet filter answers so.
        io::ErrorKind::PermissionDenied => Error::DestinationIpProhibited,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Error::ConnectionTerminated,
        _ => Error::InternalError(Some(format!("cannot connect: {error}"))),
    }
}

/// The error of a connection that cannot be secured by TLS.
pub fn securing(error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            let (alert_id, alert_message) = (Some(u8::from(*alert)), Some(format!("{alert:?}")));
            Error::TlsAlertReceived { alert_id, alert_message }
        }
        Some(_) => Error::TlsProtocolError,
        None if error.kind() == io::ErrorKind::UnexpectedEof => Error::ConnectionTerminated,
        None => connecting(error),
    }
}

/// The error of a proxy that makes no tunnel.
pub fn refused_by_proxy(status: StatusCode) -> Error {
    match status {
        // Without a password, with a wrong one, or to a server that may not be reached.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::FORBIDDEN => Error::HttpRequestDenied,
        StatusCode::GATEWAY_TIMEOUT => Error::ConnectionTimeout,
        _ => Error::DestinationUnavailable,
    }
}

/// The error of a response that does not come, or not whole.
pub fn exchanging(error: &hyper::Error) -> Error {
    if let Some(of_body) = source::<Error>(error) {
        // Of the request's body, which the guest writes.
        return match of_body {
            Error::HttpRequestBodySize(size) => Error::HttpRequestBodySize(*size),
            other => Error::InternalError(Some(format!("the request's body: {other}"))),
        };
    }
    if let Some(error) = source::<io::Error>(error) {
        return match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(_) => securing(error),
            None => Error::ConnectionTerminated,
        };
    }
    if let Some(error) = source::<h2::Error>(error) {
        // The server's own end of a stream or of the connection; all else is a mistake of one side.
        let has_ended = error.is_io() || error.is_go_away() || (error.is_reset() && error.is_remote());
        return if has_ended { Error::ConnectionTerminated } else { Error::HttpProtocolError };
    }
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        Error::ConnectionTerminated
    } else {
        Error::HttpProtocolError
    }
}

/// The first cause of this kind.
fn source<E: StdError + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn each_failure_has_its_own_code() {
        let of = |kind: io::ErrorKind| connecting(&kind.into());
        assert!(matches!(of(io::ErrorKind::ConnectionRefused), Error::ConnectionRefused));
        assert!(matches!(of(io::ErrorKind::NetworkUnreachable), Error::DestinationIpUnroutable));
        assert!(matches!(of(io::ErrorKind::Other), Error::InternalError(Some(_))));
        let of = |error| securing(&io::Error::new(io::ErrorKind::InvalidData, error));
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert!(matches!(of(unknown), Error::TlsCertificateError));
        let alert = of(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure));
        assert!(matches!(alert, Error::TlsAlertReceived { alert_id: Some(40), .. }), "{alert:?}");
        assert!(matches!(of(rustls::Error::DecryptError), Error::TlsProtocolError));
        assert!(matches!(unresolved(Unresolved::Late), Error::DnsTimeout));
        assert!(
            matches!(unresolved(Unresolved::Unknown), Error::DnsError { rcode: Some(code), .. } if code == "NXDOMAIN")
        );
    }
}
