//! What accounts and roles are given: the authority's certificate, tokens in secrets, gathered rules.

use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::support::{Cluster, PATIENCE};

#[tokio::test]
async fn every_namespace_has_the_certificate_and_gets_it_back() {
    let cluster = Cluster::start().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}});
    cluster.create("Namespace", "", space).await;
    let good = |map: &Value| map["data"] == json!({"ca.crt": "CERTIFICATE"});
    for namespace in ["new", "default", "kube-system"] {
        cluster.until("ConfigMap", namespace, "kube-root-ca.crt", good).await;
    }
    cluster.patch("ConfigMap", "new", "kube-root-ca.crt", json!({"data": {"ca.crt": "FORGED", "more": "x"}})).await;
    cluster.until("ConfigMap", "new", "kube-root-ca.crt", good).await;
    let before = cluster.get("ConfigMap", "new", "kube-root-ca.crt").await.expect("there");
    cluster.delete("ConfigMap", "new", "kube-root-ca.crt", DeleteParams::default()).await;
    let another = |map: &Value| good(map) && map["metadata"]["uid"] != before["metadata"]["uid"];
    cluster.until("ConfigMap", "new", "kube-root-ca.crt", another).await;
    cluster.stop().await;
}

fn secret(name: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": name, "annotations": annotations}})
}

#[tokio::test]
async fn a_secret_for_a_token_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::start().await;
    let bot = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
    let bot = cluster.create("ServiceAccount", "default", bot).await;
    let named = json!({"kubernetes.io/service-account.name": "bot"});
    cluster.create("Secret", "default", secret("bots", named)).await;
    let filled = |secret: &Value| secret["data"]["token"].is_string();
    let secret_now = cluster.until("Secret", "default", "bots", filled).await;
    // token-default-bot-bots, CERTIFICATE, default
    assert_eq!(
        secret_now["data"],
        json!({"token": "dG9rZW4tZGVmYXVsdC1ib3QtYm90cw==", "ca.crt": "Q0VSVElGSUNBVEU=", "namespace": "ZGVmYXVsdA=="})
    );
    let noted = &secret_now["metadata"]["annotations"]["kubernetes.io/service-account.uid"];
    assert_eq!(noted, &bot["metadata"]["uid"]);
    // One that is of an account of another uid is not of this one.
    let other = json!({"kubernetes.io/service-account.name": "bot", "kubernetes.io/service-account.uid": "older"});
    cluster.create("Secret", "default", secret("olders", other)).await;
    cluster.until_gone("Secret", "default", "olders").await;
    cluster.delete("ServiceAccount", "default", "bot", DeleteParams::default()).await;
    cluster.until_gone("Secret", "default", "bots").await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_aggregated_role_shows_what_it_gathers() {
    let cluster = Cluster::start().await;
    let kind = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", "ClusterRole");
    let roles: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &ApiResource::from_gvk(&kind));
    let rule = |resource: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]});
    let make = async |name: &str, body: Value| {
        let mut role = body;
        role["metadata"]["name"] = json!(name);
        let role: DynamicObject = serde_json::from_value(role).expect("a role");
        roles.create(&PostParams::default(), &role).await.expect("created");
    };
    let selector = json!({"clusterRoleSelectors": [{"matchLabels": {"part-of": "whole"}}]});
    make("whole", json!({"metadata": {}, "aggregationRule": selector, "rules": []})).await;
    for (name, resource) in [("part-a", "pods"), ("part-b", "services")] {
        make(name, json!({"metadata": {"labels": {"part-of": "whole"}}, "rules": [rule(resource)]})).await;
    }
    let shown = async |wanted: Value| {
        let wait = async {
            loop {
                let whole = roles.get("whole").await.expect("there");
                if whole.data["rules"] == wanted {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the rules are shown");
    };
    shown(json!([rule("pods"), rule("services")])).await;
    let part = roles.get("part-a").await.expect("there");
    roles.delete(&part.name_any(), &DeleteParams::default()).await.expect("deleted");
    shown(json!([rule("services")])).await;
    cluster.stop().await;
}
