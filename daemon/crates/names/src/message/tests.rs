use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};

use super::*;
use crate::Files;

fn name(text: &str) -> Name {
    Name::from_labels(text.split('.').map(str::as_bytes)).unwrap()
}

fn questions(options: &str) -> Vec<Question> {
    let files = Files::parse(None, Some(options.as_bytes()), None);
    Question::both(&name("web.test"), files.configuration.as_ref().unwrap()).unwrap()
}

/// An answer to a question, before it is changed and encoded.
fn answer(question: &Question, records: &[(&str, RData)]) -> Message {
    let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(question.query.clone());
    for (owner, data) in records {
        message.add_answer(Record::from_rdata(name(owner), 60, data.clone()));
    }
    message
}

fn a(last: u8) -> RData {
    RData::A(A::new(10, 0, 0, last))
}

fn alias(to: &str) -> RData {
    RData::CNAME(CNAME(name(to)))
}

fn addresses_of(records: &[(&str, RData)]) -> Vec<String> {
    let questions = questions("");
    let packet = answer(&questions[0], records).to_vec().unwrap();
    match read(&packet, &questions, &[true, true]) {
        Packet::Answer(0, reply) => reply.addresses.iter().map(IpAddr::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn options_are_in_the_questions() {
    let plain = questions("");
    assert_eq!(plain.len(), 2);
    let decoded = Message::from_vec(&plain[1].bytes).unwrap();
    assert_eq!(decoded.queries[0].query_type, RecordType::AAAA);
    assert!(decoded.metadata.recursion_desired && !decoded.metadata.authentic_data && decoded.edns.is_none());
    let rich = questions("options edns0 trust-ad no-aaaa\n");
    assert_eq!(rich.len(), 1);
    let decoded = Message::from_vec(&rich[0].bytes).unwrap();
    assert!(decoded.metadata.authentic_data);
    assert_eq!(decoded.edns.unwrap().max_payload(), EDNS_PAYLOAD_BYTES);
}

#[test]
fn aliases_are_followed_in_the_order_of_the_records() {
    assert_eq!(addresses_of(&[("web.test", a(1)), ("WEB.test", a(2)), ("other.test", a(3))]), ["10.0.0.1", "10.0.0.2"]);
    let chain = [("web.test", alias("b.test")), ("b.test", alias("c.test")), ("c.test", a(4)), ("b.test", a(5))];
    assert_eq!(addresses_of(&chain), ["10.0.0.4"]);
    assert!(addresses_of(&[("c.test", a(6)), ("web.test", alias("c.test"))]).is_empty());
    let mapped = RData::AAAA(AAAA("::ffff:10.0.0.7".parse().unwrap()));
    assert!(addresses_of(&[("web.test", mapped)]).is_empty(), "an address of the other kind");
}

#[test]
fn only_the_answer_to_an_open_question_counts() {
    let questions = questions("");
    let read_changed = |change: &dyn Fn(&mut Message), is_open: [bool; 2]| {
        let mut message = answer(&questions[0], &[("web.test", a(1))]);
        change(&mut message);
        read(&message.to_vec().unwrap(), &questions, &is_open)
    };
    assert!(matches!(read_changed(&|_| {}, [true, true]), Packet::Answer(0, _)));
    assert_eq!(read_changed(&|_| {}, [false, true]), Packet::Foreign);
    assert_eq!(read_changed(&|message| message.metadata.id ^= 1, [true, true]), Packet::Foreign);
    assert_eq!(read_changed(&|message| message.queries[0].name = name("b.test"), [true, true]), Packet::Foreign);
    assert_eq!(read_changed(&|message| message.queries[0].query_type = RecordType::MX, [true, true]), Packet::Foreign);
    assert_eq!(read_changed(&|message| message.queries[0].query_class = DNSClass::CH, [true, true]), Packet::Foreign);
    assert_eq!(read_changed(&|message| message.queries.clear(), [true, true]), Packet::Foreign);
    let other_case = read_changed(&|message| message.queries[0].name = name("WEB.Test"), [true, true]);
    assert!(matches!(other_case, Packet::Answer(0, _)));
}

#[test]
fn failures_make_the_next_server_be_asked() {
    let questions = questions("");
    let is_open = [true, true];
    for code in [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused] {
        let mut message = answer(&questions[1], &[]);
        message.metadata.response_code = code;
        assert_eq!(read(&message.to_vec().unwrap(), &questions, &is_open), Packet::Unusable(1, code));
        message.queries.clear();
        assert_eq!(read(&message.to_vec().unwrap(), &questions, &is_open), Packet::Unusable(1, code), "bare");
    }
    let mut lame = answer(&questions[0], &[]);
    lame.metadata.recursion_available = false;
    let packet = lame.to_vec().unwrap();
    assert_eq!(read(&packet, &questions, &is_open), Packet::Unusable(0, ResponseCode::NoError));
    let mut truncated = answer(&questions[0], &[]);
    truncated.metadata.truncation = true;
    assert_eq!(read(&truncated.to_vec().unwrap(), &questions, &is_open), Packet::Truncated);
    let whole = answer(&questions[0], &[("web.test", a(1))]).to_vec().unwrap();
    assert_eq!(read(&whole[..whole.len() - 1], &questions, &is_open), Packet::Unusable(0, ResponseCode::NoError));
    assert_eq!(read(&whole[..11], &questions, &is_open), Packet::Short);
    assert_eq!(read(&questions[0].bytes, &questions, &is_open), Packet::Unusable(0, ResponseCode::NoError), "echo");
}

#[test]
fn any_bytes_are_a_packet() {
    let questions = questions("");
    let whole = answer(&questions[0], &[("web.test", alias("b.test")), ("b.test", a(1))]).to_vec().unwrap();
    for place in 0..whole.len() {
        for value in 0..=u8::MAX {
            let mut packet = whole.clone();
            packet[place] = value;
            read(&packet, &questions, &[true, true]);
        }
        read(&whole[..place], &questions, &[true, true]);
    }
}
