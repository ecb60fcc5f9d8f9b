//! The binary form of the version 2 document: messages of protocol buffers as the Gnostic project
//! defines them (`openapi.v2.Document`), made from the text of the document.
//!
//! Tables say which key of an object is which field. What they do not name is left out; values
//! whose shape no message can hold (defaults, extensions) are carried as text, as Gnostic does.

use serde_json::{Map, Value};

use crate::protobuf::wire::Writer;

/// The document in its binary form.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    DOCUMENT.write(document, &mut out);
    out.into_bytes()
}

/// How an object is written.
struct Message {
    /// Keys of the object with their field and its shape.
    fields: &'static [(&'static str, u32, Shape)],
    /// Where keys that are no fields go, with what they hold: the object is a map.
    entries: Option<(u32, Shape)>,
    /// Where keys that begin with `x-` go.
    extensions: Option<u32>,
}

/// How a value is written.
enum Shape {
    /// A text.
    Text,
    /// Texts, one field each.
    Texts,
    /// Texts in a message of their own, or one text alone.
    TextList,
    /// Yes or no.
    Bool,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// Anything, as text.
    Any,
    /// A list of anything, as texts.
    Anys,
    /// An object within messages that hold nothing but the next one, by their fields from the outermost on.
    Object(&'static [u32], &'static Message),
    /// A list of objects.
    Objects(&'static Message),
    /// A list of parameters, whose place decides about their message.
    Parameters,
    /// What may stand where further properties are described: a schema, or yes or no.
    SchemaOrBool,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Object(&[], &INFO)),
        ("paths", 8, Shape::Object(&[], &PATHS)),
        ("definitions", 9, Shape::Object(&[], &SCHEMAS)),
        ("security", 12, Shape::Objects(&REQUIREMENTS)),
        ("securityDefinitions", 13, Shape::Object(&[], &SECURITY)),
    ],
    entries: None,
    extensions: Some(16),
};

static INFO: Message =
    Message { fields: &[("title", 1, Shape::Text), ("version", 2, Shape::Text)], entries: None, extensions: Some(7) };

static PATHS: Message = Message { fields: &[], entries: Some((2, Shape::Object(&[], &PATH))), extensions: Some(1) };

static PATH: Message = Message {
    fields: &[
        ("get", 2, Shape::Object(&[], &OPERATION)),
        ("put", 3, Shape::Object(&[], &OPERATION)),
        ("post", 4, Shape::Object(&[], &OPERATION)),
        ("delete", 5, Shape::Object(&[], &OPERATION)),
        ("patch", 8, Shape::Object(&[], &OPERATION)),
        ("parameters", 9, Shape::Parameters),
    ],
    entries: None,
    extensions: Some(10),
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Shape::Texts),
        ("description", 3, Shape::Text),
        ("operationId", 5, Shape::Text),
        ("produces", 6, Shape::Texts),
        ("consumes", 7, Shape::Texts),
        ("parameters", 8, Shape::Parameters),
        ("responses", 9, Shape::Object(&[], &RESPONSES)),
        ("schemes", 10, Shape::Texts),
    ],
    entries: None,
    extensions: Some(13),
};

static RESPONSES: Message =
    Message { fields: &[], entries: Some((1, Shape::Object(&[1], &RESPONSE))), extensions: Some(2) };

static RESPONSE: Message = Message {
    fields: &[("description", 1, Shape::Text), ("schema", 2, Shape::Object(&[1], &SCHEMA))],
    entries: None,
    extensions: Some(5),
};

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("required", 4, Shape::Bool),
        ("schema", 5, Shape::Object(&[], &SCHEMA)),
    ],
    entries: None,
    extensions: Some(6),
};

static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Bool),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 6, Shape::Text),
        ("format", 7, Shape::Text),
        ("uniqueItems", 20, Shape::Bool),
    ],
    entries: None,
    extensions: Some(23),
};

static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Bool),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 5, Shape::Text),
        ("format", 6, Shape::Text),
        ("uniqueItems", 19, Shape::Bool),
    ],
    entries: None,
    extensions: Some(22),
};

