//! Tests of the binary form.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Error, MAGIC, decode, encode, encode_document, encode_list, watch_frame, wire::Writer};
use crate::decode::{FieldValidation, check_value};
use crate::resource::Registry;
use crate::schema::Schema;

/// An object as it is stored.
fn stored(group: &str, plural: &str, body: Value) -> (String, Value) {
    let resource = Registry::builtin().find(group, "v1", plural).expect("a built-in kind");
    let object = check_value(&resource, body, FieldValidation::Strict).expect("decodes").object;
    (resource.type_name.clone(), object)
}

/// Checks that an object survives the binary form.
#[track_caller]
fn round_trips(group: &str, plural: &str, body: Value) {
    let (type_name, object) = stored(group, plural, body);
    let read = decode(&type_name, &encode(&type_name, &object).unwrap()).unwrap();
    let (_, again) = stored(group, plural, read);
    assert_eq!(again, object);
}

/// An envelope around the bytes of a core/v1 object.
fn enveloped(kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut envelope = Writer::default();
    envelope.message(1, |names| {
        names.bytes(1, b"v1");
        names.bytes(2, kind.as_bytes());
    });
    envelope.bytes(2, raw);
    envelope.bytes(3, b"");
    envelope.bytes(4, b"");
    [MAGIC.as_slice(), &envelope.into_bytes()].concat()
}

/// Metadata of an object that has a name and nothing else: what is no pointer is written all the same.
fn named(name: u8) -> Vec<u8> {
    let mut out = vec![0x0a, 1, name];
    // generateName, namespace, selfLink, uid, resourceVersion: empty. generation: 0. creationTimestamp: none.
    out.extend([0x12, 0, 0x1a, 0, 0x22, 0, 0x2a, 0, 0x32, 0, 0x38, 0, 0x42, 0]);
    out
}

#[test]
fn a_secret_is_written_byte_for_byte_as_upstream_does() {
    let mut secret = vec![0x0a, 17];
    secret.extend(named(b's'));
    secret.extend([0x12, 6, 0x0a, 1, b'a', 0x12, 1, b'b', 0x1a, 6]);
    secret.extend(b"Opaque");
    let expected = enveloped("Secret", &secret);
    let (type_name, object) =
        stored("", "secrets", json!({"metadata": {"name": "s"}, "data": {"a": "Yg=="}, "type": "Opaque"}));
    assert_eq!(encode(&type_name, &object).unwrap(), expected);
    let read = decode(&type_name, &expected).unwrap();
    assert_eq!(stored("", "secrets", read).1, object);
}

#[test]
fn quantities_ports_and_embedded_messages_are_written_as_upstream_does() {
    let (type_name, object) = stored(
        "",
        "endpoints",
        json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}]}]}),
    );
    let mut endpoints = vec![0x0a, 17];
    endpoints.extend(named(b'e'));
    // A subset: an address (ip, hostname without content) and a port (name, number, protocol).
    let subset =
        [[0x0a, 11, 0x0a, 7].as_slice(), b"1.2.3.4", &[0x1a, 0], &[0x1a, 6, 0x0a, 0, 0x10, 80, 0x1a, 0]].concat();
    endpoints.extend([0x12, subset.len() as u8]);
    endpoints.extend(subset);
    assert_eq!(encode(&type_name, &object).unwrap(), enveloped("Endpoints", &endpoints));

    let (type_name, object) =
        stored("", "resourcequotas", json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "3"}}}));
    let mut quota = vec![0x0a, 17];
    quota.extend(named(b'q'));
    quota.extend([0x12, 13, 0x0a, 11, 0x0a, 4]);
    quota.extend(b"pods");
    quota.extend([0x12, 3, 0x0a, 1, b'3', 0x1a, 0]);
    assert_eq!(encode(&type_name, &object).unwrap(), enveloped("ResourceQuota", &quota));
}

#[test]
fn a_status_is_written_as_upstream_does() {
    let status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "m",
        "reason": "NotFound", "details": {"name": "x", "kind": "pods"}, "code": 404});
    let mut raw = vec![0x0a, 6, 0x0a, 0, 0x12, 0, 0x1a, 0, 0x12, 7];
    raw.extend(b"Failure");
    raw.extend([0x1a, 1, b'm', 0x22, 8]);
    raw.extend(b"NotFound");
    raw.extend([0x2a, 15, 0x0a, 1, b'x', 0x12, 0, 0x1a, 4]);
    raw.extend(b"pods");
    raw.extend([0x28, 0, 0x32, 0, 0x30, 0x94, 0x03]);
    assert_eq!(encode_document(&status).unwrap(), enveloped("Status", &raw));
}

