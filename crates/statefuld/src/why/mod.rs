//! `statefuld why`: one sentence for every thing that waits, down to the root, and what would unblock it.
//!
//! | module | holds |
//! |---|---|
//! | `facts` | what the API says, read once |
//! | `set`, `workload`, `pod`, `claim` | pure: facts in, findings out; a set's come from the planner itself |
//! | `deadlock` | waits that no time resolves |

mod claim;
mod deadlock;
pub mod facts;
pub mod pod;
pub mod set;
mod workload;

use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Result, bail};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::json;

use crate::cli::{Output, Why};
use crate::connect;
use crate::say;
use facts::Facts;

/// Why something waits: from what a person asks about down to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Each link is the cause of the one before it.
    pub chain: Vec<Link>,
    /// What would unblock it, in order of preference. Nothing, where time does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unblock: Vec<String>,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// `pod/web-1`, `pvc/data-web-1`, `sts/web`, `deploy/web`, `job/dump`.
    pub object: String,
    /// What holds of it, as the rest of a sentence: `is not Ready`.
    pub says: String,
    /// Since when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl Link {
    /// A link whose beginning nobody recorded.
    pub fn new(object: impl Into<String>, says: impl Into<String>) -> Self {
        Self { object: object.into(), says: says.into(), since: None }
    }

    /// It holds since then.
    pub fn since(self, since: Option<Timestamp>) -> Self {
        Self { since, ..self }
    }
}

impl Finding {
    /// A finding that ends at its first link.
    pub fn of(link: Link) -> Self {
        Self { chain: vec![link], unblock: Vec::new() }
    }

    /// Puts a consequence in front.
    pub fn under(mut self, consequence: Link) -> Self {
        self.chain.insert(0, consequence);
        self
    }

    /// What helps.
    pub fn helped_by(mut self, remedy: impl Into<String>) -> Self {
        self.unblock.push(remedy.into());
        self
    }

    /// The chain as one sentence. A name is said where it changes.
    pub fn sentence(&self, now: Timestamp) -> String {
        let mut text = String::new();
        let mut before = "";
        for link in &self.chain {
            if !text.is_empty() {
                text.truncate(text.trim_end_matches(['.', ' ']).len());
                text.push_str(": ");
            }
            if link.object != before {
                text.push_str(short(&link.object));
                text.push(' ');
            }
            text.push_str(&link.says);
            if let Some(since) = link.since {
                text.push_str(&format!(" for {}", span(now.duration_since(since))));
            }
            before = &link.object;
        }
        text
    }
}

