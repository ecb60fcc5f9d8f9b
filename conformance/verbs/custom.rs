//! Custom kinds: rules in the Common Expression Language, and fields to select by. (The rest is recorded.)

use serde_json::{Value, json};

use super::{assert_fails, names, text};
use crate::cluster::{Answer, Ask, Case};

/// Where definitions are.
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A kind of a case's own; its definition is deleted by [`Kind::remove`].
struct Kind<'a> {
    case: &'a Case,
    /// Where its definition is.
    definition: String,
    /// Where its objects are.
    objects: String,
}

/// The definition of boxes whose spec has this schema.
fn definition(case: &Case, spec: &Value) -> Value {
    let group = format!("{}.example", case.namespace);
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("boxes.{group}")}, "spec": {"group": group, "scope": "Namespaced",
        "names": {"plural": "boxes", "singular": "box", "kind": "Box"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}]}})
}

impl<'a> Kind<'a> {
    /// Defines it, and waits until it is served.
    async fn define(case: &'a Case, definition: Value) -> Self {
        let name = text(&definition, "/metadata/name").to_owned();
        let group = text(&definition, "/spec/group").to_owned();
        case.create(DEFINITIONS, definition).await;
        let objects = format!("/apis/{group}/v1/namespaces/{}/boxes", case.namespace);
        case.until(Ask::new("GET", &objects), "boxes are served", |answer| answer.code == 200).await;
        Self { case, definition: format!("{DEFINITIONS}/{name}"), objects }
    }

    /// A box.
    fn object(&self, name: &str, spec: &Value) -> Value {
        let version = format!("{}.example/v1", self.case.namespace);
        json!({"apiVersion": version, "kind": "Box", "metadata": {"name": name}, "spec": spec})
    }

    /// Asks for a box to be made.
    async fn make(&self, name: &str, spec: Value) -> Answer {
        self.case.ask(Ask::new("POST", &self.objects).json(&self.object(name, &spec))).await
    }

    /// Asks for the spec of a box to be changed.
    async fn change(&self, name: &str, spec: Value) -> Answer {
        let merge = Some("application/merge-patch+json");
        let path = format!("{}/{name}", self.objects);
        self.case.ask(Ask::new("PATCH", &path).header("content-type", merge).json(&json!({"spec": spec}))).await
    }

    /// Takes the definition away.
    async fn remove(self) {
        self.case.ask(Ask::new("DELETE", &self.definition)).await;
    }
}

pub(super) async fn rules_are_held_with_their_messages(case: Case) {
    let spec = json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "message": "min must not be above max"},
            {"rule": "self.words.all(w, w.size() < 4)", "messageExpression": "'too long: ' + self.words[0]",
                "fieldPath": ".words", "reason": "FieldValueForbidden"}],
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"},
            "words": {"type": "array", "maxItems": 3, "items": {"type": "string", "maxLength": 9}}}});
    let kind = Kind::define(&case, definition(&case, &spec)).await;
    let good = kind.make("good", json!({"min": 1, "max": 2, "words": ["a"]})).await;
    assert_eq!(good.code, 201, "{}", good.body);
    let says = "spec: Invalid value: \"object\": min must not be above max";
    assert_fails(&kind.make("bad", json!({"min": 3, "max": 2, "words": []})).await, 422, "Invalid", says);
    assert_fails(&kind.change("good", json!({"min": 3})).await, 422, "Invalid", says);
    let refused = kind.make("bad", json!({"min": 1, "max": 2, "words": ["abcd"]})).await;
    assert_fails(&refused, 422, "Invalid", "spec.words: Forbidden: too long: abcd");
    kind.remove().await;
}

pub(super) async fn rules_compare_with_what_was_before(case: Case) {
    let spec = json!({"type": "object", "properties": {"size": {"type": "integer", "x-kubernetes-validations": [
        {"rule": "self >= oldSelf", "message": "it must not shrink"}]}}});
    let kind = Kind::define(&case, definition(&case, &spec)).await;
    assert_eq!(kind.make("a", json!({"size": 2})).await.code, 201);
    assert_eq!(kind.change("a", json!({"size": 3})).await.code, 200);
    let says = "spec.size: Invalid value: \"integer\": it must not shrink";
    assert_fails(&kind.change("a", json!({"size": 1})).await, 422, "Invalid", says);
    kind.remove().await;
}

pub(super) async fn a_rule_that_costs_too_much_ends(case: Case) {
    let rule = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c != c + b)))";
    let spec = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}],
        "properties": {"list": {"type": "array", "items": {"type": "string"}}}});
    let definition = definition(&case, &spec);
    // It is found out by an estimate when it is defined, or by its budget when it is run.
    let early = case.ask(Ask::new("POST", DEFINITIONS).query("dryRun", "All").json(&definition)).await;
    if early.code != 201 {
        return assert_fails(&early, 422, "Invalid", "estimated rule cost exceeds budget");
    }
    let kind = Kind::define(&case, definition).await;
    let list: Vec<String> = (0..300).map(|n| format!("{n:0>100}")).collect();
    let says = "rule evaluation error: call cost exceeds limit for rule";
    assert_fails(&kind.make("a", json!({"list": list})).await, 422, "Invalid", says);
    assert_eq!(kind.make("b", json!({"list": ["x"]})).await.code, 201);
    kind.remove().await;
}

