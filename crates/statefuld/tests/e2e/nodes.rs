//! Several nodes on one machine, and the manifests that need them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Instance, eventually, statefuld};

/// Three journals and three shells, each kind with every pod on a machine of its own.
fn apart() -> String {
    let anti = |app: &str| {
        format!(
            "affinity: {{podAntiAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: \
             kubernetes.io/hostname, labelSelector: {{matchLabels: {{app: {app}}}}}}}]}}}}"
        )
    };
    let (journal, shell) = (anti("journal"), anti("shell"));
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{name: journal}}
spec: {{clusterIP: None, selector: {{app: journal}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: journal}}
spec:
  serviceName: journal
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: journal}}}}
  template:
    metadata: {{labels: {{app: journal}}}}
    spec:
      {journal}
      terminationGracePeriodSeconds: 5
      containers:
        - name: journal
          image: statefuld.local/sample
          args: ["--listen", "0.0.0.0:8080", "--data", "/data"]
          readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: shell}}
spec:
  serviceName: journal
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: shell}}}}
  template:
    metadata: {{labels: {{app: shell}}}}
    spec:
      {shell}
      runtimeClassName: host
      terminationGracePeriodSeconds: 5
      containers:
        - name: shell
          image: host
          command: [/bin/bash, -c, "trap 'exit 0' TERM; echo I am $HOSTNAME; while :; do sleep 0.1; done"]
"#
    )
}

fn up_with(instance: &Instance, arguments: &[&str], files: &[PathBuf]) -> (bool, String) {
    let output = instance.up_command(files).args(arguments).output().expect("statefuld runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Node and uid of each pod of both sets.
fn places(instance: &Instance) -> Vec<(String, String)> {
    let names = ["journal", "shell"].into_iter().flat_map(|set| (0..3).map(move |n| format!("{set}-{n}")));
    let place = |name: String| {
        let pod = instance.ready(&name, None);
        let text = |v: &Value| v.as_str().expect("a text").to_owned();
        (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["uid"]))
    };
    names.map(place).collect()
}

#[test]
fn e2e_pods_that_must_be_apart_start_on_several_nodes_of_one_machine() {
    let mut instance = Instance::new();
    instance.mark_started();
    let file = instance.scratch().join("apart.yaml");
    fs::write(&file, apart()).expect("a file");
    let (worked, said) = up_with(&instance, &["--nodes", "3"], &[file]);
    assert!(worked, "{said}");
    let before = places(&instance);
    for set in [&before[..3], &before[3..]] {
        let nodes: BTreeSet<&String> = set.iter().map(|(node, _)| node).collect();
        assert_eq!(nodes.len(), 3, "{before:?}");
    }
    let nodes = instance.kubectl(&["get", "nodes", "--no-headers"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(" Ready ")).count(), 3, "{nodes}");
    // From every node every pod is reached by its name, and each node answers for its own pods.
    for n in 0..3 {
        for other in 0..3 {
            let line = format!(
                "exec 3<>/dev/tcp/journal-{other}.journal.default.svc.cluster.local/8080 && \
                 printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
            );
            let answer = eventually("the name resolves", || instance.exec(&format!("shell-{n}"), &line).ok());
            assert!(answer.contains(&format!("journal-{other}")), "shell-{n} to journal-{other}: {answer}");
        }
        assert!(instance.kubectl(&["logs", &format!("shell-{n}")]).contains(&format!("I am shell-{n}")));
    }
    // The data of each lies on its own node.
    let folders: BTreeSet<String> =
        instance.identities("journal", 3).into_iter().map(|(_, _, folder)| folder).collect();
    let data = instance.data();
    let below = |folder: &&String| folder.starts_with(data.join("nodes").to_str().expect("a path"));
    assert_eq!((folders.len(), folders.iter().filter(below).count()), (3, 2), "{folders:?}");

    let (worked, said) = up_with(&instance, &["--nodes", "2"], &[]);
    assert!(!worked && said.contains("runs with 3 node(s), not 2") && said.contains("down"), "{said}");
    instance.down(&[]);
    let (worked, said) = up_with(&instance, &["--nodes", "2"], &[]);
    assert!(!worked && said.contains("cannot be left out: volume") && said.contains("--nodes 3"), "{said}");
    let (worked, said) = up_with(&instance, &[], &[]);
    assert!(worked, "{said}");
    assert_eq!(places(&instance), before, "the same pods, each where its data is");
}

/// Everything about it is as real manifests have it: an old version, kinds that are not served, a namespace that is not
/// there, a class that is nowhere, no service, empty documents, flow style, a status, and pods that must be apart.
const REAL: &str = r#"---
# nothing
---
apiVersion: apps/v1beta1
kind: StatefulSet
metadata: {name: web, namespace: shop, creationTimestamp: null}
spec:
  serviceName: web
  replicas: 2
  template:
    metadata: {labels: {app: web}}
    spec:
      affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}]}}
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: statefuld.local/sample
          args: ["--listen", "0.0.0.0:8080", "--data", "/data"]
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data, annotations: {volume.beta.kubernetes.io/storage-class: fast}}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
status: {replicas: 0}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
---
"#;

