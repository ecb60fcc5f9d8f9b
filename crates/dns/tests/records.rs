//! Records and answers, row by row of the specification, asked through the wire format.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;
use statefuld_dns::records::{Cluster, Endpoint, EndpointSlice, Port, Service};
use statefuld_dns::{Outcome, Snapshot, Transport, answer};

const ZONE: &str = "cluster.local";

fn port(name: &str, number: u16) -> Port {
    Port { name: name.into(), protocol: "TCP".into(), port: number }
}

fn service(name: &str) -> Service {
    Service { namespace: "ns".into(), name: name.into(), ..Service::default() }
}

fn headless(name: &str) -> Service {
    Service { headless: true, ..service(name) }
}

fn endpoint(address: &str, hostname: &str, ready: bool) -> Endpoint {
    let hostname = Some(hostname.to_owned()).filter(|name| !name.is_empty());
    Endpoint { addresses: vec![address.parse().expect("an address")], ready, hostname }
}

fn cluster(services: Vec<Service>, slices: Vec<(&str, Vec<Port>, Vec<Endpoint>)>) -> Cluster {
    let slice = |(index, (service, ports, endpoints)): (usize, (&str, Vec<Port>, Vec<Endpoint>))| {
        let slice = EndpointSlice { namespace: "ns".into(), service: service.into(), ports, endpoints };
        (format!("ns/{index}"), slice)
    };
    Cluster {
        services: services.into_iter().map(|s| (s.key(), s)).collect(),
        slices: slices.into_iter().enumerate().map(slice).collect(),
    }
}

fn zone(services: Vec<Service>, slices: Vec<(&str, Vec<Port>, Vec<Endpoint>)>) -> Snapshot {
    let server: IpAddr = "10.9.0.1".parse().expect("an address");
    Snapshot::build(ZONE, &[server], 7, &cluster(services, slices))
}

/// Three members, as etcd finds them.
fn etcd() -> Snapshot {
    let members = (0..3).map(|i| endpoint(&format!("10.1.0.{i}"), &format!("etcd-{i}"), true)).collect();
    zone(vec![headless("etcd")], vec![("etcd", vec![port("etcd-server", 2380), port("", 9)], members)])
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str_relaxed(format!("{name}.")).expect("a name"), kind));
    message
}

fn send(zone: &Snapshot, message: &Message, transport: Transport) -> Message {
    match answer(zone, &message.to_vec().expect("encodes"), transport) {
        Outcome::Reply(bytes) => Message::from_vec(&bytes).expect("a reply can be read"),
        other => panic!("{other:?}"),
    }
}

fn ask(zone: &Snapshot, name: &str, kind: RecordType) -> Message {
    let reply = send(zone, &query(name, kind), Transport::Udp);
    assert_eq!(reply.metadata.id, 77);
    assert_eq!(reply.queries, query(name, kind).queries);
    reply
}

/// The data of the answers as text.
fn data(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

fn get(zone: &Snapshot, name: &str, kind: RecordType) -> Vec<String> {
    let reply = ask(zone, name, kind);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(reply.metadata.authoritative);
    data(&reply)
}

fn soa_minimum(reply: &Message) -> Option<u32> {
    reply.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.minimum),
        _ => None,
    })
}