/// Schemas by name: definitions, and the properties of an object.
static SCHEMAS: Message = Message { fields: &[], entries: Some((1, Shape::Object(&[], &SCHEMA))), extensions: None };

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Shape::Text),
        ("format", 2, Shape::Text),
        ("title", 3, Shape::Text),
        ("description", 4, Shape::Text),
        ("default", 5, Shape::Any),
        ("multipleOf", 6, Shape::Number),
        ("maximum", 7, Shape::Number),
        ("exclusiveMaximum", 8, Shape::Bool),
        ("minimum", 9, Shape::Number),
        ("exclusiveMinimum", 10, Shape::Bool),
        ("maxLength", 11, Shape::Whole),
        ("minLength", 12, Shape::Whole),
        ("pattern", 13, Shape::Text),
        ("maxItems", 14, Shape::Whole),
        ("minItems", 15, Shape::Whole),
        ("uniqueItems", 16, Shape::Bool),
        ("maxProperties", 17, Shape::Whole),
        ("minProperties", 18, Shape::Whole),
        ("required", 19, Shape::Texts),
        ("enum", 20, Shape::Anys),
        ("additionalProperties", 21, Shape::SchemaOrBool),
        ("type", 22, Shape::TextList),
        ("items", 23, Shape::Object(&[1], &SCHEMA)),
        ("allOf", 24, Shape::Objects(&SCHEMA)),
        ("properties", 25, Shape::Object(&[], &SCHEMAS)),
        ("example", 30, Shape::Any),
    ],
    entries: None,
    extensions: Some(31),
};

static REQUIREMENTS: Message = Message { fields: &[], entries: Some((1, Shape::TextList)), extensions: None };

/// The only kind of them is a key in a header.
static SECURITY: Message = Message { fields: &[], entries: Some((1, Shape::Object(&[2], &API_KEY))), extensions: None };

static API_KEY: Message = Message {
    fields: &[
        ("type", 1, Shape::Text),
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("description", 4, Shape::Text),
    ],
    entries: None,
    extensions: Some(5),
};

impl Message {
    /// Writes the content of an object; what is no object has none.
    fn write(&self, value: &Value, out: &mut Writer) {
        let Some(object) = value.as_object() else { return };
        for (key, number, shape) in self.fields {
            if let Some(value) = object.get(*key) {
                shape.write(*number, value, out);
            }
        }
        self.write_rest(object, out);
    }

    /// Writes what is no field: entries of a map, and extensions.
    fn write_rest(&self, object: &Map<String, Value>, out: &mut Writer) {
        for (key, value) in object {
            if self.fields.iter().any(|(field, ..)| field == key) {
                continue;
            }
            let (number, shape) = match (self.extensions, &self.entries) {
                (Some(number), _) if key.starts_with("x-") => (number, &Shape::Any),
                (_, Some((number, shape))) => (*number, shape),
                _ => continue,
            };
            out.message(number, |entry| {
                entry.bytes(1, key.as_bytes());
                shape.write(2, value, entry);
            });
        }
    }
}

impl Shape {
    /// Writes a value as this field; one that does not have the shape is left out.
    fn write(&self, number: u32, value: &Value, out: &mut Writer) {
        match (self, value) {
            (Shape::Text, Value::String(text)) => out.bytes(number, text.as_bytes()),
            (Shape::Texts, Value::Array(texts)) => {
                texts.iter().filter_map(Value::as_str).for_each(|text| out.bytes(number, text.as_bytes()));
            }
            (Shape::TextList, Value::String(_)) => out.message(number, |list| Shape::Text.write(1, value, list)),
            (Shape::TextList, Value::Array(_)) => out.message(number, |list| Shape::Texts.write(1, value, list)),
            // What is absent is false.
            (Shape::Bool, Value::Bool(true)) => out.number(number, 1),
            (Shape::Whole, Value::Number(whole)) => {
                out.number(number, whole.as_i64().unwrap_or_default().cast_unsigned());
            }
            (Shape::Number, Value::Number(any)) => out.double(number, any.as_f64().unwrap_or_default()),
            (Shape::Any, value) => out.message(number, |any| any.bytes(2, value.to_string().as_bytes())),
            (Shape::Anys, Value::Array(values)) => values.iter().for_each(|one| Shape::Any.write(number, one, out)),
            (Shape::Object(within, message), Value::Object(_)) => out.message(number, |inner| match within {
                [] => message.write(value, inner),
                [next, deeper @ ..] => Shape::Object(deeper, message).write(*next, value, inner),
            }),
            (Shape::Objects(message), Value::Array(objects)) => {
                objects.iter().for_each(|object| out.message(number, |inner| message.write(object, inner)));
            }
            (Shape::Parameters, Value::Array(parameters)) => {
                parameters.iter().for_each(|one| parameter(one).write(number, one, out));
            }
            (Shape::SchemaOrBool, Value::Bool(flag)) => out.message(number, |inner| inner.number(2, u64::from(*flag))),
            (Shape::SchemaOrBool, schema) => Shape::Object(&[1], &SCHEMA).write(number, schema, out),
            _ => {}
        }
    }
}

