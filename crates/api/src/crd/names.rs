//! Which names a definition gets, and what its conditions say.
//!
//! Within a group no two definitions share a plural, singular, short name, kind or list kind. Who has a name keeps
//! it; who wants one that is taken waits, and its condition `NamesAccepted` says why.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::list;

/// The names of each group that are taken, by whom.
#[derive(Debug, Default)]
pub struct Taken {
    /// Plurals, singulars and short names, by group.
    resources: BTreeMap<String, BTreeMap<String, String>>,
    /// Kinds and list kinds, by group.
    kinds: BTreeMap<String, BTreeMap<String, String>>,
}

impl Taken {
    /// The names that definitions have been given so far.
    pub fn by(definitions: &[Value]) -> Self {
        let mut taken = Taken::default();
        for definition in definitions {
            let names = &definition["status"]["acceptedNames"];
            let group = text(&definition["spec"]["group"]);
            let owner = text(&definition["metadata"]["name"]);
            for name in resource_names(names) {
                taken.resources.entry(group.to_owned()).or_default().insert(name.to_owned(), owner.to_owned());
            }
            for name in [text(&names["kind"]), text(&names["listKind"])].into_iter().filter(|n| !n.is_empty()) {
                taken.kinds.entry(group.to_owned()).or_default().insert(name.to_owned(), owner.to_owned());
            }
        }
        taken
    }

    /// Whether somebody else has the name of a resource.
    fn resource(&self, group: &str, name: &str, me: &str) -> bool {
        self.resources.get(group).and_then(|names| names.get(name)).is_some_and(|owner| owner != me)
    }

    /// Whether somebody else has the name of a kind.
    fn kind(&self, group: &str, name: &str, me: &str) -> bool {
        self.kinds.get(group).and_then(|names| names.get(name)).is_some_and(|owner| owner != me)
    }
}

/// The status of a definition after a look at the names: accepted names, and the conditions `NamesAccepted` and
/// `Established`.
pub fn naming_status(definition: &Value, taken: &Taken, now: &str) -> Value {
    let mut status = definition["status"].clone();
    let wanted = &definition["spec"]["names"];
    let (group, me) = (text(&definition["spec"]["group"]), text(&definition["metadata"]["name"]));
    let mut accepted = status["acceptedNames"].clone();
    let mut problems: Vec<(&str, String)> = Vec::new();
    for (field, reason) in [("plural", "PluralConflict"), ("singular", "SingularConflict")] {
        let name = text(&wanted[field]);
        if taken.resource(group, name, me) {
            problems.push((reason, format!("{} is already in use", crate::status::quote(name))));
        } else {
            accepted[field] = wanted[field].clone();
        }
    }
    let short: Vec<&str> = list(&wanted["shortNames"]).iter().filter_map(Value::as_str).collect();
    let in_use: Vec<&str> = short.iter().copied().filter(|name| taken.resource(group, name, me)).collect();
    if in_use.is_empty() {
        set_or_remove(&mut accepted, "shortNames", &wanted["shortNames"]);
    } else {
        let all: Vec<String> =
            in_use.iter().map(|n| format!("{} is already in use", crate::status::quote(n))).collect();
        let shown = if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) };
        problems.push(("ShortNamesConflict", shown));
    }
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = text(&wanted[field]);
        if taken.kind(group, name, me) {
            problems.push((reason, format!("{} is already in use", crate::status::quote(name))));
        } else {
            accepted[field] = wanted[field].clone();
        }
    }
    set_or_remove(&mut accepted, "categories", &wanted["categories"]);
    status["acceptedNames"] = accepted;
    // The last conflict found is the one that is told, as upstream does.
    let (is_accepted, reason, message) = match problems.pop() {
        None => ("True", "NoConflicts", "no conflicts found".to_owned()),
        Some((reason, message)) => ("False", reason, message),
    };
    set_condition(&mut status, "NamesAccepted", is_accepted, reason, &message, now);
    let established = condition(&status, "Established");
    if is_accepted == "True" {
        set_condition(
            &mut status,
            "Established",
            "True",
            "InitialNamesAccepted",
            "the initial names have been accepted",
            now,
        );
    } else if established.is_none() {
        set_condition(&mut status, "Established", "False", "NotAccepted", "not all names are accepted", now);
    }
    status
}

/// A condition of a status.
pub fn condition<'v>(status: &'v Value, kind: &str) -> Option<&'v Value> {
    list(&status["conditions"]).iter().find(|c| c["type"] == kind)
}

/// Whether a condition of a status holds.
pub fn is_true(status: &Value, kind: &str) -> bool {
    condition(status, kind).is_some_and(|c| c["status"] == "True")
}

/// Sets a condition; its time changes with its status.
pub fn set_condition(status: &mut Value, kind: &str, is: &str, reason: &str, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let mut new = json!({"type": kind, "status": is, "reason": reason, "message": message, "lastTransitionTime": now});
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(old) => {
            if old["status"] == is && old["lastTransitionTime"].is_string() {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Takes a list over, or its absence.
fn set_or_remove(names: &mut Value, field: &str, value: &Value) {
    if value.is_null() {
        if let Some(names) = names.as_object_mut() {
            names.remove(field);
        }
    } else {
        names[field] = value.clone();
    }
}

/// The names under which a resource is asked for.
fn resource_names(names: &Value) -> Vec<&str> {
    let short = list(&names["shortNames"]).iter().filter_map(Value::as_str);
    [text(&names["plural"]), text(&names["singular"])].into_iter().chain(short).filter(|n| !n.is_empty()).collect()
}

/// A text; empty if absent.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, short: &str) -> Value {
        json!({"metadata": {"name": format!("{name}s.g.example")}, "spec": {"group": "g.example", "names": {
            "plural": format!("{name}s"), "singular": name, "kind": name, "listKind": format!("{name}List"),
            "shortNames": [short]}}, "status": {}})
    }

    #[test]
    fn who_comes_first_keeps_the_name_and_the_other_is_told() {
        let mut first = definition("toy", "t");
        first["status"] = naming_status(&first, &Taken::default(), "2024-01-01T00:00:00Z");
        assert!(is_true(&first["status"], "Established"));
        let mut second = definition("tool", "t");
        second["status"] = naming_status(&second, &Taken::by(&[first.clone()]), "2024-01-01T00:00:00Z");
        let refused = condition(&second["status"], "NamesAccepted").unwrap();
        assert_eq!((&refused["status"], &refused["reason"]), (&json!("False"), &json!("ShortNamesConflict")));
        assert_eq!(refused["message"], "\"t\" is already in use");
        assert!(!is_true(&second["status"], "Established"));
        // Once the name is free, it is given.
        let later = naming_status(&second, &Taken::by(&[second.clone()]), "2024-01-01T00:00:01Z");
        assert!(is_true(&later, "Established") && is_true(&later, "NamesAccepted"));
        assert_eq!(later["acceptedNames"]["shortNames"], json!(["t"]));
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut status = json!({});
        set_condition(&mut status, "A", "True", "r", "", "t1");
        set_condition(&mut status, "A", "True", "r2", "", "t2");
        assert_eq!(condition(&status, "A").unwrap()["lastTransitionTime"], "t1");
        set_condition(&mut status, "A", "False", "r3", "", "t3");
        assert_eq!(condition(&status, "A").unwrap()["lastTransitionTime"], "t3");
    }
}
