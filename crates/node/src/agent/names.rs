//! The node's name server: started where it is missing, told of every change.
//!
//! node-dns outlives the agent and answers from what it was told last. Here Services and EndpointSlices are
//! watched and what names depend on is pushed, as soon as both kinds are completely known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dns::feed::Feeder;
use dns::records::{Cluster, EndpointSlice, Service};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::Shared;
use crate::config::Config;

/// Where name servers listen.
const PORT: u16 = 53;
/// How long a fresh node-dns may take until it can be told something.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Pause between looks whether a fresh node-dns is there.
const START_POLL: Duration = Duration::from_millis(5);
/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps the name server running and right until `term`.
pub(super) async fn run(shared: Arc<Shared>) {
    let (changes, cluster) = watch::channel(Known::default());
    let changes = Arc::new(changes);
    let services = follow::<core::Service>(
        &shared,
        changes.clone(),
        |known, key, object| {
            let value = object.and_then(|o| Service::from_json(&o));
            set(&mut known.cluster.services, key, value);
        },
        |known| known.services = true,
    );
    let slices = follow::<discovery::EndpointSlice>(
        &shared,
        changes.clone(),
        |known, key, object| {
            let value = object.and_then(|o| EndpointSlice::from_json(&o));
            set(&mut known.cluster.slices, key, value);
        },
        |known| known.slices = true,
    );
    tokio::select! {
        () = services => {}
        () = slices => {}
        () = feed(&shared, cluster) => {}
        () = shared.term.cancelled() => {}
    }
}

/// Tells a node's name server to end, if there is one.
pub(super) async fn stop(config: &Config) {
    if let Ok(feeder) = Feeder::connect(&config.dns_dir()).await
        && let Err(error) = feeder.shutdown().await
    {
        tracing::warn!(%error, "the name server did not end");
    }
}

/// What is known so far.
#[derive(Clone, Debug, Default)]
struct Known {
    cluster: Cluster,
    services: bool,
    slices: bool,
}

fn set<T>(map: &mut BTreeMap<String, T>, key: String, value: Option<T>) {
    match value {
        Some(value) => _ = map.insert(key, value),
        None => _ = map.remove(&key),
    }
}

/// Keeps one kind of `known` right.
async fn follow<K>(
    shared: &Arc<Shared>,
    known: Arc<watch::Sender<Known>>,
    apply: impl Fn(&mut Known, String, Option<serde_json::Value>),
    complete: impl Fn(&mut Known),
) where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let api: Api<K> = Api::all(shared.client.clone());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    // A new list replaces what was known: what it does not hold is gone.
    let mut listed: Option<BTreeMap<String, serde_json::Value>> = None;
    let mut have: std::collections::BTreeSet<String> = std::collections::BTreeSet::new();
    while let Some(event) = events.next().await {
        let key = |o: &K| format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any());
        match event {
            Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
            Ok(watcher::Event::InitApply(object)) => {
                let value = serde_json::to_value(&object).unwrap_or_default();
                listed.get_or_insert_default().insert(key(&object), value);
            }
            Ok(watcher::Event::InitDone) => {
                let list = listed.take().unwrap_or_default();
                known.send_modify(|known| {
                    for gone in have.iter().filter(|k| !list.contains_key(*k)) {
                        apply(known, gone.clone(), None);
                    }
                    have = list.keys().cloned().collect();
                    for (key, value) in list {
                        apply(known, key, Some(value));
                    }
                    complete(known);
                });
            }
            Ok(watcher::Event::Apply(object)) => {
                have.insert(key(&object));
                let value = serde_json::to_value(&object).unwrap_or_default();
                known.send_modify(|known| apply(known, key(&object), Some(value)));
            }
            Ok(watcher::Event::Delete(object)) => {
                have.remove(&key(&object));
                known.send_modify(|known| apply(known, key(&object), None));
            }
            Err(error) => tracing::debug!(%error, "the watch behind the name server broke; going on"),
        }
    }
}

/// Pushes what is known, whenever it changes.
async fn feed(shared: &Shared, mut known: watch::Receiver<Known>) {
    loop {
        let mut feeder = match connect(shared).await {
            Ok(feeder) => feeder,
            Err(error) => {
                if !super::stop::is_stopping(&shared.config) {
                    tracing::warn!(%error, "the name server is not there; trying again");
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let lost = loop {
            let ready = known.wait_for(|k| k.services && k.slices).await;
            let Ok(cluster) = ready.map(|k| k.cluster.clone()) else { return };
            known.mark_unchanged();
            if let Err(error) = feeder.push(&cluster).await {
                break error;
            }
            tokio::select! {
                changed = known.changed() => if changed.is_err() {
                    return;
                },
                error = feeder.closed() => break error,
            }
        };
        if !super::stop::is_stopping(&shared.config) {
            tracing::warn!(error = %lost, "the name server was lost; finding it again");
        }
        tokio::time::sleep(START_POLL).await;
    }
}

/// The running name server, or a fresh one.
async fn connect(shared: &Shared) -> Result<Feeder, String> {
    let dir = shared.config.dns_dir();
    match Feeder::connect(&dir).await {
        Ok(feeder) => return Ok(feeder),
        Err(dns::feed::Error::Io(_)) => {}
        Err(error) => return Err(error.to_string()),
    }
    if super::stop::is_stopping(&shared.config) {
        return Err("the node is being stopped".to_owned());
    }
    std::fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let config = dns::server::Config {
        listen: vec![SocketAddr::new(shared.config.gateway.into(), PORT)],
        domain: shared.config.cluster_domain.clone(),
        upstreams: None,
    };
    config.write(&dir).map_err(|e| format!("cannot write below {}: {e}", dir.display()))?;
    let exe = shared.exe().await.map_err(|e| format!("cannot copy the program: {e}"))?;
    let mut child = tokio::process::Command::new(exe.path())
        .arg0("statefuld-node-dns")
        .arg("node-dns")
        .arg(&dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start the name server: {e}"))?;
    let deadline = shared.ambient.boottime() + START_LIMIT;
    loop {
        match Feeder::connect(&dir).await {
            Ok(feeder) => {
                // Reaped when it ends; it goes on when we end.
                tokio::spawn(async move { child.wait().await });
                return Ok(feeder);
            }
            Err(error) if shared.ambient.boottime() > deadline => return Err(error.to_string()),
            Err(_) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut why).await;
            }
            return Err(format!("the name server ended ({status}): {}", why.trim()));
        }
        tokio::time::sleep(START_POLL).await;
    }
}
