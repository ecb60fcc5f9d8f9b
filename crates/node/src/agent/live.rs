//! Config maps and secrets that running pods have files of: told of when they change.
//!
//! One watch per object and node, however many pods name it; it ends with the last pod that does, and where the
//! object says that it never changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use futures::StreamExt as _;
use futures::future::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::renew::with_file_volumes;
use super::sources::{Needs, Object};

/// The objects that are watched. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Configs {
    client: Client,
    known: Arc<Mutex<Known>>,
}

/// By namespace and object; dead entries are swept at the next question.
type Known = BTreeMap<(String, Object), Weak<Watched>>;

/// One object. Its watch ends when this is dropped.
#[derive(Debug)]
struct Watched {
    /// The version that was told of last.
    version: watch::Receiver<String>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Configs {
    /// None yet.
    pub(crate) fn new(client: Client) -> Self {
        Self { client, known: Arc::default() }
    }

    fn follow(&self, namespace: &str, object: Object) -> Arc<Watched> {
        let mut known = self.known.lock().expect("nobody panics while holding it");
        known.retain(|_, watched| watched.strong_count() > 0);
        let key = (namespace.to_owned(), object);
        if let Some(found) = known.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let (told, version) = watch::channel(String::new());
        let task = match &key.1 {
            Object::ConfigMap(name) => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                tokio::spawn(tell(api, name.clone(), told, |map| map.immutable == Some(true)))
            }
            Object::Secret(name) => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
                tokio::spawn(tell(api, name.clone(), told, |secret| secret.immutable == Some(true)))
            }
        };
        let watched = Arc::new(Watched { version, task: task.abort_handle() });
        known.insert(key, Arc::downgrade(&watched));
        watched
    }
}

/// Tells every version of one object.
async fn tell<K>(api: Api<K>, name: String, told: watch::Sender<String>, is_fixed: fn(&K) -> bool)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    while let Some(event) = events.next().await {
        let (version, fixed) = match event {
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                (object.meta().resource_version.clone().unwrap_or_default(), is_fixed(&object))
            }
            Ok(watcher::Event::Delete(_)) => ("gone".to_owned(), false),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                tracing::debug!(%name, %error, "a watch of what a pod names broke; going on");
                continue;
            }
        };
        told.send_if_modified(|last| std::mem::replace(last, version.clone()) != version);
        if fixed {
            // Keeps the sender, so that followers go on waiting for nothing.
            std::future::pending::<()>().await;
        }
    }
}

/// What one pod's files are made of.
#[derive(Debug)]
pub(super) struct Watching {
    versions: Vec<watch::Receiver<String>>,
    _held: Vec<Arc<Watched>>,
}

impl Watching {
    /// Begins to watch. Versions that are there already count as changes: the pod's files may be older.
    pub(super) fn start(configs: &Configs, pod: Option<&Pod>) -> Self {
        let namespace = pod.and_then(|p| p.metadata.namespace.clone()).unwrap_or_default();
        let objects = pod.map(|pod| Needs::of(&with_file_volumes(pod)).objects()).unwrap_or_default();
        let held: Vec<Arc<Watched>> = objects.into_iter().map(|object| configs.follow(&namespace, object)).collect();
        let versions = held.iter().map(|watched| {
            let mut version = watched.version.clone();
            if !version.borrow().is_empty() {
                version.mark_changed();
            }
            version
        });
        Self { versions: versions.collect(), _held: held }
    }

    /// Ends when one of them changed. May be dropped while waiting.
    pub(super) async fn changed(&mut self) {
        if self.versions.is_empty() {
            return std::future::pending().await;
        }
        let waiting = self.versions.iter_mut().map(|version| Box::pin(version.changed()));
        let (ended, _, _) = select_all(waiting).await;
        if ended.is_err() {
            // The watch gave up, as at the agent's end.
            std::future::pending::<()>().await;
        }
    }
}
