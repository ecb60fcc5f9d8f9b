//! From a pod to what its shim is told: everything resolved, nothing of Kubernetes left.
//!
//! Pure but for the machine's user list. What this version cannot carry out is refused in words: a field is
//! honoured, refused here, or listed in the docs as accepted without effect; never dropped in silence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Lifecycle, Pod, PodSpec, SecurityContext};

use super::sources::Fetched;
use super::{env, machine, quantity};
use crate::config::Config;
use crate::network::files;
use crate::shim::spec::{
    BackOff, Capabilities, ContainerSpec, Hook, HostRoot, Limits, LogSpec, RestartPolicy, Role, Root, ShimSpec, User,
};
use crate::volume::{self, Ready};

/// The image that is always there: this program.
pub const SAMPLE_IMAGE: &str = "statefuld.local/sample";
/// The runtime class whose pods have the machine's own root underneath.
pub const HOST_CLASS: &str = "host";
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
    /// The built-in image's folder, where the pod needs it.
    pub sample: Option<&'a Path>,
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
    refuse_unsupported(spec)?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (namespace, name, uid) = (text(&pod.metadata.namespace), text(&pod.metadata.name), text(&pod.metadata.uid));
    let pod_dir = inputs.config.pod_dir(&uid);
    let mut containers = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        containers.push(one(inputs, spec, container, if sidecar { Role::Sidecar } else { Role::Init })?);
    }
    for container in &spec.containers {
        containers.push(one(inputs, spec, container, Role::Main)?);
    }
    let grace_s = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_S);
    Ok(ShimSpec {
        hostname: files::hostname(pod),
        domainname: None,
        epoch: inputs.epoch,
        incarnation_base: inputs.incarnation,
        restart_policy: restart_policy(spec),
        back_off: BackOff::default(),
        grace_ms: u64::try_from(grace_s).unwrap_or(0).saturating_mul(1000),
        log: LogSpec::new(inputs.config.pod_logs(&namespace, &name, &uid)),
        cgroup: format!("{}/pod-{uid}", inputs.config.cgroup_root),
        limits: pod_limits(spec),
        hosts_file: Some(pod_dir.join("hosts")),
        resolv_conf: Some(pod_dir.join("resolv.conf")),
        host_network: spec.host_network == Some(true),
        host_root: HostRoot { masked: vec![inputs.config.data_dir.clone()], upper_dir: pod_dir.join("root") },
        containers,
        namespace,
        name,
        uid,
    })
}

/// What the shim is told of an ephemeral container; `inputs` are of a pod that has it alone.
pub fn ephemeral(inputs: &Inputs<'_>, container: &Container, target: Option<String>) -> Result<ContainerSpec, Refusal> {
    let spec = inputs.pod.spec.as_ref().ok_or_else(|| config_error("", "the pod has no spec".to_owned()))?;
    Ok(ContainerSpec { target, ..one(inputs, spec, container, Role::Ephemeral)? })
}

/// Whether the pod needs the built-in image.
pub fn needs_sample(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    !on_host_root(spec) && containers(spec).any(|c| is_sample(c.image.as_deref().unwrap_or_default()))
}

/// All containers of a pod, init containers first.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether it runs on the machine's own root.
pub fn on_host_root(spec: &PodSpec) -> bool {
    spec.runtime_class_name.as_deref() == Some(HOST_CLASS)
}