pub(super) async fn rules_that_cannot_be_are_refused(case: Case) {
    let at = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: ";
    for (rule, says) in [
        ("self.nosuch > 1", "undefined field 'nosuch'"),
        ("self.size >", "compilation failed"),
        ("other > 1", "undeclared reference to 'other'"),
        ("", "rule is not specified"),
    ] {
        let spec = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}],
            "properties": {"size": {"type": "integer"}}});
        let answer = case.ask(Ask::new("POST", DEFINITIONS).json(&definition(&case, &spec))).await;
        assert_fails(&answer, 422, "Invalid", at);
        assert_fails(&answer, 422, "Invalid", says);
    }
}

pub(super) async fn fields_that_a_kind_names_select(case: Case) {
    let spec = json!({"type": "object", "properties": {"color": {"type": "string"}}});
    let mut definition = definition(&case, &spec);
    definition["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec.color"}]);
    let kind = Kind::define(&case, definition).await;
    for (name, color) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        assert_eq!(kind.make(name, json!({"color": color})).await.code, 201);
    }
    let select = |field: &str| Ask::new("GET", &kind.objects).query("fieldSelector", field);
    assert_eq!(names(&case.ask(select("spec.color=red")).await), ["a", "c"]);
    assert_eq!(names(&case.ask(select("spec.color!=red")).await), ["b"]);
    let unknown = case.ask(select("spec.size=1")).await;
    assert_fails(&unknown, 400, "BadRequest", "field label not supported: spec.size");
    let mut watch = case.watch(select("spec.color=blue")).await;
    assert_eq!(watch.next(1).await[0]["object"]["metadata"]["name"], "b");
    assert_eq!(kind.change("b", json!({"color": "red"})).await.code, 200);
    assert_eq!(watch.next(1).await[0]["type"], "DELETED");
    kind.remove().await;
}

pub(super) async fn columns_that_a_kind_names_are_printed(case: Case) {
    let spec = json!({"type": "object", "properties": {"size": {"type": "integer"}, "color": {"type": "string"}}});
    let mut definition = definition(&case, &spec);
    definition["spec"]["versions"][0]["additionalPrinterColumns"] = json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    let kind = Kind::define(&case, definition).await;
    assert_eq!(kind.make("a", json!({"size": 2, "color": "red"})).await.code, 201);
    assert_eq!(kind.make("b", json!({})).await.code, 201);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = case.ask(Ask::new("GET", &kind.objects).header("accept", Some(table))).await.body;
    let columns = table["columnDefinitions"].as_array().into_iter().flatten();
    let columns: Vec<_> = columns.map(|column| (text(column, "/name"), column["priority"].as_i64())).collect();
    assert_eq!(columns, [("Name", Some(0)), ("Size", Some(0)), ("Color", Some(1)), ("Age", Some(0))]);
    let cells = |row: usize| table["rows"][row]["cells"].as_array().cloned().unwrap_or_default();
    assert_eq!(cells(0)[..3], [json!("a"), json!(2), json!("red")]);
    assert_eq!(cells(1)[..3], [json!("b"), Value::Null, Value::Null], "what is not there is left out: {table}");
    kind.remove().await;
}

pub(super) async fn versions_are_the_same_objects_each_held_to_its_own_schema(case: Case) {
    let mut definition = definition(&case, &json!({"type": "object", "properties": {"size": {"type": "integer"}}}));
    let mut second = definition["spec"]["versions"][0].clone();
    second["name"] = "v2".into();
    second["storage"] = false.into();
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"]["maximum"] = 5.into();
    definition["spec"]["versions"].as_array_mut().expect("a list").push(second);
    let kind = Kind::define(&case, definition).await;
    assert_eq!(kind.make("a", json!({"size": 9})).await.code, 201);
    let newer = kind.objects.replace("/v1/", "/v2/");
    let seen = case.get(&format!("{newer}/a")).await.body;
    assert_eq!((text(&seen, "/apiVersion").ends_with("/v2"), &seen["spec"]["size"]), (true, &json!(9)), "{seen}");
    let mut object = kind.object("b", &json!({"size": 9}));
    object["apiVersion"] = seen["apiVersion"].clone();
    let refused = case.ask(Ask::new("POST", &newer).json(&object)).await;
    assert_fails(
        &refused,
        422,
        "Invalid",
        "spec.size: Invalid value: 9: spec.size in body should be less than or equal to 5",
    );
    // A change through one is told to those who watch the other.
    let watch = Ask::new("GET", &newer).query("resourceVersion", super::version(&seen));
    let mut watch = case.watch(watch).await;
    assert_eq!(kind.change("a", json!({"size": 3})).await.code, 200);
    let event = &watch.next(1).await[0];
    assert_eq!(
        (&event["object"]["apiVersion"], &event["object"]["spec"]["size"]),
        (&seen["apiVersion"], &json!(3)),
        "{event}"
    );
    kind.remove().await;
}
