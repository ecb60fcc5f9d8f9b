//! Who holds a pod's identity: at most one uid, on one node.
//!
//! The record is written in the transaction that binds a pod to its node, under a key of its own. Deleting the
//! pod, forced or not, does not remove it: it goes with the final delete by the holding node itself, or with that
//! node's separate word that the pod is gone (`DELETE /apis/statefuld.io/v1/namespaces/<ns>/holders/<pod>`).
//! While it is there no other uid of that name is bound anywhere.

use api::status::Status;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Entry;

use crate::auth::node::node_of;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::server::Shared;
use crate::verbs::create::{metadata, text};
use crate::verbs::write::Extra;

/// The annotation that tells the agent the epoch of its pod.
pub(crate) const EPOCH_ANNOTATION: &str = "statefuld.io/epoch";
/// Where the records lie.
pub(crate) const HOLDERS: &str = "/holders/";
/// What a record begins with.
const MAGIC: &str = "statefuld holder";
/// The version of the record that this server reads and writes.
const VERSION: u32 = 1;
/// An epoch is the store's generation above so many bits of revision.
const REVISION_BITS: u32 = 40;

/// A holder record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Holder {
    magic: String,
    version: u32,
    /// Namespace of the pod.
    pub(crate) namespace: String,
    /// Name of the pod.
    pub(crate) name: String,
    /// Uid of the pod that holds the name.
    pub(crate) uid: String,
    /// Where it runs.
    pub(crate) node: String,
    /// Rises with every binding of the name.
    pub(crate) epoch: u64,
}

impl Holder {
    /// The record as an object of the API.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "kind": "Holder",
            "apiVersion": "statefuld.io/v1",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "uid": self.uid,
            "node": self.node,
            "epoch": self.epoch,
        })
    }
}

/// The record's key.
pub(crate) fn key(namespace: &str, pod: &str) -> Bytes {
    format!("{HOLDERS}{namespace}/{pod}").into()
}

/// The record of a name, and the revision that wrote it.
pub(crate) fn find(shared: &Shared, namespace: &str, pod: &str) -> Outcome<Option<(Holder, u64)>> {
    shared.cache.note_at(&key(namespace, pod)).map(|entry| read(&entry)).transpose()
}

/// Reads a record. One that is not understood is never taken for absent.
pub(crate) fn read(entry: &Entry) -> Outcome<(Holder, u64)> {
    let at = String::from_utf8_lossy(&entry.key).into_owned();
    match serde_json::from_slice::<Holder>(&entry.value) {
        Ok(holder) if holder.magic == MAGIC && holder.version == VERSION => Ok((holder, entry.mod_revision)),
        Ok(holder) => {
            let version = holder.version;
            Err(Box::new(Status::internal(format!("the holder record at {at} has version {version}, unknown here"))))
        }
        Err(error) => Err(Box::new(Status::internal(format!("the holder record at {at} is damaged: {error}")))),
    }
}

/// Gives the name to this pod on this node, as part of the transaction that binds it. `compared` is the revision
/// that the transaction compares. Refused while another uid holds the name.
pub(crate) fn take(call: &Call, pod: &mut Value, node: &str, compared: u64, extra: &mut Extra) -> Outcome<()> {
    let (namespace, name) = (text(pod, "namespace").to_owned(), text(pod, "name").to_owned());
    let uid = text(pod, "uid").to_owned();
    let found = find(&call.shared, &namespace, &name)?;
    if let Some((holder, _)) = found.as_ref().filter(|(holder, _)| holder.uid != uid || holder.node != node) {
        let why = format!(
            "an earlier pod of this name (uid {}) may still run on node {}; it has to be gone there first",
            holder.uid, holder.node
        );
        return Err(Box::new(Status::conflict("", "pods", &name, why)));
    }
    let generation = u64::from(call.shared.store.identity().generation);
    let epoch = (generation << REVISION_BITS) | compared;
    let holder =
        Holder { magic: MAGIC.to_owned(), version: VERSION, namespace, name, uid, node: node.to_owned(), epoch };
    let annotations = metadata(pod).entry("annotations").or_insert_with(|| json!({}));
    annotations[EPOCH_ANNOTATION] = epoch.to_string().into();
    let key = key(&holder.namespace, &holder.name);
    extra.unchanged(key.clone(), found.map_or(0, |(_, revision)| revision));
    let value = serde_json::to_vec(&holder).expect("a record of texts and numbers is always JSON");
    extra.put(key, value.into());
    Ok(())
}

/// Only binding writes the epoch: what a client says about it is put back to what it was.
pub(super) fn keep_epoch(pod: &mut Value, old: Option<&Value>) {
    let path = "/metadata/annotations";
    let was = old.and_then(|o| o.pointer(path)).and_then(|a| a.get(EPOCH_ANNOTATION)).cloned();
    let has = pod.pointer(path).and_then(|a| a.get(EPOCH_ANNOTATION)).cloned();
    if was == has {
        return;
    }
    let annotations = metadata(pod).entry("annotations").or_insert_with(|| json!({}));
    let Some(annotations) = annotations.as_object_mut() else { return };
    match was {
        Some(was) => annotations.insert(EPOCH_ANNOTATION.to_owned(), was),
        None => annotations.remove(EPOCH_ANNOTATION),
    };
    if annotations.is_empty() {
        metadata(pod).remove("annotations");
    }
}

/// The holding node's own final delete of the pod is its word that the pod is gone.
pub(crate) fn released_with_pod(call: &Call, pod: &Value, extra: &mut Extra) {
    if call.resource.kind != "Pod" {
        return;
    }
    let Some(node) = node_of(&call.identity) else { return };
    let (namespace, name) = (text(pod, "namespace"), text(pod, "name"));
    if let Ok(Some((holder, revision))) = find(&call.shared, namespace, name)
        && holder.node == node
        && holder.uid == text(pod, "uid")
    {
        let key = key(namespace, name);
        extra.unchanged(key.clone(), revision);
        extra.delete(key);
    }
}