/// A pod's quality of service class.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let mut any = false;
    let mut all = true;
    for container in containers(spec) {
        let resources = container.resources.as_ref();
        for what in ["cpu", "memory"] {
            let limit = quantity::of(resources.and_then(|r| r.limits.as_ref()), what).and_then(quantity::millis);
            let request = quantity::of(resources.and_then(|r| r.requests.as_ref()), what).and_then(quantity::millis);
            let (limit, request) = (limit.filter(|v| *v > 0), request.filter(|v| *v > 0));
            any |= limit.is_some() || request.is_some();
            all &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn one(inputs: &Inputs<'_>, spec: &PodSpec, container: &Container, role: Role) -> Result<ContainerSpec, Refusal> {
    let refuse = |message: String| config_error(&container.name, message);
    let environment = env::variables(inputs.pod, container, inputs.fetched).map_err(refuse)?;
    let lookup = |name: &str| environment.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expand = |text: &str| env::expand(text, lookup);
    let (root, argv) = root_and_argv(inputs, spec, container, expand)?;
    let mounts = volume::mounts(container, inputs.volumes, expand).map_err(|e| refuse(e.to_string()))?;
    let security = container.security_context.clone().unwrap_or_default();
    let user = user(inputs.pod, spec, container, &security)?;
    Ok(ContainerSpec {
        name: container.name.clone(),
        role,
        root,
        argv,
        env: environment.clone(),
        cwd: container.working_dir.clone().unwrap_or_default(),
        mounts,
        user,
        capabilities: Capabilities {
            add: security.capabilities.as_ref().and_then(|c| c.add.clone()).unwrap_or_default(),
            drop: security.capabilities.as_ref().and_then(|c| c.drop.clone()).unwrap_or_default(),
        },
        privileged: security.privileged == Some(true),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        read_only_root: security.read_only_root_filesystem == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        target: None,
        limits: limits(container),
        oom_score_adj: Some(oom_score(spec, container)),
        pre_stop: pre_stop(container)?,
        stop_signal: stop_signal(container)?,
        restart_count_base: inputs.restarts.get(&container.name).copied().unwrap_or(0),
    })
}

fn root_and_argv(
    inputs: &Inputs<'_>,
    spec: &PodSpec,
    container: &Container,
    expand: impl Fn(&str) -> String,
) -> Result<(Root, Vec<String>), Refusal> {
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|w| expand(w)).collect::<Vec<_>>();
    let (command, args) = (words(&container.command), words(&container.args));
    let image = container.image.as_deref().unwrap_or_default();
    let (root, entrypoint) = if on_host_root(spec) {
        (Root::Host, Vec::new())
    } else if is_sample(image) {
        let folder: PathBuf = inputs.sample.map(Path::to_path_buf).ok_or_else(|| Refusal {
            container: container.name.clone(),
            reason: "ErrImagePull",
            message: "the built-in image is not laid out yet".to_owned(),
        })?;
        (Root::Sample { image: folder }, vec!["/statefuld".to_owned(), "sample".to_owned()])
    } else {
        return Err(no_image(container, image));
    };
    let mut argv = if command.is_empty() { entrypoint } else { command };
    argv.extend(args);
    if argv.is_empty() {
        return Err(Refusal {
            container: container.name.clone(),
            reason: "CreateContainerError",
            message: "no command specified: a container of runtime class host has no image to take one from".to_owned(),
        });
    }
    Ok((root, argv))
}

fn no_image(container: &Container, image: &str) -> Refusal {
    let (reason, message) = if container.image_pull_policy.as_deref() == Some("Never") {
        ("ErrImageNeverPull", format!("Container image \"{image}\" is not present with pull policy of Never"))
    } else {
        let known = format!("this version has {SAMPLE_IMAGE}, and any name under runtimeClassName: {HOST_CLASS}");
        ("ErrImagePull", format!("failed to pull image \"{image}\": pulling is not supported; {known}"))
    };
    Refusal { container: container.name.clone(), reason, message }
}

fn is_sample(image: &str) -> bool {
    image == SAMPLE_IMAGE || image.strip_prefix(SAMPLE_IMAGE).is_some_and(|tag| tag.starts_with([':', '@']))
}

fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    match spec.restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// What would change the meaning of the pod if it were left out.
fn refuse_unsupported(spec: &PodSpec) -> Result<(), Refusal> {
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
        let lifecycle = container.lifecycle.clone().unwrap_or_default();
        let pre_stop = lifecycle.pre_stop.clone().unwrap_or_default();
        let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        let words = [
            (lifecycle.post_start.is_some(), "postStart"),
            (pre_stop.http_get.is_some() || pre_stop.tcp_socket.is_some(), "preStop by httpGet"),
            (probes.iter().any(|p| p.as_ref().is_some_and(|p| p.grpc.is_some())), "a grpc probe"),
            (container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()), "volumeDevices"),
        ];
        if let Some((_, what)) = words.iter().find(|(asked, _)| *asked) {
            return Err(config_error(&container.name, format!("{what} is not supported by this version of statefuld")));
        }
    }
    Ok(())
}

