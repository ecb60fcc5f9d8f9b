//! How a decision about an object becomes a transaction.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use serde_json::Value;
use store::{Compare, Op, Txn, TxnOutcome};

use crate::admission::quota;
use crate::cache::store_key;
use crate::errors::{Outcome, from_store};
use crate::handler::Call;
use crate::object::{self, Object};

/// How often a write is decided again because somebody else was quicker.
const ATTEMPTS: usize = 32;

/// What else has to hold, and what else is written, in the transaction of an object's write.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Further conditions.
    pub(crate) compare: Vec<Compare>,
    /// Further changes.
    pub(crate) ops: Vec<Op>,
    /// What the client is told besides.
    pub(crate) warnings: Vec<String>,
}

impl Extra {
    /// The transaction fails if this key is not at this revision (0: absent).
    pub(crate) fn unchanged(&mut self, key: Bytes, revision: u64) {
        if !self.compare.iter().any(|c| c.key == key) {
            self.compare.push(Compare { key, mod_revision: revision });
        }
    }

    /// Writes a key that is kept until it is deleted.
    pub(crate) fn put(&mut self, key: Bytes, value: Bytes) {
        self.ops.push(Op::Put { key, value, ttl: None });
    }

    /// Deletes a key.
    pub(crate) fn delete(&mut self, key: Bytes) {
        self.ops.push(Op::Delete { key });
    }
}

/// What to do with an object that is there.
pub(crate) enum Step {
    /// Write this in its place.
    Write(Value),
    /// Delete it; this is what it was in the end.
    Delete(Value),
}

/// What a write came to.
#[derive(Debug)]
pub(crate) struct Written {
    /// The object as stored, or as it was in the end.
    pub(crate) raw: Bytes,
    /// The revision; 0 for an object that a dry run did not create.
    pub(crate) revision: u64,
    /// Whether it is gone now.
    pub(crate) deleted: bool,
    /// The object's name.
    pub(crate) name: String,
    /// What the client is told besides.
    pub(crate) warnings: Vec<String>,
}

/// The newest state of an object.
pub(crate) struct Current {
    /// As the cache holds it.
    pub(crate) object: Arc<Object>,
    /// As a document, with resourceVersion.
    pub(crate) value: Value,
}

/// Creates an object: `build` makes it from the state of the moment.
pub(crate) async fn create<F>(call: &Call, dry_run: bool, mut build: F) -> Outcome<Created>
where
    F: FnMut(&mut Extra) -> Outcome<Value>,
{
    let shared = &call.shared;
    let _turn = quota::turn(call).await;
    for _ in 0..ATTEMPTS {
        shared.cache.catch_up().await?;
        let mut extra = Extra::default();
        let value = build(&mut extra)?;
        let (namespace, name) = place(&value);
        let key = store_key(&call.resource, &namespace, &name);
        let raw = object::stored_bytes(value);
        if dry_run {
            let taken = shared.cache.get(&call.resource.group, &call.resource.plural, &namespace, &name).is_some();
            return Ok(if taken {
                Created::Taken(name)
            } else {
                Created::New(Written { raw, revision: 0, deleted: false, name, warnings: extra.warnings })
            });
        }
        let put = Op::Put { key: key.clone(), value: raw.clone(), ttl: ttl(call) };
        let warnings = std::mem::take(&mut extra.warnings);
        match commit(call, key, 0, put, extra).await? {
            Committed::At(revision) => {
                return Ok(Created::New(Written { raw, revision, deleted: false, name, warnings }));
            }
            Committed::Beaten { object: true } => return Ok(Created::Taken(name)),
            Committed::Beaten { object: false } => {}
        }
    }
    Err(contended(call))
}

/// How a create ended.
pub(crate) enum Created {
    /// It is there.
    New(Written),
    /// There is one of that name already.
    Taken(String),
}

