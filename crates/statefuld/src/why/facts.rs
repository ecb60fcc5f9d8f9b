//! What the API says of one namespace, read once.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, LogParams};
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;

/// Pods whose last log line is fetched at most; more that are unready wait for the same thing.
const LOGS_LIMIT: usize = 20;
/// Characters of a log line that are shown.
const LINE_LIMIT: usize = 200;

/// One namespace, and what of the cluster concerns it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The namespace.
    pub namespace: String,
    /// When it was read.
    pub now: Timestamp,
    /// StatefulSets.
    pub sets: Vec<DynamicObject>,
    /// Deployments. Of these four, as of services, nothing is known where the account is kept from them.
    pub deployments: Vec<Deployment>,
    /// ReplicaSets.
    pub replica_sets: Vec<ReplicaSet>,
    /// Jobs.
    pub jobs: Vec<Job>,
    /// CronJobs.
    pub cron_jobs: Vec<CronJob>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Claims.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Services. None: nobody asked, or they are kept from the account that did.
    pub services: Option<Vec<Service>>,
    /// Revisions.
    pub revisions: Vec<ControllerRevision>,
    /// Events, oldest first.
    pub events: Vec<Event>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Storage classes.
    pub classes: Vec<StorageClass>,
    /// The last line that a container of an unready pod printed, by pod and container.
    pub lines: BTreeMap<(String, String), String>,
}

impl Facts {
    /// Reads everything that an answer may need.
    pub async fn read(client: &Client, namespace: &str, now: Timestamp) -> Result<Self> {
        let everything = ListParams::default();
        let resource = controllers::statefulset::Options::default().resource();
        let sets: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let nodes: Api<Node> = Api::all(client.clone());
        let classes: Api<StorageClass> = Api::all(client.clone());
        let (sets, pod_list, claims, revisions, events) = tokio::try_join!(
            sets.list(&everything),
            pods.list(&everything),
            claims.list(&everything),
            revisions.list(&everything),
            events.list(&everything),
        )
        .context("the API does not answer")?;
        let services = services.list(&everything).await.map(|list| list.items).ok();
        let (deployments, replica_sets, jobs, cron_jobs) = tokio::join!(
            all::<Deployment>(client, namespace),
            all::<ReplicaSet>(client, namespace),
            all::<Job>(client, namespace),
            all::<CronJob>(client, namespace),
        );
        // These two belong to the cluster: an account of one namespace may be kept from them, and most answers do without.
        let nodes = nodes.list(&everything).await.map(|list| list.items).unwrap_or_default();
        let classes = classes.list(&everything).await.map(|list| list.items).unwrap_or_default();
        let mut sets = sets.items;
        for set in &mut sets {
            // Items of a list come without their own type.
            set.types =
                Some(kube::core::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
        }
        let mut events = events.items;
        events.sort_by_key(happened);
        let lines = last_lines(&pods, &pod_list.items).await;
        Ok(Self {
            namespace: namespace.to_owned(),
            now,
            sets,
            deployments,
            replica_sets,
            jobs,
            cron_jobs,
            pods: pod_list.items,
            claims: claims.items,
            services,
            revisions: revisions.items,
            events,
            nodes,
            classes,
            lines,
        })
    }

    /// Nothing but what an object says of itself.
    pub fn none() -> Self {
        Self {
            namespace: String::new(),
            now: Timestamp::UNIX_EPOCH,
            sets: Vec::new(),
            deployments: Vec::new(),
            replica_sets: Vec::new(),
            jobs: Vec::new(),
            cron_jobs: Vec::new(),
            pods: Vec::new(),
            claims: Vec::new(),
            services: None,
            revisions: Vec::new(),
            events: Vec::new(),
            nodes: Vec::new(),
            classes: Vec::new(),
            lines: BTreeMap::new(),
        }
    }

    /// Whether these were read from a namespace, so that what is not among them does not exist.
    pub fn is_whole(&self) -> bool {
        !self.namespace.is_empty()
    }

    /// A set by its name.
    pub fn set(&self, name: &str) -> Option<&DynamicObject> {
        self.sets.iter().find(|set| set.name_any() == name)
    }

    /// A deployment by its name.
    pub fn deployment(&self, name: &str) -> Option<&Deployment> {
        self.deployments.iter().find(|deployment| deployment.name_any() == name)
    }

    /// A replica set by its name.
    pub fn replica_set(&self, name: &str) -> Option<&ReplicaSet> {
        self.replica_sets.iter().find(|set| set.name_any() == name)
    }

    /// A job by its name.
    pub fn job(&self, name: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.name_any() == name)
    }

    /// A cron job by its name.
    pub fn cron_job(&self, name: &str) -> Option<&CronJob> {
        self.cron_jobs.iter().find(|cron| cron.name_any() == name)
    }

    /// A pod by its name.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.name_any() == name)
    }

    /// A claim by its name.
    pub fn claim(&self, name: &str) -> Option<&PersistentVolumeClaim> {
        self.claims.iter().find(|claim| claim.name_any() == name)
    }

    /// The newest event of that reason about an object.
    pub fn event(&self, uid: Option<&str>, reason: &str) -> Option<&Event> {
        let about =
            |event: &&Event| event.involved_object.uid.as_deref() == uid && event.reason.as_deref() == Some(reason);
        self.events.iter().rev().find(about)
    }
}

/// All objects of a kind in a namespace; none where they cannot be read.
async fn all<K>(client: &Client, namespace: &str) -> Vec<K>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    Api::<K>::namespaced(client.clone(), namespace)
        .list(&ListParams::default())
        .await
        .map(|l| l.items)
        .unwrap_or_default()
}

/// When an event happened last.
pub fn happened(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    series.or(last).or(event.event_time.as_ref().map(|time| time.0))
}

/// How often it happened.
pub fn times(event: &Event) -> i32 {
    let series = event.series.as_ref().and_then(|series| series.count);
    series.or(event.count).unwrap_or(1).max(1)
}

async fn last_lines(api: &Api<Pod>, pods: &[Pod]) -> BTreeMap<(String, String), String> {
    let unready = pods.iter().filter(|pod| !super::pod::is_ready(pod)).take(LOGS_LIMIT);
    let asked = unready.flat_map(|pod| {
        let status = pod.status.clone().unwrap_or_default();
        let all =
            status.init_container_statuses.into_iter().flatten().chain(status.container_statuses.into_iter().flatten());
        let pod = pod.name_any();
        all.filter(|container| !container.ready).map(move |container| (pod.clone(), container))
    });
    let lines = asked.map(|(pod, container)| async move {
        let running = container.state.as_ref().is_some_and(|state| state.running.is_some());
        let log = LogParams {
            container: Some(container.name.clone()),
            tail_lines: Some(1),
            previous: !running && container.restart_count > 0,
            ..LogParams::default()
        };
        // A container that never ran has no log; that is no reason to fail.
        let text = api.logs(&pod, &log).await.ok()?;
        let line = text.lines().last()?.trim();
        let line: String = line.chars().filter(|c| !c.is_control()).take(LINE_LIMIT).collect();
        (!line.is_empty()).then_some(((pod, container.name), line))
    });
    join_all(lines).await.into_iter().flatten().collect()
}
