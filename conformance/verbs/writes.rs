//! Writes: dry runs, field validation, generated names, versions.

use serde_json::{Value, json};

use super::{assert_fails, config, pod, secret, set, text, version};
use crate::cluster::{Answer, Ask, Case};

const MERGE: Option<&str> = Some("application/merge-patch+json");
const APPLY: Option<&str> = Some("application/apply-patch+yaml");

pub(super) async fn a_dry_run_writes_nothing(case: Case) {
    let (maps, sets, pods) = (case.core("configmaps"), case.apps("statefulsets"), case.core("pods"));
    let (map, set_path) = (format!("{maps}/a"), format!("{sets}/s"));
    case.create(&maps, config("a")).await;
    case.create(&sets, set("s")).await;
    case.create(&pods, pod("p")).await;
    let objects = [map.clone(), set_path.clone(), format!("{pods}/p")];
    let mut before = Vec::new();
    for path in &objects {
        before.push(case.get(path).await.body);
    }
    let label = json!({"metadata": {"labels": {"dry": "run"}}});
    let mut changed = before[0].clone();
    changed["data"]["k"] = "w".into();
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}, "data": {"k": "v"}});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let target = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let asks = [
        (201, Ask::new("POST", &maps).json(&config("n"))),
        (200, Ask::new("PUT", &map).json(&changed)),
        (200, Ask::new("PATCH", &map).header("content-type", MERGE).json(&label)),
        (
            201,
            Ask::new("PATCH", &format!("{maps}/n"))
                .query("fieldManager", "m")
                .header("content-type", APPLY)
                .json(&applied),
        ),
        (
            200,
            Ask::new("PATCH", &format!("{set_path}/status"))
                .header("content-type", MERGE)
                .json(&json!({"status": {"replicas": 1}})),
        ),
        (
            200,
            Ask::new("PATCH", &format!("{set_path}/scale"))
                .header("content-type", MERGE)
                .json(&json!({"spec": {"replicas": 7}})),
        ),
        (201, Ask::new("POST", &format!("{pods}/p/eviction")).json(&eviction)),
        (201, Ask::new("POST", &format!("{pods}/p/binding")).json(&target)),
        (200, Ask::new("DELETE", &map)),
        (200, Ask::new("DELETE", &maps)),
    ];
    for (code, ask) in asks {
        let answer = case.ask(ask.clone().query("dryRun", "All")).await;
        assert_eq!(answer.code, code, "{ask:?}: {}", answer.body);
    }
    for (path, before) in objects.iter().zip(&before) {
        assert_eq!(&case.get(path).await.body, before);
    }
    assert_eq!(case.get(&format!("{maps}/n")).await.code, 404);
    // What would be refused is refused.
    let taken = case.ask(Ask::new("POST", &maps).query("dryRun", "All").json(&config("a"))).await;
    assert_fails(&taken, 409, "AlreadyExists", "configmaps \"a\" already exists");
}

pub(super) async fn an_unknown_dry_run_is_refused(case: Case) {
    let maps = case.core("configmaps");
    let map = case.create(&maps, config("a")).await;
    let path = format!("{maps}/a");
    let asks = [
        ("CreateOptions", Ask::new("POST", &maps).json(&config("b"))),
        ("UpdateOptions", Ask::new("PUT", &path).json(&map)),
        ("PatchOptions", Ask::new("PATCH", &path).header("content-type", MERGE).json(&json!({}))),
        ("DeleteOptions", Ask::new("DELETE", &path)),
    ];
    for (options, ask) in asks {
        let says = format!("{options}.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: ");
        assert_fails(&case.ask(ask.query("dryRun", "Some")).await, 422, "Invalid", &says);
    }
}

