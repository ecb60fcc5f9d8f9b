//! What each container may do.

use std::io::Read as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext};

use super::{Refusal, config_error};
use crate::config::Config;
use crate::container::seccomp::{MAX_BYTES, Profile};
use crate::shim::spec::{Capabilities, Seccomp, Sharing};

/// Changes to the default capability set.
pub(super) fn capabilities(security: &SecurityContext) -> Capabilities {
    let changes = security.capabilities.clone().unwrap_or_default();
    Capabilities { add: changes.add.unwrap_or_default(), drop: changes.drop.unwrap_or_default() }
}

/// Which system calls a container may make: its own word, else the pod's, else the default; a privileged one all.
pub(super) fn seccomp(config: &Config, spec: &PodSpec, container: &Container) -> Result<Seccomp, Refusal> {
    let own = container.security_context.as_ref();
    if own.is_some_and(|s| s.privileged == Some(true)) {
        return Ok(Seccomp::Unconfined);
    }
    let shared = || spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let Some(wanted) = own.and_then(|s| s.seccomp_profile.as_ref()).or_else(shared) else {
        return Ok(Seccomp::Default);
    };
    match wanted.type_.as_str() {
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let path = config.seccomp_dir().join(wanted.localhost_profile.as_deref().unwrap_or_default());
            let profile = read(&path).map_err(|why| Refusal {
                container: container.name.clone(),
                reason: "CreateContainerError",
                message: format!("cannot load seccomp profile {:?}: {why}", path.display().to_string()),
            })?;
            Ok(Seccomp::Profile { profile: Box::new(profile) })
        }
        _ => Ok(Seccomp::Default),
    }
}

fn read(path: &Path) -> Result<Profile, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    Profile::parse(&text)
}

/// Whether nothing of `/proc` is hidden from a container.
pub(super) fn unmasked_proc(security: &SecurityContext) -> bool {
    security.proc_mount.as_deref() == Some("Unmasked")
}

/// Which namespaces are shared.
pub(super) fn sharing(spec: &PodSpec) -> Sharing {
    Sharing {
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        pod_pid: spec.share_process_namespace == Some(true),
    }
}

/// Kernel settings of the pod, by names with dots. Those that it may not have were refused before.
pub(super) fn sysctls(spec: &PodSpec) -> Vec<(String, String)> {
    let wanted = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    wanted.map(|s| (crate::sysctl::dotted(&s.name), s.value.clone())).collect()
}

/// What this machine cannot confine, and this version does not.
pub(super) fn refuse(container: &Container, security: &SecurityContext) -> Result<(), Refusal> {
    if security.se_linux_options.is_some() && Path::new("/sys/fs/selinux/enforce").exists() {
        // Without SELinux upstream takes the labels and nothing comes of them; with it they must not be left out.
        let message = "seLinuxOptions is not supported by this version of statefuld on machines with SELinux";
        return Err(config_error(&container.name, message.to_owned()));
    }
    Ok(())
}
