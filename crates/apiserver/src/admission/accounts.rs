//! The service account of a pod, and the volume in which its containers find a token of that account.
//!
//! A container that mounts something else at [`TOKEN_PATH`] gets no token, as upstream.

use api::status::Status;
use serde_json::{Map, Value, json};

use crate::auth::service_account::POD_LIFE_S;
use crate::errors::Outcome;
use crate::handler::Call;

/// Where client libraries look for the token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How the volume's name begins.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// The config map of every namespace that holds the certificate to check the API server against.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Random characters of the volume's name.
const SUFFIX: usize = 5;

/// Gives the pod its account, what the account brings, and a token of it.
pub(super) fn complete(call: &Call, pod_name: &str, spec: &mut Map<String, Value>) -> Outcome<()> {
    let account = account(call, pod_name, spec)?;
    let has_pull_secrets = spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    if let (Some(secrets), false) = (account.get("imagePullSecrets"), has_pull_secrets) {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    let flag = |value: Option<&Value>| value.and_then(Value::as_bool);
    let own = flag(spec.get("automountServiceAccountToken"));
    if own.or(flag(account.get("automountServiceAccountToken"))).unwrap_or(true) {
        mount_token(call, spec);
    }
    Ok(())
}

/// `default` unless the pod names another; it must exist.
fn account(call: &Call, pod_name: &str, spec: &mut Map<String, Value>) -> Outcome<Value> {
    let of = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let named = [of("serviceAccountName"), of("serviceAccount")].into_iter().find(|n| !n.is_empty());
    let name = named.unwrap_or_else(|| "default".to_owned());
    let namespace = &call.target.namespace;
    let Some(shelf) = call.shared.cache.named("", "serviceaccounts") else { return Ok(Value::Null) };
    let Some(found) = call.shared.cache.get("", "serviceaccounts", namespace, &name) else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(Box::new(Status::forbidden("", "pods", pod_name, why)));
    };
    spec.insert("serviceAccountName".to_owned(), name.clone().into());
    spec.insert("serviceAccount".to_owned(), name.into());
    Ok(found.value(shelf.resource()))
}

/// Mounts the token in every container that mounts nothing else there.
fn mount_token(call: &Call, spec: &mut Map<String, Value>) {
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let names = volumes.into_iter().flatten().filter_map(|v| v.get("name")?.as_str());
    let there = names.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = there.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", call.shared.ambient.suffix(SUFFIX)));
    let mount = json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH});
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|m| m["mountPath"] == TOKEN_PATH) {
                mounts.push(mount.clone());
                used = true;
            }
        }
    }
    if used && there.is_none() {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(json!({"name": name, "projected": token_volume()}));
        }
    }
}

/// A token, the certificate to check the server against, and the pod's namespace.
fn token_volume() -> Value {
    let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
    json!({
        "defaultMode": 0o644,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": POD_LIFE_S, "path": "token"}},
            {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ],
    })
}
