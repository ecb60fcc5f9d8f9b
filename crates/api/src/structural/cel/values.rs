//! Values of objects as rules see them.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use cel::objects::{Key, Map};
use kube_cel::cel;
use serde_json::Value;

use super::super::{Kind, Structural, format};

/// A value as rules see it.
pub(super) type Cel = cel::Value;

/// Names that the language keeps for itself.
const KEPT: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A value of a schema.
pub(super) fn of(value: &Value, schema: &Structural) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match number.as_i64().filter(|_| schema.kind != Some(Kind::Number)) {
            Some(whole) => Cel::Int(whole),
            None => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => text_of(text, schema),
        Value::Array(items) => {
            let nothing = Structural::default();
            let inner = schema.items.as_deref().unwrap_or(&nothing);
            Cel::List(Arc::new(items.iter().map(|item| of(item, inner)).collect()))
        }
        Value::Object(object) => {
            let nothing = Structural::default();
            let mut map = HashMap::with_capacity(object.len());
            for (name, member) in object {
                // Keys of maps are data; names of fields have to be names.
                let key = if schema.properties.contains_key(name) || schema.properties.is_empty() && schema.embedded {
                    escape(name)
                } else {
                    name.clone()
                };
                map.insert(Key::String(Arc::new(key)), of(member, schema.field(name).unwrap_or(&nothing)));
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

/// A text, or what its format makes of it.
fn text_of(text: &str, schema: &Structural) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    match schema.rules.format.as_str() {
        "date-time" | "datetime" => timestamp(text).unwrap_or_else(plain),
        "date" => timestamp(&format!("{text}T00:00:00Z")).unwrap_or_else(plain),
        "duration" => call("duration", text)
            .or_else(|| call("duration", &format!("{}ns", format::duration(text)?)))
            .unwrap_or_else(plain),
        "byte" => STANDARD.decode(text).map_or_else(|_| plain(), |bytes| Cel::Bytes(Arc::new(bytes))),
        _ => plain(),
    }
}

/// A moment.
fn timestamp(text: &str) -> Option<Cel> {
    call("timestamp", text)
}

/// What a function of the language makes of a text.
fn call(function: &str, text: &str) -> Option<Cel> {
    let literal = |text: &str| IdedExpr { id: 1, expr: Expr::Literal(LiteralValue::String(text.into())) };
    let call = CallExpr { func_name: function.to_owned(), target: None, args: vec![literal(text)] };
    cel::Value::resolve(&IdedExpr { id: 0, expr: Expr::Call(call) }, &cel::Context::default()).ok()
}

/// The name under which rules find a field.
pub(super) fn escape(name: &str) -> String {
    if KEPT.contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}