fn assert_denied(zone: &Snapshot, name: &str) -> u32 {
    let reply = ask(zone, name, RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
    soa_minimum(&reply).expect("a denial carries the SOA")
}

fn assert_no_data(zone: &Snapshot, name: &str, kind: RecordType) -> u32 {
    let reply = ask(zone, name, kind);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
    assert!(reply.answers.is_empty(), "{name}");
    soa_minimum(&reply).expect("no data carries the SOA")
}

#[test]
fn the_version_is_told() {
    let reply = ask(&etcd(), "dns-version.cluster.local", RecordType::TXT);
    assert_eq!(data(&reply), ["1.1.0"]);
    assert_eq!(reply.answers[0].ttl, 28_800);
}

#[test]
fn a_service_with_an_address_has_address_pointer_and_ports() {
    let mut web = service("web");
    web.cluster_ips = vec!["10.96.0.5".parse().expect("an address"), "fd00::5".parse().expect("an address")];
    web.ports = vec![port("http", 80), port("", 81)];
    let zone = zone(vec![web], vec![]);
    assert_eq!(get(&zone, "web.ns.svc.cluster.local", RecordType::A), ["10.96.0.5"]);
    assert_eq!(get(&zone, "web.ns.svc.cluster.local", RecordType::AAAA), ["fd00::5"]);
    assert_eq!(get(&zone, "5.0.96.10.in-addr.arpa", RecordType::PTR), ["web.ns.svc.cluster.local."]);
    let reverse = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(get(&zone, reverse, RecordType::PTR), ["web.ns.svc.cluster.local."]);
    assert_eq!(
        get(&zone, "_http._tcp.web.ns.svc.cluster.local", RecordType::SRV),
        ["0 100 80 web.ns.svc.cluster.local."]
    );
    assert_denied(&zone, "_https._tcp.web.ns.svc.cluster.local");
}

#[test]
fn a_headless_service_has_an_address_per_ready_endpoint() {
    let members =
        vec![endpoint("10.1.0.1", "web-0", true), endpoint("10.1.0.2", "web-1", false), endpoint("10.1.0.3", "", true)];
    let zone = zone(vec![headless("web")], vec![("web", vec![], members)]);
    let reply = ask(&zone, "web.ns.svc.cluster.local", RecordType::A);
    assert_eq!(data(&reply), ["10.1.0.1", "10.1.0.3"]);
    assert_eq!(reply.answers[0].ttl, 0);
    assert_eq!(get(&zone, "web-0.web.ns.svc.cluster.local", RecordType::A), ["10.1.0.1"]);
    assert_eq!(get(&zone, "10-1-0-3.web.ns.svc.cluster.local", RecordType::A), ["10.1.0.3"]);
    assert_eq!(get(&zone, "1.0.1.10.in-addr.arpa", RecordType::PTR), ["web-0.web.ns.svc.cluster.local."]);
    assert_eq!(assert_denied(&zone, "web-1.web.ns.svc.cluster.local"), 0);
}

#[test]
fn members_are_found_through_srv_with_their_addresses() {
    let reply = ask(&etcd(), "_etcd-server._tcp.etcd.ns.svc.cluster.local", RecordType::SRV);
    assert_eq!(data(&reply), [0, 1, 2].map(|i| format!("0 33 2380 etcd-{i}.etcd.ns.svc.cluster.local.")));
    let addresses: Vec<String> = reply.additionals.iter().map(|r| format!("{} {}", r.name, r.data)).collect();
    assert_eq!(addresses, [0, 1, 2].map(|i| format!("etcd-{i}.etcd.ns.svc.cluster.local. 10.1.0.{i}")));
}

#[test]
fn two_ports_and_two_endpoints_make_four_records() {
    let members = vec![endpoint("10.1.0.1", "a", true), endpoint("10.1.0.2", "b", true)];
    let mut other = port("x", 3);
    other.port = 2;
    let slices = vec![("web", vec![port("x", 1)], members.clone()), ("web", vec![other], members)];
    let zone = zone(vec![headless("web")], slices);
    assert_eq!(get(&zone, "_x._tcp.web.ns.svc.cluster.local", RecordType::SRV).len(), 4);
}

#[test]
fn unready_endpoints_count_where_the_service_tolerates_them() {
    let mut web = headless("web");
    web.publish_not_ready = true;
    let zone = zone(vec![web], vec![("web", vec![port("p", 1)], vec![endpoint("10.1.0.1", "web-0", false)])]);
    assert_eq!(get(&zone, "web.ns.svc.cluster.local", RecordType::A), ["10.1.0.1"]);
    assert_eq!(get(&zone, "_p._tcp.web.ns.svc.cluster.local", RecordType::SRV).len(), 1);
}

#[test]
fn a_headless_service_without_ready_endpoints_is_denied_and_not_remembered() {
    let zone = zone(vec![headless("web")], vec![("web", vec![], vec![endpoint("10.1.0.1", "web-0", false)])]);
    assert_eq!(assert_denied(&zone, "web.ns.svc.cluster.local"), 0);
    assert_eq!(assert_denied(&zone, "web-0.web.ns.svc.cluster.local"), 0);
    assert_eq!(assert_denied(&zone, "_p._tcp.web.ns.svc.cluster.local"), 0);
}

#[test]
fn an_expected_pod_exists_without_data_until_it_is_there() {
    let mut web = headless("web");
    web.expected = vec!["web-0".into(), "web-1".into()];
    let zone = zone(vec![web], vec![("web", vec![], vec![endpoint("10.1.0.1", "web-0", true)])]);
    assert_eq!(get(&zone, "web-0.web.ns.svc.cluster.local", RecordType::A), ["10.1.0.1"]);
    assert_eq!(assert_no_data(&zone, "web-1.web.ns.svc.cluster.local", RecordType::A), 0);
    assert_eq!(assert_denied(&zone, "web-2.web.ns.svc.cluster.local"), 0);
}

#[test]
fn endpoints_of_a_service_with_an_address_have_names_too() {
    let mut web = service("web");
    web.cluster_ips = vec!["10.96.0.5".parse().expect("an address")];
    let zone = zone(vec![web], vec![("web", vec![], vec![endpoint("10.1.0.1", "web-0", true)])]);
    assert_eq!(get(&zone, "web-0.web.ns.svc.cluster.local", RecordType::A), ["10.1.0.1"]);
    assert_eq!(get(&zone, "web.ns.svc.cluster.local", RecordType::A), ["10.96.0.5"]);
}

#[test]
fn an_external_name_is_an_alias() {
    let mut inside = service("inside");
    inside.external_name = Some("etcd.ns.svc.cluster.local".into());
    let mut outside = service("outside");
    outside.external_name = Some("db.example.com".into());
    let members = vec![endpoint("10.1.0.1", "etcd-0", true)];
    let zone = zone(vec![inside, outside, headless("etcd")], vec![("etcd", vec![], members)]);
    assert_eq!(get(&zone, "inside.ns.svc.cluster.local", RecordType::A), ["etcd.ns.svc.cluster.local.", "10.1.0.1"]);
    assert_eq!(get(&zone, "outside.ns.svc.cluster.local", RecordType::CNAME), ["db.example.com."]);
    let bytes = query("outside.ns.svc.cluster.local", RecordType::A).to_vec().expect("encodes");
    let Outcome::Resolve(unresolved) = answer(&zone, &bytes, Transport::Udp) else { panic!("the target is not ours") };
    assert_eq!(unresolved.question.name.to_string(), "db.example.com.");
    let failed = Message::from_vec(&unresolved.finish(None)).expect("a reply");
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn aliases_in_a_circle_end() {
    let mut a = service("a");
    a.external_name = Some("b.ns.svc.cluster.local".into());
    let mut b = service("b");
    b.external_name = Some("a.ns.svc.cluster.local".into());
    let reply = ask(&zone(vec![a, b], vec![]), "a.ns.svc.cluster.local", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn unknown_names_are_denied_and_known_ones_without_the_type_are_not() {
    let zone = etcd();
    for name in ["x.cluster.local", "x.ns.svc.cluster.local", "x.other.svc.cluster.local", "other.svc.cluster.local"] {
        assert_eq!(assert_denied(&zone, name), 5, "{name}");
    }
    assert_eq!(assert_denied(&zone, "a.etcd-0.etcd.ns.svc.cluster.local"), 0);
    for name in ["cluster.local", "svc.cluster.local", "ns.svc.cluster.local"] {
        assert_no_data(&zone, name, RecordType::A);
    }
    assert_no_data(&zone, "etcd.ns.svc.cluster.local", RecordType::AAAA);
    assert_no_data(&zone, "etcd.ns.svc.cluster.local", RecordType::MX);
    assert_no_data(&zone, "_tcp.etcd.ns.svc.cluster.local", RecordType::SRV);
}

#[test]
fn names_are_found_in_any_case_and_answered_in_the_askers() {
    let reply = ask(&etcd(), "ETCD-0.Etcd.ns.SVC.cluster.LOCAL", RecordType::A);
    assert_eq!(data(&reply), ["10.1.0.0"]);
    assert!(reply.answers[0].name.eq_case(&reply.queries[0].name));
}

#[test]
fn the_zone_has_soa_and_a_name_server() {
    let zone = etcd();
    assert_eq!(get(&zone, "cluster.local", RecordType::NS), ["ns.dns.cluster.local."]);
    assert_eq!(get(&zone, "ns.dns.cluster.local", RecordType::A), ["10.9.0.1"]);
    assert!(get(&zone, "cluster.local", RecordType::SOA)[0].contains(" 7 "));
}

#[test]
fn before_anything_is_known_nothing_is_denied() {
    let zone = Snapshot::unknown(ZONE);
    let reply = ask(&zone, "web.ns.svc.cluster.local", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn other_names_are_for_other_resolvers() {
    for name in ["example.com", "notcluster.local", "9.9.9.9.in-addr.arpa"] {
        let bytes = query(name, RecordType::A).to_vec().expect("encodes");
        assert_eq!(answer(&etcd(), &bytes, Transport::Udp), Outcome::Forward, "{name}");
    }
}

#[test]
fn transfers_other_classes_and_operations_are_refused() {
    let code = |message: &Message| send(&etcd(), message, Transport::Tcp).metadata.response_code;
    assert_eq!(code(&query("cluster.local", RecordType::AXFR)), ResponseCode::Refused);
    let mut chaos = query("version.bind", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut notify = query("cluster.local", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&notify), ResponseCode::NotImp);
    assert_eq!(code(&Message::new(1, MessageType::Query, OpCode::Query)), ResponseCode::FormErr);
    let mut edns = Edns::new();
    edns.set_version(1);
    let mut newer = query("cluster.local", RecordType::SOA);
    newer.set_edns(edns);
    // Code 16 is BADVERS here and BADSIG elsewhere.
    assert_eq!(u16::from(code(&newer)), 16);
}

#[test]
fn garbage_is_a_format_error_and_responses_are_dropped() {
    let mut garbage = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0, 0xff];
    let Outcome::Reply(reply) = answer(&etcd(), &garbage, Transport::Udp) else { panic!("the header is whole") };
    let reply = Message::from_vec(&reply).expect("a reply");
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0xabcd, ResponseCode::FormErr));
    garbage[2] |= 0x80;
    assert_eq!(answer(&etcd(), &garbage, Transport::Udp), Outcome::Drop);
    assert_eq!(answer(&etcd(), &[1, 2, 3], Transport::Udp), Outcome::Drop);
}

#[test]
fn what_does_not_fit_is_cut_and_marked() {
    let members = (0..100).map(|i| endpoint(&format!("10.1.0.{i}"), &format!("web-{i}"), true)).collect();
    let zone = zone(vec![headless("web")], vec![("web", vec![port("p", 1)], members)]);
    let plain = query("web.ns.svc.cluster.local", RecordType::A);
    let cut = match answer(&zone, &plain.to_vec().expect("encodes"), Transport::Udp) {
        Outcome::Reply(bytes) => bytes,
        other => panic!("{other:?}"),
    };
    assert!(cut.len() <= 512);
    assert!(Message::from_vec(&cut).expect("a reply").metadata.truncation);
    let whole = send(&zone, &plain, Transport::Tcp);
    assert_eq!(whole.answers.len(), 100);
    assert!(!whole.metadata.truncation);
    let mut wider = plain;
    wider.set_edns({
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        edns
    });
    let reply = send(&zone, &wider, Transport::Udp);
    assert!(reply.answers.len() > 30 && reply.metadata.truncation);
}

#[test]
fn additional_records_give_way_before_answers_do() {
    let members = (0..8).map(|i| endpoint(&format!("10.1.0.{i}"), &format!("web-{i}"), true)).collect();
    let zone = zone(vec![headless("web")], vec![("web", vec![port("p", 1)], members)]);
    let reply = send(&zone, &query("_p._tcp.web.ns.svc.cluster.local", RecordType::SRV), Transport::Udp);
    assert_eq!(reply.answers.len(), 8);
    assert!(reply.additionals.is_empty() && !reply.metadata.truncation);
}

#[test]
fn names_beyond_the_limits_of_dns_are_left_out() {
    let long = "a".repeat(64);
    let zone = zone(vec![headless("web")], vec![("web", vec![], vec![endpoint("10.1.0.1", &long, true)])]);
    assert_denied(&zone, "web.ns.svc.cluster.local");
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let zone = etcd();
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Outcome::Reply(reply) = answer(&zone, &bytes, transport) {
                prop_assert!(reply.len() >= 12 && reply[..2] == bytes[..2] && reply[2] & 0x80 != 0);
            }
        }
    }

    #[test]
    fn any_damaged_query_is_survived(at in 0_usize..40, value in any::<u8>(), cut in 0_usize..60) {
        let mut bytes = query("_etcd-server._tcp.etcd.ns.svc.cluster.local", RecordType::SRV).to_vec().expect("encodes");
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = answer(&etcd(), &bytes, Transport::Udp);
    }

    #[test]
    fn any_names_can_be_built_and_asked(service_name in "\\PC{0,70}", host in "[a-zA-Z0-9._-]{0,70}", kind in any::<u16>()) {
        let members = vec![endpoint("10.1.0.1", &host, true)];
        let zone = zone(vec![headless(&service_name)], vec![(&service_name, vec![port("p", 1)], members)]);
        let mut message = query("ns.svc.cluster.local", RecordType::from(kind));
        if let Ok(name) = Name::from_str_relaxed(format!("{host}.{service_name}.ns.svc.cluster.local.")) {
            message.queries[0].name = name;
        }
        if let Ok(bytes) = message.to_vec() {
            let _ = answer(&zone, &bytes, Transport::Udp);
        }
    }
}