/// A field of bytes: its tag and its length before it.
fn field(tag: &[u8], content: &[u8]) -> Vec<u8> {
    [tag, &[u8::try_from(content.len()).expect("short")], content].concat()
}

/// A schema of this type. What is no pointer is written all the same; the rest stands between, in the order of its
/// numbers: before 10, before 12, and after 18.
fn schema(kind: &str, before_10: &[u8], before_12: &[u8], after_18: &[u8]) -> Vec<u8> {
    let mut out = vec![0x0a, 0, 0x12, 0, 0x22, 0];
    out.extend(field(&[0x2a], kind.as_bytes()));
    out.extend([0x32, 0, 0x3a, 0]);
    out.extend(before_10);
    // exclusiveMaximum, exclusiveMinimum, pattern, uniqueItems.
    out.extend([0x50, 0]);
    out.extend(before_12);
    out.extend([0x60, 0, 0x7a, 0, 0x90, 0x01, 0]);
    out.extend(after_18);
    // nullable, an embedded resource, a number or a text.
    out.extend([0xa8, 0x02, 0, 0xb8, 0x02, 0, 0xc0, 0x02, 0]);
    out
}

#[test]
fn a_schema_is_written_byte_for_byte_as_upstream_does() {
    let value = json!({"type": "object",
        "properties": {"a": {"type": "number", "default": 2, "minimum": 1.5, "enum": [2, null]}},
        "items": [{"type": "string"}], "additionalProperties": true, "additionalItems": {"type": "string"},
        "dependencies": {"d": ["e"], "f": {"type": "string"}}});
    // JSON is a message that holds its text; null is an empty one.
    let default = field(&[0x42], &field(&[0x0a], b"2"));
    let minimum = [&[0x59][..], &1.5f64.to_le_bytes()].concat();
    let one_of = [field(&[0xa2, 0x01], &field(&[0x0a], b"2")), field(&[0xa2, 0x01], b"")].concat();
    let a = schema("number", &default, &minimum, &one_of);
    let string = schema("string", b"", b"", b"");
    let entry = |key: &str, value: &[u8]| [field(&[0x0a], key.as_bytes()), field(&[0x12], value)].concat();
    let rest = [
        field(&[0xc2, 0x01], &field(&[0x12], &string)),
        field(&[0xea, 0x01], &entry("a", &a)),
        field(&[0xf2, 0x01], &[0x08, 1]),
        field(&[0x82, 0x02], &entry("d", &field(&[0x12], b"e"))),
        field(&[0x82, 0x02], &entry("f", &field(&[0x0a], &string))),
        field(&[0x8a, 0x02], &[&[0x08, 1][..], &field(&[0x12], &string)].concat()),
    ]
    .concat();
    let expected = schema("object", b"", b"", &rest);
    let types = Schema::builtin();
    let id = types.find("apiextensions/v1.JSONSchemaProps").unwrap();
    let mut written = Writer::default();
    super::write::message(types, id, &value, &mut written);
    assert_eq!(written.into_bytes(), expected);
    let read = super::read::value(types, id, &expected, 0).unwrap();
    for name in value.as_object().unwrap().keys().filter(|name| !matches!(name.as_str(), "properties" | "items")) {
        let read = &read[name];
        match name.as_str() {
            "additionalItems" => assert_eq!(read["type"], "string"),
            "dependencies" => assert_eq!((&read["d"], &read["f"]["type"]), (&json!(["e"]), &json!("string"))),
            _ => assert_eq!(*read, value[name], "{name}"),
        }
    }
    let a = &read["properties"]["a"];
    assert_eq!((&a["default"], &a["minimum"], &a["enum"]), (&json!(2), &json!(1.5), &json!([2, null])));
    assert_eq!(read["items"][0]["type"], "string");
}

#[test]
fn definitions_round_trip() {
    let rule =
        json!({"rule": "self.size < 5", "message": "too large", "reason": "FieldValueInvalid", "fieldPath": ".size"});
    let spec = json!({"type": "object", "required": ["size"], "x-kubernetes-validations": [rule], "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 10.5, "default": 3, "exclusiveMaximum": true},
        "name": {"type": "string", "maxLength": 0, "pattern": "^a", "enum": ["a", null], "nullable": true},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "example": {"a": [1, null]}},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "map": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"},
        "any": {"type": "object", "additionalProperties": true},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
            "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}},
        "not": {"type": "number", "not": {"minimum": -0.25}, "externalDocs": {"url": "https://docs.example"}}}});
    round_trips(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        json!({"metadata": {"name": "toys.shop.example"}, "spec": {"group": "shop.example", "scope": "Namespaced",
        "names": {"plural": "toys", "singular": "toy", "kind": "Toy", "listKind": "ToyList", "shortNames": ["ty"]},
        "conversion": {"strategy": "None"},
        "versions": [{"name": "v1", "served": true, "storage": true, "deprecated": true, "deprecationWarning": "old",
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.n"}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size", "priority": 1}],
            "selectableFields": [{"jsonPath": ".spec.name"}]}]},
        "status": {"conditions": [{"type": "Established", "status": "True", "lastTransitionTime": "2021-01-01T00:00:00Z"}],
            "acceptedNames": {"plural": "toys", "kind": "Toy"}, "storedVersions": ["v1"]}}),
    );
}

