//! Questions as bytes, and bytes as answers.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::files::resolv_conf::Configuration;

/// The size of UDP answers that is allowed with `edns0`, in bytes: glibc's, small enough for any path.
const EDNS_PAYLOAD_BYTES: u16 = 1200;

/// The header of a message, in bytes.
const HEADER_BYTES: usize = 12;

/// A question for the addresses of one kind.
pub(crate) struct Question {
    id: u16,
    query: Query,
    /// The message without the length that precedes it on a stream.
    pub(crate) bytes: Vec<u8>,
}

impl Question {
    /// The questions for a name's addresses: A, and AAAA unless the configuration has `no-aaaa`. None if the name
    /// cannot be encoded.
    pub(crate) fn both(name: &Name, configuration: &Configuration) -> Option<Vec<Question>> {
        let kinds: &[RecordType] =
            if configuration.no_aaaa { &[RecordType::A] } else { &[RecordType::A, RecordType::AAAA] };
        kinds.iter().map(|kind| Question::new(name, *kind, configuration)).collect()
    }

    fn new(name: &Name, kind: RecordType, configuration: &Configuration) -> Option<Question> {
        // With a random id.
        let mut message = Message::query();
        let query = Query::query(name.clone(), kind);
        message.metadata.recursion_desired = true;
        message.metadata.authentic_data = configuration.trust_ad;
        message.add_query(query.clone());
        if configuration.edns0 {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_PAYLOAD_BYTES).set_version(0);
            message.set_edns(edns);
        }
        Some(Question { id: message.metadata.id, query, bytes: message.to_vec().ok()? })
    }

    fn is_of(&self, header: &Header, query: Option<&Query>) -> bool {
        header.metadata.id == self.id
            && query.is_some_and(|query| {
                query.name.eq_ignore_root(&self.query.name)
                    && query.query_type == self.query.query_type
                    && query.query_class == self.query.query_class
            })
    }
}

/// A server's answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// Whether there are records in the answer, of any kind.
    pub(crate) has_records: bool,
    /// The addresses of the name, by the aliases of the answer.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The meaning of a received packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    /// Not an answer to any of the questions, so it is ignored.
    Foreign,
    /// Too short for a message.
    Short,
    /// The server cannot answer the question of this index: the next one is to be asked.
    Unusable(usize, ResponseCode),
    /// The answer to the question of this index does not fit into a datagram.
    Truncated,
    /// The answer to the question of this index.
    Answer(usize, Reply),
}

/// Reads a packet that may answer one of the open questions. The authority and additional sections are not decoded:
/// a malformed record there concerns no address.
pub(crate) fn read(packet: &[u8], questions: &[Question], is_open: &[bool]) -> Packet {
    if packet.len() < HEADER_BYTES {
        return Packet::Short;
    }
    let mut decoder = BinDecoder::new(packet);
    let Ok(header) = Header::read(&mut decoder) else {
        return Packet::Short;
    };
    let code = header.metadata.response_code;
    let is_error = matches!(code, ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused);
    // Some servers send an error without the question.
    let is_bare = is_error && packet.len() == HEADER_BYTES && header.counts.queries == 0;
    let query = if header.counts.queries == 1 { Query::read(&mut decoder).ok() } else { None };
    let answers_to = |question: &Question| {
        if is_bare { question.id == header.metadata.id } else { question.is_of(&header, query.as_ref()) }
    };
    let Some(index) = (0..questions.len()).find(|index| is_open[*index] && answers_to(&questions[*index])) else {
        return Packet::Foreign;
    };
    if is_error || is_lame(&header) {
        return Packet::Unusable(index, code);
    }
    if header.metadata.truncation {
        return Packet::Truncated;
    }
    match addresses(&mut decoder, header.counts.answers, &questions[index].query) {
        Some(addresses) => Packet::Answer(index, Reply { code, has_records: header.counts.answers > 0, addresses }),
        None => Packet::Unusable(index, code),
    }
}

/// Whether the answer is a referral: the server neither knows the name nor asks other servers. A question that is sent
/// back unchanged looks the same.
fn is_lame(header: &Header) -> bool {
    header.metadata.response_code == ResponseCode::NoError
        && header.counts.answers == 0
        && !header.metadata.authoritative
        && !header.metadata.recursion_available
        && header.counts.additionals == 0
}

/// The addresses of an answer section; none if it cannot be decoded. Aliases are followed in the order of the records,
/// as glibc does.
fn addresses(decoder: &mut BinDecoder<'_>, records: u16, query: &Query) -> Option<Vec<IpAddr>> {
    let mut name = query.name.clone();
    let mut addresses = Vec::new();
    for _ in 0..records {
        let record = Record::<RData>::read(decoder).ok()?;
        if record.dns_class != DNSClass::IN {
            continue;
        }
        match &record.data {
            RData::CNAME(alias) => name = alias.0.clone(),
            data if record.record_type() == query.query_type && record.name.eq_ignore_root(&name) => {
                addresses.extend(data.ip_addr().map(|address| address.to_canonical()));
            }
            _ => {}
        }
    }
    Some(addresses)
}

/// Entrances for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use super::*;

    fn questions(id: u16) -> Vec<Question> {
        let name = Name::from_ascii("web.test.").expect("a valid name");
        let files = crate::Files::parse(None, Some(b""), None);
        let configuration = files.configuration.expect("the file is there");
        let mut questions = Question::both(&name, &configuration).expect("a name that can be encoded");
        questions.iter_mut().for_each(|question| question.id = id);
        questions
    }

    /// Reads a packet as the answer to questions of its own id.
    pub fn reply(packet: &[u8]) {
        let id = packet.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
        let _ = read(packet, &questions(id), &[true, true]);
    }

    /// Packets that answer those questions.
    pub fn replies() -> Vec<Vec<u8>> {
        use hickory_proto::op::{MessageType, OpCode};
        use hickory_proto::rr::rdata::{A, AAAA, CNAME};

        let questions = questions(7);
        let owner = |text: &str| Name::from_ascii(text).expect("a valid name");
        let message = |index: usize, records: &[(&str, RData)]| {
            let mut message = Message::new(7, MessageType::Response, OpCode::Query);
            message.metadata.recursion_available = true;
            message.add_query(questions[index].query.clone());
            for (name, data) in records {
                message.add_answer(Record::from_rdata(owner(name), 60, data.clone()));
            }
            message
        };
        let address = RData::A(A::new(10, 0, 0, 1));
        let alias = RData::CNAME(CNAME(owner("other.test.")));
        let mut failed = message(0, &[]);
        failed.metadata.response_code = ResponseCode::ServFail;
        let mut cut = message(0, &[]);
        cut.metadata.truncation = true;
        let messages = [
            message(0, &[("web.test.", address.clone())]),
            message(0, &[("web.test.", alias), ("other.test.", address)]),
            message(1, &[("web.test.", RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)))]),
            failed,
            cut,
        ];
        messages.iter().map(|message| message.to_vec().expect("a message that can be encoded")).collect()
    }
}

#[cfg(test)]
#[path = "message/tests.rs"]
mod tests;
