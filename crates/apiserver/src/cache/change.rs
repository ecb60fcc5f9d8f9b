//! One change of one object, encoded at most once for all who watch it.

use std::sync::{Arc, OnceLock};

use api::protobuf;
use api::resource::Resource;
use bytes::Bytes;
use serde_json::Value;

use crate::object::{Key, Object};

/// What a watcher is told about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is there now, and was not before.
    Added,
    /// It is there still, and different.
    Modified,
    /// It is gone, or no longer what the watcher asked for.
    Deleted,
}

impl Kind {
    /// The word in the event.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change.
#[derive(Debug)]
pub(crate) struct Change {
    /// The revision that made it.
    pub(crate) revision: u64,
    /// The object after it; `None` if it was deleted.
    pub(crate) current: Option<Arc<Object>>,
    /// The object before it; `None` if it was created.
    pub(crate) previous: Option<Arc<Object>>,
    /// The event's bytes by [`Kind`], made when first asked for.
    frames: [OnceLock<Bytes>; 3],
    /// The same in the binary form.
    binary_frames: [OnceLock<Bytes>; 3],
}

impl Change {
    /// A change from what was to what is; one of both is there.
    pub(crate) fn new(revision: u64, current: Option<Arc<Object>>, previous: Option<Arc<Object>>) -> Self {
        debug_assert!(current.is_some() || previous.is_some());
        Self { revision, current, previous, frames: Default::default(), binary_frames: Default::default() }
    }

    /// The object that an event of this kind shows, and the resourceVersion that it shows it with.
    pub(crate) fn subject(&self, kind: Kind) -> (&Arc<Object>, u64) {
        let (first, second) = match kind {
            Kind::Deleted => (&self.previous, &self.current),
            Kind::Added | Kind::Modified => (&self.current, &self.previous),
        };
        (first.as_ref().or(second.as_ref()).expect("a change has an object before or after"), self.revision)
    }

    /// Where the object lives.
    pub(crate) fn key(&self) -> &Key {
        &self.subject(Kind::Modified).0.key
    }

    /// The event as one line of JSON.
    pub(crate) fn frame(&self, kind: Kind) -> Bytes {
        let encode = || {
            let (object, revision) = self.subject(kind);
            event_line(kind.word(), object, revision)
        };
        self.frames[kind as usize].get_or_init(encode).clone()
    }

    /// The event in the binary form; `resource` is the object's kind.
    pub(crate) fn binary_frame(&self, kind: Kind, resource: &Resource) -> Bytes {
        let encode = || {
            let (object, revision) = self.subject(kind);
            binary_event(kind.word(), &object.value_at(resource, revision))
        };
        self.binary_frames[kind as usize].get_or_init(encode).clone()
    }

    /// About how many bytes the change keeps alive: one version of the object, as it is and as an event. (What
    /// was before is what the previous change kept.)
    pub(crate) fn weight(&self) -> usize {
        self.subject(Kind::Modified).0.weight() * 2
    }
}

/// One event about one object, as a line of JSON.
pub(crate) fn event_line(word: &str, object: &Object, revision: u64) -> Bytes {
    let mut out = Vec::with_capacity(object.raw.len() + 96);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    object.write(revision, &mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// One event about a document, as a frame of the binary form.
pub(crate) fn binary_event(word: &str, document: &Value) -> Bytes {
    let object = protobuf::encode_document(document).unwrap_or_else(|error| {
        // Watches of kinds without a binary form are not opened in it.
        tracing::error!(%error, "an event has no binary form");
        Vec::new()
    });
    protobuf::watch_frame(word, &object).into()
}
