//! What a controller tells people: core/v1 Events, repeated ones counted instead of repeated.
//!
//! A [`Recorder`] never blocks its controller: it hands events to a task over a bounded queue, and what
//! does not fit is dropped and counted in the log. Events are help for readers, nothing depends on them.

use std::collections::{HashMap, VecDeque};

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::Term;

/// Events that may wait to be written.
const QUEUE_LIMIT: usize = 1024;
/// Different events remembered, so that a repetition finds its first.
const MEMORY_LIMIT: usize = 4096;
/// The longest message that the API takes.
const MESSAGE_LIMIT: usize = 1024;

/// Records events of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Told for information.
    Normal,
    /// Something is not as it should be.
    Warning,
}

#[derive(Clone, Debug)]
struct Record {
    about: ObjectReference,
    level: Level,
    reason: String,
    message: String,
}

impl Recorder {
    /// A recorder for `component` (its name is the event's source), writing through `client` until the
    /// term ends.
    pub fn start(client: kube::Client, component: impl Into<String>, term: &Term, ambient: &Ambient) -> Self {
        let (queue, records) = mpsc::channel(QUEUE_LIMIT);
        let writer = Writer {
            client,
            component: component.into(),
            ambient: ambient.clone(),
            known: HashMap::new(),
            order: VecDeque::new(),
        };
        tokio::spawn(writer.run(records, term.clone()));
        Self { queue }
    }

    /// Tells something about an object. `about` needs apiVersion, kind, name, uid, and the namespace for
    /// kinds that have one.
    pub fn event(&self, about: &ObjectReference, level: Level, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MESSAGE_LIMIT {
            let end = (0..=MESSAGE_LIMIT).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
        }
        let record = Record { about: about.clone(), level, reason: reason.to_owned(), message };
        if self.queue.try_send(record).is_err() {
            warn!(reason, "an event was dropped: too many wait to be written, or the term is over");
        }
    }
}

/// What makes two events the same one.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    kind: String,
    name: String,
    field_path: Option<String>,
    level: Level,
    reason: String,
    message: String,
}

/// The task behind a recorder.
struct Writer {
    client: kube::Client,
    component: String,
    ambient: Ambient,
    /// Name and count of the API object of each event.
    known: HashMap<Identity, (String, i32)>,
    order: VecDeque<Identity>,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>, term: Term) {
        while let Some(Some(record)) = term.during(records.recv()).await {
            if let Err(error) = self.write(record).await {
                debug!(%error, "an event could not be written");
            }
        }
    }

    async fn write(&mut self, record: Record) -> Result<(), kube::Error> {
        let namespace = match record.about.namespace.as_deref() {
            Some(namespace) if !namespace.is_empty() => namespace.to_owned(),
            _ => "default".to_owned(),
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let identity = record.identity();
        if let Some((name, count)) = self.known.get_mut(&identity) {
            *count += 1;
            let patch = serde_json::json!({"count": *count, "lastTimestamp": Time(self.ambient.now())});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {} // expired: begin anew
                other => return other.map(|_| ()),
            }
        }
        let event = self.event(record, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        let result = api.create(&PostParams::default(), &event).await;
        if result.is_ok() {
            self.remember(identity, name);
        }
        result.map(|_| ())
    }

    fn remember(&mut self, identity: Identity, name: String) {
        if self.known.insert(identity.clone(), (name, 1)).is_none() {
            self.order.push_back(identity);
        }
        if self.order.len() > MEMORY_LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn event(&self, record: Record, namespace: String) -> Event {
        let now = self.ambient.now();
        // The name must be new; the object's own part is cut so that the whole stays within the limit.
        let about = record.about.name.as_deref().unwrap_or("unknown");
        let stem: String = about.chars().take(230).collect();
        let name = format!("{}.{}", stem.trim_end_matches(['.', '-']), self.ambient.suffix(12));
        let level = match record.level {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
        };
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: record.about,
            type_: Some(level.to_owned()),
            reason: Some(record.reason),
            message: Some(record.message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.component.clone()), host: None }),
            reporting_component: Some(self.component.clone()),
            ..Event::default()
        }
    }
}

impl Record {
    fn identity(&self) -> Identity {
        Identity {
            uid: self.about.uid.clone().unwrap_or_default(),
            kind: self.about.kind.clone().unwrap_or_default(),
            name: self.about.name.clone().unwrap_or_default(),
            field_path: self.about.field_path.clone(),
            level: self.level,
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}
