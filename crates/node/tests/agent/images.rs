//! Pods that run from images: from the store, by policy, until they are gone.

use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use image::import::import;
use image::store::gc::{Disk, Thresholds};
use image::{Limits, Reference, Store};
use imagetest::{Built, Fault, Image, Layer, Options, Registry};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Node, PodStatus, Secret};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use statefuld_node::agent::images::gc;
use statefuld_node::shim::state::PodState;

use crate::harness::{Cluster, end_program, until};

/// A shell that sleeps, and says so.
fn shell() -> Layer {
    ["/bin/sh", "/bin/sleep"].iter().fold(Layer::new().folder("tmp", 0o1777), |layer, name| layer.program(name))
}

/// An image that runs by itself.
fn sleeper() -> Image {
    let passwd = Layer::new().file("etc/passwd", 0o644, "app:x:1234:2345::/home/app:/bin/sh\n");
    Image::new([shell(), passwd])
        .entrypoint(["/bin/sh", "-c"])
        .command(["trap 'exit 0' TERM; while :; do sleep 0.05; done"])
        .user("app")
        .env("GREETING", "hello")
}

/// Imports an image as `statefuld image import` does, while the agent runs.
fn take(cluster: &Cluster, image: &Built, name: &str) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    let archive: PathBuf = folder.path().join("image.tar");
    image.write_archive(&archive, name);
    let store = Store::open(&cluster.config.images_dir(), Ambient::system()).expect("a store");
    import(&store, &archive, None, Limits::default(), &|_| {}).expect("imported");
    (folder, store)
}

fn pod(image: &str, policy: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 5, "containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]})
}

fn waiting(status: &PodStatus) -> Option<(String, String)> {
    let waiting = first(status)?.state?.waiting?;
    Some((waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()))
}

fn first(status: &PodStatus) -> Option<ContainerStatus> {
    status.container_statuses.as_ref()?.first().cloned()
}

