//! Answers to queries: pure, from a snapshot and the bytes of a message to the bytes of the reply.

use std::collections::BTreeSet;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use crate::zone::{Entry, Snapshot, to_name};

/// Largest reply over UDP that we send and announce: fits one Ethernet frame.
pub(crate) const UDP_MAX: u16 = 1232;
/// Largest reply over UDP to a client that announces nothing.
const UDP_PLAIN: u16 = 512;
/// How many aliases are followed.
const MAX_ALIASES: usize = 8;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Replies are cut to what the client takes.
    Udp,
    /// Replies may be 64 KiB long.
    Tcp,
}

/// What becomes of a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Not a query: no reply.
    Drop,
    /// The reply.
    Reply(Vec<u8>),
    /// Not ours: another resolver has to be asked the same.
    Forward,
    /// An alias of ours for a name that is not: the addresses of the target have to be added.
    Resolve(Box<Unresolved>),
}

/// A reply that lacks the addresses of an alias's target.
#[derive(Debug, Clone, PartialEq)]
pub struct Unresolved {
    reply: Message,
    limit: u16,
    /// What to ask another resolver.
    pub question: Query,
}

impl Unresolved {
    /// The query to another resolver.
    pub fn query(&self) -> Option<Vec<u8>> {
        let mut message = Message::new(self.reply.metadata.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(self.question.clone());
        message.to_vec().ok()
    }

    /// The whole reply, with the other resolver's answer; without one the client is told to try again.
    pub fn finish(mut self, answer: Option<&[u8]>) -> Vec<u8> {
        match answer.and_then(|bytes| Message::from_vec(bytes).ok()) {
            Some(more) if more.metadata.response_code != ResponseCode::ServFail => {
                self.reply.metadata.response_code = more.metadata.response_code;
                self.reply.metadata.truncation |= more.metadata.truncation;
                self.reply.answers.extend(more.answers);
            }
            _ => {
                self.reply.answers.clear();
                self.reply.metadata.response_code = ResponseCode::ServFail;
            }
        }
        self.reply.metadata.authoritative = false;
        encode(&self.reply, self.limit)
    }
}

/// Answers one query.
pub fn answer(zone: &Snapshot, request: &[u8], transport: Transport) -> Outcome {
    let Ok(message) = Message::from_vec(request) else {
        return malformed(request);
    };
    if message.metadata.message_type != MessageType::Query {
        return Outcome::Drop;
    }
    let limit = match (transport, &message.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_PLAIN, UDP_MAX),
        (Transport::Udp, None) => UDP_PLAIN,
    };
    let mut reply = reply_to(&message);
    let refuse = |mut reply: Message, code: ResponseCode| {
        reply.metadata.response_code = code;
        Outcome::Reply(encode(&reply, limit))
    };
    if message.metadata.op_code != OpCode::Query {
        return refuse(reply, ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(reply, ResponseCode::BADVERS);
    }
    let [query] = &message.queries[..] else {
        return refuse(reply, ResponseCode::FormErr);
    };
    let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
    if query.query_class != DNSClass::IN || transfer {
        return refuse(reply, ResponseCode::Refused);
    }
    let key = key_of(&query.name);
    if !zone.holds(&key) {
        return match zone.get(&key) {
            Some(entry) => {
                reply.metadata.authoritative = true;
                add_records(zone, entry, &query.name, query.query_type, &mut reply.answers);
                Outcome::Reply(encode(&reply, limit))
            }
            None => Outcome::Forward,
        };
    }
    if !zone.is_known() {
        return refuse(reply, ResponseCode::ServFail);
    }
    reply.metadata.authoritative = true;
    match fill(zone, query, &key, &mut reply) {
        Some(question) => Outcome::Resolve(Box::new(Unresolved { reply, limit, question })),
        None => Outcome::Reply(encode(&reply, limit)),
    }
}

/// A reply that says only that the query failed: for a query that could not be forwarded.
pub(crate) fn failure(request: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let message = Message::from_vec(request).ok()?;
    let mut reply = reply_to(&message);
    reply.metadata.response_code = code;
    Some(encode(&reply, UDP_PLAIN))
}

/// Answers a query for a name of the zone; gives back what another resolver has to be asked, if anything.
fn fill(zone: &Snapshot, query: &Query, key: &str, reply: &mut Message) -> Option<Query> {
    let mut key = key.to_owned();
    let mut owner = query.name.clone();
    for _ in 0..MAX_ALIASES {
        let Some(entry) = zone.get(&key) else {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.extend(start_of_authority(zone, zone.negative_ttl(&key)));
            return None;
        };
        let Some(target) = entry.alias.as_ref().filter(|_| query.query_type != RecordType::CNAME) else {
            let before = reply.answers.len();
            add_records(zone, entry, &owner, query.query_type, &mut reply.answers);
            if reply.answers.len() == before {
                reply.authorities.extend(start_of_authority(zone, zone.negative_ttl(&key)));
            }
            add_addresses_of_targets(zone, entry, query.query_type, reply);
            return None;
        };
        let Some(target_name) = to_name(target) else { break };
        reply.answers.push(Record::from_rdata(owner, entry.ttl, RData::CNAME(CNAME(target_name.clone()))));
        if !zone.holds(target) {
            return Some(Query::query(target_name, query.query_type));
        }
        key = target.clone();
        owner = target_name;
    }
    reply.answers.clear();
    reply.metadata.response_code = ResponseCode::ServFail;
    None
}

/// Adds the records of a type that an entry has; ANY takes all.
fn add_records(zone: &Snapshot, entry: &Entry, owner: &Name, kind: RecordType, out: &mut Vec<Record>) {
    let wants = |this: RecordType| (kind == this || kind == RecordType::ANY) && entry.has(this);
    let mut push = |ttl: u32, data: RData| out.push(Record::from_rdata(owner.clone(), ttl, data));
    if wants(RecordType::A) {
        entry.v4.iter().for_each(|a| push(entry.ttl, RData::A(A(*a))));
    }
    if wants(RecordType::AAAA) {
        entry.v6.iter().for_each(|a| push(entry.ttl, RData::AAAA(AAAA(*a))));
    }
    if wants(RecordType::SRV) {
        let weight = u16::try_from(100 / entry.services.len().max(1)).unwrap_or(1).max(1);
        for (port, target) in &entry.services {
            if let Some(target) = to_name(target) {
                push(entry.ttl, RData::SRV(SRV::new(0, weight, *port, target)));
            }
        }
    }
    if wants(RecordType::PTR) {
        let names = entry.pointers.iter().filter_map(|name| to_name(name));
        names.for_each(|name| push(entry.ttl, RData::PTR(PTR(name))));
    }
    if let Some(text) = entry.text.filter(|_| wants(RecordType::TXT)) {
        push(entry.ttl, RData::TXT(TXT::new(vec![text.to_owned()])));
    }
    if let Some(target) = entry.alias.as_ref().filter(|_| wants(RecordType::CNAME)).and_then(|name| to_name(name)) {
        push(entry.ttl, RData::CNAME(CNAME(target)));
    }
    if let Some(server) = to_name(&zone.server_name()).filter(|_| wants(RecordType::NS)) {
        push(zone.apex_ttl(), RData::NS(NS(server)));
    }
    if wants(RecordType::SOA) {
        out.extend(start_of_authority(zone, zone.apex_ttl()));
    }
}

/// Adds the addresses of what SRV and NS records point to.
fn add_addresses_of_targets(zone: &Snapshot, entry: &Entry, kind: RecordType, reply: &mut Message) {
    let mut targets = BTreeSet::new();
    if matches!(kind, RecordType::SRV | RecordType::ANY) {
        targets.extend(entry.services.iter().map(|(_, target)| target.clone()));
    }
    if kind == RecordType::NS && entry.apex {
        targets.insert(zone.server_name());
    }
    for target in targets {
        if let (Some(entry), Some(name)) = (zone.get(&target), to_name(&target)) {
            add_records(zone, entry, &name, RecordType::A, &mut reply.additionals);
            add_records(zone, entry, &name, RecordType::AAAA, &mut reply.additionals);
        }
    }
}

/// The zone's SOA, which also says for how long an absence may be remembered.
fn start_of_authority(zone: &Snapshot, minimum: u32) -> Option<Record> {
    let server = to_name(&zone.server_name())?;
    let mailbox = to_name(&format!("hostmaster.{}", zone.domain()))?;
    let soa = SOA::new(server, mailbox, zone.serial(), 7200, 1800, 86_400, minimum);
    Some(Record::from_rdata(to_name(zone.domain())?, minimum, RData::SOA(soa)))
}

/// An empty reply with the query's question.
fn reply_to(message: &Message) -> Message {
    let mut reply = Message::new(message.metadata.id, MessageType::Response, message.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&message.metadata);
    reply.metadata.recursion_available = true;
    reply.add_queries(message.queries.iter().cloned());
    if message.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX).set_version(0);
        reply.set_edns(edns);
    }
    reply
}