/// The shape of a parameter, by its place.
fn parameter(value: &Value) -> Shape {
    match value["in"].as_str() {
        Some("body") => Shape::Object(&[1, 1], &BODY_PARAMETER),
        Some("path") => Shape::Object(&[1, 2, 4], &PATH_PARAMETER),
        _ => Shape::Object(&[1, 2, 3], &QUERY_PARAMETER),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::wire::Reader;
    use crate::resource::Registry;
    use serde_json::json;

    /// The content of the fields with this number, each a message or a text.
    fn fields(message: &[u8], number: u32) -> Vec<&[u8]> {
        let (mut reader, mut found) = (Reader::new(message), Vec::new());
        while let Some(field) = reader.next().expect("well-formed") {
            if field.number == number {
                found.push(field.bytes().expect("bytes"));
            }
        }
        found
    }

    /// The value of an entry of a map.
    #[track_caller]
    fn entry<'a>(map: &'a [u8], number: u32, name: &str) -> &'a [u8] {
        let entries = fields(map, number);
        let found = entries.into_iter().find(|entry| fields(entry, 1) == [name.as_bytes()]);
        fields(found.unwrap_or_else(|| panic!("no entry {name}")), 2)[0]
    }

    #[test]
    fn every_definition_and_path_is_there_with_its_kind() {
        let document = super::super::v2(&Registry::builtin());
        let bytes = encode(&document);
        assert_eq!(fields(&bytes, 1), [b"2.0"]);
        let definitions = fields(&bytes, 9)[0];
        assert_eq!(fields(definitions, 1).len(), document["definitions"].as_object().unwrap().len());
        let set = entry(definitions, 1, "io.k8s.api.apps.v1.StatefulSet");
        let kind = fields(entry(set, 31, "x-kubernetes-group-version-kind"), 2)[0];
        let kind: Value = serde_json::from_slice(kind).unwrap();
        assert_eq!(kind, json!([{"group": "apps", "version": "v1", "kind": "StatefulSet"}]));
        let spec = entry(fields(set, 25)[0], 1, "spec");
        assert_eq!(fields(spec, 1), [b"#/definitions/io.k8s.api.apps.v1.StatefulSetSpec"]);
        let paths = fields(&bytes, 8)[0];
        assert_eq!(fields(paths, 2).len(), document["paths"].as_object().unwrap().len());
        let one = entry(paths, 2, "/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}");
        let patch = fields(one, 8)[0];
        assert_eq!(fields(patch, 5), [b"patchAppsV1NamespacedStatefulSet"]);
        // Body, and parameters of the query and of the path, each within its choices.
        let body = fields(patch, 8).into_iter().find_map(|p| fields(fields(p, 1)[0], 1).first().copied());
        assert_eq!(fields(body.expect("a body"), 2), [b"body"]);
        let name = fields(fields(fields(fields(one, 9)[0], 1)[0], 2)[0], 4)[0];
        assert_eq!((fields(name, 2), fields(name, 4)), (vec![&b"path"[..]], vec![&b"namespace"[..]]));
    }

    #[test]
    fn schemas_keep_types_bounds_and_what_no_message_holds() {
        let schema = json!({"type": "object", "additionalProperties": {"type": "integer", "maximum": 1.5},
            "default": {"a": 1}, "required": ["x-y"], "properties": {"x-y": {"type": "array", "maxItems": 2,
            "items": {"type": "string", "enum": ["b"]}}}, "x-kubernetes-map-type": "atomic"});
        let bytes = encode(&json!({"definitions": {"T": schema}}));
        let schema = entry(fields(&bytes, 9)[0], 1, "T");
        assert_eq!(fields(fields(schema, 22)[0], 1), [b"object"]);
        assert_eq!(fields(fields(schema, 5)[0], 2), [br#"{"a":1}"#]);
        assert_eq!(fields(schema, 19), [b"x-y"]);
        assert_eq!(fields(entry(schema, 31, "x-kubernetes-map-type"), 2), [br#""atomic""#]);
        let further = fields(fields(schema, 21)[0], 1)[0];
        let mut bound = b"\x39".to_vec();
        bound.extend(1.5_f64.to_le_bytes());
        assert!(further.windows(bound.len()).any(|w| w == bound), "{further:?}");
        let property = entry(fields(schema, 25)[0], 1, "x-y");
        let item = fields(fields(property, 23)[0], 1)[0];
        assert_eq!(fields(fields(item, 20)[0], 2), [br#""b""#]);
        assert!(property.windows(2).any(|w| w == [14 << 3, 2]), "{property:?}");
    }
}