fn pre_stop(container: &Container) -> Result<Option<Hook>, Refusal> {
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

fn stop_signal(container: &Container) -> Result<i32, Refusal> {
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

fn user(pod: &Pod, spec: &PodSpec, container: &Container, own: &SecurityContext) -> Result<User, Refusal> {
    let shared = spec.security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let uid = id(own.run_as_user.or(shared.run_as_user)).unwrap_or(0);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) && uid == 0 {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "container has runAsNonRoot and image will run as root (pod: \"{name}\", container: {})",
            container.name
        );
        return Err(config_error(&container.name, message));
    }
    let on_host = on_host_root(spec);
    let passwd = if on_host { std::fs::read_to_string("/etc/passwd").unwrap_or_default() } else { String::new() };
    let group = if on_host { std::fs::read_to_string("/etc/group").unwrap_or_default() } else { String::new() };
    let known = account(&passwd, uid);
    let gid = id(own.run_as_group.or(shared.run_as_group)).or(known.as_ref().map(|(_, gid)| *gid)).unwrap_or(0);
    let mut groups: Vec<u32> = shared.supplemental_groups.iter().flatten().filter_map(|g| id(Some(*g))).collect();
    groups.extend(id(shared.fs_group));
    if shared.supplemental_groups_policy.as_deref() != Some("Strict") {
        groups.extend(known.iter().flat_map(|(name, _)| memberships(&group, name)));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups })
}

/// Name and primary group of a user, from the text of a passwd file.
fn account(passwd: &str, uid: u32) -> Option<(String, u32)> {
    passwd.lines().find_map(|line| {
        let mut columns = line.split(':');
        let name = columns.next()?;
        let found: u32 = columns.nth(1)?.parse().ok()?;
        let gid = columns.next()?.parse().ok()?;
        (found == uid).then(|| (name.to_owned(), gid))
    })
}

/// Groups that list a user, from the text of a group file.
fn memberships(group: &str, name: &str) -> Vec<u32> {
    let of_line = |line: &str| {
        let columns: Vec<&str> = line.split(':').collect();
        let listed = columns.get(3)?.split(',').any(|member| member == name);
        columns.get(2)?.parse().ok().filter(|_| listed)
    };
    group.lines().filter_map(of_line).collect()
}

fn limits(container: &Container) -> Limits {
    let resources = container.resources.as_ref();
    let limit = |what| quantity::of(resources.and_then(|r| r.limits.as_ref()), what);
    let request = |what| quantity::of(resources.and_then(|r| r.requests.as_ref()), what);
    let cpu = limit("cpu").and_then(quantity::millis).filter(|m| *m > 0);
    let wanted = request("cpu").and_then(quantity::millis).or(cpu);
    Limits {
        memory_bytes: limit("memory").and_then(quantity::bytes).filter(|b| *b > 0),
        // A period is 100 ms; the kernel takes no quota below 1 ms.
        cpu_quota_us: cpu.map(|m| (m * 100).max(1000)),
        cpu_period_us: None,
        cpu_shares: Some(wanted.map_or(2, |m| (m * 1024 / 1000).max(2))),
        pids: None,
    }
}

/// A pod is limited as a whole where all of its containers are.
fn pod_limits(spec: &PodSpec) -> Limits {
    let all: Vec<Limits> = containers(spec).map(limits).collect();
    let sum = |of: fn(&Limits) -> Option<u64>| all.iter().map(of).try_fold(0u64, |a, v| Some(a.saturating_add(v?)));
    Limits {
        memory_bytes: sum(|l| l.memory_bytes),
        cpu_quota_us: sum(|l| l.cpu_quota_us),
        cpu_period_us: None,
        cpu_shares: sum(|l| l.cpu_shares),
        pids: None,
    }
}

