//! watch: a stream of events, one line of JSON each, or one frame of the binary form.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::events;
use api::status::{FieldError, Status};
use bytes::Bytes;
use futures::stream;
use http::Response;
use serde_json::{Value, json};
use tokio::time::Sleep;

use super::{options, read};
use crate::body::Body;
use crate::cache::{Cache, Item, Kind, Since, Watcher, binary_event, event_line};
use crate::errors::Outcome;
use crate::gate::Permit;
use crate::handler::Call;
use crate::media::{Notation, Shape, Wanted};
use crate::object::Object;
use crate::query::Query;
use crate::respond::{self, View};

/// The shortest time that a watch without a time-out of its own stays open; up to as long again is added, so
/// that clients do not come back all at once.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// What streams of events may be written in.
const STREAMED: [&str; 2] = ["application/json;stream=watch", BINARY_STREAM];
/// Media type of a stream of events in the binary form.
const BINARY_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// How a watch begins.
struct Start {
    since: Since,
    /// Existing objects are sent, and their end is marked.
    marks_end: bool,
    /// Existing objects are not sent although the watch starts now.
    skips_initial: bool,
}

/// Opens a watch.
pub(crate) async fn watch(call: Call) -> Outcome<Response<Body>> {
    let Some(permit) = call.shared.watches.enter(&call.identity) else {
        return Ok(respond::too_busy());
    };
    let view = call.view()?;
    let notation = view.wanted.notation;
    if notation == Notation::Yaml {
        return Err(Box::new(Status::not_acceptable(&STREAMED)));
    }
    let filter = options::filter(&call)?;
    let start = start(&call).await?;
    let timeout = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()),
        _ => call.shared.ambient.jitter(DEFAULT_TIMEOUT, 1.0),
    };
    let cache = &call.shared.cache;
    let opened = read::shelf(&call)?.watch(filter, start.since, cache.revision(), call.shared.limits.watch_buffer);
    let mut watcher = match opened {
        Ok(watcher) => watcher,
        Err(status) => return Ok(answer(Body::full(line("ERROR", &status.to_value(), notation)), notation)),
    };
    let initial = std::mem::take(&mut watcher.initial);
    let session = Session {
        initial: if start.skips_initial { VecDeque::new() } else { initial.into() },
        replay: std::mem::take(&mut watcher.replay).into(),
        watcher,
        view,
        marks_end: start.marks_end,
        bookmarks: call.query.flag("allowWatchBookmarks").then_some(call.shared.bookmark_interval),
        bookmark_due: false,
        timer: Box::pin(tokio::time::sleep(call.shared.bookmark_interval)),
        deadline: Box::pin(tokio::time::sleep(timeout)),
        ending: false,
        ended: false,
        headed: false,
        cache: cache.clone(),
        _permit: permit,
        _gauge: call.shared.metrics.watching(),
    };
    let lines = stream::unfold(session, |mut session| async move {
        let line = session.next().await?;
        Some((Ok(line), session))
    });
    Ok(answer(Body::stream(lines), notation))
}

/// What the query says about the beginning, after waiting for the state it asks for.
async fn start(call: &Call) -> Outcome<Start> {
    let query = &call.query;
    let version = options::resource_version(query.text("resourceVersion"))?;
    let sends = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    check(query, sends.is_some())?;
    match (sends, version) {
        (Some(true), Some(at_least)) => call.shared.cache.wait(at_least).await?,
        (_, None) => drop(call.shared.cache.catch_up().await?),
        _ => {}
    }
    let since = match (sends, version) {
        (Some(true), _) | (_, None | Some(0)) => Since::Now,
        (_, Some(version)) => Since::Revision(version),
    };
    Ok(Start { since, marks_end: sends == Some(true), skips_initial: sends == Some(false) && since == Since::Now })
}

/// The rules for the options of a watch. `sends`: it says whether existing objects are to be sent.
fn check(query: &Query, sends: bool) -> Outcome<()> {
    const MATCH: &str = "resourceVersionMatch";
    let matching = query.text(MATCH);
    let mut errors = Vec::new();
    if sends && matching != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(MATCH, why));
    }
    if !matching.is_empty() && !sends {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        errors.push(FieldError::forbidden(MATCH, why));
    }
    if !matches!(matching, "" | "NotOlderThan") {
        errors.push(FieldError::not_supported(MATCH, matching, &["NotOlderThan"]));
    }
    if !matching.is_empty() && !query.text("continue").is_empty() {
        let why = "resourceVersionMatch is forbidden when continue is provided";
        errors.push(FieldError::forbidden(MATCH, why));
    }
    options::valid(errors)
}

/// The answer that carries a stream of events.
fn answer(body: Body, notation: Notation) -> Response<Body> {
    let media = if notation == Notation::Protobuf { BINARY_STREAM } else { "application/json" };
    let mut response = respond::raw(200, media, Bytes::new());
    *response.body_mut() = body;
    response
}

/// One open watch.
struct Session {
    watcher: Watcher,
    initial: VecDeque<Arc<Object>>,
    replay: VecDeque<Item>,
    view: View,
    marks_end: bool,
    bookmarks: Option<Duration>,
    bookmark_due: bool,
    timer: Pin<Box<Sleep>>,
    deadline: Pin<Box<Sleep>>,
    ending: bool,
    ended: bool,
    /// A table's columns were sent.
    headed: bool,
    cache: Arc<Cache>,
    _permit: Permit,
    _gauge: crate::metrics::UnderWay,
}