/// Changes or deletes the object that the path names: `decide` says how, from its newest state.
pub(crate) async fn modify<F>(call: &Call, dry_run: bool, mut decide: F) -> Outcome<Written>
where
    F: FnMut(&Current, &mut Extra) -> Outcome<Step>,
{
    let shared = &call.shared;
    let (group, plural) = (&call.resource.group, &call.resource.plural);
    for _ in 0..ATTEMPTS {
        shared.cache.catch_up().await?;
        let object = shared
            .cache
            .get(group, plural, &call.target.namespace, &call.target.name)
            .ok_or_else(|| call.not_found())?;
        let current = Current { value: object.value(&call.resource), object };
        let was = current.object.revision;
        let mut extra = Extra::default();
        let step = decide(&current, &mut extra)?;
        let warnings = std::mem::take(&mut extra.warnings);
        let key = store_key(&call.resource, &call.target.namespace, &call.target.name);
        let (raw, op, deleted) = match step {
            Step::Write(value) => {
                let raw = object::stored_bytes(value);
                if raw == current.object.raw && extra.ops.is_empty() {
                    return Ok(Written {
                        raw,
                        revision: was,
                        deleted: false,
                        name: call.target.name.clone(),
                        warnings,
                    });
                }
                (raw.clone(), Op::Put { key: key.clone(), value: raw, ttl: ttl(call) }, false)
            }
            Step::Delete(value) => (object::stored_bytes(value), Op::Delete { key: key.clone() }, true),
        };
        if dry_run {
            return Ok(Written { raw, revision: was, deleted, name: call.target.name.clone(), warnings });
        }
        if let Committed::At(revision) = commit(call, key, was, op, extra).await? {
            // An update that takes off what held a deleted object answers with what was sent, not with the deletion.
            let updated = deleted && matches!(call.verb, "update" | "patch");
            let revision = if updated { was } else { revision };
            return Ok(Written { raw, revision, deleted, name: call.target.name.clone(), warnings });
        }
    }
    Err(contended(call))
}

/// How a transaction ended.
enum Committed {
    /// It is durable, at this revision.
    At(u64),
    /// Something that it built upon had changed.
    Beaten {
        /// Whether that is the object itself.
        object: bool,
    },
}

/// Commits one change to an object, with what goes along.
async fn commit(call: &Call, key: Bytes, was: u64, op: Op, extra: Extra) -> Outcome<Committed> {
    let shared = &call.shared;
    let rights = call.resource.group == "rbac.authorization.k8s.io";
    let mut compare = vec![Compare { key, mod_revision: was }];
    compare.extend(extra.compare);
    let mut ops = vec![op];
    ops.extend(extra.ops);
    let begun = shared.metrics.seconds();
    let outcome = shared.store.txn(Txn { compare, ops }).await;
    let word = match &outcome {
        Ok(TxnOutcome::Committed { .. }) => "committed",
        Ok(TxnOutcome::Failed { .. }) => "conflict",
        Err(_) => "error",
    };
    shared.metrics.committed(word, shared.metrics.seconds() - begun);
    match outcome.map_err(from_store)? {
        TxnOutcome::Committed { revision } => {
            if rights {
                // Who was given a right can use it as soon as he is told.
                shared.cache.wait(revision).await?;
            }
            Ok(Committed::At(revision))
        }
        TxnOutcome::Failed { current, revision } => {
            // Decide again only once the cache shows what was in the way.
            shared.cache.wait(revision).await?;
            let found = current.first().cloned().flatten().map_or(0, |entry| entry.mod_revision);
            Ok(Committed::Beaten { object: found != was })
        }
    }
}

/// Namespace and name of a document.
fn place(value: &Value) -> (String, String) {
    let text = |path| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/metadata/namespace"), text("/metadata/name"))
}

/// How long objects of the kind are kept.
fn ttl(call: &Call) -> Option<Duration> {
    (call.resource.kind == "Event" && call.resource.custom.is_none()).then_some(call.shared.event_ttl)
}

/// 409: others wrote the same object again and again.
fn contended(call: &Call) -> Box<Status> {
    Box::new(Status::modified(&call.resource.group, &call.resource.plural, &call.target.name))
}
