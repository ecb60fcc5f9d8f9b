//! Volumes on a real file system.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;

fn place(dir: &Path) -> Place {
    Place {
        pod_dir: dir.join("pod"),
        local: LocalVolumes::new(dir.join("volumes")),
        epoch: 5,
        nonce: "n1".to_owned(),
        images: BTreeMap::new(),
    }
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "web-0", "uid": "u"}, "spec": spec})).expect("a pod")
}

#[test]
fn empty_dir_is_open_to_all_and_stays_over_a_second_preparation() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pod = pod(json!({"containers": [], "volumes": [{"name": "scratch", "emptyDir": {}}]}));
    let path = place(dir.path()).prepare(&pod, &Fetched::default()).expect("ready")["scratch"].path.clone();
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o777);
    fs::write(path.join("x"), "x").expect("written");
    place(dir.path()).prepare(&pod, &Fetched::default()).expect("ready again");
    assert!(path.join("x").exists());
}

#[test]
fn memory_dir_is_a_mount_and_goes_with_the_pod() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = json!({"medium": "Memory", "sizeLimit": "1Mi"});
    let pod = pod(json!({"containers": [], "volumes": [{"name": "shm", "emptyDir": source}]}));
    let place = place(dir.path());
    let path = place.prepare(&pod, &Fetched::default()).expect("ready")["shm"].path.clone();
    assert_eq!(mounts_below(&place.pod_dir).expect("read"), [path.canonicalize().expect("there")]);
    assert!(fs::write(path.join("x"), vec![0; 2 << 20]).is_err(), "the size limit holds");
    remove_pod_dir(&place.pod_dir).expect("removed");
    assert!(mounts_below(&place.pod_dir).expect("read").is_empty() && !place.pod_dir.exists());
    remove_pod_dir(&place.pod_dir).expect("twice is fine");
}

#[test]
fn claim_gives_its_folder_to_the_pods_group() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = place(dir.path());
    let claim = json!({"metadata": {"name": "data-web-0", "uid": "c"}});
    let local = json!({"path": dir.path().join("volumes/default/web-0-data")});
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"local": local, "claimRef": {"uid": "c"}}});
    let mut fetched = Fetched::default();
    let parsed =
        (serde_json::from_value(claim).expect("a claim"), Some(serde_json::from_value(volume).expect("a volume")));
    fetched.claims.insert("data-web-0".into(), parsed);
    let spec = json!({"containers": [], "securityContext": {"fsGroup": 4711},
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}]});
    let ready = place.prepare(&pod(spec.clone()), &fetched).expect("ready");
    let meta = fs::metadata(&ready["data"].path).expect("there");
    assert_eq!((meta.gid(), meta.mode() & 0o2070), (4711, 0o2070));
    let older = Place { epoch: 4, ..place };
    let refused = older.prepare(&pod(spec), &fetched).expect_err("an older epoch");
    assert!(matches!(refused.error, Error::OldEpoch { .. }), "{refused}");
}

#[test]
fn volume_of_another_claim_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let claim = serde_json::from_value(json!({"metadata": {"name": "c", "uid": "new"}})).expect("a claim");
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"local": {"path": "/x"}, "claimRef": {"uid": "old"}}});
    let mut fetched = Fetched::default();
    fetched.claims.insert("c".into(), (claim, Some(serde_json::from_value(volume).expect("a volume"))));
    let spec = json!({"containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]});
    let refused = place(dir.path()).prepare(&pod(spec), &fetched).expect_err("not ours");
    assert!(refused.to_string().contains("another claim"), "{refused}");
}

#[test]
fn host_path_types_are_checked_and_made() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |path: &Path, kind: &str| {
        check_host_path(&HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.to_owned()) })
    };
    let missing = dir.path().join("missing");
    assert!(check(&missing, "Directory").is_err());
    check(&missing, "DirectoryOrCreate").expect("made");
    check(&missing, "Directory").expect("there now");
    assert!(check(&missing, "File").is_err());
    check(Path::new("/dev/null"), "CharDevice").expect("it is");
    assert!(check(Path::new("/tmp/../etc"), "").is_err());
}

