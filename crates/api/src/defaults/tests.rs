//! Tests of defaults, over whole objects.

use serde_json::{Value, json};

use super::{apply, plan, rules};
use crate::decode::{FieldValidation, check_value};
use crate::resource::{Registry, Resource};
use crate::schema::Schema;

/// A built-in resource.
fn resource(group: &str, plural: &str) -> Resource {
    (*Registry::builtin().find(group, "v1", plural).expect("a built-in kind")).clone()
}

/// The object as it is stored: decoded and completed, and the same when completed again.
#[track_caller]
fn completed(group: &str, plural: &str, body: Value) -> Value {
    let resource = resource(group, plural);
    let mut object = check_value(&resource, body, FieldValidation::Strict).expect("decodes").object;
    apply(&resource, &mut object);
    let mut again = check_value(&resource, object.clone(), FieldValidation::Strict).expect("decodes again").object;
    apply(&resource, &mut again);
    assert_eq!(again, object);
    object
}

#[test]
fn every_rule_is_about_a_type() {
    for (name, _) in rules() {
        assert!(Schema::builtin().find(name).is_some(), "{name}");
    }
    assert!(!plan().reaches[Schema::builtin().find("core/v1.ConfigMap").unwrap().0 as usize]);
}

#[test]
fn volumes_without_a_source_are_empty_directories() {
    let pod = completed(
        "",
        "pods",
        json!({"spec": {"volumes": [{"name": "v"}, {"name": "p", "persistentVolumeClaim": {"claimName": "c"}}]}}),
    );
    assert_eq!(pod["spec"]["volumes"][0], json!({"name": "v", "emptyDir": {}}));
    assert!(pod["spec"]["volumes"][1].get("emptyDir").is_none());
}

#[test]
fn pods_request_what_they_are_limited_to_and_templates_do_not() {
    let spec = json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "100u", "memory": "1Gi"}, "requests": {"cpu": "0"}}}]});
    let pod = completed("", "pods", json!({"spec": spec}));
    assert_eq!(
        pod["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "1m", "memory": "1Gi"}, "requests": {"cpu": "0", "memory": "1Gi"}})
    );
    let set = completed("apps", "statefulsets", json!({"spec": {"template": {"spec": spec}}}));
    assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "0"}));
    assert!(set["spec"]["template"]["spec"].get("enableServiceLinks").is_none());
}

#[test]
fn pod_level_limits_request_what_the_containers_do() {
    let pod = completed(
        "",
        "pods",
        json!({"spec": {"resources": {"limits": {"cpu": "4", "memory": "1Gi"}},
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b", "resources": {"requests": {"cpu": "500m"}}}]}}),
    );
    assert_eq!(pod["spec"]["resources"]["requests"], json!({"cpu": "1500m", "memory": "1Gi"}));
}

#[test]
fn the_service_account_has_both_names() {
    for field in ["serviceAccount", "serviceAccountName"] {
        let pod = completed("", "pods", json!({"spec": {field: "robot"}}));
        assert_eq!(
            (&pod["spec"]["serviceAccount"], &pod["spec"]["serviceAccountName"]),
            (&json!("robot"), &json!("robot"))
        );
    }
}

#[test]
fn services_differ_by_type() {
    let balancer = completed(
        "",
        "services",
        json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 81, "targetPort": "web"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"hostname": "x"}]}}}),
    );
    assert_eq!(
        balancer["spec"],
        json!({"type": "LoadBalancer", "sessionAffinity": "None", "allocateLoadBalancerNodePorts": true,
        "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 81, "targetPort": "web", "protocol": "TCP"}]})
    );
    assert_eq!(
        balancer["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "10.0.0.1", "ipMode": "VIP"}, {"hostname": "x"}])
    );
    let sticky = completed("", "services", json!({"spec": {"sessionAffinity": "ClientIP"}}));
    assert_eq!(sticky["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
}

#[test]
fn limits_of_a_range_fill_each_other_in() {
    let range = completed(
        "",
        "limitranges",
        json!({"spec": {"limits": [
        {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}, {"type": "Pod", "max": {"cpu": "2"}}]}}),
    );
    assert_eq!(
        range["spec"]["limits"],
        json!([
        {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}},
        {"type": "Pod", "max": {"cpu": "2"}}])
    );
}

#[test]
fn endpoint_slices_name_protocol_and_port() {
    let slice = completed(
        "discovery.k8s.io",
        "endpointslices",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
    );
    assert_eq!(slice["ports"], json!([{"name": "", "port": 80, "protocol": "TCP"}]));
    assert_eq!(slice["endpoints"], json!([{"addresses": ["10.0.0.1"], "conditions": {}}]));
}

#[test]
fn probes_and_hooks_are_completed_inside_templates() {
    let set = completed(
        "apps",
        "statefulsets",
        json!({"spec": {"template": {"spec": {"containers": [{"name": "a",
        "livenessProbe": {"grpc": {"port": 1}, "periodSeconds": 0}, "ports": [{"containerPort": 80}]}]}}}}),
    );
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["livenessProbe"],
        json!({"grpc": {"port": 1, "service": ""}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP"}]));
}
