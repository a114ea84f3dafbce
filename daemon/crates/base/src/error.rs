//! Errors by the caller's possible reaction, and their only mapping to ttrpc and gRPC codes.
//!
//! Every message is one line for the reader of `ctr`'s output or `kubectl describe`: the error and its remedy.
//! containerd passes it on unchanged. A message may quote a guest, an image or a spec, so it is cut and escaped on its
//! way out ([`shown`]).

use ttrpc::Code;

use crate::text::{ERROR_BYTES_MAX, shown};

/// An error, classified by the caller's possible reaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request, the bundle or the module is wrong; the same request will fail again.
    #[error("{0}")]
    InvalidArgument(String),
    /// The program is a native one; in a pod, Linux's own runtime can run it.
    #[error("{0}")]
    Native(String),
    /// No such task, process or file. containerd reads this code as "the task is gone".
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// The call does not fit the present state; another call has to come first.
    #[error("{0}")]
    FailedPrecondition(String),
    /// A limit is reached; the message names the limit and how to raise it.
    #[error("{0}")]
    ResourceExhausted(String),
    /// Hearth does not support this.
    #[error("{0}")]
    Unimplemented(String),
    /// A service that Hearth depends on does not answer; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// An error in Hearth or on the node.
    #[error("{0}")]
    Internal(String),
}

/// The result type of all code that a request reaches.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The ttrpc (gRPC) code of this error.
    pub fn code(&self) -> Code {
        match self {
            Error::InvalidArgument(_) | Error::Native(_) => Code::INVALID_ARGUMENT,
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Error::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Error::ResourceExhausted(_) => Code::RESOURCE_EXHAUSTED,
            Error::Unimplemented(_) => Code::UNIMPLEMENTED,
            Error::Unavailable(_) => Code::UNAVAILABLE,
            Error::Internal(_) => Code::INTERNAL,
        }
    }

    /// The message as the caller gets it: one line, bounded.
    fn message(&self) -> String {
        shown(&self.to_string(), ERROR_BYTES_MAX).into_owned()
    }

    /// The same kind of error with `what` in front of its message.
    pub fn context(self, what: impl std::fmt::Display) -> Error {
        let with = |message: String| format!("{what}: {message}");
        match self {
            Error::InvalidArgument(m) => Error::InvalidArgument(with(m)),
            Error::Native(m) => Error::Native(with(m)),
            Error::NotFound(m) => Error::NotFound(with(m)),
            Error::AlreadyExists(m) => Error::AlreadyExists(with(m)),
            Error::FailedPrecondition(m) => Error::FailedPrecondition(with(m)),
            Error::ResourceExhausted(m) => Error::ResourceExhausted(with(m)),
            Error::Unimplemented(m) => Error::Unimplemented(with(m)),
            Error::Unavailable(m) => Error::Unavailable(with(m)),
            Error::Internal(m) => Error::Internal(with(m)),
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.message()))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        tracing::debug!(%error, code = ?error.code(), "a gRPC call was refused");
        tonic::Status::new(tonic::Code::from_i32(error.code() as i32), error.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_code_and_keeps_it_under_context() {
        let text = || "x".to_string();
        let table = [
            (Error::InvalidArgument(text()), Code::INVALID_ARGUMENT),
            (Error::Native(text()), Code::INVALID_ARGUMENT),
            (Error::NotFound(text()), Code::NOT_FOUND),
            (Error::AlreadyExists(text()), Code::ALREADY_EXISTS),
            (Error::FailedPrecondition(text()), Code::FAILED_PRECONDITION),
            (Error::ResourceExhausted(text()), Code::RESOURCE_EXHAUSTED),
            (Error::Unimplemented(text()), Code::UNIMPLEMENTED),
            (Error::Unavailable(text()), Code::UNAVAILABLE),
            (Error::Internal(text()), Code::INTERNAL),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code);
            let within = error.context("create");
            assert_eq!(within.code(), code);
            assert_eq!(within.to_string(), "create: x");
        }
    }

    #[test]
    fn what_an_image_says_is_cut_and_escaped_on_its_way_to_containerd() {
        let error = Error::InvalidArgument(format!("no program \x1b[2J\n{}", "x".repeat(90_000)));
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error.clone()) else { panic!() };
        for message in [status.message(), tonic::Status::from(error).message()] {
            assert!(message.len() <= ERROR_BYTES_MAX && message.ends_with("… (90016 bytes)"), "{message}");
            assert!(message.starts_with(r"no program \u{1b}[2J\nxxx"), "{message}");
        }
    }
}
