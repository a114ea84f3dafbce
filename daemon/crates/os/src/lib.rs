//! The only place that makes system calls about namespaces, mounts, FIFOs, terminals and processes. One file
//! per facility, RAII guards for what has to be undone.
#![deny(unsafe_code)]

pub mod accept;
pub mod activation;
pub mod alloc;
pub mod clock;
pub mod coarse_timer;
pub mod confine;
pub mod credentials;
pub mod fifo;
pub mod holder;
pub mod identity;
pub mod in_root;
pub mod memfd;
pub mod mount;
pub mod namespaces;
pub mod netns;
pub mod packet_filter;
pub mod process;
pub mod pty;
pub mod sockets;
pub mod spawn;
pub mod sysctl;
