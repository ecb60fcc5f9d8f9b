//! A document read for its labels and for the fields that selectors know, and for nothing else: every write of every
//! object is read so once, and most of an object is lists and what lies deeper.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Objects within objects that are kept: as deep as labels lie.
const DEPTH: u8 = 3;

/// The document without its lists, and without what lies deeper than labels do. None: it is no JSON.
pub(crate) fn skim(raw: &[u8]) -> Option<Value> {
    let mut from = serde_json::Deserializer::from_slice(raw);
    let value = Level(DEPTH).deserialize(&mut from).ok()?;
    from.end().ok()?;
    Some(value)
}

/// How many levels of objects are still kept.
#[derive(Clone, Copy)]
struct Level(u8);

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let Some(below) = self.0.checked_sub(1) else {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        };
        let mut kept = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            let value = object.next_value_seed(Level(below))?;
            if !value.is_null() {
                kept.insert(key, value);
            }
        }
        Ok(kept.into())
    }
}

#[cfg(test)]
mod tests {
    use api::resource::Registry;
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_fields_are_those_of_the_whole_document() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n", "deletionTimestamp": "t",
                "labels": {"x": "y", "z": ""}, "annotations": {"deep": "{}"}, "managedFields": [{"fieldsV1": {"f:a": {}}}]},
            "spec": {"nodeName": "n1", "restartPolicy": "Always", "hostNetwork": true, "priority": 1, "share": 0.5,
                "containers": [{"name": "c"}], "securityContext": {"seLinuxOptions": {"level": {"a": 1}}}},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "nominatedNodeName": null}});
        let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "uid": "u"}, "source": {"component": "c"},
            "reason": "r", "type": "Normal"});
        let registry = Registry::builtin();
        for (plural, whole) in [("pods", pod), ("events", event)] {
            let resource = registry.find("", "v1", plural).expect("is served");
            let skimmed = skim(whole.to_string().as_bytes()).expect("JSON");
            assert_eq!(api::selector::fields(&resource, &skimmed), api::selector::fields(&resource, &whole));
            for path in ["/metadata/labels", "/metadata/deletionTimestamp"] {
                assert_eq!(skimmed.pointer(path), whole.pointer(path));
            }
            assert!(skimmed.pointer("/spec/containers").is_none());
        }
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for wrong in ["", "{", "{\"a\":[1,}", "{} x"] {
            assert!(skim(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }
}
