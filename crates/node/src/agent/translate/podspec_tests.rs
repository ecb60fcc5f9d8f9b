//! `docs/podspec.md` is whole, and true where it says that something is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::tests::translate;
use crate::agent::admit::{Machine, admit};
use crate::agent::sources::Fetched;
use crate::rules::Rules;
use crate::volume::{LocalVolumes, Place};

const DOCUMENT: &str = include_str!("../../../../../docs/podspec.md");
const SCHEMA: &str = include_str!("../../../../api/data/schema.txt");

/// Types of other objects' fields: what a claim may say is no matter of the pod's.
const BEYOND: [&str; 1] = ["core/v1.PersistentVolumeClaimTemplate"];

const STATES: [&str; 4] = ["supported", "refused", "refused by the API", "no effect"];

/// A field: its type's name and its own.
type Field = (String, String);

/// State and words of every field that the document lists.
fn listed() -> BTreeMap<Field, (String, String)> {
    let mut fields = BTreeMap::new();
    let mut kind = String::new();
    for line in DOCUMENT.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            name.clone_into(&mut kind);
        }
        let Some(row) = line.strip_prefix("| `").filter(|_| !kind.is_empty()) else { continue };
        let mut columns = row.trim_end_matches('|').split(" |");
        let field = columns.next().expect("a field").trim_end_matches('`').to_owned();
        let state = columns.next().expect("a state").trim().to_owned();
        let words = columns.collect::<Vec<_>>().join(" |").trim().to_owned();
        let before = fields.insert((kind.clone(), field.clone()), (state, words));
        assert!(before.is_none(), "{kind}.{field} is listed twice");
    }
    fields
}

/// Fields of every type, with the types of their values.
fn served() -> BTreeMap<String, Vec<(String, String)>> {
    let mut types: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut kind = None;
    for line in SCHEMA.lines() {
        if let Some(field) = line.strip_prefix(' ') {
            let mut words = field.split(' ');
            let (name, value) = (words.next().expect("a name"), words.nth(1).expect("a type"));
            if let Some(fields) = kind.as_ref().and_then(|kind| types.get_mut(kind)) {
                fields.push((name.to_owned(), value.trim_matches(['[', ']', '{', '}']).to_owned()));
            }
        } else {
            kind = line.strip_prefix("type ").and_then(|rest| rest.split(' ').next()).map(str::to_owned);
            kind.iter().for_each(|kind| drop(types.insert(kind.clone(), Vec::new())));
        }
    }
    types
}

#[test]
fn every_field_of_a_pod_is_listed() {
    let (listed, served) = (listed(), served());
    let mut expected = BTreeSet::new();
    let (mut left, mut seen) = (vec!["core/v1.PodSpec".to_owned()], BTreeSet::new());
    while let Some(kind) = left.pop() {
        let Some(fields) = served.get(&kind).filter(|_| seen.insert(kind.clone())) else { continue };
        if BEYOND.contains(&kind.as_str()) {
            continue;
        }
        let short = kind.rsplit('.').next().expect("a name").to_owned();
        for (field, value) in fields {
            let key = (short.clone(), field.clone());
            // What lies in a field that is refused or left out as a whole needs no row of its own.
            if listed.get(&key).is_none_or(|(state, _)| state == "supported") {
                left.push(value.clone());
            }
            expected.insert(key);
        }
    }
    let missing: Vec<&Field> = expected.iter().filter(|field| !listed.contains_key(*field)).collect();
    assert!(missing.is_empty(), "docs/podspec.md does not list {missing:?}");
    let known: BTreeSet<Field> = served
        .iter()
        .flat_map(|(kind, fields)| {
            let short = kind.rsplit('.').next().expect("a name");
            fields.iter().map(move |(field, _)| (short.to_owned(), field.clone()))
        })
        .collect();
    let unknown: Vec<&Field> = listed.keys().filter(|field| !known.contains(*field)).collect();
    assert!(unknown.is_empty(), "docs/podspec.md lists what there is not: {unknown:?}");
    for (field, (state, words)) in &listed {
        assert!(STATES.contains(&state.as_str()), "{field:?} is {state:?}");
        assert!(state == "supported" || !words.is_empty(), "{field:?} does not say why");
    }
}

