//! When containers start again, and how they end.

use k8s_openapi::api::core::v1::{Container, Lifecycle, PodSpec};

use super::{Refusal, config_error};
use crate::shim::spec::{Hook, RestartPolicy};

pub(super) fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    match spec.restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

pub(super) fn pre_stop(container: &Container) -> Result<Option<Hook>, Refusal> {
    let Some(handler) = container.lifecycle.as_ref().and_then(|l: &Lifecycle| l.pre_stop.as_ref()) else {
        return Ok(None);
    };
    if let Some(exec) = &handler.exec {
        return Ok(Some(Hook::Exec { argv: exec.command.clone().unwrap_or_default() }));
    }
    if let Some(sleep) = &handler.sleep {
        return Ok(Some(Hook::Sleep { ms: u64::try_from(sleep.seconds).unwrap_or(0).saturating_mul(1000) }));
    }
    Err(config_error(&container.name, "this kind of preStop is not supported by this version of statefuld".to_owned()))
}

pub(super) fn stop_signal(container: &Container) -> Result<i32, Refusal> {
    const SIGNALS: [(&str, i32); 8] = [
        ("SIGTERM", 15),
        ("SIGINT", 2),
        ("SIGQUIT", 3),
        ("SIGKILL", 9),
        ("SIGHUP", 1),
        ("SIGUSR1", 10),
        ("SIGUSR2", 12),
        ("SIGWINCH", 28),
    ];
    let Some(name) = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()) else { return Ok(15) };
    let found = SIGNALS.iter().find(|(n, _)| *n == name).map(|(_, number)| *number);
    found.ok_or_else(|| config_error(&container.name, format!("stopSignal {name} is not supported")))
}
