//! Events about pods: what `kubectl describe` shows at its end.
//!
//! Events tell people what happened; nothing depends on them. So they wait in a short queue, a repeated one
//! raises the count of the first, floods are kept back ([`api::events::Correlator`]), and when the queue is full or
//! the API does not take one, it is dropped.

use ambient::Ambient;
use api::events::{Correlator, Decision, Occurrence};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

/// Events that wait to be written.
const QUEUE: usize = 256;

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

impl Events {
    /// Starts writing. Ends when the last clone is dropped.
    pub fn start(client: Client, node: &str, ambient: Ambient) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let writer = Writer { client, node: node.to_owned(), ambient, correlator: Correlator::default() };
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
        let note = Note { about, warning, reason: reason.to_owned(), message: message.to_owned() };
        if self.queue.try_send(note).is_err() {
            tracing::debug!(node = %self.node, reason, "too many events at once; one was dropped");
        }
    }
}

struct Writer {
    client: Client,
    node: String,
    ambient: Ambient,
    correlator: Correlator,
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
        let now = self.ambient.now();
        let mut decision = self.correlator.decide(note.occurrence(), now);
        if let Decision::Again { name, count, message, key } = decision {
            let patch = json!({"count": count, "lastTimestamp": Time(now), "message": message});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // Expired: begin anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    decision = self.correlator.gone(key, message, now);
                }
                other => return other.map(|_| ()),
            }
        }
        let Decision::Create { name, message, key } = decision else { return Ok(()) };
        let level = note.level().to_owned();
        let event = Event {
            metadata: ObjectMeta { name: Some(name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: note.about,
            reason: Some(note.reason),
            message: Some(message),
            type_: Some(level),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(self.node.clone()) }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.correlator.written(key, name);
        Ok(())
    }
}

impl Note {
    fn level(&self) -> &'static str {
        if self.warning { "Warning" } else { "Normal" }
    }

    fn occurrence(&self) -> Occurrence {
        let about = &self.about;
        let parts = [&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid, &about.field_path];
        Occurrence {
            about: parts.map(|part| part.clone().unwrap_or_default()),
            level: self.level().to_owned(),
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}
