//! The objects that every cluster has from its first start, written in one transaction where they are missing.

use api::{decode, defaults, strategy};
use serde_json::{Value, json};
use store::{Compare, Op, Txn, TxnOutcome};

use crate::auth;
use crate::cache::store_key;
use crate::errors::Error;
use crate::object;
use crate::server::Shared;
use crate::verbs::create::{metadata, seconds, text};

/// How often the transaction is made again because another server was quicker.
const ATTEMPTS: usize = 10;

/// Writes what is missing, and adds to roles and bindings what they lack.
pub(crate) async fn run(shared: &Shared) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        let txn = missing(shared);
        if txn.ops.is_empty() {
            return Ok(());
        }
        let revision = match shared.store.txn(txn).await? {
            TxnOutcome::Committed { revision } | TxnOutcome::Failed { revision, .. } => revision,
        };
        let waited = shared.cache.wait(revision).await;
        waited.map_err(|status| Error::Bootstrap { what: "the first objects".to_owned(), why: status.to_string() })?;
    }
    let why = "somebody else keeps changing them".to_owned();
    Err(Error::Bootstrap { what: "the first objects".to_owned(), why })
}

/// The transaction that brings all there.
fn missing(shared: &Shared) -> Txn {
    let mut txn = Txn::default();
    for wanted in objects() {
        let kind = text_at(&wanted, "kind");
        let version = text_at(&wanted, "apiVersion");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        // A registry of few kinds gets few objects.
        let Some(resource) = shared.registry.find_kind(group, version, kind) else { continue };
        let (namespace, name) = (text(&wanted, "namespace").to_owned(), text(&wanted, "name").to_owned());
        let key = store_key(&resource, &namespace, &name);
        let found = shared.cache.get(group, &resource.plural, &namespace, &name);
        let (mut value, was) = match found {
            None => (wanted, 0),
            Some(found) => {
                if group != "rbac.authorization.k8s.io" {
                    continue;
                }
                let Some(value) = auth::bootstrap::reconcile(&found.value(&resource), &wanted) else { continue };
                (value, found.revision)
            }
        };
        if was == 0 {
            let uid = shared.ambient.uid();
            let now = seconds(shared.ambient.now());
            defaults::apply(&resource, &mut value);
            strategy::prepare_create(&resource, &mut value);
            let metadata = metadata(&mut value);
            metadata.insert("uid".to_owned(), uid.into());
            metadata.insert("creationTimestamp".to_owned(), now.into());
        }
        decode::normalize(&resource, &mut value);
        txn.compare.push(Compare { key: key.clone(), mod_revision: was });
        txn.ops.push(Op::Put { key, value: object::stored_bytes(value), ttl: None });
    }
    txn
}

/// A text at the top of a document.
fn text_at<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// All of them, namespaces first.
fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        out.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }));
        out.push(json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name},
        }));
    }
    out.push(json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "host"}, "handler": "host",
    }));
    out.push(json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "statefuld.io/local",
        "allowVolumeExpansion": true,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    for (name, value, about) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        out.push(json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": about,
        }));
    }
    out.extend(auth::bootstrap::objects());
    out
}
