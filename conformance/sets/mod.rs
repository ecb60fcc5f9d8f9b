//! What upstream's own end-to-end and integration tests show of StatefulSets, asked of the server under test with a
//! simulated node. Each case names the upstream test that it stands for (`test/e2e/apps/statefulset.go` unless another
//! file is named). What needs containers, volumes or DNS of its own is shown by `crates/statefuld/tests/e2e`.
//!
//! | module | about |
//! |---|---|
//! | `order` | creation, scaling, failure |
//! | `rollout` | updates, partitions, history |
//! | `counts` | status and its conditions, minReadySeconds |
//! | `claims` | claims and who owns them |
//! | `ordinals` | the first ordinal |
//! | `resource` | the object and its subresources |

mod claims;
mod counts;
mod order;
mod ordinals;
mod resource;
mod rollout;

use std::future::Future;
use std::pin::Pin;

use serde_json::{Value, json};

use crate::cluster::Case;
use crate::players::objects::{self, Kind, REVISION_LABEL, label, natural, ready, terminating};
use crate::players::stage::Stage;
use crate::players::world::Seen;
use crate::runner::{Body, Named, Verdict};
use crate::target::Running;

/// A case on a stage.
type Act = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// All cases.
pub(crate) fn cases() -> Vec<Named> {
    let groups: [(&str, &[(&str, Act)]); 6] = [
        ("order", order::CASES),
        ("rollout", rollout::CASES),
        ("counts", counts::CASES),
        ("claims", claims::CASES),
        ("ordinals", ordinals::CASES),
        ("resource", resource::CASES),
    ];
    let all = groups.iter().flat_map(|(group, cases)| cases.iter().map(move |(name, act)| (*group, *name, *act)));
    all.map(|(group, name, act)| {
        let body: Body = Box::new(move |case| Box::pin(on_stage(case, act)));
        Named { name: format!("sets::{group}::{name}"), running: Running::Sets, body }
    })
    .collect()
}

async fn on_stage(case: Case, act: Act) -> Verdict {
    let stage = Stage::start(&case).await?;
    let verdict = act(&stage).await;
    stage.stop().await?;
    verdict
}

/// A set of one container; `spec` is merged into its spec.
fn set(name: &str, replicas: u32, spec: Value) -> Value {
    objects::set(name, &json!({"replicas": replicas, "merge": {"spec": spec}}))
}

/// Whether exactly these pods exist, all of them ready, in any order.
fn all_ready(seen: &Seen, names: &[&str]) -> bool {
    let mut there: Vec<&String> = seen.all(Kind::Pods).map(|(name, _)| name).collect();
    there.sort_by_key(|name| natural(name));
    there == names && seen.all(Kind::Pods).all(|(_, pod)| ready(pod) && !terminating(pod))
}

/// A number of a set's status as last seen.
fn status(seen: &Seen, set: &str, field: &str) -> u64 {
    seen.get(Kind::Sets, set).and_then(|set| set["status"][field].as_u64()).unwrap_or(0)
}

/// Whether the set's controller has seen its newest spec.
fn observed(seen: &Seen, set: &str) -> bool {
    seen.get(Kind::Sets, set).is_some_and(|set| set["status"]["observedGeneration"] == set["metadata"]["generation"])
}

/// Names of a set's current and update revision.
fn revisions(seen: &Seen, set: &str) -> (String, String) {
    let name = |field: &str| {
        seen.get(Kind::Sets, set).and_then(|set| set["status"][field].as_str()).unwrap_or_default().to_owned()
    };
    (name("currentRevision"), name("updateRevision"))
}

/// The revision that a pod was made from.
fn revision_of(seen: &Seen, pod: &str) -> String {
    seen.get(Kind::Pods, pod).and_then(|pod| label(pod, REVISION_LABEL)).unwrap_or_default().to_owned()
}

/// A change of the template's image.
fn image(tag: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": objects::tagged(tag)}]}}}})
}

/// Fails with what was expected.
fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

/// The names of pods in the order of a verb of the trace.
fn traced(seen: &Seen, verb: &str) -> Vec<String> {
    let lines = seen.lines(Kind::Pods, 0);
    let named = lines.iter().filter_map(|line| line.strip_prefix(verb));
    named.map(|rest| rest.split(' ').next().unwrap_or_default().to_owned()).collect()
}