#[test]
fn sub_path_is_made_and_links_cannot_lead_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let volume = dir.path().join("volume");
    fs::create_dir(&volume).expect("folder");
    assert_eq!(subpath::make(&volume, "a//b/").expect("made"), Path::new("a/b"));
    assert!(volume.join("a/b").is_dir());
    assert_eq!(subpath::make(&volume, "./").expect("the volume itself"), Path::new("."));
    symlink("../outside", volume.join("out")).expect("link");
    symlink("a", volume.join("in")).expect("link");
    subpath::make(&volume, "in/c").expect("inside");
    assert!(volume.join("a/c").is_dir());
    // To the volume, that link means a place of its own.
    let _ = subpath::make(&volume, "out/x");
    assert!(!dir.path().join("outside").exists());
    assert!(matches!(subpath::make(&volume, "../x"), Err(Error::Escape { .. })));
    assert!(matches!(subpath::make(&volume, "/etc"), Err(Error::Escape { .. })));
}

#[test]
fn mounts_go_outer_first() {
    let ready = BTreeMap::from([("v".to_owned(), Ready { path: "/x".into(), read_only: false, layers: Vec::new() })]);
    let mount = |path: &str| json!({"name": "v", "mountPath": path});
    let container = json!({"name": "c", "volumeMounts": [mount("/var/lib/db/wal"), mount("/var/lib/db")]});
    let container: Container = serde_json::from_value(container).expect("a container");
    let targets: Vec<_> =
        mounts(&container, &ready, str::to_owned).expect("mounts").into_iter().map(|m| m.target).collect();
    assert_eq!(targets, [Path::new("/var/lib/db"), Path::new("/var/lib/db/wal")]);
}

#[test]
fn mount_points_are_read_as_the_kernel_writes_them() {
    assert_eq!(unescape(b"/a\\040b\\043\\134040\\x"), Path::new("/a b#\\040\\x"));
}

#[test]
fn claim_that_is_being_deleted_stays_with_its_pod_and_is_given_to_no_other() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = place(dir.path());
    let fetched = |deleted: Option<&str>, kind: &str, path: &Path| {
        let claim = json!({"metadata": {"name": "c", "uid": "c", "deletionTimestamp": deleted}});
        let volume = json!({"metadata": {"name": "pv"}, "spec": {kind: {"path": path}, "claimRef": {"uid": "c"}}});
        let claim = serde_json::from_value(claim).expect("a claim");
        let volume = serde_json::from_value(volume).expect("a volume");
        Fetched { claims: BTreeMap::from([("c".to_owned(), (claim, Some(volume)))]), ..Fetched::default() }
    };
    let spec = json!({"containers": [], "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]});
    let (local, host) = (dir.path().join("volumes/prod/a"), dir.path().join("host"));
    let deleted = Some("2026-01-01T00:00:00Z");
    for (kind, path) in [("local", &local), ("hostPath", &host)] {
        let refused = place.prepare(&pod(spec.clone()), &fetched(deleted, kind, path)).expect_err("too late");
        assert!(refused.to_string().contains("is being deleted"), "{refused}");
        assert!(!path.exists());
    }
    place.prepare(&pod(spec.clone()), &fetched(None, "local", &local)).expect("ready");
    place.prepare(&pod(spec.clone()), &fetched(deleted, "local", &local)).expect("it has it");
    let mut other = pod(spec);
    other.metadata.uid = Some("v".to_owned());
    place.prepare(&other, &fetched(deleted, "local", &local)).expect_err("another pod");
}

#[test]
fn sub_path_goes_to_the_shim_unresolved() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let ready =
        BTreeMap::from([("v".to_owned(), Ready { path: dir.path().into(), read_only: false, layers: Vec::new() })]);
    let container = json!({"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/d", "subPath": "a"}]});
    let container: Container = serde_json::from_value(container).expect("a container");
    let mounts = mounts(&container, &ready, str::to_owned).expect("mounts");
    assert_eq!(mounts[0].source, Source::Bind { path: dir.path().into(), sub: Some("a".into()) });
}

