//! What a controller tells people: core/v1 Events, repeated ones counted instead of repeated, floods kept back
//! ([`api::events::Correlator`]).
//!
//! A [`Recorder`] never blocks its controller: it hands events to a task over a bounded queue, and what
//! does not fit is dropped and counted in the log. Events are help for readers, nothing depends on them.

use ambient::Ambient;
use api::events::{Correlator, Decision, Occurrence};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::Term;

/// Events that may wait to be written.
const QUEUE_LIMIT: usize = 1024;

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
        let correlator = Correlator::default();
        let writer = Writer { client, component: component.into(), ambient: ambient.clone(), correlator };
        tokio::spawn(writer.run(records, term.clone()));
        Self { queue }
    }

    /// Tells something about an object. `about` needs apiVersion, kind, name, uid, and the namespace for
    /// kinds that have one.
    pub fn event(&self, about: &ObjectReference, level: Level, reason: &str, message: impl Into<String>) {
        let record = Record { about: about.clone(), level, reason: reason.to_owned(), message: message.into() };
        if self.queue.try_send(record).is_err() {
            warn!(reason, "an event was dropped: too many wait to be written, or the term is over");
        }
    }
}

/// The task behind a recorder.
struct Writer {
    client: kube::Client,
    component: String,
    ambient: Ambient,
    correlator: Correlator,
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
        let now = self.ambient.now();
        let mut decision = self.correlator.decide(record.occurrence(), now);
        if let Decision::Again { name, count, message, key } = decision {
            let patch = serde_json::json!({"count": count, "lastTimestamp": Time(now), "message": message});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                // Expired: begin anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    decision = self.correlator.gone(key, message, now);
                }
                other => return other.map(|_| ()),
            }
        }
        let Decision::Create { name, message, key } = decision else { return Ok(()) };
        let event = self.event(record, namespace, &name, message);
        api.create(&PostParams::default(), &event).await?;
        self.correlator.written(key, name);
        Ok(())
    }

    fn event(&self, record: Record, namespace: String, name: &str, message: String) -> Event {
        let now = self.ambient.now();
        Event {
            metadata: ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: record.about,
            type_: Some(record.level.word().to_owned()),
            reason: Some(record.reason),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource { component: Some(self.component.clone()), host: None }),
            reporting_component: Some(self.component.clone()),
            ..Event::default()
        }
    }
}

impl Level {
    /// As events say it.
    fn word(self) -> &'static str {
        match self {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
        }
    }
}

impl Record {
    fn occurrence(&self) -> Occurrence {
        let about = &self.about;
        let parts = [&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid, &about.field_path];
        Occurrence {
            about: parts.map(|part| part.clone().unwrap_or_default()),
            level: self.level.word().to_owned(),
            reason: self.reason.clone(),
            message: self.message.clone(),
        }
    }
}
