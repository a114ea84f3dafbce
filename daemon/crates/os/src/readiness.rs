//! Threads that wait for sockets and for a wake-up in one call (epoll(7), eventfd(2)).
//!
//! Sockets are watched edge-triggered: an event tells that something has changed, and one waiting thread gets it. The
//! caller reads or writes until the kernel says that it would block.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::ReadBuf;

/// The token of the wake-up.
const WAKE: u64 = u64::MAX;

/// The most events that one wait takes from the kernel: the others are left to other threads.
const EVENTS_MAX: usize = 32;

/// A set of sockets, and a wake-up.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
}

/// A change of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The token with which the socket was added.
    pub token: u64,
    /// There may be something to read, the end of the stream or an error included.
    pub readable: bool,
    /// There may be room to write, or an error.
    pub writable: bool,
    /// The other side sends no more, or the connection has failed.
    pub closed: bool,
}

/// Room for the events of one wait, kept by each thread that waits.
pub struct Events(Vec<epoll::Event>);

impl Default for Events {
    fn default() -> Events {
        Events(Vec::with_capacity(EVENTS_MAX))
    }
}

impl Events {
    /// The changes of sockets that the last wait brought. A wake-up is none.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        let sockets = self.0.iter().map(|event| (event.flags, event.data.u64())).filter(|(_, token)| *token != WAKE);
        sockets.map(|(flags, token)| {
            let any = |of: epoll::EventFlags| flags.intersects(of);
            let failed = any(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let closed = failed || any(epoll::EventFlags::RDHUP);
            Event {
                token,
                readable: closed || any(epoll::EventFlags::IN),
                writable: failed || any(epoll::EventFlags::OUT),
                closed,
            }
        })
    }
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), flags)?;
        Ok(Poller { epoll, wake })
    }

    /// Adds a socket. Closing it removes it, unless it was duplicated. `token` is any number but the highest.
    ///
    /// # Errors
    /// As epoll_ctl(2): the limit of watches is reached, or there is no memory.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)?)
    }

    /// Removes a socket.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits for events until one comes, the thread is woken or interrupted by a signal, or `timeout` is over.
    /// `timeout` counts in milliseconds; `None` waits without end.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) {
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        events.0.clear();
        // The only error of a valid set is the interruption by a signal.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events.0), timeout.as_ref());
    }

    /// Wakes one thread that waits, or the next one that does.
    pub fn wake(&self) {
        // The counter of an eventfd is full after 2^64 writes.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Reads from a socket into the rest of `buffer`, which need not be initialised. Returns the number of bytes.
///
/// # Errors
/// As recv(2).
pub fn receive(socket: impl AsFd, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: nothing is written to the slice but by the kernel, which only initialises bytes.
    #[allow(unsafe_code, reason = "bytes that the kernel writes need not be cleared first")]
    let room: &mut [MaybeUninit<u8>] = unsafe { buffer.unfilled_mut() };
    let ((_, _), read) = loop {
        match rustix::net::recv(&socket, &mut *room, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    // SAFETY: the kernel has written so many bytes at the beginning of the slice.
    #[allow(unsafe_code, reason = "as above")]
    unsafe {
        buffer.assume_init(read);
    }
    buffer.advance(read);
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;

    const SOON: Option<Duration> = Some(Duration::from_secs(20));

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, server)
    }

    #[test]
    fn each_change_is_told_once_and_an_end_as_an_end() {
        let (poller, mut events) = (Poller::new().unwrap(), Events::default());
        let (mut client, server) = pair();
        poller.add(&server, 7).unwrap();
        poller.wait(&mut events, SOON);
        let writable = Event { token: 7, readable: false, writable: true, closed: false };
        assert_eq!(events.iter().collect::<Vec<_>>(), [writable]);
        poller.wait(&mut events, Some(Duration::ZERO));
        assert_eq!(events.iter().count(), 0, "nothing has changed");
        client.write_all(b"hello").unwrap();
        poller.wait(&mut events, SOON);
        assert_eq!(events.iter().collect::<Vec<_>>(), [Event { readable: true, ..writable }]);
        let mut room = [MaybeUninit::uninit(); 16];
        let mut buffer = ReadBuf::uninit(&mut room);
        assert_eq!(receive(&server, &mut buffer).unwrap(), 5);
        assert_eq!(buffer.filled(), b"hello");
        assert_eq!(receive(&server, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(client);
        poller.wait(&mut events, SOON);
        assert!(events.iter().all(|event| event.closed && event.readable) && events.iter().count() == 1);
        assert_eq!(receive(&server, &mut buffer).unwrap(), 0);
        poller.remove(&server).unwrap();
        assert!(poller.remove(&server).is_err());
    }

    #[test]
    fn a_wake_up_before_the_wait_is_not_lost_and_wakes_one_thread() {
        let poller = Arc::new(Poller::new().unwrap());
        poller.wake();
        let mut events = Events::default();
        poller.wait(&mut events, None);
        assert_eq!(events.iter().count(), 0);
        let waits = {
            let poller = poller.clone();
            std::thread::spawn(move || poller.wait(&mut Events::default(), None))
        };
        poller.wake();
        waits.join().unwrap();
    }
}