#[test]
fn an_ephemeral_volume_is_the_pods_own_claim_and_no_other() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = place(dir.path());
    let local = json!({"path": dir.path().join("volumes/default/web-0-scratch")});
    let pod = pod(json!({"containers": [], "volumes": [{"name": "scratch", "ephemeral": {}}]}));
    let prepare = |owner: &str| {
        let owners = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": owner, "controller": true}]);
        let claim = json!({"metadata": {"name": "web-0-scratch", "uid": "c", "ownerReferences": owners}});
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"local": local, "claimRef": {"uid": "c"}}});
        let parsed =
            (serde_json::from_value(claim).expect("a claim"), Some(serde_json::from_value(volume).expect("a volume")));
        let mut fetched = Fetched::default();
        fetched.claims.insert("web-0-scratch".into(), parsed);
        place.prepare(&pod, &fetched)
    };
    assert!(prepare("u").expect("ready")["scratch"].path.ends_with("web-0-scratch"));
    let refused = prepare("other").expect_err("another pod's").to_string();
    assert!(refused.ends_with("was not created for pod /web-0 (pod is not owner)"), "{refused}");
}

#[test]
fn what_is_not_supported_is_refused_by_its_fields_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let refused = |volume: serde_json::Value| {
        let mut whole = json!({"name": "v"});
        whole.as_object_mut().expect("a map").extend(volume.as_object().expect("a map").clone());
        let pod = pod(json!({"containers": [], "volumes": [whole]}));
        place(dir.path()).prepare(&pod, &Fetched::default()).expect_err("refused").error.to_string()
    };
    for (volume, field) in [
        (json!({"nfs": {"server": "s", "path": "/"}}), "nfs"),
        (json!({"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}}), "iscsi"),
        (json!({"csi": {"driver": "d"}}), "csi"),
        (json!({"emptyDir": {"medium": "HugePages-2Mi"}}), "emptyDir.medium HugePages"),
        (
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}),
            "projected.sources.clusterTrustBundle",
        ),
    ] {
        assert_eq!(refused(volume), format!("{field} is not supported by this version of statefuld"));
    }
}

#[test]
fn mounts_carry_what_was_asked_of_them() {
    let mount = |value: serde_json::Value, privileged: bool| {
        let mut wanted = json!({"name": "data", "mountPath": "/data"});
        wanted.as_object_mut().expect("a map").extend(value.as_object().expect("a map").clone());
        let container = json!({"name": "c", "volumeMounts": [wanted], "securityContext": {"privileged": privileged}});
        let ready =
            BTreeMap::from([("data".to_owned(), Ready { path: "/v".into(), read_only: false, layers: Vec::new() })]);
        let container = serde_json::from_value(container).expect("a container");
        mounts(&container, &ready, str::to_owned).map(|mut m| m.remove(0)).map_err(|e| e.to_string())
    };
    let plain = mount(json!({"readOnly": true}), false).expect("a mount");
    assert_eq!((plain.read_only, plain.recursive_read_only, plain.propagation), (true, false, Propagation::None));
    assert!(
        mount(json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), false).expect("a mount").recursive_read_only
    );
    let seen = mount(json!({"mountPropagation": "HostToContainer"}), false).expect("a mount");
    assert_eq!(seen.propagation, Propagation::HostToContainer);
    assert!(mount(json!({"mountPropagation": "Bidirectional"}), true).is_ok());
    assert!(mount(json!({"mountPropagation": "Bidirectional"}), false).expect_err("refused").contains("privileged"));
    assert!(mount(json!({"bindMountOptions": ["noexec"]}), false).expect_err("refused").contains("bindMountOptions"));
}