#[test]
fn e2e_a_manifest_from_the_wild_runs_or_says_exactly_what_it_wants() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let file = instance.scratch().join("real.yaml");
    fs::write(&file, REAL).expect("a file");
    let up = |arguments: &[&str]| {
        let mut command = statefuld();
        command.args(["up", "--detach", "--timeout", "20s", "--data-dir"]).arg(instance.data());
        let output = command.arg(&file).args(arguments).output().expect("statefuld runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (worked, said) = up(&[]);
    assert!(
        !worked && said.contains("namespace \"shop\" does not exist") && said.contains("--create-namespaces"),
        "{said}"
    );
    let (worked, said) = up(&["--strict"]);
    assert!(!worked && said.contains("Ingress \"web\"") && said.contains("--strict"), "{said}");
    assert!(instance.try_kubectl(&["get", "namespace", "shop"]).is_err(), "half applied");
    // One of two pods finds a node; the other can not, on one node.
    let (worked, said) = up(&["--create-namespaces", "--storage-class-fallback"]);
    assert!(!worked && said.contains("not everything is Ready"), "{said}");
    for words in [
        "skipped: ",
        "networking.k8s.io/v1 Ingress is not served",
        "example.com/v1 Widget is not served",
        "apps/v1beta1 is no longer served; taken as apps/v1",
        "storage class \"fast\" does not exist",
        "storageclass/fast created",
        "namespace/shop created",
        "web-1 0/1 nodes are available: 1 node(s) didn't match pod \
         anti-affinity rules.",
    ] {
        assert!(said.contains(words), "{words:?} is missing in: {said}");
    }
    let set: Value =
        serde_json::from_str(&instance.kubectl(&["get", "sts", "web", "-n", "shop", "-o", "json"])).expect("JSON");
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete");
    assert_eq!(set["spec"]["selector"]["matchLabels"]["app"], "web");
    assert!(
        instance.kubectl(&["get", "storageclass", "fast", "-o", "yaml"]).contains("statefuld.io/stands-for: local")
    );
    let why = statefuld().args(["why", "-n", "shop", "--data-dir"]).arg(instance.data()).output().expect("it runs");
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    for words in ["--nodes 3", "service \"web\"", "does not exist"] {
        assert!(why.contains(words), "{words:?} is missing in: {why}");
    }
    eventually("an event tells of the service", || {
        let events = instance.kubectl(&["get", "events", "-n", "shop"]);
        events.contains("GoverningService").then_some(())
    });
    // The API itself refuses what has had its day.
    let refused = instance.kubectl_with(&["create", "-f", "-"], REAL).expect_err("refused");
    assert!(refused.contains("no matches for kind \"StatefulSet\" in version \"apps/v1beta1\""), "{refused}");
}
