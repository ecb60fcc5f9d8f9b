//! The credentials that a pod brings for its images' registries (`imagePullSecrets`).
//!
//! Those of its service account are among them: the API server put them there when the pod was made.

use image::registry::auth::Keyring;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;

use crate::agent::Shared;

/// Type and key of a secret with Docker's `config.json`.
const CONFIG_JSON: (&str, &str) = ("kubernetes.io/dockerconfigjson", ".dockerconfigjson");
/// Type and key of one with the older file.
const DOCKERCFG: (&str, &str) = ("kubernetes.io/dockercfg", ".dockercfg");

/// All credentials that the pod names. Secrets that are missing are told and done without, as the kubelet does.
pub(super) async fn keyring(shared: &Shared, pod: &Pod) -> Result<Keyring, String> {
    let mut keyring = Keyring::default();
    let names = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).map(|s| s.name.clone());
    let api: Api<Secret> =
        Api::namespaced(shared.client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"));
    let mut missing = Vec::new();
    for name in names.filter(|n| !n.is_empty()) {
        match api.get_opt(&name).await {
            Ok(Some(secret)) => add(&mut keyring, &secret).map_err(|e| format!("image pull secret {name}: {e}"))?,
            Ok(None) | Err(_) => missing.push(name),
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        shared.events.warning(pod, None, "FailedToRetrieveImagePullSecret", &message);
    }
    Ok(keyring)
}

fn add(keyring: &mut Keyring, secret: &Secret) -> Result<(), String> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let kind = secret.type_.as_deref().unwrap_or_default();
    let added = match (kind, data(CONFIG_JSON.1), data(DOCKERCFG.1)) {
        (kind, Some(text), _) if kind == CONFIG_JSON.0 => keyring.add_config_json(text),
        (kind, _, Some(text)) if kind == DOCKERCFG.0 => keyring.add_dockercfg(text),
        // Secrets of other types are passed over.
        _ => Ok(()),
    };
    added.map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_kinds_of_secret_are_read_and_others_passed_over() {
        let secret = |kind: &str, key: &str, text: &str| -> Secret {
            let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
            serde_json::from_value(json!({"type": kind, "data": {key: data}})).expect("a secret")
        };
        let mut ring = Keyring::default();
        let entry = r#"{"new.test": {"username": "u", "password": "p"}}"#;
        add(&mut ring, &secret(CONFIG_JSON.0, CONFIG_JSON.1, &format!("{{\"auths\": {entry}}}"))).expect("taken");
        add(&mut ring, &secret(DOCKERCFG.0, DOCKERCFG.1, &entry.replace("new", "old"))).expect("taken");
        add(&mut ring, &secret("Opaque", DOCKERCFG.1, &entry.replace("new", "other"))).expect("passed over");
        let found = ["new.test", "old.test", "other.test"].map(|host| ring.find(host, "x").len());
        assert_eq!(found, [1, 1, 0]);
        assert!(add(&mut ring, &secret(CONFIG_JSON.0, CONFIG_JSON.1, "[]")).is_err());
    }
}