pub(super) async fn unknown_fields_are_refused_warned_of_or_ignored(case: Case) {
    let maps = case.core("configmaps");
    let document = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"k":"v"}},"data":{{"k":"w"}},"more":1}}"#
        )
    };
    let ask = |name: &str, mode: &str| {
        let ask = Ask::new("POST", &maps).raw(document(name).into_bytes());
        if mode.is_empty() { ask } else { ask.query("fieldValidation", mode) }
    };
    let refused = case.ask(ask("a", "Strict")).await;
    assert_fails(&refused, 400, "BadRequest", "strict decoding error: ");
    assert!(text(&refused.body, "/message").contains("unknown field \"more\""), "{}", refused.body);
    assert!(text(&refused.body, "/message").contains("duplicate field \"data\""), "{}", refused.body);
    for (name, mode) in [("b", "Warn"), ("c", "")] {
        let warned = case.ask(ask(name, mode)).await;
        let warning = warned.headers.get("warning").cloned().unwrap_or_default();
        assert_eq!(warned.code, 201, "{}", warned.body);
        assert!(
            warning.contains("unknown field \\\"more\\\"") && warning.contains("duplicate field \\\"data\\\""),
            "{warning}"
        );
        assert_eq!((warned.body.get("more"), text(&warned.body, "/data/k")), (None, "w"), "{}", warned.body);
    }
    let ignored = case.ask(ask("d", "Ignore")).await;
    assert_eq!((ignored.code, ignored.headers.get("warning")), (201, None), "{}", ignored.body);
    let unknown = case.ask(ask("e", "Loose")).await;
    assert_fails(&unknown, 422, "Invalid", "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: ");
    // Patches too.
    let patch = Ask::new("PATCH", &format!("{maps}/d")).header("content-type", MERGE).json(&json!({"more": 1}));
    assert_fails(
        &case.ask(patch.clone().query("fieldValidation", "Strict")).await,
        422,
        "Invalid",
        "strict decoding error: unknown field \"more\"",
    );
    let warned = case.ask(patch).await;
    assert_eq!(warned.headers.get("warning").map(String::as_str), Some(r#"299 - "unknown field \"more\"""#));
}

pub(super) async fn names_are_generated(case: Case) {
    let path = case.core("secrets");
    let generated = |prefix: &str| {
        let mut object = secret("");
        object["metadata"] = json!({"generateName": prefix});
        object
    };
    let one = case.create(&path, generated("job-")).await;
    let two = case.create(&path, generated("job-")).await;
    for object in [&one, &two] {
        let name = text(object, "/metadata/name");
        assert!(name.starts_with("job-") && name.len() == "job-".len() + 5, "{name}");
    }
    assert_ne!(text(&one, "/metadata/name"), text(&two, "/metadata/name"));
    let long = "x".repeat(63);
    let cut = case.create(&path, generated(&long)).await;
    assert!(text(&cut, "/metadata/name").starts_with(&long[..58]) && text(&cut, "/metadata/name").len() == 63);
    let mut both = generated("job-");
    both["metadata"]["name"] = "own".into();
    assert_eq!(text(&case.create(&path, both).await, "/metadata/name"), "own");
    let none = case.ask(Ask::new("POST", &path).json(&generated(""))).await;
    assert_fails(&none, 422, "Invalid", "metadata.name: Required value: name or generateName is required");
}

pub(super) async fn an_update_from_an_older_version_conflicts(case: Case) {
    let maps = case.core("configmaps");
    let first = case.create(&maps, config("a")).await;
    let path = format!("{maps}/a");
    case.merge(&path, json!({"data": {"k": "w"}})).await;
    let changed = "the object has been modified; please apply your changes to the latest version and try again";
    assert_fails(&case.ask(Ask::new("PUT", &path).json(&first)).await, 409, "Conflict", changed);
    let patch =
        |metadata: Value| Ask::new("PATCH", &path).header("content-type", MERGE).json(&json!({"metadata": metadata}));
    let old = patch(json!({"resourceVersion": version(&first)}));
    assert_fails(&case.ask(old).await, 409, "Conflict", changed);
    let other = case.ask(patch(json!({"uid": "00000000-1111-2222-3333-444444444444"}))).await;
    // A patch makes no precondition of the uid; it is a field that may not change.
    let says = "metadata.uid: Invalid value: \"00000000-1111-2222-3333-444444444444\": field is immutable";
    assert_fails(&other, 422, "Invalid", says);
    // Without a version the newest one is meant.
    let mut any = first.clone();
    any["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let Answer { code, body, .. } = case.ask(Ask::new("PUT", &path).json(&any)).await;
    assert_eq!((code, text(&body, "/data/k")), (200, "v"), "{body}");
    // The same again is no write.
    let again = case.ask(Ask::new("PUT", &path).json(&any)).await;
    assert_eq!(version(&again.body), version(&body));
    let mut new = config("b");
    new["metadata"]["resourceVersion"] = "1".into();
    let says = "resourceVersion should not be set on objects to be created";
    assert_fails(&case.ask(Ask::new("POST", &maps).json(&new)).await, 400, "BadRequest", says);
}
