//! A server with the controllers around a set, each under the account that it has in the daemon.

use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use apiserver::auth::Identity;
use apiserver::{ApiServer, Options};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use statefuld_controllers::{Term, roster};
use store::embedded::Embedded;
use tokio::task::JoinSet;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) term: Term,
    controllers: JoinSet<Result<(), String>>,
    _api: Arc<ApiServer>,
    _folder: tempfile::TempDir,
}

/// Stands for the server's authority and its key.
fn trust() -> roster::Trust {
    let sign = |space: &str, account: &str, _: &str, secret: &str| format!("token-{space}-{account}-{secret}");
    roster::Trust { authority: "CERTIFICATE".to_owned(), sign: Arc::new(sign) }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(Ambient::system()).await
    }

    /// `ambient` is the controllers' own.
    pub(crate) async fn start_with(ambient: Ambient) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store");
        let store = Embedded::open(&path, Ambient::system(), store::embedded::Options::default()).expect("opens");
        let api = ApiServer::start(Options::new(store, Ambient::system())).await.expect("the server starts");
        let term = Term::new();
        let client = |identity| Client::new(api.client(identity), "default");
        // The set's own controller has tests of its own.
        let selection = "*,-statefulset".parse().expect("a selection");
        let controllers = roster::start(&selection, &term, &ambient, Some(trust()), &|account| match account {
            roster::Account::Service(name) => client(Identity::service_account("kube-system", name)),
            roster::Account::User(name) => client(Identity::user(name, &[])),
        });
        let admin = client(Identity::user("admin", &["system:masters"]));
        Self { client: admin, term, controllers, _api: api, _folder: folder }
    }

    /// Ends the term and waits until every controller has settled.
    pub(crate) async fn stop(mut self) {
        self.term.end();
        let settled = async {
            while let Some(ended) = self.controllers.join_next().await {
                ended.expect("no controller panics").expect("no controller fails");
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("every controller settles");
    }

    pub(crate) fn api(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let (group, plural) = match kind {
            "EndpointSlice" => ("discovery.k8s.io", "endpointslices"),
            "Lease" => ("coordination.k8s.io", "leases"),
            "StorageClass" => ("storage.k8s.io", "storageclasses"),
            "PodDisruptionBudget" => ("policy", "poddisruptionbudgets"),
            "PriorityClass" => ("scheduling.k8s.io", "priorityclasses"),
            "ControllerRevision" => ("apps", "controllerrevisions"),
            "StatefulSet" => ("apps", "statefulsets"),
            "Deployment" => ("apps", "deployments"),
            "ReplicaSet" => ("apps", "replicasets"),
            "Job" => ("batch", "jobs"),
            "CronJob" => ("batch", "cronjobs"),
            "Endpoints" => ("", "endpoints"),
            core => ("", &*format!("{}s", core.to_lowercase()).leak()),
        };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    pub(crate) async fn create(&self, kind: &str, namespace: &str, body: Value) -> Value {
        let object: DynamicObject = serde_json::from_value(body).expect("an object");
        let made = self.api(kind, namespace).create(&PostParams::default(), &object).await;
        serde_json::to_value(made.expect("created")).expect("JSON")
    }

    pub(crate) async fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let found = self.api(kind, namespace).get_opt(name).await.expect("the server answers");
        found.map(|object| serde_json::to_value(object).expect("JSON"))
    }

    pub(crate) async fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let list = self.api(kind, namespace).list(&Default::default()).await.expect("the server answers");
        list.items.into_iter().map(|object| serde_json::to_value(object).expect("JSON")).collect()
    }

    pub(crate) async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) {
        let api = self.api(kind, namespace);
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
    }

    pub(crate) async fn patch_status(&self, kind: &str, namespace: &str, name: &str, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.api(kind, namespace).patch_status(name, &PatchParams::default(), &patch).await.expect("patched");
    }

    pub(crate) async fn delete(&self, kind: &str, namespace: &str, name: &str, params: kube::api::DeleteParams) {
        self.api(kind, namespace).delete(name, &params).await.expect("deleted");
    }

    /// Waits until the object is so, and gives it.
    pub(crate) async fn until(&self, kind: &str, namespace: &str, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                if let Some(found) = self.get(kind, namespace, name).await.filter(&is) {
                    return found;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found,
            Err(_) => panic!("{kind} {name} is {:#}", self.get(kind, namespace, name).await.unwrap_or_default()),
        }
    }

    pub(crate) async fn until_gone(&self, kind: &str, namespace: &str, name: &str) {
        let wait = async {
            while self.get(kind, namespace, name).await.is_some() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("{kind} {name} is still there: {:#}", self.get(kind, namespace, name).await.unwrap_or_default());
        }
    }

    /// A node that is ready and takes volumes.
    pub(crate) async fn node(&self, name: &str) -> Value {
        let meta = json!({"name": name, "labels": {"kubernetes.io/hostname": name},
            "annotations": {"statefuld.io/volumes-dir": format!("/data/{name}")}});
        let node = self.create("Node", "", json!({"apiVersion": "v1", "kind": "Node", "metadata": meta})).await;
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"pods": "110"}});
        self.patch_status("Node", "", name, status).await;
        node
    }

    pub(crate) async fn claim(&self, name: &str) -> Value {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let claim =
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
        self.create("PersistentVolumeClaim", "default", claim).await
    }

    /// A pod, mounting these claims.
    pub(crate) async fn pod(&self, name: &str, claims: &[&str], change: impl FnOnce(&mut Value)) -> Value {
        let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]}],
            "volumes": claims.iter().map(volume).collect::<Vec<_>>(),
            "terminationGracePeriodSeconds": 0,
        }});
        change(&mut pod);
        self.create("Pod", "default", pod).await
    }
}
