//! From a pod to what its shim is told: everything resolved, nothing of Kubernetes left.
//!
//! Pure but for the machine's user list. What this version cannot carry out is refused in words: a field is
//! honoured, refused here, or listed in `docs/podspec.md` as accepted without effect; never dropped in silence.
//!
//! | module | from a pod to |
//! |---|---|
//! | `root` | what each container sees as `/`, and its command |
//! | `life` | when containers start again, and how they end |
//! | `user` | whom each container runs as |
//! | `security` | what each container may do |
//! | `resources` | limits, quality of service, who is killed first when memory runs out |
//! | `refuse` | what this version does not carry out |

mod life;
mod refuse;
mod resources;
mod root;
mod security;
mod user;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};

use super::sources::Fetched;
use super::{env, images};
use crate::config::Config;
use crate::network::files;
use crate::shim::spec::{BackOff, ContainerSpec, HostRoot, LogSpec, Role, ShimSpec, UserRange};
use crate::volume::{self, Ready};
pub use resources::{Amounts, of_container as limits_of_container, of_pod as limits_of_pod, qos_class, requests};
pub use root::{HOST_CLASS, SAMPLE_IMAGE, is_sample, on_host_root};

/// Grace period where neither pod nor deletion names one.
pub const DEFAULT_GRACE_S: i64 = 30;

/// What a translation is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The pod, with its addresses in its status.
    pub pod: &'a Pod,
    /// The node.
    pub config: &'a Config,
    /// What the pod names.
    pub fetched: &'a Fetched,
    /// Its volumes.
    pub volumes: &'a BTreeMap<String, Ready>,
    /// Folder that its containers share as `/dev/shm`.
    pub shared_memory: Option<PathBuf>,
    /// Who of the machine's users are its own, where it has such.
    pub users: Option<UserRange>,
    /// The images of its containers, by the containers' names.
    pub images: &'a BTreeMap<String, images::Ready>,
    /// The epoch of its binding.
    pub epoch: u64,
    /// Incarnation of the first container started in this sandbox.
    pub incarnation: u64,
    /// Restarts by container before this sandbox.
    pub restarts: &'a BTreeMap<String, u32>,
}

/// A container that cannot be started as its pod says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which; empty where it is the whole pod.
    pub container: String,
    /// The reason for its waiting, in upstream's words.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

/// What the shim is told.
pub fn shim_spec(inputs: &Inputs<'_>) -> Result<ShimSpec, Refusal> {
    let pod = inputs.pod;
    let spec = pod.spec.as_ref().ok_or_else(|| config_error("", "the pod has no spec".to_owned()))?;
    refuse::unsupported(spec)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name, uid) = (text(&pod.metadata.namespace), text(&pod.metadata.name), text(&pod.metadata.uid));
    let pod_dir = inputs.config.pod_dir(&uid);
    let mut containers = Vec::new();
    for container in self::containers(spec) {
        containers.push(one(inputs, spec, container, role_of(spec, container))?);
    }
    let hostname = files::kernel_hostname(pod, &inputs.config.cluster_domain).map_err(|message| Refusal {
        container: String::new(),
        reason: "FailedCreatePodSandBox",
        message,
    })?;
    let grace_s = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S);
    Ok(ShimSpec {
        hostname,
        domainname: None,
        epoch: inputs.epoch,
        incarnation_base: inputs.incarnation,
        restart_policy: life::restart_policy(spec),
        back_off: BackOff::default(),
        grace_ms: u64::try_from(grace_s).unwrap_or(0).saturating_mul(1000),
        log: LogSpec::new(inputs.config.pod_logs(&namespace, &name, &uid)),
        cgroup: format!("{}/pod-{uid}", inputs.config.cgroup_root),
        limits: inputs.config.rules.cap(resources::of_pod(spec)),
        hosts_file: Some(pod_dir.join("hosts")),
        resolv_conf: Some(pod_dir.join("resolv.conf")),
        host_network: spec.host_network == Some(true),
        sharing: security::sharing(spec),
        users: inputs.users,
        shared_memory: inputs.shared_memory.clone(),
        sysctls: security::sysctls(spec),
        host_root: HostRoot { masked: vec![inputs.config.data_dir.clone()], upper_dir: pod_dir.join("root") },
        containers,
        namespace,
        name,
        uid,
    })
}

