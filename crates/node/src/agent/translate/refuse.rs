//! What this version does not carry out, and would change the meaning of the pod if it were left out.

use k8s_openapi::api::core::v1::PodSpec;

use super::{HOST_CLASS, Refusal, config_error, containers};

/// The first such field, if there is one.
pub(super) fn unsupported(spec: &PodSpec) -> Result<(), Refusal> {
    let class = spec.runtime_class_name.as_deref().filter(|c| *c != HOST_CLASS && !c.is_empty());
    let words = [
        (spec.host_pid == Some(true), "hostPID"),
        (spec.host_ipc == Some(true), "hostIPC"),
        (spec.share_process_namespace == Some(true), "shareProcessNamespace"),
        (spec.host_users == Some(false), "hostUsers: false"),
        (class.is_some(), "a runtime class other than host"),
    ];
    if let Some((_, what)) = words.iter().find(|(asked, _)| *asked) {
        return Err(config_error("", format!("{what} is not supported by this version of statefuld")));
    }
    for container in containers(spec) {
        if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
            let message = "volumeDevices is not supported by this version of statefuld".to_owned();
            return Err(config_error(&container.name, message));
        }
    }
    Ok(())
}
