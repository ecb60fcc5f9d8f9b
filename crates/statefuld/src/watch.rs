//! Follows the pods that manifests ask for until all are Ready, saying what each waits for.

use std::collections::BTreeMap;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Event as CoreEvent, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;

use crate::manifest::Object;
use crate::say;
use crate::why::pod::state;

/// Namespace and name.
type Key = (String, String);

/// Kinds that are followed.
const KINDS: u32 = 4;

/// What is waited for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Sets whose pods shall be Ready; with `everything`, all there are.
    pub sets: Vec<Key>,
    /// Deployments whose pods shall be Ready; with `everything`, all there are.
    pub deployments: Vec<Key>,
    /// Pods of no set that shall be Ready.
    pub pods: Vec<Key>,
    /// Every set and deployment that exists.
    pub everything: bool,
}

impl Wanted {
    /// The sets and pods among these objects.
    pub fn of(objects: &[Object]) -> Self {
        let keys = |kind: &str| {
            let matching = objects.iter().filter(|o| o.resource.kind == kind);
            matching.map(|o| (o.namespace.clone(), o.name.clone())).collect()
        };
        Self { sets: keys("StatefulSet"), deployments: keys("Deployment"), pods: keys("Pod"), everything: false }
    }

    /// Every set and deployment that exists.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }
}

/// One pod as the final table shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is Ready.
    pub ready: bool,
    /// What it waits for, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Its node.
    pub node: String,
    /// Its address.
    pub ip: String,
    /// Its DNS name, where it has one.
    pub dns: String,
    /// Where the data of its claims lies.
    pub volumes: Vec<String>,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Running and Ready.
    Ready,
    /// Not yet; for what.
    Waits(String),
}

fn step(pod: &Pod) -> Step {
    state(pod).map_or(Step::Ready, Step::Waits)
}

/// How the wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything that was wanted is Ready.
    Ready,
    /// The time was up first.
    TimedOut,
}

/// What was seen so far.
#[derive(Default)]
struct View {
    sets: BTreeMap<Key, StatefulSet>,
    deployments: BTreeMap<Key, Deployment>,
    pods: BTreeMap<Key, Pod>,
    /// What the controller could not create, in its words: events of reason FailedCreate.
    failures: BTreeMap<Key, CoreEvent>,
    /// Kinds whose first listing is complete.
    listed: u32,
}

/// Waits, printing a line for every change of a pod and, on a terminal, what is waited for right now.
pub async fn until_ready(client: &Client, wanted: &Wanted, timeout: Duration, ambient: &Ambient) -> Result<End> {
    let deadline = tokio::time::sleep(timeout);
    tokio::pin!(deadline);
    let mut sets = events(Api::<StatefulSet>::all(client.clone()), "");
    let mut deployments = events(Api::<Deployment>::all(client.clone()), "");
    let mut pods = events(Api::<Pod>::all(client.clone()), "");
    let mut failures = events(Api::<CoreEvent>::all(client.clone()), "reason=FailedCreate");
    let began = ambient.boottime();
    let mut view = View::default();
    let mut said = BTreeMap::new();
    let bar = spinner();
    loop {
        tokio::select! {
            event = sets.next() => take(&mut view.sets, &mut view.listed, event)?,
            event = deployments.next() => take(&mut view.deployments, &mut view.listed, event)?,
            event = pods.next() => take(&mut view.pods, &mut view.listed, event)?,
            event = failures.next() => take(&mut view.failures, &mut view.listed, event)?,
            () = &mut deadline => {
                bar.finish_and_clear();
                return Ok(End::TimedOut);
            }
        }
        if view.listed < KINDS {
            continue;
        }
        let lines = view.lines(wanted);
        for (pod, line) in &lines {
            if said.get(pod) != Some(line) {
                let elapsed = ambient.boottime().saturating_sub(began).as_secs_f64();
                let text = match line {
                    Step::Ready => "Ready".to_owned(),
                    Step::Waits(why) => why.clone(),
                };
                say(&bar, &format!("{elapsed:7.2}s  {:<24} {text}", pod.1));
            }
        }
        let ready = lines.iter().filter(|(_, line)| **line == Step::Ready).count();
        if ready == lines.len() && view.settled(wanted) {
            bar.finish_and_clear();
            return Ok(End::Ready);
        }
        bar.set_message(format!("{ready}/{} pods Ready", lines.len()));
        said = lines;
    }
}

