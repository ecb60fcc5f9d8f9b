//! Pods: service account, priority, tolerations, runtime class, and the right to a name on a node.

use api::amounts;
use api::status::Status;
use serde_json::{Map, Value, json};

use super::{accounts, holders};
use crate::auth::{Identity, bootstrap};
use crate::errors::Outcome;
use crate::handler::Call;
use crate::verbs::create::text;
use crate::verbs::write::Extra;

/// How long a pod stays on a node that is not ready or not reachable, where it does not say.
const TOLERATION_SECONDS: u64 = 300;
/// Taints that pods tolerate for that long.
const TOLERATED: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Completes and judges a new pod.
pub(super) fn create(call: &Call, pod: &mut Value, _: &mut Extra) -> Outcome<()> {
    let name = text(pod, "name").to_owned();
    holders::keep_epoch(pod, None);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    accounts::complete(call, &name, spec)?;
    priority(call, &name, spec)?;
    tolerations(spec);
    runtime_class(call, &name, spec)
}

/// A pod that is created on a node takes its name there at once, as binding would.
pub(super) fn allocate(call: &Call, pod: &mut Value, extra: &mut Extra) -> Outcome<()> {
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().to_owned();
    if node.is_empty() {
        return Ok(());
    }
    let newest = call.shared.cache.revision();
    holders::take(call, pod, &node, newest, extra)
}

fn forbidden(name: &str, why: impl std::fmt::Display) -> Outcome<()> {
    Err(Box::new(Status::forbidden("", "pods", name, why)))
}

/// The number that the priority class stands for.
fn priority(call: &Call, name: &str, spec: &mut Map<String, Value>) -> Outcome<()> {
    let Some(shelf) = call.shared.cache.named("scheduling.k8s.io", "priorityclasses") else { return Ok(()) };
    let named = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let classes = || shelf.all("").into_iter().map(|o| o.value(shelf.resource()));
    let class = if named.is_empty() {
        classes().find(|c| c.get("globalDefault") == Some(&Value::Bool(true)))
    } else {
        let Some(class) = classes().find(|c| text(c, "name") == named) else {
            return forbidden(name, format!("no PriorityClass with name {named} was found"));
        };
        Some(class)
    };
    let value = class.as_ref().and_then(|c| c.get("value")).and_then(Value::as_i64).unwrap_or(0);
    if let Some(given) = spec.get("priority").and_then(Value::as_i64)
        && given != value
    {
        return forbidden(
            name,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ),
        );
    }
    let class_text = |field: &str| class.as_ref().and_then(|c| c.get(field)).and_then(Value::as_str);
    if named.is_empty()
        && let Some(class) = &class
    {
        spec.insert("priorityClassName".to_owned(), text(class, "name").into());
    }
    let preemption = class_text("preemptionPolicy").unwrap_or("PreemptLowerPriority").to_owned();
    spec.insert("priority".to_owned(), value.into());
    spec.entry("preemptionPolicy").or_insert_with(|| preemption.into());
    Ok(())
}

/// A pod bears its node's absence for a while.
fn tolerations(spec: &mut Map<String, Value>) {
    let list = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    for taint in TOLERATED {
        let tolerated = list.iter().any(|t| {
            let of = |field: &str| t.get(field).and_then(Value::as_str).unwrap_or_default();
            (of("key") == taint || of("key").is_empty()) && matches!(of("effect"), "" | "NoExecute")
        });
        if !tolerated {
            list.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

/// The runtime class exists, and the pod may use it: by its creator's right or its service account's.
fn runtime_class(call: &Call, name: &str, spec: &mut Map<String, Value>) -> Outcome<()> {
    let Some(class) = spec.get("runtimeClassName").and_then(Value::as_str).map(str::to_owned) else {
        return if spec.get("overhead").is_some_and(|o| o.as_object().is_some_and(|o| !o.is_empty())) {
            forbidden(name, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        } else {
            Ok(())
        };
    };
    let Some(shelf) = call.shared.cache.named("node.k8s.io", "runtimeclasses") else { return Ok(()) };
    let Some(found) = call.shared.cache.get("node.k8s.io", "runtimeclasses", "", &class) else {
        return forbidden(name, format!("pod rejected: RuntimeClass {class:?} not found"));
    };
    let namespace = &call.target.namespace;
    let account = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    let account = Identity::service_account(namespace, account);
    let authorizer = &*call.shared.authorizer;
    let may = |who: &Identity| bootstrap::may_use_runtime_class(authorizer, who, namespace, &class);
    if !may(&call.identity) && !may(&account) {
        let why = format!(
            "pod rejected: neither {:?} nor the pod's service account {:?} may use the RuntimeClass {class:?}; bind \
             the ClusterRole {:?} to one of them in namespace {namespace:?}",
            call.identity.user,
            account.user,
            bootstrap::HOST_ROLE
        );
        return forbidden(name, why);
    }
    use_class(name, spec, &found.value(shelf.resource()))
}

/// Takes over what running pods of the class costs, and where they can run; a pod must not say otherwise.
fn use_class(name: &str, spec: &mut Map<String, Value>, class: &Value) -> Outcome<()> {
    match (class.pointer("/overhead/podFixed"), spec.get("overhead")) {
        (Some(overhead), None) => drop(spec.insert("overhead".to_owned(), overhead.clone())),
        (Some(overhead), Some(given)) if amounts::read(given) != amounts::read(overhead) => {
            return forbidden(name, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead");
        }
        _ => {}
    }
    if let Some(wanted) = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object) {
        let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        for (key, value) in wanted {
            let (class, pod) = (value.as_str().unwrap_or_default(), selector.get(key).and_then(Value::as_str));
            if let Some(pod) = pod.filter(|pod| *pod != class) {
                let why = format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {class}; pod.spec.nodeSelector[{key}] = {pod}"
                );
                return forbidden(name, why);
            }
            selector[key] = value.clone();
        }
    }
    if let Some(more) = class.pointer("/scheduling/tolerations").and_then(Value::as_array) {
        let list = spec.entry("tolerations").or_insert_with(|| json!([]));
        for toleration in more {
            if let Some(list) = list.as_array_mut()
                && !list.contains(toleration)
            {
                list.push(toleration.clone());
            }
        }
    }
    Ok(())
}
