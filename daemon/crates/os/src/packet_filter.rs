//! Packet filters of sockets: a port that closes refuses new connections and keeps those that are being made.

use std::io;
use std::os::fd::AsFd;

use socket2::{SockFilter, SockRef};

// Classic BPF (linux/bpf_common.h), on a packet that begins with its TCP header (RFC 9293, 3.1).

/// `BPF_LD | BPF_B | BPF_ABS`: loads the byte at an offset.
const LOAD_BYTE: u16 = 0x30;
/// `BPF_JMP | BPF_JSET | BPF_K`: jumps if one of these bits is set.
const JUMP_IF_SET: u16 = 0x45;
/// `BPF_RET | BPF_K`: keeps so many bytes of the packet; the kernel drops a packet of which none is kept.
const RETURN: u16 = 0x06;
/// The offset of the byte with the flags.
const FLAGS_OFFSET: u32 = 13;
/// The flag SYN, with which a connection begins.
const SYN: u32 = 0x02;

/// Drops the first packet of each new connection to a listening socket. A client that connects now tries again a second
/// later, and then is refused or finds another listener. Connections that are being made, and those in the listener's
/// queue, go on.
///
/// # Errors
/// The kernel refuses the filter.
pub fn refuse_new_connections(listener: &impl AsFd) -> io::Result<()> {
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&filter)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_filtered_port_keeps_its_queue_and_takes_no_new_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _queued = TcpStream::connect(address).unwrap();
        refuse_new_connections(&listener).unwrap();
        let error = TcpStream::connect_timeout(&address, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok(), "the first is in the queue");
        assert!(listener.accept().is_err(), "and no other");
    }
}