/// Pods of what was wanted, with their volumes' folders.
pub async fn rows(client: &Client, wanted: &Wanted) -> Result<Vec<PodRow>> {
    let mut view = View::default();
    let lost = "the API does not answer";
    for set in Api::<StatefulSet>::all(client.clone()).list(&Default::default()).await.context(lost)? {
        view.sets.insert(key(&set), set);
    }
    for deployment in Api::<Deployment>::all(client.clone()).list(&Default::default()).await.context(lost)? {
        view.deployments.insert(key(&deployment), deployment);
    }
    let failed = kube::api::ListParams::default().fields("reason=FailedCreate");
    for event in Api::<CoreEvent>::all(client.clone()).list(&failed).await.context(lost)? {
        view.failures.insert(key(&event), event);
    }
    for pod in Api::<Pod>::all(client.clone()).list(&Default::default()).await.context(lost)? {
        view.pods.insert(key(&pod), pod);
    }
    let claims = Api::<PersistentVolumeClaim>::all(client.clone()).list(&Default::default()).await.context(lost)?;
    let volumes = Api::<PersistentVolume>::all(client.clone()).list(&Default::default()).await.context(lost)?;
    let folders: BTreeMap<String, String> =
        volumes.into_iter().filter_map(|v| Some((v.name_any(), v.spec?.local?.path))).collect();
    let claims: BTreeMap<Key, String> =
        claims.into_iter().filter_map(|c| Some((key(&c), c.spec?.volume_name?))).collect();
    let rows = view.lines(wanted).into_iter();
    Ok(rows.map(|(name, step)| row(&name, &step, view.pods.get(&name), &claims, &folders)).collect())
}

fn row(
    name: &Key,
    step: &Step,
    pod: Option<&Pod>,
    claims: &BTreeMap<Key, String>,
    folders: &BTreeMap<String, String>,
) -> PodRow {
    let spec = pod.and_then(|p| p.spec.clone()).unwrap_or_default();
    let status = pod.and_then(|p| p.status.clone()).unwrap_or_default();
    let dns = match (&spec.hostname, &spec.subdomain) {
        (Some(hostname), Some(subdomain)) => format!("{hostname}.{subdomain}.{}.svc.cluster.local", name.0),
        _ => String::new(),
    };
    let claimed = spec.volumes.iter().flatten().filter_map(|v| v.persistent_volume_claim.as_ref());
    let volumes = claimed
        .filter_map(|c| claims.get(&(name.0.clone(), c.claim_name.clone())))
        .filter_map(|volume| folders.get(volume).cloned())
        .collect();
    PodRow {
        namespace: name.0.clone(),
        name: name.1.clone(),
        ready: *step == Step::Ready,
        waits: match step {
            Step::Ready => None,
            Step::Waits(why) => Some(why.clone()),
        },
        node: spec.node_name.unwrap_or_default(),
        ip: status.pod_ip.unwrap_or_default(),
        dns,
        volumes,
    }
}

impl View {
    /// Every wanted pod, in the order of namespace, set and ordinal, with how far it is.
    fn lines(&self, wanted: &Wanted) -> BTreeMap<Key, Step> {
        let mut lines = BTreeMap::new();
        for (set_key, set) in &self.sets {
            if wanted.everything || wanted.sets.contains(set_key) {
                self.set_lines(set_key, set, &mut lines);
            }
        }
        for (key, deployment) in &self.deployments {
            if wanted.everything || wanted.deployments.contains(key) {
                self.deployment_lines(key, deployment, &mut lines);
            }
        }
        for pod in &wanted.pods {
            let line = self.pods.get(pod).map_or_else(|| Step::Waits("is not created yet".to_owned()), step);
            lines.insert(pod.clone(), line);
        }
        lines
    }

    fn set_lines(&self, set_key: &Key, set: &StatefulSet, lines: &mut BTreeMap<Key, Step>) {
        let spec = &set.spec;
        let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
        let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
        let mut before: Option<String> = None;
        for n in start..start.saturating_add(spec.replicas.unwrap_or(1)) {
            let name = format!("{}-{n}", set_key.1);
            let key = (set_key.0.clone(), name.clone());
            let line = match (self.pods.get(&key), &before) {
                (Some(pod), _) => step(pod),
                (None, Some(first)) if ordered => Step::Waits(format!("waits for {first} to be Ready")),
                (None, _) => Step::Waits(self.not_created(set, &name)),
            };
            if line != Step::Ready && before.is_none() {
                before = Some(name);
            }
            lines.insert(key, line);
        }
    }

