//! What a manifest means otherwise where nobody reads our annotations. Pure.

use serde_json::Value;

/// Of each annotation: from which value on it matters, and what plain Kubernetes does instead.
const MEANINGS: [(&str, &str, &str); 11] = [
    ("deletion", "parallel", "deleting the set stops all its pods at once, in no order"),
    ("rollout-recovery", "wait", "a broken pod blocks an ordered rollout until somebody deletes it"),
    ("progress-deadline-seconds", "", "a rollout that stands still is never declared failed"),
    ("rollback", "never", "pods of a failed revision are not taken back"),
    ("retry", "", "there is no held revision to try again"),
    ("failover", "manual", "pods of a lost node wait for a person"),
    ("reserve-ordinals", "", "reserved ordinals come back, with whatever claims they left"),
    ("overrides", "", "every ordinal gets the same template: overridden pods restart without their overrides"),
    ("volume-expansion", "never", "changing the size in a claim template is refused"),
    ("immutable-fields", "refuse", "changing an immutable field is refused"),
    ("protect", "false", "nothing keeps set and claims from being deleted"),
];

/// A sentence for every annotation that changes what the object means.
pub fn differences(object: &Value) -> Vec<String> {
    let annotations = object["metadata"]["annotations"].as_object();
    let value = |key: &str| annotations.and_then(|all| all.get(&format!("statefuld.io/{key}"))?.as_str());
    let sentence = |(key, default, meaning): &(&str, &str, &str)| {
        let set = value(key).filter(|value| value != default)?;
        Some(format!("statefuld.io/{key}: {:?} has no effect: {meaning}", set.lines().next().unwrap_or_default()))
    };
    MEANINGS.iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_from_the_default_is_told() {
        let set = json!({"metadata": {"annotations": {
            "statefuld.io/deletion": "parallel", "statefuld.io/reserve-ordinals": "1,3-5"}}});
        let told = differences(&set);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("reserve-ordinals") && told[0].contains("come back"), "{told:?}");
    }
}
