//! Deployments, replica sets, jobs and cron jobs: what is added to them, refused of them, and shown.

use std::sync::Arc;

use serde_json::{Value, json};
use statefuld_api::resource::{Registry, Resource};
use statefuld_api::table::{self, IncludeObject};
use statefuld_api::{defaults, strategy, validate};

fn resource(group: &str, plural: &str) -> Arc<Resource> {
    Registry::builtin().find(group, "v1", plural).expect("is served")
}

/// An object as it would be stored, and what is wrong with it.
fn made(group: &str, plural: &str, spec: Value) -> (Value, Vec<String>) {
    let resource = resource(group, plural);
    let mut object = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u-1"}, "spec": spec});
    defaults::apply(&resource, &mut object);
    strategy::prepare_create(&resource, &mut object);
    let wrong = validate::create(&resource, &object).iter().map(ToString::to_string).collect();
    (object, wrong)
}

/// What is wrong with a change of one field, and what becomes of the generation.
fn changed(group: &str, plural: &str, old: &Value, pointer: &str, value: Value) -> (Vec<String>, Value) {
    let resource = resource(group, plural);
    let mut new = old.clone();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    new.pointer_mut(parent).expect("is there")[field] = value;
    strategy::prepare_update(&resource, &mut new, old);
    let wrong = validate::update(&resource, &new, old).iter().map(ToString::to_string).collect();
    (wrong, new["metadata"]["generation"].clone())
}

fn template(restart: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"restartPolicy": restart,
        "containers": [{"name": "main", "image": "i:1"}]}})
}

fn deployment() -> Value {
    json!({"selector": {"matchLabels": {"app": "web"}}, "template": template("Always")})
}

fn job() -> Value {
    json!({"template": template("Never")})
}

