//! What a pod's status may become: a container that has ended for good does not run again.

use serde_json::Value;

use super::cursor::{At, Errors};

/// What is said of one that would.
const BACK: &str = "may not be transitioned to non-terminated state";

/// The containers' states after those that they had.
pub(super) fn transitions(pod: &At<'_>, old: &Value, out: &mut Errors) {
    let policy = old.pointer("/spec/restartPolicy").and_then(Value::as_str).unwrap_or("Always");
    let status = pod.field("status");
    states(&status.field("containerStatuses"), &old["status"]["containerStatuses"], out, |_, code| {
        policy == "Always" || (policy == "OnFailure" && code != 0)
    });
    states(&status.field("initContainerStatuses"), &old["status"]["initContainerStatuses"], out, |name, code| {
        // Init containers start over with their pod, and one that restarts by itself may do so at any time.
        let again = container(old, name).is_some_and(|c| c["restartPolicy"] == "Always");
        again || policy == "Always" || (policy == "OnFailure" && code != 0)
    });
    states(&status.field("ephemeralContainerStatuses"), &old["status"]["ephemeralContainerStatuses"], out, |_, _| {
        false
    });
}

/// Compares the statuses of one kind of containers; `may` tells by name and exit code who may run again.
fn states(new: &At<'_>, old: &Value, out: &mut Errors, may: impl Fn(&str, i64) -> bool) {
    for before in old.as_array().into_iter().flatten() {
        let Some(ended) = before["state"]["terminated"].as_object() else { continue };
        let name = before["name"].as_str().unwrap_or_default();
        if may(name, ended.get("exitCode").and_then(Value::as_i64).unwrap_or(0)) {
            continue;
        }
        for now in new.items().filter(|now| now.field("name").text() == name) {
            let state = now.field("state");
            if !state.field("terminated").is_set() {
                out.push(state.forbidden(BACK));
            }
        }
    }
}

/// An init container of a pod by its name.
fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod.pointer("/spec/initContainers")?.as_array()?.iter().find(|container| container["name"] == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(policy: &str, exit: i64) -> Vec<String> {
        let pod = |state: Value| json!({"spec": {"restartPolicy": policy}, "status": {"containerStatuses": [{"name": "main", "state": state}]}});
        let (old, new) = (pod(json!({"terminated": {"exitCode": exit}})), pod(json!({"running": {}})));
        let mut out = Errors::new();
        transitions(&At::root(&new), &old, &mut out);
        transitions(&At::root(&old), &old, &mut out);
        out.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn what_ended_for_good_does_not_run_again() {
        assert!(found("Always", 0).is_empty());
        assert!(found("OnFailure", 1).is_empty());
        assert_eq!(found("OnFailure", 0), ["status.containerStatuses[0].state"]);
        assert_eq!(found("Never", 1), ["status.containerStatuses[0].state"]);
    }
}
