//! One namespace as a person looks at it: each set as its ordinals, and beside what waits the sentence that says why.
//!
//! The terminal (`top`) and the page show this and nothing else, so both say the same.
//!
//! | module | holds |
//! |---|---|
//! | `build` | pure: from facts and usage to what is shown |
//! | `usage` | what pods use and how full volumes are, as the nodes tell it |
//! | `acts` | what can be done about it: scale, restart, undo, delete a pod |

pub mod acts;
mod build;
pub mod usage;

use anyhow::Result;
use jiff::Timestamp;
use kube::Client;
use serde::Serialize;

use crate::why::Finding;
use crate::why::facts::Facts;
use usage::Usage;

/// A namespace at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The namespace.
    pub namespace: String,
    /// When it was read.
    pub time: Timestamp,
    /// Its StatefulSets, by name.
    pub sets: Vec<Set>,
    /// Pods of no set, by name.
    pub pods: Vec<Row>,
    /// What else waits: claims, mostly.
    pub waiting: Vec<Waiting>,
}

/// A set.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Pods that are wanted.
    pub replicas: i64,
    /// Wanted pods that are Ready.
    pub ready: usize,
    /// Whether one pod starts after the other.
    pub ordered: bool,
    /// How far its newest template is rolled out.
    pub rollout: Rollout,
    /// The revision that `undo` returns to, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// Its ordinals, lowest first: those that are wanted, and those that are there.
    pub rows: Vec<Row>,
    /// What is to be said of the set itself.
    pub waiting: Vec<Waiting>,
}

/// How far a template is rolled out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// The newest revision, without the set's name.
    pub revision: String,
    /// Wanted pods that have it and are Ready.
    pub done: usize,
    /// In words, while it is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
}

/// A revision to return to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undo {
    /// The ControllerRevision that holds it.
    pub name: String,
    /// Its number in the history.
    pub number: i64,
}

/// A pod, or the place of one that is not there.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The pod's name.
    pub pod: String,
    /// Its uid; none where it does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Its ordinal in its set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<i32>,
    /// Who made it, where that is no set: `replicaset/web-5d8f`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How it is.
    pub state: State,
    /// Since when it exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Whether the set does not want it any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub surplus: bool,
    /// Its revision, without the set's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Whether its revision is an older one than the set's newest.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub outdated: bool,
    /// Its node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Its address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// How often its containers were started again.
    pub restarts: i32,
    /// Its containers, in order of start.
    pub containers: Vec<String>,
    /// Processor time that it uses, in thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Memory that it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its claims.
    pub volumes: Vec<Volume>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// How a pod is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Running and Ready.
    Ready,
    /// There, and not Ready yet, or no longer.
    Unready,
    /// Not there.
    Absent,
    /// On its way out.
    Stopping,
    /// It ended, and not well.
    Failed,
    /// It ended well.
    Ended,
}

impl State {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Unready => "Not ready",
            Self::Absent => "Absent",
            Self::Stopping => "Stopping",
            Self::Failed => "Failed",
            Self::Ended => "Ended",
        }
    }
}

/// A claim, and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// The claim.
    pub claim: String,
    /// What it was promised, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised_bytes: Option<u64>,
    /// What it holds, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// What its disk has left, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// How full it is, in hundredths of what is there for it: what was promised, or what it holds and its disk has left,
    /// whichever is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u64>,
}

/// Something that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `pod/web-1`, `sts/web`, `pvc/data-web-1`.
    pub object: String,
    /// The whole sentence.
    pub sentence: String,
    /// What would unblock it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unblock: Vec<String>,
}

impl Waiting {
    /// A finding as of then.
    fn of(finding: &Finding, now: Timestamp) -> Self {
        let object = finding.chain.first().map(|link| link.object.clone()).unwrap_or_default();
        Self { object, sentence: finding.sentence(now), unblock: finding.unblock.clone() }
    }
}

impl Overview {
    /// Reads a namespace, as far as the client may.
    pub async fn read(client: &Client, namespace: &str, now: Timestamp) -> Result<Self> {
        let facts = Facts::read(client, namespace, now).await?;
        let usage = Usage::read(client, &facts.pods).await;
        Ok(build::overview(&facts, &usage))
    }

    /// Every row, as shown from top to bottom, with the set that it belongs to.
    pub fn rows(&self) -> impl Iterator<Item = (Option<&Set>, &Row)> {
        let of_sets = self.sets.iter().flat_map(|set| set.rows.iter().map(move |row| (Some(set), row)));
        of_sets.chain(self.pods.iter().map(|row| (None, row)))
    }
}
