//! The file that tells clients where the server is and who they are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// A kubeconfig with everything embedded. JSON, which is YAML, so that nothing needs quoting rules.
/// It holds a private key: write it with [`super::write_private`].
pub fn kubeconfig(server_url: &str, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "statefuld",
            "cluster": {"server": server_url, "certificate-authority-data": STANDARD.encode(ca_pem)},
        }],
        "users": [{
            "name": "kubernetes-admin",
            "user": {
                "client-certificate-data": STANDARD.encode(certificate_pem),
                "client-key-data": STANDARD.encode(key_pem),
            },
        }],
        "contexts": [{
            "name": "statefuld",
            "context": {"cluster": "statefuld", "user": "kubernetes-admin"},
        }],
        "current-context": "statefuld",
        "preferences": {},
    });
    let mut text = serde_json::to_string_pretty(&config).expect("string keys only");
    text.push('\n');
    text
}
