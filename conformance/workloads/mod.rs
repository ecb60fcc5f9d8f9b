//! Deployments, ReplicaSets, Jobs and CronJobs: what their controllers do, asked of the server under test with a simulated
//! node.
//!
//! | module | about |
//! |---|---|
//! | `deployments` | rollouts: status, history, undo, restart, pause, deadlines; scaling |
//! | `replica_sets` | as many pods as are wanted, whose they are, which go first |
//! | `jobs` | completions, parallelism, back-off, deadlines, suspension, clean-up |
//! | `cron_jobs` | what is due and when, what is missed, what runs at once, what is kept |
//! | `objects` | what is completed, and what is refused |

mod cron_jobs;
mod deployments;
mod jobs;
mod objects;
mod replica_sets;

use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};

use crate::cluster::{Case, pause};
use crate::players::objects::{self as players, text};
use crate::players::stage::{PATIENCE, Stage};
use crate::runner::{Body, Named, Verdict};
use crate::target::Running;

/// A case, played.
type Act = for<'a> fn(&'a Play) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// All cases.
pub(crate) fn cases() -> Vec<Named> {
    let groups: [(&str, &[(&str, Act)]); 5] = [
        ("deployments", deployments::CASES),
        ("replica_sets", replica_sets::CASES),
        ("jobs", jobs::CASES),
        ("cron_jobs", cron_jobs::CASES),
        ("objects", objects::CASES),
    ];
    let all = groups.iter().flat_map(|(group, cases)| cases.iter().map(move |(name, act)| (*group, *name, *act)));
    all.map(|(group, name, act)| {
        let body: Body = Box::new(move |case| Box::pin(play(case, act)));
        Named { name: format!("workloads::{group}::{name}"), running: Running::Sets, body }
    })
    .collect()
}

async fn play(case: Case, act: Act) -> Verdict {
    let stage = Stage::start(&case).await?;
    // Pods of these images end by themselves.
    stage.kubelet.rule(json!({"image": "done", "phase": "Succeeded"}));
    stage.kubelet.rule(json!({"image": "broken", "phase": "Failed"}));
    let play = Play { case, stage };
    let verdict = act(&play).await;
    play.end().await?;
    verdict
}

/// A kind of object.
#[derive(Clone, Copy)]
struct Kind {
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

const DEPLOYMENT: Kind = Kind { version: "apps/v1", kind: "Deployment", plural: "deployments" };
const REPLICA_SET: Kind = Kind { version: "apps/v1", kind: "ReplicaSet", plural: "replicasets" };
const JOB: Kind = Kind { version: "batch/v1", kind: "Job", plural: "jobs" };
const CRON_JOB: Kind = Kind { version: "batch/v1", kind: "CronJob", plural: "cronjobs" };
const POD: Kind = Kind { version: "v1", kind: "Pod", plural: "pods" };

/// A case on its stage.
struct Play {
    case: Case,
    stage: Stage,
}

impl Play {
    /// The path of a collection, or of what `rest` names below it.
    fn path(&self, kind: Kind, rest: &str) -> String {
        let root = if kind.version.contains('/') { "/apis" } else { "/api" };
        let slash = if rest.is_empty() { "" } else { "/" };
        format!("{root}/{}/namespaces/{}/{}{slash}{rest}", kind.version, self.case.namespace, kind.plural)
    }

    /// Asks for an object to be made: code and answer.
    async fn try_create(&self, kind: Kind, name: &str, spec: Value) -> (u16, Value) {
        let object = json!({"apiVersion": kind.version, "kind": kind.kind, "metadata": {"name": name}, "spec": spec});
        self.stage.client.call("POST", &self.path(kind, ""), Some(&object)).await
    }

    async fn create(&self, kind: Kind, name: &str, spec: Value) -> Result<Value, String> {
        match self.try_create(kind, name, spec).await {
            (201, made) => Ok(made),
            (code, answer) => Err(format!("{} {name} was answered with {code}: {}", kind.kind, answer["message"])),
        }
    }

    /// Changes an object, or what `rest` names of it, by a merge patch.
    async fn patch(&self, kind: Kind, rest: &str, change: Value) -> Result<Value, String> {
        self.stage.client.expect("PATCH", &self.path(kind, rest), Some(&change)).await
    }

    async fn delete(&self, kind: Kind, name: &str, policy: &str) -> Result<Value, String> {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
        self.stage.client.expect("DELETE", &self.path(kind, name), Some(&options)).await
    }

    /// All objects of a kind, by name.
    async fn list(&self, kind: Kind) -> Result<Vec<Value>, String> {
        let mut list = self.stage.client.expect("GET", &self.path(kind, ""), None).await?;
        let mut items = std::mem::take(list["items"].as_array_mut().ok_or("a list without items")?);
        items.sort_by(|a, b| players::name(a).cmp(players::name(b)));
        Ok(items)
    }

    /// Waits until all objects of a kind are so, and gives them.
    async fn until_all(&self, kind: Kind, what: &str, holds: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>, String> {
        let wait = async {
            loop {
                let items = self.list(kind).await?;
                if holds(&items) {
                    return Ok(items);
                }
                pause().await;
            }
        };
        if let Ok(found) = tokio::time::timeout(PATIENCE, wait).await {
            return found;
        }
        Err(format!("not so after {PATIENCE:?}: {what}; there are {:#}", Value::Array(self.list(kind).await?)))
    }

    /// Waits until an object is there and is so, and gives it.
    async fn until(&self, kind: Kind, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value, String> {
        let is_it = |object: &&Value| players::name(object) == name && holds(object);
        let found = self.until_all(kind, what, |all| all.iter().any(|object| is_it(&object))).await?;
        Ok(found.iter().find(is_it).cloned().unwrap_or_default())
    }

    /// Waits until no object has this name.
    async fn gone(&self, kind: Kind, name: &str) -> Verdict {
        let what = format!("{name} is gone");
        self.until_all(kind, &what, |all| all.iter().all(|object| players::name(object) != name)).await.map(drop)
    }

    /// Takes everything away, from the top.
    async fn end(self) -> Verdict {
        for kind in [CRON_JOB, JOB, DEPLOYMENT, REPLICA_SET] {
            let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
            self.stage.client.call("DELETE", &self.path(kind, ""), Some(&options)).await;
        }
        self.stage.stop().await
    }
}

/// A pod of this image for a template.
fn template(image: &str, restart: &str) -> Value {
    let mut spec = players::pod("p", &json!({"image": image, "grace": 0}))["spec"].take();
    spec["restartPolicy"] = restart.into();
    json!({"metadata": {"labels": {"app": "web"}}, "spec": spec})
}

/// A change of a template's image.
fn image(tag: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": players::tagged(tag)}]}}}})
}

/// The status of a condition, with its reason: `True NewReplicaSetAvailable`.
fn condition(object: &Value, kind: &str) -> String {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    let found = all.into_iter().find(|condition| condition["type"] == kind);
    found.map_or(String::new(), |found| format!("{} {}", text(&found["status"]), text(&found["reason"])))
}

/// A number of a status; absent ones are none.
fn count(object: &Value, field: &str) -> u64 {
    object["status"][field].as_u64().unwrap_or(0)
}

/// Fails with what was expected.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}
