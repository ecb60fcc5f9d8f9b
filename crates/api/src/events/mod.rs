//! Events, which are served twice: as core/v1, in which they are stored, and as events.k8s.io/v1.
//!
//! Both are the same objects. What the newer API renamed:
//!
//! | core/v1 | events.k8s.io/v1 |
//! |---|---|
//! | involvedObject | regarding |
//! | message | note |
//! | reportingComponent | reportingController |
//! | source, count, firstTimestamp, lastTimestamp | the same with `deprecated` in front |

mod correlate;

use serde_json::{Map, Value};

use crate::decode::normalize_type;
use crate::resource::Resource;

pub use correlate::{Correlator, Decision, Key, Occurrence};

/// The newer group.
pub const GROUP: &str = "events.k8s.io";
/// Kind of events in both groups.
pub const KIND: &str = "Event";
/// Plural of events in both groups.
pub const PLURAL: &str = "events";

/// Names in the stored form and in the newer one.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];

/// Whether objects of a resource are stored as core events and shown in the newer form.
pub fn is_view(resource: &Resource) -> bool {
    resource.group == GROUP && resource.plural == PLURAL
}

/// Group and plural under which objects of a kind are kept.
pub fn stored_place<'a>(group: &'a str, plural: &'a str) -> (&'a str, &'a str) {
    if group == GROUP && plural == PLURAL { ("", PLURAL) } else { (group, plural) }
}

/// The field of stored events that a field of the newer form stands for, as selectors name them.
pub(crate) fn stored_field(field: &str) -> String {
    match field.strip_prefix("regarding.") {
        Some(rest) => format!("involvedObject.{rest}"),
        None if field == "reportingController" => "reportingComponent".to_owned(),
        None => field.to_owned(),
    }
}

/// Turns a stored event into the newer form.
pub fn to_view(event: &mut Value) {
    rename(event, |(stored, view)| (stored, view));
    normalize_type("events/v1.Event", event);
}

/// Turns an event in the newer form into the one that is stored.
pub fn to_stored(event: &mut Value) {
    rename(event, |(stored, view)| (view, stored));
    normalize_type("core/v1.Event", event);
}

/// Moves members from their old to their new names.
fn rename(event: &mut Value, names: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(object) = event.as_object_mut() else { return };
    let moved: Map<String, Value> =
        RENAMED.into_iter().map(names).filter_map(|(from, to)| Some((to.to_owned(), object.remove(from)?))).collect();
    object.extend(moved);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decode::{FieldValidation, check_value};
    use crate::resource::Registry;

    fn stored(event: Value) -> Value {
        let core = Registry::builtin().find("", "v1", PLURAL).unwrap();
        check_value(&core, event, FieldValidation::Strict).unwrap().object
    }

    #[test]
    fn every_field_finds_its_name_in_both_directions() {
        let event = stored(json!({
            "metadata": {"name": "a"}, "involvedObject": {"kind": "Pod", "name": "p"}, "related": {"kind": "Node"},
            "reason": "R", "message": "m", "source": {"component": "c"}, "count": 3, "type": "Normal",
            "firstTimestamp": "2021-01-01T00:00:00Z", "lastTimestamp": "2021-01-01T00:05:00Z",
            "eventTime": "2021-01-01T00:00:00.000001Z", "action": "A", "reportingComponent": "rc",
            "reportingInstance": "ri", "series": {"count": 2, "lastObservedTime": "2021-01-01T00:05:00.000000Z"}
        }));
        let mut view = event.clone();
        to_view(&mut view);
        assert_eq!((&view["regarding"]["name"], &view["note"]), (&json!("p"), &json!("m")));
        assert_eq!((&view["deprecatedCount"], &view["reportingController"]), (&json!(3), &json!("rc")));
        assert_eq!(view["deprecatedSource"], json!({"component": "c"}));
        assert!(view.get("message").is_none() && view.get("count").is_none());
        to_stored(&mut view);
        assert_eq!(view, event);
    }

    #[test]
    fn what_an_event_lacks_is_written_as_each_form_writes_it() {
        let event = stored(json!({"metadata": {"name": "a"}, "involvedObject": {"kind": "Pod"}, "reason": "R"}));
        let mut view = event.clone();
        to_view(&mut view);
        assert!(view.get("reportingController").is_none(), "{view}");
        assert_eq!((&view["eventTime"], &view["deprecatedSource"]), (&Value::Null, &json!({})));
        to_stored(&mut view);
        assert_eq!(view["reportingComponent"], "");
        assert_eq!(view, event);
    }
}
