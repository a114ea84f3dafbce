//! What generations say to each other, and `hearthctl` to each: one framed [`Question`], one framed
//! [`Answer`], as on the control socket. Fields are added, never changed: the two are of different releases.
//!
//! Listeners are handed on with one byte behind the answer, by SCM_RIGHTS.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// What is asked. Exactly one field is set.
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
        /// How are you? Answered with a [`super::Status`].
        #[prost(message, tag = "1")]
        Status(super::Nothing),
        /// A new generation is ready: hand over. Answered with [`super::HandOver`] and its descriptors; then the
        /// asker says [`super::TAKEN`], or hangs up and all stays as it was.
        #[prost(message, tag = "2")]
        TakeOver(super::TakeOver),
        /// Whose is this task? Answered with an [`super::Owned`].
        #[prost(message, tag = "3")]
        Owner(super::Owner),
        /// Your metrics. Answered with [`super::Metrics`] and so many bytes.
        #[prost(message, tag = "4")]
        Metrics(super::Nothing),
        /// End your guests and go. Answered with [`super::Status`] before that.
        #[prost(message, tag = "5")]
        Stop(super::Nothing),
        /// Nothing: the connection is held until one of the two goes.
        #[prost(message, tag = "6")]
        Watch(super::Nothing),
        /// Read your configuration again. Answered with [`super::Status`], or why not.
        #[prost(message, tag = "7")]
        Reload(super::Nothing),
    }
}

/// No more to say.
#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

/// Who wants to take over.
#[derive(Clone, PartialEq, Message)]
pub struct TakeOver {
    /// Its generation.
    #[prost(string, tag = "1")]
    pub generation: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// A task or a pod, by what names it on a node.
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

/// What is answered. Exactly one field is set.
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
        /// One line: what is wrong and what to do.
        #[prost(string, tag = "1")]
        Error(String),
        /// How the generation is.
        #[prost(message, tag = "2")]
        Status(super::Status),
        /// Descriptors follow.
        #[prost(message, tag = "3")]
        HandOver(super::HandOver),
        /// Where a task is.
        #[prost(message, tag = "4")]
        Owned(super::Owned),
        /// Text follows.
        #[prost(message, tag = "5")]
        Metrics(super::Metrics),
    }
}

/// How a generation is.
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
    /// Whether new pods are its.
    #[prost(bool, tag = "4")]
    pub in_charge: bool,
    /// Tasks it has, native containers and sandboxes with them.
    #[prost(uint64, tag = "5")]
    pub tasks: u64,
    /// How long it has been up, in seconds.
    #[prost(uint64, tag = "6")]
    pub up_seconds: u64,
    /// How long a stop lets its tasks end by themselves, in seconds.
    #[prost(uint64, tag = "7")]
    pub stop_drain_seconds: u64,
}

/// What is handed on.
#[derive(Clone, PartialEq, Message)]
pub struct HandOver {
    /// Which descriptors follow, in order.
    #[prost(enumeration = "Passed", repeated, tag = "1")]
    pub passed: Vec<i32>,
    /// Whether the control socket's file is to be removed at the end: it is not where a service manager made it.
    #[prost(bool, tag = "2")]
    pub removes_control: bool,
    /// Whether an operator wants no new tasks on this node.
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

/// Where a task is.
#[derive(Clone, PartialEq, Message)]
pub struct Owned {
    /// The task socket, as for the shim; empty if the task is not here.
    #[prost(string, tag = "1")]
    pub address: String,
    /// For a pod that the sandbox controller has made: the socket of that controller.
    #[prost(string, tag = "2")]
    pub controller: String,
}

/// Metrics follow.
#[derive(Clone, PartialEq, Message)]
pub struct Metrics {
    /// So many bytes of text.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
}

/// What the new generation says when it serves, and the old one when it takes nothing new any more.
pub const TAKEN: u8 = b't';

/// What the old one says if yet another was faster.
pub const TOO_LATE: u8 = b'l';

/// The byte that carries descriptors.
const CARRIER: u8 = b'd';

/// The most descriptors that are handed on; the kernel's bound is 253 (SCM_MAX_FD).
pub const PASSED_MAX: usize = 32;

/// An answer that is an error.
pub fn error(text: impl Into<String>) -> Answer {
    Answer { body: Some(answer::Body::Error(text.into())) }
}

/// Sends descriptors; for a socket that is ready to be written to.
///
/// # Errors
/// What sendmsg(2) says; `WouldBlock` if it is not.
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
/// What recvmsg(2) says; `UnexpectedEof` if the peer hung up.
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