/// Runs the command. The exit code is 0 also where something waits: the question was answered.
pub async fn run(why: Why) -> Result<ExitCode> {
    let ambient = Ambient::system();
    let client = connect::client(&why.server).await?;
    let facts = Facts::read(&client, &why.namespace, ambient.now()).await?;
    let findings = match &why.object {
        Some(object) => about(&facts, object)?,
        None => everything(&facts),
    };
    match why.output {
        Output::Json => {
            let list: Vec<_> = findings
                .iter()
                .map(|finding| {
                    json!({"sentence": finding.sentence(facts.now), "chain": finding.chain, "unblock": finding.unblock})
                })
                .collect();
            say::print(serde_json::to_string_pretty(&json!({ "waiting": list }))?);
        }
        Output::Table => tell(&why, &findings, facts.now),
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(why: &Why, findings: &[Finding], now: Timestamp) {
    if findings.is_empty() {
        let what = why.object.as_deref().unwrap_or("nothing");
        let verb = if why.object.is_some() { "waits for nothing" } else { "waits" };
        say::print(format_args!("{what} {verb}"));
    }
    let mut told: Option<&[String]> = None;
    for finding in findings {
        say::print(finding.sentence(now));
        // Many pods that wait for one thing share its remedy: it is said once, after the first.
        if told != Some(&finding.unblock) {
            for remedy in &finding.unblock {
                say::print(format_args!("  to unblock: {remedy}"));
            }
        }
        told = Some(&finding.unblock);
    }
}

/// Why the named object waits.
fn about(facts: &Facts, object: &str) -> Result<Vec<Finding>> {
    let Some((kind, name)) = object.split_once('/') else {
        bail!("{object:?} does not say what it is; write KIND/NAME, such as sts/{object} or pod/{object}");
    };
    let missing = || anyhow::anyhow!("there is no {kind} {name:?} in namespace {}", facts.namespace);
    match kind {
        "sts" | "statefulset" | "statefulsets" => {
            let set = facts.set(name).ok_or_else(missing)?;
            let mut found = set::explain(facts, set)?;
            found.extend(set::governing_service(facts, set));
            Ok(found)
        }
        "deploy" | "deployment" | "deployments" => {
            Ok(workload::deployment(facts, facts.deployment(name).ok_or_else(missing)?))
        }
        "rs" | "replicaset" | "replicasets" => {
            Ok(workload::replica_set(facts, facts.replica_set(name).ok_or_else(missing)?))
        }
        "job" | "jobs" => Ok(workload::job(facts, facts.job(name).ok_or_else(missing)?)),
        "cj" | "cronjob" | "cronjobs" => {
            let cron = facts.cron_job(name).ok_or_else(missing)?;
            let found = workload::cron_job(facts, cron);
            Ok(if found.is_empty() { workload::next_start(facts, cron).into_iter().collect() } else { found })
        }
        "po" | "pod" | "pods" => match facts.pod(name) {
            Some(pod) => {
                let own = pod::explain(facts, pod);
                if own.is_empty() { set::explain_member(facts, name) } else { Ok(own) }
            }
            // A pod that a set has not created yet is worth an answer too.
            None => {
                let found = set::explain_member(facts, name)?;
                if found.is_empty() { Err(missing()) } else { Ok(found) }
            }
        },
        "pvc" | "persistentvolumeclaim" | "persistentvolumeclaims" => {
            let claim = facts.claim(name).ok_or_else(missing)?;
            Ok(claim::explain(facts, claim))
        }
        _ => bail!(
            "why knows sts/NAME, deploy/NAME, rs/NAME, job/NAME, cronjob/NAME, pod/NAME and pvc/NAME, not {kind:?}"
        ),
    }
}

/// Everything in the namespace that waits: sets and other workloads with their pods, then pods and claims of nobody.
pub fn everything(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for set in &facts.sets {
        match set::explain(facts, set) {
            Ok(found) => all.extend(found),
            Err(error) => {
                let name = set.metadata.name.as_deref().unwrap_or_default();
                all.push(Finding::of(Link::new(format!("sts/{name}"), format!("cannot be carried out: {error:#}"))));
            }
        }
        all.extend(set::governing_service(facts, set));
    }
    let of_somebody = |meta: &ObjectMeta| meta.owner_references.iter().flatten().any(|o| o.controller == Some(true));
    all.extend(facts.deployments.iter().flat_map(|deployment| workload::deployment(facts, deployment)));
    let sets = facts.replica_sets.iter().filter(|set| !of_somebody(&set.metadata));
    all.extend(sets.flat_map(|set| workload::replica_set(facts, set)));
    all.extend(facts.cron_jobs.iter().flat_map(|cron| workload::cron_job(facts, cron)));
    all.extend(facts.jobs.iter().flat_map(|job| workload::job(facts, job)));
    for pod in facts.pods.iter().filter(|pod| !of_somebody(&pod.metadata)) {
        all.extend(pod::explain(facts, pod));
    }
    let told: std::collections::BTreeSet<String> =
        all.iter().flat_map(|finding| finding.chain.iter().map(|link| link.object.clone())).collect();
    for claim in &facts.claims {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        if !told.contains(&format!("pvc/{name}")) {
            all.extend(claim::explain(facts, claim));
        }
    }
    all
}

/// The name without its kind, where that is a pod's: sentences are about pods mostly.
fn short(object: &str) -> &str {
    object.strip_prefix("pod/").unwrap_or(object)
}

/// A duration as people say it: `4m12s`.
pub fn span(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match () {
        () if days > 0 => format!("{days}d{hours}h"),
        () if hours > 0 => format!("{hours}h{minutes}m"),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_sentence_that_names_each_thing_once() {
        let now: Timestamp = "2026-01-01T00:04:12Z".parse().unwrap();
        let finding = Finding {
            chain: vec![
                Link::new("pod/web-2", "is not created"),
                Link::new("pod/web-1", "is not Ready").since("2026-01-01T00:00:00Z".parse().ok()),
                Link::new("pod/web-1", "readiness GET :8080/healthz answered 503, 51 times"),
            ],
            unblock: Vec::new(),
        };
        assert_eq!(
            finding.sentence(now),
            "web-2 is not created: web-1 is not Ready for 4m12s: readiness GET :8080/healthz answered 503, 51 times"
        );
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let of = |seconds| span(SignedDuration::from_secs(seconds));
        assert_eq!([of(-3), of(59), of(252), of(7_260), of(90_000)], ["0s", "59s", "4m12s", "2h1m", "1d1h"]);
    }
}