#[test]
fn a_deployment_is_completed_as_upstream_completes_it() {
    let (object, wrong) = made("apps", "deployments", deployment());
    assert_eq!(wrong, [""; 0]);
    let spec = &object["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!((&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]), (&json!(10), &json!(600)));
    assert_eq!(object["metadata"]["generation"], 1);
}

#[test]
fn a_deployment_is_refused_with_upstreams_paths_and_sentences() {
    let wrong = |change: fn(&mut Value)| {
        let mut spec = deployment();
        change(&mut spec);
        made("apps", "deployments", spec).1
    };
    assert_eq!(
        wrong(|spec| spec["template"]["metadata"]["labels"] = json!({"app": "other"})),
        [
            "spec.template.metadata.labels: Invalid value: {\"app\":\"other\"}: `selector` does not match template `labels`"
        ]
    );
    assert_eq!(wrong(|spec| spec["template"]["spec"]["restartPolicy"] = "Never".into()).len(), 1);
    assert_eq!(
        wrong(|spec| spec["strategy"] = json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}})),
        ["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"]
    );
    assert_eq!(
        wrong(|spec| spec["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})),
        ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"]
    );
    assert_eq!(
        wrong(|spec| spec["minReadySeconds"] = 600.into()),
        ["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"]
    );
}

#[test]
fn generations_count_specs_and_of_deployments_annotations_too() {
    let (old, _) = made("apps", "deployments", deployment());
    assert_eq!(changed("apps", "deployments", &old, "/spec/replicas", json!(3)), (vec![], json!(2)));
    assert_eq!(changed("apps", "deployments", &old, "/metadata/annotations", json!({"a": "b"})), (vec![], json!(2)));
    assert_eq!(changed("apps", "deployments", &old, "/metadata/labels", json!({"a": "b"})), (vec![], json!(1)));
    let (set, _) = made("apps", "replicasets", deployment());
    assert_eq!(changed("apps", "replicasets", &set, "/metadata/annotations", json!({"a": "b"})), (vec![], json!(1)));
    for plural in ["deployments", "replicasets"] {
        let selector = json!({"matchLabels": {"app": "web", "b": "c"}});
        let (wrong, _) = changed("apps", plural, &old, "/spec/selector", selector);
        assert!(wrong.last().is_some_and(|w| w.ends_with("field is immutable")), "{wrong:?}");
    }
}

#[test]
fn a_job_gets_a_selector_that_takes_its_pods_alone() {
    let (object, wrong) = made("batch", "jobs", job());
    assert_eq!(wrong, [""; 0]);
    let spec = &object["spec"];
    assert_eq!(spec["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}));
    let labels = json!({"app": "web", "job-name": "web", "batch.kubernetes.io/job-name": "web",
        "controller-uid": "u-1", "batch.kubernetes.io/controller-uid": "u-1"});
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    assert_eq!(object["metadata"]["labels"], json!({"app": "web"}));
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
        ("manualSelector", json!(false)),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    let (queue, _) = made("batch", "jobs", json!({"parallelism": 2, "template": template("Never")}));
    assert_eq!(queue["spec"]["completions"], Value::Null);
}

#[test]
fn a_job_is_refused_with_upstreams_paths_and_sentences() {
    let wrong = |change: fn(&mut Value)| {
        let mut spec = job();
        change(&mut spec);
        made("batch", "jobs", spec).1
    };
    assert_eq!(
        wrong(|spec| spec["template"]["spec"]["restartPolicy"] = "Always".into()),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    assert_eq!(
        wrong(|spec| (spec["completionMode"], spec["parallelism"]) = ("Indexed".into(), 1.into())),
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
    let labels = wrong(|spec| spec["template"]["metadata"]["labels"]["job-name"] = "other".into());
    assert!(labels[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value"), "{labels:?}");
    assert!(labels[0].ends_with("must be 'web'"), "{labels:?}");
    assert_eq!(
        wrong(|spec| spec["backoffLimit"] = (-1).into()),
        ["spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"]
    );
}

#[test]
fn what_no_controller_here_carries_out_is_refused_by_its_name() {
    for (field, value) in [
        ("podFailurePolicy", json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "X"}]}]})),
        ("successPolicy", json!({"rules": [{"succeededCount": 1}]})),
        ("backoffLimitPerIndex", json!(1)),
        ("maxFailedIndexes", json!(1)),
    ] {
        let mut spec = job();
        (spec["completionMode"], spec["completions"]) = ("Indexed".into(), 1.into());
        spec[field] = value;
        let (_, wrong) = made("batch", "jobs", spec);
        assert!(wrong[0].starts_with(&format!("spec.{field}: Forbidden: ")), "{field}: {wrong:?}");
        assert!(wrong[0].contains("not carried out here; leave it out"), "{field}: {wrong:?}");
    }
}

#[test]
fn of_a_job_only_its_pace_may_change() {
    let (old, _) = made("batch", "jobs", job());
    let change = |pointer: &str, value: Value| changed("batch", "jobs", &old, pointer, value).0;
    for (pointer, value) in [
        ("/spec/parallelism", json!(3)),
        ("/spec/suspend", json!(true)),
        ("/spec/backoffLimit", json!(1)),
        ("/spec/ttlSecondsAfterFinished", json!(1)),
    ] {
        assert_eq!(change(pointer, value), [""; 0], "{pointer}");
    }
    assert_eq!(change("/spec/completions", json!(3)), ["spec.completions: Invalid value: 3: field is immutable"]);
    let template = change("/spec/template/spec/containers/0/image", json!("i:2"));
    assert!(template.len() == 1 && template[0].starts_with("spec.template: Invalid value"), "{template:?}");
    assert!(template[0].ends_with("field is immutable"), "{template:?}");
    let mut waiting = old.clone();
    waiting["spec"]["suspend"] = true.into();
    let selector = json!({"disk": "fast"});
    assert_eq!(changed("batch", "jobs", &waiting, "/spec/template/spec/nodeSelector", selector).0, [""; 0]);
}

#[test]
fn an_indexed_job_grows_in_tandem() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "template": template("Never")});
    let (old, wrong) = made("batch", "jobs", spec);
    assert_eq!(wrong, [""; 0]);
    assert_eq!(
        changed("batch", "jobs", &old, "/spec/completions", json!(3)).0,
        ["spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"]
    );
    let mut both = old.clone();
    both["spec"]["parallelism"] = 3.into();
    let (jobs, mut new) = (resource("batch", "jobs"), both);
    new["spec"]["completions"] = 3.into();
    assert_eq!(validate::update(&jobs, &new, &old), []);
}

