//! A pod as a whole.

use serde_json::json;

use super::*;
use crate::shim::spec::{Hook, Mount, Propagation, Root, Source};

fn config() -> Config {
    Config {
        data_dir: "/data".into(),
        node_name: "n".into(),
        bridge: "sfd-x".into(),
        pod_cidr: "10.201.7.0/24".parse().expect("a range"),
        gateway: std::net::Ipv4Addr::new(10, 201, 7, 1),
        cgroup_root: "statefuld-x".into(),
        cluster_domain: "cluster.local".into(),
        service_mode: crate::config::ServiceMode::Auto,
        expose_lan: false,
        rules: crate::rules::Rules::default(),
    }
}

pub(super) fn translate(spec: serde_json::Value) -> Result<ShimSpec, Refusal> {
    let pod = json!({"metadata": {"name": "web-0", "namespace": "prod", "uid": "u"}, "spec": spec});
    let volumes =
        BTreeMap::from([("data".to_owned(), Ready { path: "/v/data".into(), read_only: false, layers: Vec::new() })]);
    let pod: Pod = serde_json::from_value(pod).expect("a pod");
    shim_spec(&Inputs {
        pod: &pod,
        config: &config(),
        fetched: &Fetched::default(),
        volumes: &volumes,
        shared_memory: None,
        users: None,
        images: &BTreeMap::new(),
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
    let mount = Mount {
        target: "/data".into(),
        read_only: true,
        recursive_read_only: false,
        propagation: Propagation::None,
        source: Source::Bind { path: "/v/data".into(), sub: None },
    };
    assert_eq!(c.mounts, [mount]);
    assert_eq!((c.limits.cpu_quota_us, c.limits.memory_bytes), (Some(50_000), Some(64 << 20)));
    assert_eq!((spec.limits.cpu_quota_us, spec.limits.memory_bytes), (Some(50_000), Some(64 << 20)));
    assert_eq!((c.pre_stop.clone(), c.restart_count_base), (Some(Hook::Sleep { ms: 2000 }), 4));
    assert!(c.no_new_privileges && c.user.uid == 1000);
    assert_eq!(c.oom_score_adj, Some(-997));
}

#[test]
fn host_pods_take_any_image_name_but_need_a_command() {
    let with =
        json!({"runtimeClassName": "host", "containers": [{"name": "c", "image": "postgres:17", "command": ["true"]}]});
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
    let sample = json!({"name": "c", "image": SAMPLE_IMAGE, "securityContext": {"runAsNonRoot": true}});
    assert_eq!(reason(json!({"containers": [sample]})), "CreateContainerConfigError");
}