impl Session {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(object) = self.initial.pop_front() {
            let object = &object;
            return Some(match (self.view.wanted.shape, self.view.wanted.notation) {
                (Shape::Object, Notation::Json) if !self.is_converted() => {
                    event_line(Kind::Added.word(), object, object.revision)
                }
                (Shape::Object, _) => self.converted(Kind::Added, object, object.revision),
                _ => self.shaped(Kind::Added, object, object.revision),
            });
        }
        if let Some(item) = self.replay.pop_front() {
            return Some(self.line(&item));
        }
        if std::mem::take(&mut self.marks_end) && self.bookmarks.is_some() {
            return Some(self.bookmark(self.watcher.revision, true));
        }
        if self.ended {
            return None;
        }
        self.follow().await
    }

    /// The next line of what happens from now on.
    async fn follow(&mut self) -> Option<Bytes> {
        loop {
            if self.bookmark_due {
                // Read the revision first: whatever is up to it is queued already, so once the queue is
                // empty the bookmark is true.
                let revision = self.cache.revision();
                if let Ok(item) = self.watcher.queue.try_recv() {
                    return Some(self.line(&item));
                }
                self.bookmark_due = false;
                self.ended = self.ending;
                return Some(self.bookmark(revision, false));
            }
            if self.ending {
                return None;
            }
            tokio::select! {
                biased;
                item = self.watcher.queue.recv() => match item {
                    Some(item) => return Some(self.line(&item)),
                    None => return self.dropped(),
                },
                () = self.deadline.as_mut() => {
                    self.ending = true;
                    self.bookmark_due = self.bookmarks.is_some();
                }
                () = self.timer.as_mut(), if self.bookmarks.is_some() => {
                    self.bookmark_due = true;
                    if let Some(interval) = self.bookmarks {
                        self.timer = Box::pin(tokio::time::sleep(interval));
                    }
                }
            }
        }
    }

    /// The last line for a watcher whose queue was closed.
    fn dropped(&mut self) -> Option<Bytes> {
        self.ended = true;
        self.ending = true;
        self.watcher.overflowed().then(|| {
            let why = "too old resource version: the watch was dropped because its client did not keep up";
            line("ERROR", &Status::expired(why).to_value(), self.view.wanted.notation)
        })
    }

    /// The line of an event.
    fn line(&mut self, item: &Item) -> Bytes {
        match (self.view.wanted.shape, self.view.wanted.notation) {
            (Shape::Object, _) if self.is_converted() => {
                let (object, revision) = item.change.subject(item.kind);
                self.converted(item.kind, object, revision)
            }
            (Shape::Object, Notation::Protobuf) => item.change.binary_frame(item.kind, &self.view.resource),
            (Shape::Object, _) => item.change.frame(item.kind),
            _ => {
                let (object, revision) = item.change.subject(item.kind);
                self.shaped(item.kind, object, revision)
            }
        }
    }

    /// Whether objects are shown in another form than that in which they are kept.
    fn is_converted(&self) -> bool {
        let resource = &self.view.resource;
        events::is_view(resource) || resource.custom.as_ref().is_some_and(|custom| !custom.is_storage)
    }

    /// The line of an event that is made for this watcher alone.
    fn converted(&self, kind: Kind, object: &Object, revision: u64) -> Bytes {
        line(kind.word(), &object.value_at(&self.view.resource, revision), self.view.wanted.notation)
    }

    /// The line of an event whose object is shown as a table or as metadata.
    fn shaped(&mut self, kind: Kind, object: &Object, revision: u64) -> Bytes {
        let mut shown = self.view.shaped(&object.value_at(&self.view.resource, revision));
        if self.view.wanted.shape == Shape::Table
            && std::mem::replace(&mut self.headed, true)
            && let Some(table) = shown.as_object_mut()
        {
            table.insert("columnDefinitions".to_owned(), Value::Null);
        }
        self.shown(kind.word(), shown)
    }

    /// The line of a document that is no object of the kind itself.
    fn shown(&self, word: &str, document: Value) -> Bytes {
        let Wanted { beta, notation, .. } = self.view.wanted;
        line(word, &if beta { respond::as_beta(document) } else { document }, notation)
    }

    /// A bookmark: the watch is this far.
    fn bookmark(&self, revision: u64, end_of_initial: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.view.wanted.shape {
            Shape::Object => (self.view.resource.kind.clone(), self.view.resource.api_version()),
            Shape::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
            Shape::Table => {
                let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    "columnDefinitions": null, "rows": []});
                return self.shown("BOOKMARK", table);
            }
        };
        self.shown("BOOKMARK", json!({"kind": kind, "apiVersion": version, "metadata": metadata}))
    }
}

/// One event about a document, in the notation of the stream.
fn line(word: &str, object: &Value, notation: Notation) -> Bytes {
    if notation == Notation::Protobuf {
        return binary_event(word, object);
    }
    let mut text = json!({"type": word, "object": object}).to_string();
    text.push('\n');
    text.into()
}