/// Fields whose refusal is that of the field named.
fn root_of(field: &Field) -> Field {
    let (kind, name) = (field.0.as_str(), field.1.as_str());
    let (kind, name) = match (kind, name) {
        ("VolumeDevice", _) | ("EphemeralContainer", "volumeDevices") => ("Container", "volumeDevices"),
        ("AppArmorProfile", _) | ("SecurityContext", "appArmorProfile") => ("PodSecurityContext", "appArmorProfile"),
        other => other,
    };
    (kind.to_owned(), name.to_owned())
}

/// Pods that use what is refused.
fn examples() -> Vec<(Field, Value)> {
    let container = |extra: Value| {
        let mut container = json!({"name": "c", "image": "statefuld.local/sample"});
        container.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
        json!({"containers": [container]})
    };
    let pod = |extra: Value| {
        let mut spec = container(json!({}));
        spec.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
        spec
    };
    let field = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    vec![
        (field("PodSpec", "runtimeClassName"), pod(json!({"runtimeClassName": "other"}))),
        (field("PodSpec", "resourceClaims"), pod(json!({"resourceClaims": [{"name": "gpu"}]}))),
        (
            field("PodSecurityContext", "appArmorProfile"),
            pod(json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}})),
        ),
        (
            field("Container", "volumeDevices"),
            container(json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]})),
        ),
        (field("ResourceRequirements", "claims"), container(json!({"resources": {"claims": [{"name": "gpu"}]}}))),
        (
            field("ResourceRequirements", "limits"),
            container(json!({"resources": {"limits": {"example.com/thing": "1"}}})),
        ),
    ]
}

/// What a pod is refused with.
fn refusal(spec: &Value) -> String {
    let pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec})).expect("a pod");
    match admit(&pod, &Rules::default(), Machine { app_armor: false }, 0) {
        Err(verdict) => verdict.message,
        Ok(()) => translate(spec.clone()).expect_err("refused").message,
    }
}

#[test]
fn what_is_refused_is_refused_in_these_words() {
    let (listed, examples) = (listed(), examples());
    for (field, spec) in &examples {
        let message = refusal(spec);
        let (_, words) = &listed[field];
        assert!(
            words.contains(&format!("`{message}`")),
            "{field:?} is refused with {message:?}, documented: {words:?}"
        );
    }
    let shown: BTreeSet<&Field> = examples.iter().map(|(field, _)| field).collect();
    for (field, _) in listed.iter().filter(|(_, (state, _))| state == "refused") {
        let volume = field.0 == "Volume";
        assert!(volume || shown.contains(&root_of(field)), "no example shows that {field:?} is refused");
    }
}

/// What a volume is refused with.
fn refused_volume(volume: &Value) -> String {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = Place {
        pod_dir: dir.path().join("pod"),
        local: LocalVolumes::new(dir.path().join("volumes")),
        epoch: 1,
        nonce: "n".to_owned(),
        images: BTreeMap::new(),
    };
    let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [], "volumes": [volume]}});
    let pod = serde_json::from_value(pod).expect("a pod");
    place.prepare(&pod, &Fetched::default()).expect_err("refused").to_string()
}

#[test]
fn kinds_of_volumes_that_are_refused_are_refused_in_these_words() {
    let listed = listed();
    let kinds = listed.iter().filter(|((kind, _), (state, _))| kind == "Volume" && state == "refused");
    for ((_, kind), _) in kinds {
        // Of each kind only what its type cannot be without.
        let value = json!({"volumeID": "x", "pdName": "x", "repository": "x", "server": "x", "path": "x", "iqn": "x",
            "lun": 0, "targetPortal": "x", "endpoints": "x", "monitors": ["x"], "image": "x", "driver": "x", "pdID": "x",
            "secretName": "x", "shareName": "x", "volumePath": "x", "registry": "x", "volume": "x", "diskName": "x",
            "diskURI": "x", "gateway": "x", "system": "x", "secretRef": {"name": "x"}, "volumeName": "x"});
        let message = refused_volume(&json!({"name": "NAME", kind: value}));
        let message = message.replace(&format!(" : {kind} is"), " : KIND is");
        assert!(DOCUMENT.contains(&message), "{kind} is refused with {message:?}");
    }
    let medium = refused_volume(&json!({"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}));
    let (_, words) = &listed[&("EmptyDirVolumeSource".to_owned(), "medium".to_owned())];
    assert!(words.contains(&format!("`{medium}`")), "{medium}");
}