/// Who is killed first when memory runs out, as upstream ranks it.
fn oom_score(spec: &PodSpec, container: &Container) -> i32 {
    match qos_class(spec) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let wanted = quantity::of(requests, "memory").and_then(quantity::bytes).unwrap_or(0);
            let share = u128::from(wanted) * 1000 / u128::from(machine::memory_bytes().max(1));
            1000i32.saturating_sub(i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

fn config_error(container: &str, message: String) -> Refusal {
    Refusal { container: container.to_owned(), reason: "CreateContainerConfigError", message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shim::spec::{Mount, Source};

    fn config() -> Config {
        Config {
            data_dir: "/data".into(),
            node_name: "n".into(),
            bridge: "sfd-x".into(),
            pod_cidr: "10.201.7.0/24".parse().expect("a range"),
            gateway: std::net::Ipv4Addr::new(10, 201, 7, 1),
            cgroup_root: "statefuld-x".into(),
            cluster_domain: "cluster.local".into(),
        }
    }

    fn translate(spec: serde_json::Value) -> Result<ShimSpec, Refusal> {
        let pod = json!({"metadata": {"name": "web-0", "namespace": "prod", "uid": "u"}, "spec": spec});
        let volumes = BTreeMap::from([("data".to_owned(), Ready { path: "/v/data".into(), read_only: false })]);
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        shim_spec(&Inputs {
            pod: &pod,
            config: &config(),
            fetched: &Fetched::default(),
            volumes: &volumes,
            sample: Some(Path::new("/img")),
            epoch: 9,
            incarnation: 1,
            restarts: &BTreeMap::from([("c".to_owned(), 4)]),
        })
    }

    #[test]
    fn a_plain_pod_is_carried_over() {
        let spec = translate(json!({"terminationGracePeriodSeconds": 7, "containers": [{
            "name": "c", "image": "statefuld.local/sample:1", "args": ["--port", "$(PORT)"],
            "env": [{"name": "PORT", "value": "80"}],
            "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
            "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false}}]}))
        .expect("a specification");
        assert_eq!((spec.grace_ms, spec.epoch, spec.hostname.as_str()), (7000, 9, "web-0"));
        assert_eq!(spec.cgroup, "statefuld-x/pod-u");
        let c = &spec.containers[0];
        assert_eq!(c.argv, ["/statefuld", "sample", "--port", "80"]);
        let source = Source::Bind { path: "/v/data".into(), sub: None };
        assert_eq!(c.mounts, [Mount { target: "/data".into(), read_only: true, source }]);
        assert_eq!((c.limits.cpu_quota_us, c.limits.memory_bytes), (Some(50_000), Some(64 << 20)));
        assert_eq!((spec.limits.cpu_quota_us, spec.limits.memory_bytes), (Some(50_000), Some(64 << 20)));
        assert_eq!((c.pre_stop.clone(), c.restart_count_base), (Some(Hook::Sleep { ms: 2000 }), 4));
        assert!(c.no_new_privileges && c.user.uid == 1000);
        assert_eq!(c.oom_score_adj, Some(-997));
    }

    #[test]
    fn host_pods_take_any_image_name_but_need_a_command() {
        let with = json!({"runtimeClassName": "host", "containers": [{"name": "c", "image": "postgres:17", "command": ["true"]}]});
        assert_eq!(translate(with).expect("a specification").containers[0].root, Root::Host);
        let without = translate(json!({"runtimeClassName": "host", "containers": [{"name": "c", "image": "x"}]}));
        assert_eq!(without.expect_err("no command").reason, "CreateContainerError");
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_upstreams_reason() {
        let reason = |spec| translate(spec).expect_err("refused").reason;
        let image = |extra: serde_json::Value| {
            let mut container = json!({"name": "c", "image": "nginx"});
            container.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
            json!({"containers": [container]})
        };
        assert_eq!(reason(image(json!({}))), "ErrImagePull");
        assert_eq!(reason(image(json!({"imagePullPolicy": "Never"}))), "ErrImageNeverPull");
        let sample = json!({"name": "c", "image": SAMPLE_IMAGE, "securityContext": {"runAsNonRoot": true}});
        assert_eq!(reason(json!({"containers": [sample]})), "CreateContainerConfigError");
        assert_eq!(reason(json!({"hostPID": true, "containers": []})), "CreateContainerConfigError");
    }

    #[test]
    fn qos_classes() {
        let class = |resources: serde_json::Value| {
            let spec = json!({"containers": [{"name": "c", "resources": resources}]});
            qos_class(&serde_json::from_value(spec).expect("a pod spec"))
        };
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
    }

    #[test]
    fn users_bring_their_groups_from_the_machine() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:105:113::/var/lib/postgresql:/bin/bash\n";
        let group = "ssl-cert:x:112:postgres,other\npostgres:x:113:\n";
        assert_eq!(account(passwd, 105), Some(("postgres".to_owned(), 113)));
        assert_eq!(account(passwd, 7), None);
        assert_eq!(memberships(group, "postgres"), [112]);
    }

    #[test]
    fn sample_is_matched_whole() {
        assert!(is_sample("statefuld.local/sample") && is_sample("statefuld.local/sample:latest"));
        assert!(!is_sample("statefuld.local/sampler") && !is_sample("x/statefuld.local/sample"));
    }
}