#[test]
fn an_event_of_a_watch_is_a_frame_of_known_length() {
    assert_eq!(watch_frame("ADDED", b"xyz"), b"\0\0\0\x0e\x0a\x05ADDED\x12\x05\x0a\x03xyz");
}

#[test]
fn documents_are_known_by_version_and_kind() {
    let list =
        json!({"apiVersion": "apps/v1", "kind": "StatefulSetList", "metadata": {"resourceVersion": "7"}, "items": []});
    assert!(encode_document(&list).is_ok());
    let partial = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "a"}});
    assert!(encode_document(&partial).is_ok());
    let table = json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table", "metadata": {}});
    assert!(matches!(encode_document(&table), Err(Error::Type(_))));
}

#[test]
fn every_sort_of_field_round_trips() {
    round_trips(
        "",
        "pods",
        json!({"metadata": {"name": "p", "generation": 5, "creationTimestamp": "2021-01-01T00:00:00Z",
        "labels": {"a": "b", "empty": ""}, "finalizers": ["x/y"],
        "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}, "time": "2021-01-01T00:00:00Z"}]},
        "spec": {"terminationGracePeriodSeconds": 0, "priority": -5, "enableServiceLinks": false, "hostNetwork": true,
            "volumes": [{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "p", "mode": 256}]}}, {"name": "e", "emptyDir": {}}],
            "securityContext": {"supplementalGroups": [1, 2, 3]},
            "containers": [{"name": "a", "image": "x", "resources": {"limits": {"cpu": "500m"}},
                "readinessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 3}, "livenessProbe": {"tcpSocket": {"port": 80}},
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}}]}]},
        "status": {"startTime": "2021-01-01T00:00:00Z"}}),
    );
    round_trips("apps", "controllerrevisions", json!({"data": {"spec": {"a": [1, "x"]}}, "revision": 7}));
    round_trips(
        "coordination.k8s.io",
        "leases",
        json!({"spec": {"renewTime": "2021-01-01T00:00:00.123456Z", "leaseDurationSeconds": 15}}),
    );
    round_trips(
        "rbac.authorization.k8s.io",
        "roles",
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
    );
}

#[test]
fn the_envelope_names_the_kind() {
    let (type_name, object) = stored("", "configmaps", json!({"data": {"a": "1"}}));
    let read = decode(&type_name, &encode(&type_name, &object).unwrap()).unwrap();
    assert_eq!((&read["apiVersion"], &read["kind"]), (&json!("v1"), &json!("ConfigMap")));
}

#[test]
fn lists_hold_their_items() {
    let (type_name, object) = stored("", "configmaps", json!({"data": {"a": "1"}}));
    let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}});
    let one = encode(&type_name, &object).unwrap().len();
    assert!(encode_list(&type_name, &list, [&object, &object]).unwrap().len() > one + 10);
}

#[test]
fn foreign_and_broken_bodies_are_refused() {
    assert_eq!(decode("core/v1.Pod", b"{}"), Err(Error::Magic));
    assert!(matches!(decode("core/v1.Pod", b"k8s\0\x12\xff"), Err(Error::Malformed(_))));
    assert!(matches!(decode("no/v1.Such", b"k8s\0"), Err(Error::Type(_))));
}

#[test]
fn unknown_fields_are_skipped() {
    let mut config_map = Writer::default();
    config_map.number(900, 1);
    config_map.bytes(901, b"new");
    let mut envelope = Writer::default();
    envelope.bytes(2, &config_map.into_bytes());
    let body = [MAGIC.as_slice(), &envelope.into_bytes()].concat();
    assert_eq!(decode("core/v1.ConfigMap", &body), Ok(json!({})));
}

proptest! {
    #[test]
    fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut envelope = Writer::default();
        envelope.bytes(2, &body);
        let _ = decode("core/v1.Pod", &[MAGIC.as_slice(), &envelope.into_bytes()].concat());
        let _ = decode("core/v1.Pod", &[MAGIC.as_slice(), &body].concat());
    }
}
