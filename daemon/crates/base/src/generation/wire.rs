//! The messages between generations, and between `hearthctl` and a generation: one framed [`Question`], one framed
//! [`Answer`], as on the control socket. Fields are added, never changed: the two sides may be of different releases.
//!
//! Descriptors are handed over by SCM_RIGHTS, with one byte after the answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// A question. Exactly one field is set.
#[derive(Clone, PartialEq, Message)]
pub struct Question {
    /// The body.
    #[prost(oneof = "question::Body", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub body: Option<question::Body>,
}

/// Bodies of [`Question`].
pub mod question {
    /// One variant per question.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// Asks for the state of the generation. Answered with a [`super::Status`].
        #[prost(message, tag = "1")]
        Status(super::Nothing),
        /// A new generation is ready and takes over. Answered with [`super::HandOver`] and its descriptors. The new
        /// generation then sends [`super::TAKEN`], or closes the connection, and the old one stays in charge.
        #[prost(message, tag = "2")]
        TakeOver(super::TakeOver),
        /// Asks for the owner of a task. Answered with an [`super::Owned`].
        #[prost(message, tag = "3")]
        Owner(super::Owner),
        /// Asks for the metrics. Answered with [`super::Metrics`] and the bytes that it announces.
        #[prost(message, tag = "4")]
        Metrics(super::Nothing),
        /// Ends the guests and the generation. Answered with [`super::Status`] before that.
        #[prost(message, tag = "5")]
        Stop(super::Nothing),
        /// Not answered: the connection stays open until one of the two sides ends.
        #[prost(message, tag = "6")]
        Watch(super::Nothing),
        /// Reads the configuration again. Answered with [`super::Status`] or an error.
        #[prost(message, tag = "7")]
        Reload(super::Nothing),
    }
}

/// A question without a parameter.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

/// The generation that takes over.
#[derive(Clone, PartialEq, Message)]
pub struct TakeOver {
    /// Its name.
    #[prost(string, tag = "1")]
    pub generation: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// A task or a pod, by the names that are unique on a node.
#[derive(Clone, PartialEq, Message)]
pub struct Owner {
    /// containerd's gRPC socket.
    #[prost(string, tag = "1")]
    pub grpc_address: String,
    /// containerd's ttrpc socket.
    #[prost(string, tag = "2")]
    pub ttrpc_address: String,
    /// containerd's namespace.
    #[prost(string, tag = "3")]
    pub namespace: String,
    /// Its id.
    #[prost(string, tag = "4")]
    pub id: String,
}

/// An answer. Exactly one field is set.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// The body.
    #[prost(oneof = "answer::Body", tags = "1, 2, 3, 4, 5")]
    pub body: Option<answer::Body>,
}

/// Bodies of [`Answer`].
pub mod answer {
    /// One variant per answer.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// An error: one line with the remedy.
        #[prost(string, tag = "1")]
        Error(String),
        /// The state of the generation.
        #[prost(message, tag = "2")]
        Status(super::Status),
        /// Descriptors follow.
        #[prost(message, tag = "3")]
        HandOver(super::HandOver),
        /// The place of a task.
        #[prost(message, tag = "4")]
        Owned(super::Owned),
        /// Text follows.
        #[prost(message, tag = "5")]
        Metrics(super::Metrics),
    }
}

/// The state of a generation.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Its name.
    #[prost(string, tag = "1")]
    pub generation: String,
    /// Its process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Its version.
    #[prost(string, tag = "3")]
    pub version: String,
    /// Whether it takes new pods.
    #[prost(bool, tag = "4")]
    pub in_charge: bool,
    /// Tasks it has, native containers and sandboxes with them.
    #[prost(uint64, tag = "5")]
    pub tasks: u64,
    /// The time since its start, in seconds.
    #[prost(uint64, tag = "6")]
    pub up_seconds: u64,
    /// How long a stop lets its tasks end by themselves, in seconds.
    #[prost(uint64, tag = "7")]
    pub stop_drain_seconds: u64,
}

/// The answer to a take-over.
#[derive(Clone, PartialEq, Message)]
pub struct HandOver {
    /// The descriptors that follow, in order: numbers of [`Passed`].
    #[prost(enumeration = "Passed", repeated, tag = "1")]
    pub passed: Vec<i32>,
    /// Whether the daemon removes the control socket's file at its end. It does not if a service manager made the file.
    #[prost(bool, tag = "2")]
    pub removes_control: bool,
    /// Whether an operator drains the node.
    #[prost(bool, tag = "3")]
    pub draining: bool,
}

/// A descriptor of a [`HandOver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Passed {
    /// Of a later release; to be closed.
    Unknown = 0,
    /// The lock of the generation in charge.
    Charge = 1,
    /// The control socket.
    Control = 2,
    /// The metrics endpoint.
    Metrics = 3,
    /// A containerd's socket of the sandbox controller.
    Controller = 4,
}

/// The place of a task.
#[derive(Clone, PartialEq, Message)]
pub struct Owned {
    /// The task socket, as for the shim; empty if the task is not here.
    #[prost(string, tag = "1")]
    pub address: String,
    /// For a pod that the sandbox controller has made: the socket of that controller.
    #[prost(string, tag = "2")]
    pub controller: String,
}

/// The announcement of metrics.
#[derive(Clone, PartialEq, Message)]
pub struct Metrics {
    /// The length of the text that follows, in bytes.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

/// The byte that the new generation sends when it serves, and the old one when it takes no new tasks any more.
pub const TAKEN: u8 = b't';

/// The byte that the old generation sends if a third one was faster.
pub const TOO_LATE: u8 = b'l';

/// The byte that carries descriptors.
const CARRIER: u8 = b'd';

/// The largest number of descriptors in one hand-over; the kernel's bound is 253 (SCM_MAX_FD).
pub const PASSED_MAX: usize = 32;

/// Makes an answer that is an error.
pub fn error(text: impl Into<String>) -> Answer {
    Answer { body: Some(answer::Body::Error(text.into())) }
}

/// Sends descriptors on a socket that is ready to be written to.
///
/// # Errors
/// As sendmsg(2); `WouldBlock` if it is not ready.
pub fn send_descriptors(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than may be handed on"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&[CARRIER])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives descriptors; blocks for them.
///
/// # Errors
/// As recvmsg(2); `UnexpectedEof` if the peer closed the connection.
pub fn receive_descriptors(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes != 1 || byte[0] != CARRIER {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    };
    Ok(ancillary.drain().filter_map(rights).flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files = [std::fs::File::open("/proc/version").unwrap(), std::fs::File::open("/proc/uptime").unwrap()];
        send_descriptors(&ours, &[files[0].as_fd(), files[1].as_fd()]).unwrap();
        let received = receive_descriptors(&theirs).unwrap();
        let inode = |fd: BorrowedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(received.len(), 2);
        for (sent, got) in files.iter().zip(&received) {
            assert_eq!(inode(sent.as_fd()), inode(got.as_fd()));
        }
        drop(ours);
        assert_eq!(receive_descriptors(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
