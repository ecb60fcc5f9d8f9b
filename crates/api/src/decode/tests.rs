//! Tests of decoding, over the built-in kinds.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Decoded, FieldValidation, MediaType, check_value, decode, normalize};
use crate::resource::{Registry, Resource};
use crate::status::Status;

/// A built-in resource.
fn resource(group: &str, plural: &str) -> Resource {
    (*Registry::builtin().find(group, "v1", plural).expect("a built-in kind")).clone()
}

/// Decodes JSON of a core kind.
fn core(plural: &str, body: &Value, mode: FieldValidation) -> Result<Decoded, Status> {
    decode(&resource("", plural), body.to_string().as_bytes(), MediaType::Json, mode)
}

/// The object, where nothing may be wrong with it.
#[track_caller]
fn object(plural: &str, body: Value) -> Value {
    core(plural, &body, FieldValidation::Strict).expect("decodes").object
}

/// The answer's message to a body that is refused.
#[track_caller]
fn refused(plural: &str, body: &str) -> String {
    let status = decode(&resource("", plural), body.as_bytes(), MediaType::Json, FieldValidation::Warn).unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (400, "BadRequest"), "{status}");
    status.message
}

#[test]
fn version_and_kind_are_filled_in() {
    for body in [json!({"metadata": {"name": "a"}}), json!({"kind": "ConfigMap", "metadata": {"name": "a"}})] {
        assert_eq!(
            object("configmaps", body),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        );
    }
    assert_eq!(core("configmaps", &Value::Null, FieldValidation::Strict).unwrap().object["metadata"], json!({}));
}

#[test]
fn unknown_fields_are_dropped_warned_about_or_refused() {
    let body = json!({"kind": "Pod", "metadata": {"name": "u", "bogus": 2}, "spec": {"containers": [{"name": "a", "imagee": "x"}], "nodename": "x"}});
    let text = r#"{"metadata":{"name":"u","bogus":2},"spec":{"nodename":"x","containers":[{"imagee":"x"}]},"nope":1}"#;
    let found = decode(&resource("", "pods"), text.as_bytes(), MediaType::Json, FieldValidation::Warn).unwrap();
    assert_eq!(
        found.warnings,
        [
            r#"unknown field "metadata.bogus""#,
            r#"unknown field "spec.nodename""#,
            r#"unknown field "spec.containers[0].imagee""#,
            r#"unknown field "nope""#
        ]
    );
    assert!(found.object.get("nope").is_none() && found.object["spec"].get("nodename").is_none());
    assert!(core("pods", &body, FieldValidation::Ignore).unwrap().warnings.is_empty());
    let status = core("pods", &json!({"spec": {"containers": [], "x": 1}}), FieldValidation::Strict).unwrap_err();
    assert_eq!(
        status.message,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.x\""
    );
}

