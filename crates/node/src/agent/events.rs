//! Events about pods: what `kubectl describe` shows at its end.
//!
//! Events tell people what happened; nothing depends on them. So they wait in a short queue, a repeated one
//! raises the count of the first, and when the queue is full or the API does not take one, it is dropped.

use std::collections::{BTreeMap, VecDeque};

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

/// Events that wait to be written.
const QUEUE: usize = 256;
/// Distinct events whose repetition is counted.
const REMEMBERED: usize = 512;

/// Takes events. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Note>,
    node: String,
}

#[derive(Debug)]
struct Note {
    about: ObjectReference,
    warning: bool,
    reason: String,
    message: String,
}

type Key = (String, String, String, String);

impl Events {
    /// Starts writing. Ends when the last clone is dropped.
    pub fn start(client: Client, node: &str, ambient: Ambient) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let writer = Writer { client, node: node.to_owned(), ambient, seen: BTreeMap::new(), order: VecDeque::new() };
        tokio::spawn(writer.run(notes));
        Self { queue, node: node.to_owned() }
    }

    /// Something normal.
    pub fn normal(&self, pod: &Pod, container: Option<&str>, reason: &str, message: &str) {
        self.note(pod, container, false, reason, message);
    }

    /// Something that a person should look at.
    pub fn warning(&self, pod: &Pod, container: Option<&str>, reason: &str, message: &str) {
        self.note(pod, container, true, reason, message);
    }

    fn note(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &str, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|c| format!("spec.containers{{{c}}}")),
        };
        let message: String = message.chars().take(1024).collect();
        let note = Note { about, warning, reason: reason.to_owned(), message };
        if self.queue.try_send(note).is_err() {
            tracing::debug!(node = %self.node, reason, "too many events at once; one was dropped");
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    ambient: Ambient,
    /// Name and count of the event that was written for something.
    seen: BTreeMap<Key, (String, i32)>,
    order: VecDeque<Key>,
}

impl Writer {
    async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        while let Some(note) = notes.recv().await {
            if let Err(error) = self.write(note).await {
                tracing::debug!(%error, "an event was not written");
            }
        }
    }

    async fn write(&mut self, note: Note) -> Result<(), kube::Error> {
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let field = note.about.field_path.clone().unwrap_or_default();
        let key = (note.about.uid.clone().unwrap_or_default(), field, note.reason.clone(), note.message.clone());
        let now = Time(self.ambient.now());
        if let Some((name, count)) = self.seen.get_mut(&key) {
            *count = count.saturating_add(1);
            let patch = json!({"count": *count, "lastTimestamp": now});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{}", note.about.name.clone().unwrap_or_default(), self.ambient.suffix(16));
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: note.about,
            reason: Some(note.reason),
            message: Some(note.message),
            type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.remember(key, name);
        Ok(())
    }

    fn remember(&mut self, key: Key, name: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(key.clone(), (name, 1));
        self.order.push_back(key);
    }
}