#[test]
fn cron_jobs_are_completed_and_checked() {
    let spec = |schedule: &str| json!({"schedule": schedule, "jobTemplate": {"spec": job()}});
    let (object, wrong) = made("batch", "cronjobs", spec("30 2 * * mon-fri"));
    assert_eq!(wrong, [""; 0]);
    let completed = &object["spec"];
    assert_eq!((&completed["concurrencyPolicy"], &completed["suspend"]), (&json!("Allow"), &json!(false)));
    assert_eq!(completed["successfulJobsHistoryLimit"], 3);
    assert_eq!(completed["failedJobsHistoryLimit"], 1);
    assert_eq!(completed["jobTemplate"]["spec"]["completions"], Value::Null, "a template is completed when it is used");
    let wrong = |change: fn(&mut Value)| {
        let mut spec = spec("@daily");
        change(&mut spec);
        made("batch", "cronjobs", spec).1
    };
    assert_eq!(
        wrong(|spec| spec["schedule"] = "* * * *".into()),
        ["spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]"]
    );
    assert_eq!(
        wrong(|spec| spec["schedule"] = "TZ=UTC 0 0 * * *".into()),
        [
            "spec.schedule: Invalid value: \"TZ=UTC 0 0 * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        ]
    );
    assert_eq!(
        wrong(|spec| spec["timeZone"] = "Mars/Olympus".into()),
        ["spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus"]
    );
    assert_eq!(wrong(|spec| spec["timeZone"] = "Europe/Zurich".into()), [""; 0]);
    assert_eq!(
        wrong(|spec| spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = "Always".into()),
        ["spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
}

#[test]
fn rows_show_what_kubectl_users_look_for() {
    let cells = |group: &str, plural: &str, item: Value| {
        let now = "2024-01-01T01:00:00Z".parse().expect("a time");
        let table = table::render(&resource(group, plural), &[&item], now, IncludeObject::None);
        table["rows"][0]["cells"].clone()
    };
    let metadata = json!({"name": "web", "creationTimestamp": "2024-01-01T00:55:00Z"});
    let mut spec = deployment();
    spec["replicas"] = 3.into();
    let status = json!({"replicas": 3, "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1});
    let item = json!({"metadata": metadata, "spec": spec, "status": status});
    assert_eq!(cells("apps", "deployments", item.clone()), json!(["web", "2/3", 3, 1, "5m", "main", "i:1", "app=web"]));
    assert_eq!(cells("apps", "replicasets", item), json!(["web", 3, 3, 2, "5m", "main", "i:1", "app=web"]));
    let mut spec = job();
    spec["completions"] = 2.into();
    let status = json!({"startTime": "2024-01-01T00:56:00Z", "completionTime": "2024-01-01T00:56:30Z", "succeeded": 2,
        "conditions": [{"type": "Complete", "status": "True"}]});
    let item = json!({"metadata": metadata, "spec": spec, "status": status});
    assert_eq!(cells("batch", "jobs", item), json!(["web", "Complete", "2/2", "30s", "5m", "main", "i:1", "<none>"]));
    let spec = json!({"schedule": "@daily", "suspend": false, "jobTemplate": {"spec": job()}});
    let item = json!({"metadata": metadata, "spec": spec, "status": {"lastScheduleTime": "2024-01-01T00:00:00Z"}});
    assert_eq!(
        cells("batch", "cronjobs", item),
        json!(["web", "@daily", "<none>", "False", 0, "60m", "5m", "main", "i:1", "<none>"])
    );
}
