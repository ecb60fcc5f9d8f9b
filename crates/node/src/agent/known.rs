//! What the node's name server and its service rules follow from: services, their endpoints, and this node's pods.
//!
//! Each kind is watched once; both readers see every change at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::Shared;
use crate::services;

/// What is known so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// What names depend on.
    pub(super) named: dns::records::Cluster,
    /// What addresses lead to.
    pub(super) balanced: services::Cluster,
    /// Kinds that were not listed yet.
    missing: BTreeSet<&'static str>,
}

const SERVICES: &str = "services";
const SLICES: &str = "endpointslices";
const PODS: &str = "pods";

impl Known {
    /// Nothing is known.
    pub(super) fn nothing() -> Self {
        Self { missing: [SERVICES, SLICES, PODS].into(), ..Self::default() }
    }

    /// Whether all that names depend on is known.
    pub(super) fn knows_names(&self) -> bool {
        !self.missing.contains(SERVICES) && !self.missing.contains(SLICES)
    }

    /// Whether everything is known.
    pub(super) fn knows_all(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Keeps `known` right until the agent ends.
pub(super) async fn run(shared: Arc<Shared>, known: watch::Sender<Known>) {
    let all = watcher::Config::default;
    let services = follow::<core::Service>(&shared, &known, SERVICES, all(), |known, key, object| {
        let json = object.and_then(|o| serde_json::to_value(o).ok());
        let named = set(&mut known.named.services, key, json.and_then(|o| dns::records::Service::from_json(&o)));
        set(&mut known.balanced.services, key, object.and_then(services::Service::read)) || named
    });
    let slices = follow::<discovery::EndpointSlice>(&shared, &known, SLICES, all(), |known, key, object| {
        let json = object.and_then(|o| serde_json::to_value(o).ok());
        let named = set(&mut known.named.slices, key, json.and_then(|o| dns::records::EndpointSlice::from_json(&o)));
        set(&mut known.balanced.slices, key, object.and_then(services::Slice::read)) || named
    });
    let own = all().fields(&format!("spec.nodeName={}", shared.config.node_name));
    let pods = follow::<core::Pod>(&shared, &known, PODS, own, |known, key, object| {
        let ports = object.map(services::HostPort::of).filter(|ports| !ports.is_empty());
        set(&mut known.balanced.host_ports, key, ports)
    });
    tokio::select! {
        () = services => {}
        () = slices => {}
        () = pods => {}
        () = shared.term.cancelled() => {}
    }
}

/// Answers whether anything changed.
fn set<T: PartialEq>(map: &mut BTreeMap<String, T>, key: &str, value: Option<T>) -> bool {
    if map.get(key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => _ = map.insert(key.to_owned(), value),
        None => _ = map.remove(key),
    }
    true
}

/// Keeps one kind of `known` right.
async fn follow<K>(
    shared: &Arc<Shared>,
    known: &watch::Sender<Known>,
    kind: &'static str,
    config: watcher::Config,
    apply: impl Fn(&mut Known, &str, Option<&K>) -> bool,
) where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let api: Api<K> = Api::all(shared.client.clone());
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    // A new list replaces what was known: what it does not hold is gone.
    let mut listed: Option<BTreeMap<String, K>> = None;
    let mut have: BTreeSet<String> = BTreeSet::new();
    while let Some(event) = events.next().await {
        let key = |o: &K| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any());
        match event {
            Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
            Ok(watcher::Event::InitApply(object)) => {
                listed.get_or_insert_default().insert(key(&object), object);
            }
            Ok(watcher::Event::InitDone) => {
                let list = listed.take().unwrap_or_default();
                known.send_if_modified(|known| {
                    let mut changed = known.missing.remove(kind);
                    for gone in have.iter().filter(|k| !list.contains_key(*k)) {
                        changed |= apply(known, gone, None);
                    }
                    for (key, object) in &list {
                        changed |= apply(known, key, Some(object));
                    }
                    changed
                });
                have = list.into_keys().collect();
            }
            Ok(watcher::Event::Apply(object)) => {
                let key = key(&object);
                known.send_if_modified(|known| apply(known, &key, Some(&object)));
                have.insert(key);
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = key(&object);
                have.remove(&key);
                known.send_if_modified(|known| apply(known, &key, None));
            }
            Err(error) => tracing::debug!(%error, kind, "a watch behind names and services broke; going on"),
        }
    }
}
