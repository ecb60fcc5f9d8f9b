//! What this version does not carry out, and would change the meaning of the pod if it were left out.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{HOST_CLASS, Refusal, config_error, containers};
use crate::agent::quantity;

/// The first such field, if there is one.
pub(super) fn unsupported(spec: &PodSpec) -> Result<(), Refusal> {
    let class = spec.runtime_class_name.as_deref().filter(|c| *c != HOST_CLASS && !c.is_empty());
    let claims = spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty());
    let words = [(class.is_some(), "a runtime class other than host"), (claims, "resourceClaims")];
    if let Some((_, what)) = words.iter().find(|(asked, _)| *asked) {
        return Err(config_error("", format!("{what} is not supported by this version of statefuld")));
    }
    for container in containers(spec) {
        resources(container)?;
        if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
            let message = "volumeDevices is not supported by this version of statefuld".to_owned();
            return Err(config_error(&container.name, message));
        }
    }
    Ok(())
}

/// What a node has none of. The scheduler finds no node for it either; but a pod may name its node.
fn resources(container: &Container) -> Result<(), Refusal> {
    const KNOWN: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
    let Some(resources) = &container.resources else { return Ok(()) };
    if resources.claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        let message = "resources.claims is not supported by this version of statefuld";
        return Err(config_error(&container.name, message.to_owned()));
    }
    for list in [&resources.limits, &resources.requests] {
        let unknown = list.iter().flatten().find(|(name, _)| !KNOWN.contains(&name.as_str()));
        if let Some((name, _)) = unknown
            && quantity::of(list.as_ref(), name).and_then(quantity::bytes) != Some(0)
        {
            let why = format!("resource {name:?} is not supported by this version of statefuld: the node has none");
            return Err(config_error(&container.name, why));
        }
    }
    Ok(())
}
