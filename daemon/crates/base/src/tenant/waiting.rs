//! Waiting until a container may have one more: first come, first served.
//!
//! A permit that is given back goes to the first waiter that may have it. The containers of a pod share one queue, since a
//! container may wait for a permit of another one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::{Kind, Permit, Tenant};

/// The queue of a container without a pod, or of a pod.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Read without the lock: mostly there are none.
    waiting: AtomicUsize,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    tickets: BTreeMap<u64, Ticket>,
    /// Woken each time the kind is given back.
    watchers: Vec<(Kind, Waker)>,
}

#[derive(Debug)]
struct Ticket {
    tenant: Arc<Tenant>,
    kind: Kind,
    amount: u64,
    waker: Waker,
    is_granted: bool,
}

impl Queue {
    /// A kind was given back: it goes to the waiters.
    pub(super) fn given_back(&self, kind: Kind) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut woken = Vec::new();
        {
            let entries = &mut *self.entries.lock();
            let mut full: Option<*const Tenant> = None;
            for ticket in entries.tickets.values_mut().filter(|ticket| ticket.kind == kind && !ticket.is_granted) {
                let tenant = Arc::as_ptr(&ticket.tenant);
                if full == Some(tenant) {
                    continue;
                }
                ticket.is_granted = ticket.tenant.try_add(kind, ticket.amount).is_ok();
                match ticket.is_granted {
                    true => woken.push(ticket.waker.clone()),
                    false => full = Some(tenant),
                }
            }
            let before = entries.watchers.len();
            let (called, others): (Vec<_>, Vec<_>) =
                std::mem::take(&mut entries.watchers).into_iter().partition(|(watched, _)| *watched == kind);
            entries.watchers = others;
            self.waiting.fetch_sub(before - entries.watchers.len(), Ordering::SeqCst);
            woken.extend(called.into_iter().map(|(_, waker)| waker));
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether `tenant` has as much of the kind as it may; then `waker` is woken when some is given back.
    pub(super) fn watch(&self, tenant: &Tenant, kind: Kind, waker: &Waker) -> bool {
        let mut entries = self.entries.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Read again under the lock, which `given_back` takes after the amount has changed.
        let is_full = tenant.is_full(kind);
        match is_full {
            true => entries.watchers.push((kind, waker.clone())),
            false => {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }
        is_full
    }
}

/// Waits for a permit; see [`Tenant::wait`].
#[derive(Debug)]
pub struct Wait<'a> {
    tenant: &'a Arc<Tenant>,
    kind: Kind,
    amount: u64,
    ticket: Option<u64>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(tenant: &'a Arc<Tenant>, kind: Kind, amount: u64) -> Wait<'a> {
        Wait { tenant, kind, amount, ticket: None }
    }

    fn permit(&self) -> Permit {
        Permit { tenant: self.tenant.clone(), kind: self.kind, amount: self.amount }
    }

    /// Takes the ticket out of the queue; whether it was granted.
    fn leave(&mut self) -> bool {
        let Some(number) = self.ticket.take() else { return false };
        let queue = self.tenant.queue();
        let left = queue.entries.lock().tickets.remove(&number);
        queue.waiting.fetch_sub(1, Ordering::SeqCst);
        left.is_some_and(|ticket| ticket.is_granted)
    }
}

impl Future for Wait<'_> {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let this = &mut *self;
        if let Some(number) = this.ticket {
            let queue = this.tenant.queue();
            let mut entries = queue.entries.lock();
            let ticket = entries.tickets.get_mut(&number);
            if let Some(ticket) = ticket.filter(|ticket| !ticket.is_granted) {
                ticket.waker.clone_from(context.waker());
                return Poll::Pending;
            }
            drop(entries);
            this.leave();
            return Poll::Ready(this.permit());
        }
        if this.tenant.try_add(this.kind, this.amount).is_ok() {
            return Poll::Ready(this.permit());
        }
        this.tenant.count_refusal(this.kind);
        let queue = this.tenant.queue();
        let mut entries = queue.entries.lock();
        queue.waiting.fetch_add(1, Ordering::SeqCst);
        // Again, after the queue says that something waits: what is given back from now on is given to a ticket.
        if this.tenant.try_add(this.kind, this.amount).is_ok() {
            queue.waiting.fetch_sub(1, Ordering::SeqCst);
            return Poll::Ready(this.permit());
        }
        let number = entries.next;
        entries.next += 1;
        let (tenant, waker) = (this.tenant.clone(), context.waker().clone());
        let ticket = Ticket { tenant, kind: this.kind, amount: this.amount, waker, is_granted: false };
        entries.tickets.insert(number, ticket);
        this.ticket = Some(number);
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.leave() {
            // Granted, and nothing takes it any more.
            drop(self.permit());
        }
    }
}
