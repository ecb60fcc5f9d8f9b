//! A namespace with a node of its own, a kubelet that follows rules, and everything that is seen.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::Client;
use super::kubelet::Kubelet;
use super::objects::{Kind, uid};
use super::world::{Seen, World};
use crate::cluster::Case;

/// How long nothing may change before the set counts as being at rest.
pub(crate) const QUIET: Duration = Duration::from_millis(600);
/// So many requests, one after another, may lie between two changes that can be seen.
const BUSY: u32 = 6;
/// How long a step may take to come true: generous, because many cases share the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where a case plays.
pub(crate) struct Stage {
    /// Calls the server.
    pub(crate) client: Client,
    /// The namespace.
    pub(crate) namespace: String,
    /// What was seen.
    pub(crate) world: World,
    /// Who looks after the pods.
    pub(crate) kubelet: Kubelet,
    node: String,
    tasks: JoinSet<()>,
}

impl Stage {
    /// Sets everything up in the namespace of a case.
    pub(crate) async fn start(case: &Case) -> Result<Self, String> {
        let (client, namespace) = (Client::new(case.cluster.clone()), case.namespace.to_string());
        let mut tasks = JoinSet::new();
        let node = client.keep_node(&mut tasks).await?;
        let world = World::start(&client, &namespace, &mut tasks).await?;
        let kubelet = Kubelet::start(&client, &world, &namespace, &node, &mut tasks);
        Ok(Self { client, namespace, world, kubelet, node, tasks })
    }

    /// Leaves nothing behind, also after a failure. Fails if one of the players broke: that is the reason for whatever else
    /// went wrong.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        self.kubelet.let_go();
        let held: Vec<_> = {
            let seen = self.world.look();
            let of = |kind: Kind| seen.all(kind).map(move |(name, object)| (kind, name.clone(), object.clone()));
            of(Kind::Pods).chain(of(Kind::Claims)).filter(|(.., object)| held_by_others(object)).collect()
        };
        for (kind, name, _) in held {
            let path = kind.path(&self.namespace, &name, "");
            self.client.call("PATCH", &path, Some(&json!({"metadata": {"finalizers": null}}))).await;
        }
        for kind in [Kind::Sets, Kind::Pods] {
            self.client.call("DELETE", &kind.path(&self.namespace, "", ""), None).await;
        }
        self.world.wait(PATIENCE, |seen| seen.all(Kind::Pods).next().is_none()).await;
        self.client.forget_node(&self.node).await;
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|broken| broken.to_string())?;
        }
        Ok(())
    }

    /// Waits until something holds; says what, and what there is instead, where it does not.
    pub(crate) async fn wait(&self, what: &str, holds: impl FnMut(&Seen) -> bool) -> Result<(), String> {
        if self.world.wait(PATIENCE, holds).await {
            return Ok(());
        }
        Err(format!("not so after {PATIENCE:?}: {what}; state: {:#}", self.world.look().state()))
    }

    /// Waits until nothing changes and the kubelet has nothing to do.
    pub(crate) async fn quiet(&self) -> Result<(), String> {
        // On a busy machine more time passes between two steps of the server.
        let pause = QUIET.max(self.client.slowest() * BUSY);
        if self.world.quiet(pause, PATIENCE, || self.kubelet.idle()).await {
            return Ok(());
        }
        Err(format!("never quiet; state: {:#}", self.world.look().state()))
    }

    /// Creates an object; fails if that is refused.
    pub(crate) async fn create(&self, kind: Kind, object: &Value) -> Result<Value, String> {
        self.client.expect("POST", &kind.path(&self.namespace, "", ""), Some(object)).await
    }

    /// Changes an object by a JSON merge patch; fails if that is refused.
    pub(crate) async fn patch(&self, kind: Kind, name: &str, change: &Value) -> Result<Value, String> {
        self.client.expect("PATCH", &kind.path(&self.namespace, name, ""), Some(change)).await
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, kind: Kind, name: &str) -> Result<Value, String> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        self.client.expect("DELETE", &kind.path(&self.namespace, name, ""), Some(&options)).await
    }

    /// An object as the server has it now.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Value, String> {
        self.client.expect("GET", &kind.path(&self.namespace, name, ""), None).await
    }

    /// The uid of a pod as last seen.
    pub(crate) fn pod_uid(&self, name: &str) -> Result<String, String> {
        let seen = self.world.look();
        seen.get(Kind::Pods, name).map(|pod| uid(pod).to_owned()).ok_or_else(|| format!("there is no pod {name}"))
    }

    /// Makes a pod ready or unready, as its kubelet would.
    pub(crate) async fn make_ready(&self, name: &str, ready: bool) -> Result<(), String> {
        self.report(name, "Running", ready).await
    }

    /// Reports a phase of a pod.
    pub(crate) async fn report(&self, name: &str, phase: &str, ready: bool) -> Result<(), String> {
        let pod = self.world.look().get(Kind::Pods, name).cloned().ok_or_else(|| format!("no pod {name}"))?;
        self.kubelet.set_status(&pod, phase, ready).await;
        Ok(())
    }
}

fn held_by_others(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|all| all.iter().any(|one| one != "kubernetes.io/pvc-protection"))
}
