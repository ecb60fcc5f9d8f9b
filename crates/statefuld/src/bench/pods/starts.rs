//! Sets of the built-in server, from apply to Ready.

use std::collections::BTreeMap;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use http::Request;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::report::{Report, Start};
use super::split::{Counted, LAST, Moments, Sums};
use crate::bench::millis;
use crate::cli;
use crate::say;

/// How long so many pods may take to start or to go.
const LIMIT: Duration = Duration::from_secs(300);
/// How long the node's own count may be behind what a watch has told.
const COUNT_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);
/// What the sets are called, and the label of their pods.
const NAME: &str = "bench";
/// Seconds after which a watch that nobody ended ends.
const WATCH_SECONDS: u32 = 290;

/// Who is measured.
pub(super) const STATEFULD: &str = "statefuld";

/// Measures every number in both orders.
pub(super) async fn run(args: &cli::BenchPods, client: &Client, report: &mut Report, ambient: &Ambient) -> Result<()> {
    make_service(client).await?;
    for &pods in &args.pods {
        for order in ["OrderedReady", "Parallel"] {
            let (mut sums, mut whole) = (Sums::default(), Vec::new());
            for round in 1..=args.rounds {
                say::note(format_args!("{order} {pods}, round {round} of {}", args.rounds));
                let one = start_once(client, order, pods, args.claims, ambient).await?;
                sums.add(&one.sums);
                whole.push(one.all_ready);
            }
            whole.sort_unstable();
            report.starts.push(Start {
                by: STATEFULD,
                order,
                pods,
                rounds: args.rounds,
                all_ready_ms: millis(whole[whole.len() / 2]),
                steps: sums.means(),
            });
        }
    }
    Ok(())
}

/// What one start showed.
struct Once {
    all_ready: Duration,
    sums: Sums,
}

async fn start_once(client: &Client, order: &str, pods: u32, claims: bool, ambient: &Ambient) -> Result<Once> {
    let before = counted(client).await?;
    let selector = format!("app={NAME}");
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let from = api.list(&ListParams::default().labels(&selector).limit(1)).await?.metadata.resource_version;
    let watch = WatchParams::default().labels(&selector).timeout(WATCH_SECONDS);
    let mut events = api.watch(&watch, &from.unwrap_or_default()).await?.boxed();

    let set = set(NAME, order, pods, claims)?;
    let apply = ambient.boottime();
    make_set(client, &set).await?;
    let mut seen = BTreeMap::<u32, Moments>::new();
    let all_ready = async {
        let mut ready = 0;
        while ready < pods {
            let event = events.try_next().await.context("the watch of the pods broke")?;
            let pod = match event.context("the watch of the pods has ended")? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
                WatchEvent::Deleted(pod) => bail!("pod {} was deleted", pod.name_any()),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => bail!("the watch of the pods: {}", status.message),
            };
            let now = ambient.boottime();
            let ordinal = ordinal(&pod).with_context(|| format!("pod {} has no ordinal", pod.name_any()))?;
            let moments = seen.entry(ordinal).or_default();
            let was_ready = moments.ready.is_some();
            moments.see(pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()), is_ready(&pod), now);
            ready += u32::from(moments.ready.is_some() && !was_ready);
        }
        Ok(ambient.boottime().saturating_sub(apply))
    };
    let all_ready = tokio::time::timeout(LIMIT, all_ready).await.context("the pods were not Ready in time")??;
    let after = counted_up_to(client, before.count(LAST) + u64::from(pods)).await?;
    remove_set(client, NAME, claims).await?;
    let seen: Vec<Moments> = seen.into_values().collect();
    Ok(Once { all_ready, sums: Sums::of(apply, order == "OrderedReady", &seen, &before, &after)? })
}

/// The node's own count of its steps.
async fn counted(client: &Client) -> Result<Counted> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.list(&ListParams::default()).await?.items.pop().context("there is no node")?;
    let uri = format!("/api/v1/nodes/{}/proxy/metrics", node.name_any());
    let text = client.request_text(Request::get(uri).body(Vec::new())?).await.context("the node's metrics")?;
    Counted::parse(&text)
}

/// The same, once so many pods were told to be Ready: a watch may be quicker than the answer to the node.
async fn counted_up_to(client: &Client, ready: u64) -> Result<Counted> {
    let counted = async {
        loop {
            let counted = counted(client).await?;
            if counted.count(LAST) >= ready {
                return Ok(counted);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(COUNT_LIMIT, counted).await.context("the node has counted too few pods")?
}

/// The headless service of all sets, and the account that pods run as, which is made after the namespace.
async fn make_service(client: &Client) -> Result<()> {
    let service = json!({"metadata": {"name": NAME},
        "spec": {"clusterIP": "None", "selector": {"app": NAME}, "ports": [{"name": "http", "port": 8080}]}});
    let services: Api<Service> = Api::default_namespaced(client.clone());
    services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let there = async {
        while accounts.get_opt("default").await?.is_none() {
            tokio::time::sleep(POLL).await;
        }
        Ok::<(), kube::Error>(())
    };
    tokio::time::timeout(LIMIT, there).await.context("the namespace has no default service account")??;
    Ok(())
}

/// A set of the built-in server.
pub(super) fn set(name: &str, order: &str, pods: u32, claims: bool) -> Result<StatefulSet> {
    let mut set = json!({"metadata": {"name": name}, "spec": {
        "serviceName": NAME, "replicas": pods, "podManagementPolicy": order,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "server", "image": node::agent::translate::SAMPLE_IMAGE,
                "args": ["--listen", "0.0.0.0:8080", "--data", "/data"],
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}}});
    if claims {
        set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}}]);
    } else {
        set["spec"]["template"]["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    }
    Ok(serde_json::from_value(set)?)
}

/// Creates a set.
pub(super) async fn make_set(client: &Client, set: &StatefulSet) -> Result<()> {
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    sets.create(&PostParams::default(), set).await.context("the set cannot be made")?;
    Ok(())
}

/// Deletes a set, and returns when its pods (and claims) are gone.
pub(super) async fn remove_set(client: &Client, name: &str, claims: bool) -> Result<()> {
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    let background =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    sets.delete(name, &background).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let held: Api<PersistentVolumeClaim> = Api::default_namespaced(client.clone());
    let all = ListParams::default();
    let gone = async {
        loop {
            let left = pods.list(&all).await?.items;
            let pods_left = left.iter().any(|pod| pod.name_any().starts_with(&format!("{name}-")));
            let claims_left = claims && !held.list(&all).await?.items.is_empty();
            if !pods_left && !claims_left {
                return Ok::<(), kube::Error>(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.context("the pods did not go in time")??;
    Ok(())
}

/// Waits until so many pods of that set are Ready.
pub(super) async fn until_ready(client: &Client, name: &str, pods: u32) -> Result<()> {
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    let wanted = i32::try_from(pods)?;
    let ready = async {
        while sets.get(name).await?.status.and_then(|status| status.ready_replicas) != Some(wanted) {
            tokio::time::sleep(POLL * 10).await;
        }
        Ok::<(), kube::Error>(())
    };
    tokio::time::timeout(LIMIT, ready).await.context("the pods were not Ready in time")??;
    Ok(())
}

fn ordinal(pod: &Pod) -> Option<u32> {
    pod.name_any().rsplit_once('-')?.1.parse().ok()
}

/// Whether the pod's status says so.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