    /// The pods of a deployment, whose names nobody knows before they are there; until then a line of its own.
    fn deployment_lines(&self, key: &Key, deployment: &Deployment, lines: &mut BTreeMap<Key, Step>) {
        let of = |pod: &&Pod| {
            let owners = pod.metadata.owner_references.iter().flatten();
            let mut sets = owners.filter(|o| o.kind == "ReplicaSet").filter_map(|o| o.name.rsplit_once('-'));
            let hash = pod.labels().get("pod-template-hash");
            sets.any(|(name, suffix)| name == key.1 && hash.is_some_and(|hash| hash == suffix))
        };
        let pods: Vec<(&Key, &Pod)> = self.pods.iter().filter(|(at, pod)| at.0 == key.0 && of(pod)).collect();
        let wanted = deployment.spec.replicas.unwrap_or(1);
        lines.extend(pods.iter().map(|(at, pod)| ((*at).clone(), step(pod))));
        if usize::try_from(wanted).is_ok_and(|wanted| pods.len() < wanted) {
            let conditions = deployment.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let failure =
                conditions.filter(|c| c.type_.as_deref() == Some("ReplicaFailure")).find_map(|c| c.message.clone());
            let has = format!("has {} of {wanted} pods", pods.len());
            lines.insert(key.clone(), Step::Waits(failure.map_or(has.clone(), |why| format!("{has}: {why}"))));
        }
    }

    /// Why a pod that could be created is not there.
    fn not_created(&self, set: &StatefulSet, pod: &str) -> String {
        let about = |event: &&CoreEvent| event.involved_object.uid == set.metadata.uid;
        let names =
            |event: &&CoreEvent| event.message.as_deref().is_some_and(|text| text.contains(&format!("Pod {pod} ")));
        let newest =
            self.failures.values().filter(about).filter(names).max_by_key(|event| event.last_timestamp.clone());
        let why = newest.and_then(|event| event.message.as_deref()?.split_once(" error: ").map(|(_, why)| why.trim()));
        why.map_or_else(|| "is not created yet".to_owned(), |why| format!("cannot be created: {why}"))
    }

    /// Whether every wanted set and deployment exists and its controller has carried its newest spec out.
    fn settled(&self, wanted: &Wanted) -> bool {
        wanted.sets.iter().all(|set| self.sets.contains_key(set))
            && wanted.deployments.iter().all(|deployment| self.deployments.contains_key(deployment))
            && self
                .deployments
                .iter()
                .filter(|(key, _)| wanted.everything || wanted.deployments.contains(key))
                .all(|(_, deployment)| rolled_out(deployment))
            && self
                .sets
                .iter()
                .filter(|(key, _)| wanted.everything || wanted.sets.contains(key))
                .all(|(key, set)| self.set_settled(key, set))
    }

    fn set_settled(&self, key: &Key, set: &StatefulSet) -> bool {
        let status = set.status.clone().unwrap_or_default();
        let replicas = set.spec.replicas.unwrap_or(1);
        let strategy = set.spec.update_strategy.clone().unwrap_or_default();
        let partition = strategy.rolling_update.and_then(|r| r.partition).unwrap_or(0);
        let to_update = match strategy.type_.as_deref() {
            // A person deletes the old ones.
            Some("OnDelete") => 0,
            _ => replicas.saturating_sub(partition).max(0),
        };
        let of_set = |pod: &&Key| {
            pod.0 == key.0 && planner::parent_and_ordinal(&pod.1).is_some_and(|(parent, _)| parent == key.1)
        };
        let pods = self.pods.keys().filter(of_set).count();
        status.observed_generation >= set.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= to_update
            && i32::try_from(pods).is_ok_and(|count| count == replicas)
    }
}

/// Whether all pods of a deployment are of its newest template and available.
fn rolled_out(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let paused = deployment.spec.paused == Some(true);
    let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
    status.observed_generation >= deployment.metadata.generation
        && all(status.replicas)
        && all(status.available_replicas)
        && (paused || all(status.updated_replicas))
}

fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn events<K>(
    api: Api<K>,
    fields: &str,
) -> std::pin::Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default();
    Box::pin(watcher(api, if fields.is_empty() { config } else { config.fields(fields) }))
}

fn take<K: kube::Resource>(
    objects: &mut BTreeMap<Key, K>,
    listed: &mut u32,
    event: Option<Result<Event<K>, watcher::Error>>,
) -> Result<()> {
    match event.context("the API ended the watch")? {
        Ok(Event::Apply(object) | Event::InitApply(object)) => {
            objects.insert(key(&object), object);
        }
        Ok(Event::Delete(object)) => {
            objects.remove(&key(&object));
        }
        Ok(Event::Init) => objects.clear(),
        Ok(Event::InitDone) => *listed += 1,
        // The watcher tries again by itself.
        Err(error) => tracing::debug!(%error, "watch interrupted"),
    }
    Ok(())
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is right"));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Prints above the spinner; where there is no terminal the bar is hidden and swallows lines.
fn say(bar: &ProgressBar, line: &str) {
    if bar.is_hidden() {
        say::note(line);
    } else {
        bar.println(line);
    }
}