#[test]
fn duplicate_fields_are_found_and_the_last_counts() {
    let text = r#"{"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}}}"#;
    let found = decode(&resource("", "configmaps"), text.as_bytes(), MediaType::Json, FieldValidation::Warn).unwrap();
    assert_eq!(found.warnings, [r#"duplicate field "metadata.name""#, r#"duplicate field "metadata.labels.x""#]);
    assert_eq!(found.object["metadata"], json!({"name": "b", "labels": {"x": "2"}}));
}

#[test]
fn wrong_types_name_the_field() {
    assert_eq!(
        refused("pods", r#"{"kind":"Pod","spec":{"containers":[{"name":"a"},{"name":5}]}}"#),
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field Container.spec.containers[1].name of type string"
    );
    for (body, place) in [
        (r#"{"metadata":"x"}"#, "metadata of type v1.ObjectMeta"),
        (r#"{"spec":{"terminationGracePeriodSeconds":"3"}}"#, "spec.terminationGracePeriodSeconds of type int64"),
        (r#"{"spec":{"terminationGracePeriodSeconds":1.5}}"#, "number 1.5"),
        (r#"{"spec":{"priority":3000000000}}"#, "number 3000000000"),
        (r#"{"spec":{"containers":{}}}"#, "spec.containers of type []v1.Container"),
        (r#"{"metadata":{"labels":{"a":1}}}"#, "metadata.labels.a of type string"),
        (r#"{"metadata":{"creationTimestamp":"now"}}"#, "metadata.creationTimestamp: parsing time"),
        (
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"1 "}, "requests":{"cpu":"x"}}}]}}"#,
            "requests.cpu: quantities must match",
        ),
    ] {
        let message = refused("pods", body);
        assert!(message.contains(place), "{message}");
    }
}

#[test]
fn syntax_errors_show_the_beginning() {
    assert!(refused("configmaps", "{nope").ends_with("({nope)"));
    assert!(refused("configmaps", "").ends_with("json parse error: unexpected end of JSON input (<empty>)"));
    assert!(refused("configmaps", "[]").contains("cannot unmarshal array"));
    let cut = refused("configmaps", r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a""#);
    assert!(cut.ends_with(r#"unexpected end of JSON input ({"apiVersion":"v1","kind":"Con ...)"#), "{cut}");
    assert!(refused("configmaps", r#"{"metadata":{}} x"#).contains("trailing"));
}

#[test]
fn an_object_of_another_kind_or_version_is_refused() {
    assert!(
        refused("configmaps", r#"{"kind":"Secret","data":{"a":1}}"#)
            .starts_with("Secret in version \"v1\" cannot be handled as a ConfigMap")
    );
    assert_eq!(
        refused("configmaps", r#"{"apiVersion":"v2"}"#),
        "the API version in the data (v2) does not match the expected API version (v1)"
    );
}

#[test]
fn too_long_a_body_is_refused_unread() {
    let body = vec![b' '; super::MAX_BODY_BYTES + 1];
    let status = decode(&resource("", "pods"), &body, MediaType::Json, FieldValidation::Warn).unwrap_err();
    assert_eq!(status.code, 413);
}

#[test]
fn null_is_absent_and_inside_lists_and_maps_zero() {
    let found = object(
        "configmaps",
        json!({"metadata": {"labels": null, "annotations": {"a": null}, "finalizers": [null]}, "data": null}),
    );
    assert_eq!(found["metadata"], json!({"annotations": {"a": ""}, "finalizers": [""]}));
    assert!(found.get("data").is_none());
}

#[test]
fn a_pod_has_the_shape_of_upstreams_encoder() {
    let found = object(
        "pods",
        json!({"metadata": {"labels": {}}, "spec": {
        "hostNetwork": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 0, "nodeName": "",
        "containers": [{"name": "a", "command": [], "env": [{"name": "e", "value": ""}, {"name": "r",
            "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}}),
    );
    assert_eq!(
        found,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "status": {}, "spec": {
        "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "resources": {}, "env": [{"name": "e"}, {"name": "r",
            "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]}})
    );
}

#[test]
fn values_are_written_canonically() {
    let found = object(
        "persistentvolumeclaims",
        json!({"spec": {"resources": {"requests": {"storage": "1.5Ti", "x": 2, "y": 0.5}}}}),
    );
    assert_eq!(found["spec"]["resources"]["requests"], json!({"storage": "1536Gi", "x": "2", "y": "500m"}));
    let event = object("events", json!({"firstTimestamp": "2021-01-01T01:00:00+01:00"}));
    assert_eq!(event["firstTimestamp"], "2021-01-01T00:00:00Z");
    assert_eq!((&event["lastTimestamp"], &event["source"]), (&Value::Null, &json!({})));
}

#[test]
fn roles_without_rules_have_null_rules() {
    let roles = resource("rbac.authorization.k8s.io", "roles");
    let found = check_value(&roles, json!({"metadata": {"name": "r"}, "rules": []}), FieldValidation::Strict).unwrap();
    assert_eq!(found.object["rules"], Value::Null);
}

#[test]
fn free_form_data_is_kept() {
    let revisions = resource("apps", "controllerrevisions");
    let body = json!({"data": {"spec": {"any": [1, null]}}, "revision": 3});
    let found = check_value(&revisions, body.clone(), FieldValidation::Strict).unwrap();
    assert_eq!(found.object["data"], body["data"]);
}

#[test]
fn what_is_wrong_after_a_patch_is_about_the_patch() {
    let status =
        check_value(&resource("", "configmaps"), json!({"data": {"a": 1}}), FieldValidation::Warn).unwrap_err();
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(status.message.starts_with(" \"\" is invalid: patch: Invalid value: "), "{}", status.message);
    assert!(check_value(&resource("", "configmaps"), json!([1]), FieldValidation::Warn).is_err());
    assert!(check_value(&resource("", "configmaps"), json!({"kind": "Secret"}), FieldValidation::Warn).is_err());
}

#[test]
fn yaml_reads_as_json_does() {
    let body = "kind: ConfigMap\nmetadata:\n  name: a\n  labels: {x: 'on'}\n  name: b\n  nope: 1\ndata:\n  \"1\": |\n    text\n";
    let found = decode(&resource("", "configmaps"), body.as_bytes(), MediaType::Yaml, FieldValidation::Warn).unwrap();
    assert_eq!(found.object["data"]["1"], "text\n");
    assert_eq!(found.object["metadata"], json!({"name": "b", "labels": {"x": "on"}}));
    assert_eq!(found.warnings, [r#"duplicate field "metadata.name""#, r#"unknown field "metadata.nope""#]);
    let wrong =
        decode(&resource("", "configmaps"), b"data:\n  a: 1\n", MediaType::Yaml, FieldValidation::Warn).unwrap_err();
    assert!(wrong.message.contains("data.a of type string"), "{wrong}");
    let broken = decode(&resource("", "configmaps"), b"a: [", MediaType::Yaml, FieldValidation::Warn).unwrap_err();
    assert!(broken.message.contains("yaml parse error"), "{broken}");
}

#[test]
fn file_modes_in_yaml_are_octal() {
    let body = b"spec:\n  volumes:\n  - name: v\n    configMap: {name: c, defaultMode: 0755}\n";
    let found = decode(&resource("", "pods"), body, MediaType::Yaml, FieldValidation::Strict).unwrap();
    assert_eq!(found.object["spec"]["volumes"][0]["configMap"]["defaultMode"], 0o755);
    let parsed = super::parse("core/v1.Pod", b"mode: 0644\nname: yes\n", MediaType::Yaml).unwrap();
    assert_eq!(parsed, json!({"mode": 0o644, "name": true}));
}

#[test]
fn deep_nesting_is_refused() {
    let body = format!(
        "{{\"metadata\":{{\"managedFields\":[{{\"fieldsV1\":{}{}}}]}}}}",
        "{\"a\":".repeat(5000),
        "}".repeat(5000)
    );
    assert!(refused("configmaps", &body).contains("recursion limit exceeded"));
}

/// Any JSON, with names that some kinds know.
fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9:.-]{0,12}".prop_map(Value::from),
    ];
    let name = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "volumes",
        "resources",
        "limits",
        "labels",
        "name",
        "ports",
        "env",
        "replicas",
        "creationTimestamp",
        "x",
    ]);
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|m| m.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_what_was_decoded_changes_nothing(body in documents()) {
        let sets = resource("apps", "statefulsets");
        if let Ok(once) = check_value(&sets, body, FieldValidation::Ignore) {
            let again = check_value(&sets, once.object.clone(), FieldValidation::Strict);
            prop_assert_eq!(again.map(|d| d.object), Ok(once.object.clone()));
            let mut normal = once.object.clone();
            normalize(&sets, &mut normal);
            prop_assert_eq!(normal, once.object);
        }
    }

    #[test]
    fn any_bytes_are_answered(body in prop::collection::vec(any::<u8>(), 0..64), yaml: bool) {
        let media = if yaml { MediaType::Yaml } else { MediaType::Json };
        let _ = decode(&resource("", "pods"), &body, media, FieldValidation::Strict);
    }
}