/// Waits for an event about a pod.
async fn told(cluster: &Cluster, pod: &str, reason: &str, words: &str) {
    let events: Api<Event> = Api::default_namespaced(cluster.admin());
    let about = ListParams::default().fields(&format!("involvedObject.name={pod}"));
    until(&format!("event {reason}: {words}"), || async {
        let found = events.list(&about).await.ok()?.items;
        let fits =
            |e: &Event| e.reason.as_deref() == Some(reason) && e.message.as_ref().is_some_and(|m| m.contains(words));
        found.iter().any(fits).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_pod_runs_from_an_imported_image_and_keeps_it_while_it_is_there() {
    let mut cluster = Cluster::start().await;
    let built = sleeper().built();
    let (_folder, store) = take(&cluster, &built, "registry.test/sleeper:1");
    cluster.run("web-0", pod("registry.test/sleeper:1", "IfNotPresent")).await;
    let status = cluster.ready("web-0").await;
    let container = first(&status).expect("a container");
    assert_eq!(container.image, "registry.test/sleeper:1");
    assert_eq!(container.image_id, format!("registry.test/sleeper@{}", built.digest));
    told(&cluster, "web-0", "Pulled", "Container image \"registry.test/sleeper:1\" already present on machine").await;
    let name = Reference::parse("registry.test/sleeper:1").expect("a name");
    let pods = cluster.config.pods_dir();
    let remove = || store.remove(&name, || statefuld_node::agent::images::in_use(&pods));
    assert!(remove().expect_err("in use").to_string().contains("is in use by a pod"));
    cluster.end_agent().await;
    cluster.start_agent();
    let again = cluster.status("web-0", "reported anew", |s| first(s).is_some_and(|c| c.ready)).await;
    assert_eq!(first(&again).map(|c| c.image_id), Some(container.image_id), "a new agent knows what runs");
    cluster.delete("web-0").await;
    assert!(remove().expect("removed").is_some());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_an_image_is_a_volume_that_nobody_writes_to_and_stays_while_it_is_used() {
    let mut cluster = Cluster::start().await;
    let (_sleeper, _) = take(&cluster, &sleeper().built(), "registry.test/sleeper:1");
    let lower = Layer::new().folder("model", 0o755).file("model/word", 0o644, "wrong").file("model/run", 0o755, "");
    let model = Image::new([lower, Layer::new().file("model/word", 0o644, "right\n")]).built();
    let (_model, store) = take(&cluster, &model, "registry.test/model:1");
    let mut spec = pod("registry.test/sleeper:1", "IfNotPresent");
    let look = "read word < /whole/model/word; read part < /part/word; test $word$part = rightright && \
                ! (: > /whole/new) && ! /part/run && trap 'exit 0' TERM && while :; do sleep 0.05; done";
    spec["containers"][0]["args"] = json!([look]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "model", "mountPath": "/whole"},
        {"name": "model", "mountPath": "/part", "subPath": "model"}]);
    spec["volumes"] = json!([{"name": "model", "image": {"reference": "registry.test/model:1", "pullPolicy": "Never"}},
        {"name": "none", "image": {"reference": "absent:1", "pullPolicy": "Never"}}]);
    cluster.run("none", spec.clone()).await;
    let held = cluster.status("none", "held", |s| waiting(s).is_some_and(|w| w.0 == "ErrImageNeverPull")).await;
    let why = "Container image \"absent:1\" is not present with pull policy of Never";
    assert_eq!(waiting(&held).map(|w| w.1).as_deref(), Some(why));
    cluster.delete("none").await;
    spec["volumes"].as_array_mut().expect("a list").pop();
    cluster.run("web-0", spec).await;
    cluster.ready("web-0").await;
    let name = Reference::parse("registry.test/model:1").expect("a name");
    let pods = cluster.config.pods_dir();
    let remove = || store.remove(&name, || statefuld_node::agent::images::in_use(&pods));
    assert!(remove().expect_err("in use").to_string().contains("is in use by a pod"));
    cluster.end_agent().await;
    cluster.start_agent();
    cluster.ready("web-0").await;
    cluster.delete("web-0").await;
    assert!(remove().expect("removed").is_some());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_images_that_cannot_be_had_are_told_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let (_folder, _store) = take(&cluster, &sleeper().user("nobody-knows").built(), "odd:1");
    cluster.run("never", pod("absent:1", "Never")).await;
    cluster.run("invalid", pod("Not A Name", "IfNotPresent")).await;
    cluster.run("stranger", pod("odd:1", "IfNotPresent")).await;
    let mut named = pod("odd:1", "IfNotPresent");
    named["containers"][0]["securityContext"] = json!({"runAsNonRoot": true});
    cluster.run("named", named).await;
    let expected = [
        ("never", "ErrImageNeverPull", "Container image \"absent:1\" is not present with pull policy of Never"),
        ("invalid", "InvalidImageName", "couldn't parse image name \"Not A Name\": invalid reference format"),
        ("stranger", "CreateContainerError", "unable to find user nobody-knows: no matching entries in passwd file"),
        (
            "named",
            "CreateContainerConfigError",
            "image has non-numeric user (nobody-knows), cannot verify user is non-root",
        ),
    ];
    for (name, reason, words) in expected {
        let held = |s: &PodStatus| waiting(s).is_some_and(|(r, m)| r == reason && m.contains(words));
        cluster.status(name, reason, held).await;
    }
    told(&cluster, "never", "ErrImageNeverPull", "is not present with pull policy of Never").await;
    told(&cluster, "never", "Failed", "Error: ErrImageNeverPull").await;
    told(&cluster, "invalid", "InspectFailed", "Failed to apply default image tag \"Not A Name\"").await;
    for (name, ..) in expected {
        cluster.delete(name).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_images_come_from_a_registry_with_the_pods_secret_and_failures_are_tried_again() {
    let cluster = Cluster::start().await;
    let user = Some(("robot".to_owned(), "secret".to_owned()));
    let registry = Registry::start(Options { user, tokens: true, ..Options::default() });
    let settings = json!({"registries": {registry.host(): {"plainHttp": true}},
        "pullBackOff": {"firstSeconds": 1, "maxSeconds": 1}});
    std::fs::write(cluster.config.data_dir.join("registries.json"), settings.to_string()).expect("written");
    let built = sleeper().built();
    let image = registry.put("team/app", "1", &built);
    let auths = json!({"auths": {registry.host(): {"username": "robot", "password": "secret"}}});
    let secret = json!({"metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": auths.to_string()}});
    let secret: Secret = serde_json::from_value(secret).expect("a secret");
    Api::<Secret>::default_namespaced(cluster.admin()).create(&PostParams::default(), &secret).await.expect("made");
    cluster.run("denied", pod(&image, "Always")).await;
    let words = format!(
        "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": pull access denied"
    );
    let held = |s: &PodStatus| waiting(s).is_some_and(|(r, m)| r == "ImagePullBackOff" && m.contains(&words));
    cluster.status("denied", "ImagePullBackOff", held).await;
    told(&cluster, "denied", "Pulling", &format!("Pulling image \"{image}\"")).await;
    told(&cluster, "denied", "Failed", &format!("Failed to pull image \"{image}\": {words}")).await;
    told(&cluster, "denied", "Failed", "Error: ErrImagePull").await;
    told(&cluster, "denied", "BackOff", &format!("Back-off pulling image \"{image}\"")).await;
    told(&cluster, "denied", "Failed", "Error: ImagePullBackOff").await;
    let mut allowed = pod(&image, "Always");
    allowed["imagePullSecrets"] = json!([{"name": "pull"}, {"name": "missing"}]);
    // Down for a moment: longer than one pull tries.
    for _ in 0..6 {
        registry.fail("/manifests/1", Fault::Status(503));
    }
    cluster.run("allowed", allowed).await;
    let status = cluster.ready("allowed").await;
    assert_eq!(first(&status).map(|c| c.image_id), Some(format!("{}/team/app@{}", registry.host(), built.digest)));
    told(&cluster, "allowed", "Pulled", &format!("Successfully pulled image \"{image}\" in ")).await;
    told(&cluster, "allowed", "FailedToRetrieveImagePullSecret", "(missing)").await;
    let nodes: Api<Node> = Api::all(cluster.admin());
    until("the node lists the image", || async {
        let images = nodes.get("node-a").await.ok()?.status?.images?;
        images.iter().any(|i| i.names.as_ref().is_some_and(|n| n.contains(&image))).then_some(())
    })
    .await;
    for name in ["denied", "allowed"] {
        cluster.delete(name).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_container_that_starts_again_is_what_its_policy_says_its_image_is_now() {
    let mut cluster = Cluster::start().await;
    let registry = Registry::start(Options::default());
    let settings = json!({"registries": {registry.host(): {"plainHttp": true}},
        "pullBackOff": {"firstSeconds": 1, "maxSeconds": 1}});
    std::fs::write(cluster.config.data_dir.join("registries.json"), settings.to_string()).expect("written");
    let (old, new) = (sleeper().built(), sleeper().env("GREETING", "hello again").built());
    let image = registry.put("team/app", "1", &old);
    for (name, policy) in [("always", "Always"), ("once", "IfNotPresent")] {
        cluster.run(name, pod(&image, policy)).await;
        cluster.ready(name).await;
    }
    registry.put("team/app", "1", &new);
    let id = |built: &Built| format!("{}/team/app@{}", registry.host(), built.digest);
    for (name, expected) in [("always", id(&new)), ("once", id(&old))] {
        end_program(&cluster, name).await;
        let again = |s: &PodStatus| first(s).is_some_and(|c| c.ready && c.restart_count == 1);
        let status = cluster.status(name, "up again", again).await;
        assert_eq!(first(&status).map(|c| c.image_id), Some(expected), "{name}");
    }
    // It waits for what cannot be had, and comes up when it can.
    registry.refuse("/manifests/1", Some(503));
    end_program(&cluster, "always").await;
    let held = |s: &PodStatus| waiting(s).is_some_and(|(reason, _)| reason == "ImagePullBackOff");
    cluster.status("always", "ImagePullBackOff", held).await;
    registry.refuse("/manifests/1", None);
    let up = |count: i32| move |s: &PodStatus| first(s).is_some_and(|c| c.ready && c.restart_count == count);
    cluster.status("always", "up again", up(2)).await;
    // Without an agent nobody looks: it starts as it was.
    registry.refuse("/manifests/1", Some(503));
    end_program(&cluster, "always").await;
    cluster.status("always", "held again", held).await;
    cluster.end_agent().await;
    let uid = cluster.pods().get("always").await.expect("there").metadata.uid.expect("a uid");
    until("it runs", || async {
        let state = PodState::read(&cluster.config.pod_dir(&uid)).ok()??;
        (state.containers[0].state.is_running() && state.containers[0].restart_count == 3).then_some(())
    })
    .await;
    cluster.start_agent();
    cluster.status("always", "up", up(3)).await;
    for name in ["always", "once"] {
        cluster.delete(name).await;
    }
    cluster.end().await;
}

#[test]
fn a_full_disk_takes_the_oldest_images_that_no_pod_uses() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().expect("a time"), 1);
    let store = Store::open(&folder.path().join("images"), ambient.clone()).expect("a store");
    let pods = folder.path().join("pods");
    let mut images = Vec::new();
    for name in ["oldest:1", "used:1", "newer:1"] {
        let layout = folder.path().join(name);
        Image::new([Layer::new().file("f", 0o644, name.repeat(100))]).built().write_layout(&layout, name);
        images.extend(import(&store, &layout, None, Limits::default(), &|_| {}).expect("imported"));
        clock.advance(Duration::from_secs(600));
    }
    let note = json!({"magic": "statefuld-pod-images", "version": 1, "body":
        {"c": {"id": images[1].id, "image": "used:1", "imageId": "x"}}});
    std::fs::create_dir_all(pods.join("uid")).expect("a folder");
    std::fs::write(pods.join("uid/images.json"), note.to_string()).expect("written");
    let collect =
        |used| gc::collect(&store, &pods, Thresholds::default(), Disk { capacity: 1000, used }, ambient.now());
    assert_eq!(collect(840).expect("looked"), None);
    assert_eq!(collect(850).expect("removed").expect("too full").images, ["docker.io/library/oldest:1"]);
    assert_eq!(collect(1000).expect("removed").expect("too full").images, ["docker.io/library/newer:1"]);
    assert_eq!(collect(1000).expect("nothing").expect("too full").images, Vec::<String>::new());
    std::fs::write(pods.join("uid/images.json"), "spoilt").expect("written");
    assert!(collect(1000).is_err(), "what is not known to be unused stays");
}
