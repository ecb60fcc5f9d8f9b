//! ClusterRoles with an aggregation rule show the rules that they gather from others, for people and programs to read.
//! (Our own server decides by what is gathered, not by what is shown; others' decide by what is shown.)

use ambient::Ambient;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::Term;
use crate::informer::Informer;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call_opt, name};

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient) -> kube::Result<()> {
    let roles: Informer<ClusterRole> = Informer::builder(Api::all(client.clone()), Some).start(&term, &ambient);
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let (own, all) = (queue.clone(), roles.clone());
    // Any role can be part of any aggregated one.
    roles.on_change(move |_, _| {
        for role in all.all() {
            if role.aggregation_rule.is_some() {
                own.add(name(&*role).to_owned());
            }
        }
    });
    if !roles.synced().await {
        return Ok(());
    }
    for role in roles.all().into_iter().filter(|role| role.aggregation_rule.is_some()) {
        queue.add(name(&*role).to_owned());
    }
    work::run(&queue, 1, |key| gather(&client, &term, &roles, key)).await;
    Ok(())
}

async fn gather(client: &Client, term: &Term, roles: &Informer<ClusterRole>, key: String) -> Result<Outcome, Stop> {
    let Some(role) = roles.get("", &key) else { return Ok(Outcome::Done) };
    let Some(selectors) = role.aggregation_rule.as_ref().map(|a| a.cluster_role_selectors.clone().unwrap_or_default())
    else {
        return Ok(Outcome::Done);
    };
    let mut parts: Vec<_> = roles
        .all()
        .into_iter()
        .filter(|part| name(&**part) != key && selectors.iter().any(|selector| selects(selector, part)))
        .collect();
    parts.sort_by(|a, b| name(&**a).cmp(name(&**b)));
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in parts.iter().flat_map(|part| part.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    if rules == role.rules.clone().unwrap_or_default() {
        return Ok(Outcome::Done);
    }
    let api: Api<ClusterRole> = Api::all(client.clone());
    let metadata = json!({"uid": role.metadata.uid, "resourceVersion": role.metadata.resource_version});
    let patch = Patch::Merge(json!({"metadata": metadata, "rules": rules}));
    match call_opt(term, api.patch(&key, &PatchParams::default(), &patch)).await {
        // Changed meanwhile: that change brings us back.
        Err(stop) if stop.code() == Some(409) => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}

/// Whether a label selector matches a role.
fn selects(selector: &LabelSelector, role: &ClusterRole) -> bool {
    let empty = std::collections::BTreeMap::new();
    let labels = role.metadata.labels.as_ref().unwrap_or(&empty);
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|wanted| {
            let has = labels.get(&wanted.key);
            let listed = || has.is_some_and(|value| wanted.values.iter().flatten().any(|v| v == value));
            match wanted.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => has.is_some(),
                "DoesNotExist" => has.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_upstream_reads_them() {
        let role = json!({"metadata": {"name": "r", "labels": {"a": "1"}}, "rules": []});
        let role: ClusterRole = serde_json::from_value(role).expect("a role");
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}), true),
            (json!({"matchExpressions": [{"key": "b", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}), true),
        ] {
            let read = serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(selects(&read, &role), expected, "{selector}");
        }
    }
}