/// What the shim is told of an ephemeral container.
pub fn ephemeral(inputs: &Inputs<'_>, container: &Container, target: Option<String>) -> Result<ContainerSpec, Refusal> {
    let spec = inputs.pod.spec.as_ref().ok_or_else(|| config_error("", "the pod has no spec".to_owned()))?;
    Ok(ContainerSpec { target, ..one(inputs, spec, container, Role::Ephemeral)? })
}

/// What the shim is told of a container that is to start again.
pub fn again(inputs: &Inputs<'_>, container: &Container) -> Result<ContainerSpec, Refusal> {
    let spec = inputs.pod.spec.as_ref().ok_or_else(|| config_error("", "the pod has no spec".to_owned()))?;
    one(inputs, spec, container, role_of(spec, container))
}

/// When a container of the pod is started, and what its end means.
fn role_of(spec: &PodSpec, container: &Container) -> Role {
    let sidecar = container.restart_policy.as_deref() == Some("Always");
    match spec.init_containers.iter().flatten().any(|init| init.name == container.name) {
        true if sidecar => Role::Sidecar,
        true => Role::Init,
        false => Role::Main,
    }
}

/// All containers of a pod, init containers first.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether a pod's users are not the machine's.
pub fn own_users(spec: &PodSpec) -> bool {
    spec.host_users == Some(false)
}

/// What every container of a pod may do, ephemeral ones among them, where it says something of its own.
pub fn all_security_contexts(spec: &PodSpec) -> impl Iterator<Item = &SecurityContext> {
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| c.security_context.as_ref());
    containers(spec).filter_map(|c| c.security_context.as_ref()).chain(ephemeral)
}

fn one(inputs: &Inputs<'_>, spec: &PodSpec, container: &Container, role: Role) -> Result<ContainerSpec, Refusal> {
    let refuse = |message: String| config_error(&container.name, message);
    let environment = env::variables(inputs.pod, container, inputs.fetched).map_err(refuse)?;
    let image = inputs.images.get(&container.name).filter(|_| !on_host_root(spec));
    let lookup = |name: &str| environment.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expand = |text: &str| env::expand(text, lookup);
    let (root, argv) = root::root_and_argv(spec, container, image, expand)?;
    let mounts = volume::mounts(container, inputs.volumes, expand).map_err(|e| refuse(e.to_string()))?;
    let security = container.security_context.clone().unwrap_or_default();
    security::refuse(container, &security)?;
    let user = user::of(inputs.pod, spec, container, &security, image)?;
    let environment = image.map_or_else(|| environment.clone(), |image| image.environment(&environment, user.uid));
    Ok(ContainerSpec {
        name: container.name.clone(),
        role,
        root,
        argv,
        env: environment,
        cwd: root::working_directory(container, image),
        mounts,
        user,
        capabilities: security::capabilities(&security),
        seccomp: security::seccomp(inputs.config, spec, container)?,
        unmasked_proc: security::unmasked_proc(&security),
        privileged: security.privileged == Some(true),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        read_only_root: security.read_only_root_filesystem == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        target: None,
        limits: resources::of_container(container),
        oom_score_adj: Some(resources::oom_score(spec, container)),
        post_start: life::post_start(inputs.pod, container)?,
        pre_stop: life::pre_stop(inputs.pod, container)?,
        awaits_startup: role == Role::Sidecar && container.startup_probe.is_some(),
        last_words: life::last_words(container),
        asks: life::asks(container, image.is_some()),
        restart_policy: life::own_restart_policy(container),
        restart_on: life::restart_on(container)?,
        stop_signal: life::stop_signal(container, image)?,
        restart_count_base: inputs.restarts.get(&container.name).copied().unwrap_or(0),
    })
}

fn config_error(container: &str, message: String) -> Refusal {
    Refusal { container: container.to_owned(), reason: "CreateContainerConfigError", message }
}

#[cfg(test)]
mod podspec_tests;
#[cfg(test)]
mod tests;
