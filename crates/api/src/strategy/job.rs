//! What the server adds to a new Job: the labels of its pods, and a selector that takes these pods alone.

use serde_json::{Value, json};

/// Label of a job's pods: the job's name, in its present and its older form.
pub const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
/// Label of a job's pods: the job's uid, in its present and its older form.
pub const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];

/// Before a create is validated: a selector is made unless the client wants its own. Labels that the client has set
/// stay; validation tells whether they fit.
pub(super) fn prepare_create(job: &mut Value) {
    if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
        return;
    }
    let name = job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let uid = job["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
        for key in keys {
            add(labels, key, value);
        }
    }
    add(&mut job["spec"]["selector"]["matchLabels"], UID_LABELS[0], &uid);
}

/// Adds an entry to a map, which is made if it is missing, unless its key is there.
fn add(map: &mut Value, key: &str, value: &str) {
    if !map.is_object() {
        *map = json!({});
    }
    if map.get(key).is_none() {
        map[key] = value.into();
    }
}
