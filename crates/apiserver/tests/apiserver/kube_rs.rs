//! kube-rs as its users use it: one program, over the socket with a kubeconfig and inside the server's own process.

use std::collections::BTreeMap;

use ambient::Ambient;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, Discovery, ResourceExt};
use serde_json::json;
use statefuld_apiserver::listen::{ListenOptions, serve};
use statefuld_apiserver::tls::{Authority, server_config};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, Server, set};

#[tokio::test]
async fn inside_the_process() {
    let server = Server::start().await;
    program(server.admin()).await;
}

#[tokio::test]
async fn over_the_socket() {
    let server = Server::start().await;
    let authority = Authority::load_or_create(&server.folder.path().join("pki"), Ambient::system()).unwrap();
    let options = ListenOptions::new(server_config(&authority, &[], &[]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, options, server.api.service(), stop.clone()));
    let text = authority.admin_kubeconfig(&format!("https://{address}")).unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    program(Client::try_from(config).unwrap()).await;
    stop.cancel();
    serving.await.unwrap();
}

/// What a controller does with its client.
async fn program(client: Client) {
    let all = async {
        objects_live(&client).await;
        a_watcher_follows(&client).await;
        apply_owns_fields(&client).await;
        a_lease_has_one_holder(&client).await;
        any_kind_is_discovered(&client).await;
    };
    tokio::time::timeout(PATIENCE, all).await.expect("nothing takes so long");
}

fn code(result: Result<impl std::fmt::Debug, kube::Error>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        other => panic!("no refusal: {other:?}"),
    }
}

fn config_map(name: &str) -> ConfigMap {
    let text = json!({"metadata": {"name": name, "labels": {"of": name}}, "data": {"a": "1"}});
    serde_json::from_value(text).unwrap()
}

async fn objects_live(client: &Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let made = maps.create(&PostParams::default(), &config_map("one")).await.unwrap();
    let merge = Patch::Merge(json!({"data": {"b": "2"}}));
    let patched = maps.patch("one", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(patched.data.unwrap(), BTreeMap::from([("a", "1"), ("b", "2")].map(|(k, v)| (k.into(), v.into()))));
    let stale = maps.replace("one", &PostParams::default(), &made).await;
    assert_eq!(code(stale), (409, "Conflict".into()));
    let again = maps.create(&PostParams::default(), &config_map("one")).await;
    assert_eq!(code(again), (409, "AlreadyExists".into()));
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("No!")).await), (422, "Invalid".into()));
    let names = |list: kube::core::ObjectList<_>| list.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    assert_eq!(names(maps.list_metadata(&ListParams::default().labels("of=one")).await.unwrap()), ["one"]);
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    sets.create(&PostParams::default(), &serde_json::from_value(set("web", 1)).unwrap()).await.unwrap();
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    let scale = sets.patch_scale("web", &PatchParams::default(), &scale).await.unwrap();
    assert_eq!(scale.spec.and_then(|s| s.replicas), Some(3));
    assert_eq!(sets.get("web").await.unwrap().spec.replicas, Some(3));
    sets.delete("web", &DeleteParams::background()).await.unwrap();
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("one").await.unwrap().is_none());
}

async fn a_watcher_follows(client: &Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    maps.create(&PostParams::default(), &config_map("watched")).await.unwrap();
    let config = watcher::Config::default().labels("of=watched");
    let mut touched = watcher(maps.clone(), config).touched_objects().boxed();
    let mut next = async || touched.try_next().await.unwrap().expect("it goes on");
    assert_eq!(next().await.name_any(), "watched");
    let merge = Patch::Merge(json!({"data": {"a": "2"}}));
    maps.patch("watched", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(next().await.data.unwrap()["a"], "2");
    maps.delete("watched", &DeleteParams::default()).await.unwrap();
    assert_eq!(next().await.name_any(), "watched");
}

async fn apply_owns_fields(client: &Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let apply = async |manager: &str, data: serde_json::Value, force: bool| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data});
        let params = PatchParams { force, ..PatchParams::apply(manager) };
        maps.patch("applied", &params, &Patch::Apply(object)).await
    };
    apply("first", json!({"a": "1", "b": "1"}), false).await.unwrap();
    assert_eq!(code(apply("second", json!({"a": "2"}), false).await), (409, "Conflict".into()));
    apply("second", json!({"a": "2"}), true).await.unwrap();
    let result = apply("first", json!({"b": "3"}), false).await.unwrap();
    assert_eq!(serde_json::to_value(result.data).unwrap(), json!({"a": "2", "b": "3"}));
}

async fn a_lease_has_one_holder(client: &Client) {
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let lease = |holder: &str, of: &Lease| Lease {
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..Default::default()
        }),
        ..of.clone()
    };
    let mut empty = Lease::default();
    empty.metadata.name = Some("elected".into());
    let first = leases.create(&PostParams::default(), &lease("a", &empty)).await.unwrap();
    leases.replace("elected", &PostParams::default(), &lease("b", &first)).await.unwrap();
    let late = leases.replace("elected", &PostParams::default(), &lease("c", &first)).await;
    assert_eq!(code(late), (409, "Conflict".into()));
}

async fn any_kind_is_discovered(client: &Client) {
    let discovery = Discovery::new(client.clone()).run_aggregated().await.unwrap();
    let (secret, _) =
        discovery.groups().flat_map(|g| g.recommended_resources()).find(|(r, _)| r.kind == "Secret").unwrap();
    let secrets: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &secret);
    let object = DynamicObject::new("any", &secret).data(json!({"stringData": {"a": "b"}}));
    let made = secrets.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(made.data["data"]["a"], "Yg==");
}
