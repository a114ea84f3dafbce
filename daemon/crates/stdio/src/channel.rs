//! A non-blocking descriptor, registered with tokio when a guest has to wait for it.
//!
//! Most guests never wait for their stdio, so no descriptor is registered with epoll before its first `EAGAIN`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use hearth_os::fifo;

/// An open FIFO or pipe.
pub(super) struct Channel {
    fd: Arc<OwnedFd>,
    registered: Option<AsyncFd<Arc<OwnedFd>>>,
    interest: Interest,
}

impl Channel {
    /// For writing.
    pub(super) fn output(fd: OwnedFd) -> Channel {
        Channel { fd: Arc::new(fd), registered: None, interest: Interest::WRITABLE }
    }

    /// For reading.
    pub(super) fn input(fd: OwnedFd) -> Channel {
        Channel { fd: Arc::new(fd), registered: None, interest: Interest::READABLE }
    }

    /// The descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Calls `attempt`, which returns `None` if it would wait. Then `waker` is called for, and woken when another attempt
    /// may succeed. `attempt` receives whether the other side has closed for good.
    ///
    /// # Errors
    /// If epoll takes no more descriptors.
    pub(super) fn poll<T>(
        &mut self,
        waker: impl FnOnce() -> Waker,
        runtime: &Handle,
        mut attempt: impl FnMut(BorrowedFd, bool) -> Option<T>,
    ) -> Poll<std::io::Result<T>> {
        if let Some(done) = attempt(self.fd.as_fd(), false) {
            return Poll::Ready(Ok(done));
        }
        let registered = match &mut self.registered {
            Some(registered) => registered,
            none => {
                // A guest's thread may have no runtime entered, or another one.
                let _entered = runtime.enter();
                none.insert(fifo::register(self.fd.clone(), self.interest)?)
            }
        };
        let waker = waker();
        let mut context = Context::from_waker(&waker);
        loop {
            // In this order no readiness is lost: clear it, attempt, and wait only after that.
            let mut guard = if self.interest == Interest::WRITABLE {
                ready!(registered.poll_write_ready(&mut context))?
            } else {
                ready!(registered.poll_read_ready(&mut context))?
            };
            let closed = guard.ready().is_read_closed() || guard.ready().is_write_closed();
            guard.clear_ready();
            if let Some(done) = attempt(self.fd.as_fd(), closed) {
                return Poll::Ready(Ok(done));
            }
        }
    }
}
