//! A name server for one story: it answers from a list of records and keeps the names it was asked for.
//!
//! It handles only the messages of a look-up (RFC 1035, section 4.1): one question, and answers with one address each.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// The server's answer to a name.
#[derive(Clone, Copy, Debug)]
pub enum Record {
    /// This address.
    Address(Ipv4Addr),
    /// No answer: the question is lost.
    Silence,
}

/// The server. Dropping it stops it.
#[derive(Debug)]
pub struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The length of a message's head.
const HEAD: usize = 12;

/// The type of a record that is an IPv4 address.
const TYPE_A: u16 = 1;

impl NameServer {
    /// Serves at `address`, in the network the calling thread is in.
    ///
    /// # Panics
    /// If the address cannot be bound.
    pub fn start(address: SocketAddr, records: &[(&str, Record)]) -> Self {
        let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        let records: BTreeMap<String, Record> =
            records.iter().map(|(name, record)| ((*name).to_owned(), *record)).collect();
        let (asked, ended) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (asked, ended) = (asked.clone(), ended.clone());
            move || {
                let mut message = [0; 512];
                while !ended.load(Ordering::Relaxed) {
                    let Ok((length, peer)) = socket.recv_from(&mut message) else { continue };
                    let Some((name, kind, end)) = question(&message[..length]) else { continue };
                    asked.lock().expect("no thread panics with the lock held").push(name.clone());
                    if let Some(answer) = answer(&message[..end], kind, records.get(&name)) {
                        let _ = socket.send_to(&answer, peer);
                    }
                }
            }
        });
        Self { asked, ended, thread: Some(thread) }
    }

    /// The names it was asked for since the last call, each once, in order.
    pub fn asked(&self) -> Vec<String> {
        let mut names = std::mem::take(&mut *self.asked.lock().expect("no thread panics with the lock held"));
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The name in lower case, the type, and where the question ends.
fn question(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = HEAD;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(*message.get(at..)?.first_chunk()?);
    Some((labels.join("."), kind, at + 4))
}

/// `asked` is the question with the head before it.
fn answer(asked: &[u8], kind: u16, record: Option<&Record>) -> Option<Vec<u8>> {
    const NO_SUCH_NAME: u8 = 3;
    let mut answer = asked.to_vec();
    // A response, recursion available.
    answer[2] |= 0x80;
    answer[3] = 0x80 | if record.is_none() { NO_SUCH_NAME } else { 0 };
    // One question, no other sections but answers.
    answer[4..HEAD].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    match record {
        Some(Record::Silence) => return None,
        Some(Record::Address(address)) if kind == TYPE_A => {
            answer[7] = 1;
            // The name by a pointer to the question, class IN, for a second, four bytes.
            answer.extend([0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.octets());
        }
        Some(Record::Address(_)) | None => {}
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "web.test", type A.
    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03WEB\x04test\0\0\x01\0\x01";

    #[test]
    fn a_question_is_answered() {
        let (name, kind, end) = question(QUESTION).unwrap();
        assert_eq!((name.as_str(), kind, end), ("web.test", TYPE_A, QUESTION.len()));
        let found = answer(QUESTION, kind, Some(&Record::Address(Ipv4Addr::new(10, 1, 2, 3)))).unwrap();
        assert_eq!((&found[..2], found[3] & 0xf, found[7]), (&QUESTION[..2], 0, 1));
        assert!(found.ends_with(&[10, 1, 2, 3]));
        assert_eq!(answer(QUESTION, kind, None).unwrap()[3] & 0xf, 3);
        assert_eq!(answer(QUESTION, kind, Some(&Record::Silence)), None);
        assert_eq!(question(&QUESTION[..14]), None);
    }
}