/// The reply to bytes that are no message: FORMERR if at least the header can be read, nothing otherwise.
fn malformed(request: &[u8]) -> Outcome {
    const HEADER: usize = 12;
    const RESPONSE_BIT: u8 = 0x80;
    if request.len() < HEADER || request[2] & RESPONSE_BIT != 0 {
        return Outcome::Drop;
    }
    let id = u16::from_be_bytes([request[0], request[1]]);
    let op_code = OpCode::from_u8((request[2] >> 3) & 0x0f);
    let code = if op_code == OpCode::Query { ResponseCode::FormErr } else { ResponseCode::NotImp };
    Outcome::Reply(encode(&Message::error_msg(id, op_code, code), UDP_PLAIN))
}

/// The key of a name in the snapshot.
fn key_of(name: &Name) -> String {
    let mut key = name.to_lowercase().to_ascii();
    if key.ends_with('.') {
        key.pop();
    }
    key
}

/// A message as bytes within a limit. Additional records go first; what then does not fit sets the truncation bit.
fn encode(message: &Message, limit: u16) -> Vec<u8> {
    let mut lean;
    let mut message = message;
    if let Ok(bytes) = message.to_vec() {
        if bytes.len() <= usize::from(limit) {
            return bytes;
        }
        if !message.additionals.is_empty() {
            lean = message.clone();
            lean.additionals.clear();
            message = &lean;
        }
    }
    let mut bytes = Vec::with_capacity(usize::from(limit).min(4096));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    if message.emit(&mut encoder).is_ok() && bytes.len() <= usize::from(limit) {
        return bytes;
    }
    message.truncate().to_vec().unwrap_or_default()
}
