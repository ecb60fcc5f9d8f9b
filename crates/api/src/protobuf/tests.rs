//! Tests of the binary form.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Error, MAGIC, decode, encode, encode_list, wire::Writer};
use crate::decode::{FieldValidation, check_value};
use crate::resource::Registry;

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

#[test]
fn a_secret_is_written_byte_for_byte_as_other_clients_do() {
    let mut metadata = Writer::default();
    metadata.bytes(1, b"s");
    let mut secret = Writer::default();
    secret.bytes(1, &metadata.into_bytes());
    secret.message(2, |entry| {
        entry.bytes(1, b"a");
        entry.bytes(2, b"b");
    });
    secret.bytes(3, b"Opaque");
    let mut envelope = Writer::default();
    envelope.message(1, |names| {
        names.bytes(1, b"v1");
        names.bytes(2, b"Secret");
    });
    envelope.bytes(2, &secret.into_bytes());
    envelope.bytes(3, b"");
    envelope.bytes(4, b"");
    let expected = [MAGIC.as_slice(), &envelope.into_bytes()].concat();
    let (type_name, object) =
        stored("", "secrets", json!({"metadata": {"name": "s"}, "data": {"a": "Yg=="}, "type": "Opaque"}));
    assert_eq!(encode(&type_name, &object).unwrap(), expected);
    assert_eq!(decode(&type_name, &expected).unwrap(), object);
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
    let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"}, "items": [object, object]});
    let one = encode(&type_name, &object).unwrap().len();
    assert!(encode_list(&type_name, &list).unwrap().len() > one + 10);
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
