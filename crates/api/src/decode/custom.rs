//! Bodies of custom kinds: read as they are, then looked at along the structural schema.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::reader::{self, Context, MAX_PROBLEMS, Seed};
use super::{Decoded, Expected, FieldValidation, MediaType, cannot_be_handled, header, normal, refuse, yaml_options};
use crate::crd::{self, Custom};
use crate::schema::Schema;
use crate::status::{FieldError, Status};

/// Name of the type of every object's metadata.
const OBJECT_META: &str = "meta/v1.ObjectMeta";

/// Metadata of objects whose type is not built in.
pub struct ObjectMeta;

impl ObjectMeta {
    /// Checks and normalises metadata at `path`. `problem` is told, in sentences, about unknown fields; an error
    /// is the sentence about a value of a wrong type.
    pub fn read(value: &Value, path: &str, problem: &mut dyn FnMut(String)) -> Result<Value, String> {
        let mut context = Context::below(OBJECT_META, path);
        let read = Seed::root(&mut context).deserialize(value);
        let mut metadata = read.map_err(|error| context.fatal.take().unwrap_or_else(|| error.to_string()))?;
        context.finish(FieldValidation::Warn).unwrap_or_default().into_iter().for_each(problem);
        Self::normalize(&mut metadata);
        Ok(metadata)
    }

    /// Brings metadata into the form in which it is stored and served.
    pub fn normalize(metadata: &mut Value) {
        let schema = Schema::builtin();
        if let Some(id) = schema.find(OBJECT_META) {
            normal::normalize(schema, id, metadata);
        }
    }
}

/// Reads a body.
pub(super) fn decode(
    custom: &Custom,
    expected: &Expected,
    body: &[u8],
    media: MediaType,
    mode: FieldValidation,
) -> Result<Decoded, Status> {
    let mut problems = Vec::new();
    let mut place = Place { path: String::new(), problems: &mut problems, depth: 0 };
    let read = match media {
        MediaType::Json => {
            let mut deserializer = serde_json::Deserializer::from_slice(body);
            Plain(&mut place)
                .deserialize(&mut deserializer)
                .and_then(|value| deserializer.end().map(|()| value))
                .map_err(super::syntax_text)
        }
        MediaType::Yaml => {
            serde_saphyr::with_deserializer_from_slice_with_options(body, yaml_options(), |deserializer| {
                Plain(&mut place).deserialize(deserializer)
            })
            .map_err(|error| error.to_string())
        }
        MediaType::Protobuf => {
            return Err(Status::unsupported_media_type(&["application/json", "application/yaml"]));
        }
    };
    let object = read.map_err(|syntax| refuse(expected, body, media, syntax, None))?;
    let object = look(custom, expected, object, &mut problems).map_err(|fault| fault.of_body(expected))?;
    let warnings = settle(problems, mode).map_err(|why| cannot_be_handled(expected, &why))?;
    Ok(Decoded { object, warnings })
}

/// Checks a document that is parsed already.
pub(super) fn check(
    custom: &Custom,
    expected: &Expected,
    object: Value,
    mode: FieldValidation,
) -> Result<Decoded, Status> {
    let mut problems = Vec::new();
    let object = look(custom, expected, object, &mut problems).map_err(|fault| fault.of_body(expected))?;
    let warnings = settle(problems, mode).map_err(|why| cannot_be_handled(expected, &why))?;
    Ok(Decoded { object, warnings })
}

/// Why a document is none of the kind.
enum Fault {
    /// It says that it is something else.
    Header(Box<Status>),
    /// A value is of a wrong type.
    Value(String),
}

impl Fault {
    /// The answer.
    fn of_body(self, expected: &Expected) -> Status {
        match self {
            Fault::Header(status) => *status,
            Fault::Value(why) => cannot_be_handled(expected, &why),
        }
    }
}

/// Checks header and metadata, drops unknown fields, completes the header.
fn look(custom: &Custom, expected: &Expected, mut object: Value, problems: &mut Vec<String>) -> Result<Value, Fault> {
    if !object.is_object() {
        return Err(Fault::Value(format!("json: cannot unmarshal {} into an object", reader::json_kind(&object))));
    }
    own_header(expected, &object).map_err(|status| Fault::Header(Box::new(status)))?;
    let mut problem = |sentence: String| {
        if problems.len() < MAX_PROBLEMS {
            problems.push(sentence);
        }
    };
    crd::decode_value(custom, &mut object, &mut problem).map_err(Fault::Value)?;
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".to_owned(), expected.api_version.clone().into());
        object.insert("kind".to_owned(), expected.kind.clone().into());
        object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    }
    Ok(object)
}

/// The header names the kind; unlike those of built-in kinds it must be there.
fn own_header(expected: &Expected, object: &Value) -> Result<(), Status> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    if kind.is_empty() {
        return Err(Status::bad_request("Object 'Kind' is missing: give apiVersion and kind of the object"));
    }
    header::check(
        &Expected { kind: kind.to_owned(), ..expected.clone() },
        &header::of_value(&serde_json::json!({"apiVersion": version})),
    )?;
    if version.is_empty() {
        let why = format!(
            "the API version in the data () does not match the expected API version ({})",
            expected.api_version
        );
        return Err(Status::bad_request(why));
    }
    if kind != expected.kind {
        let group = expected.api_version.split_once('/').map_or("", |(group, _)| group);
        let error = FieldError::invalid("kind", kind, format!("must be {}", expected.kind));
        return Err(Status::invalid(group, kind, text("/metadata/name"), vec![error]));
    }
    Ok(())
}

/// What becomes of problems.
fn settle(problems: Vec<String>, mode: FieldValidation) -> Result<Vec<String>, String> {
    match mode {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(problems),
        FieldValidation::Strict if problems.is_empty() => Ok(problems),
        FieldValidation::Strict => Err(format!("strict decoding error: {}", problems.join(", "))),
    }
}

/// Deepest nesting of a body.
const MAX_DEPTH: usize = 128;

/// The place in a body, for messages.
struct Place<'p> {
    path: String,
    problems: &'p mut Vec<String>,
    depth: usize,
}

impl Place<'_> {
    /// Does something one level further down.
    fn inside<T>(&mut self, step: &str, act: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(step);
        self.depth += 1;
        let done = act(self);
        self.depth -= 1;
        self.path.truncate(length);
        done
    }
}

/// Reads any value, and notes fields that are given twice.
struct Plain<'a, 'p>(&'a mut Place<'p>);

impl<'de> DeserializeSeed<'de> for Plain<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.depth > MAX_DEPTH {
            return Err(serde::de::Error::custom("exceeded max depth"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::from(value as f64), Value::from))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let step = format!("[{}]", out.len());
            match self.0.inside(&step, |place| items.next_element_seed(Plain(place)))? {
                Some(item) => out.push(item),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let dot = if self.0.path.is_empty() { "" } else { "." };
            if out.contains_key(&key) && self.0.problems.len() < MAX_PROBLEMS {
                let sentence = format!("duplicate field \"{}{dot}{key}\"", self.0.path);
                self.0.problems.push(sentence);
            }
            let value = self.0.inside(&format!("{dot}{key}"), |place| entries.next_value_seed(Plain(place)))?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}
