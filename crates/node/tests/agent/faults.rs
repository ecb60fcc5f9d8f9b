//! Agent and shim die at every step of a pod's life, once each. However that was, the pod comes up, its two writers
//! never write at once, and when it is gone, nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use statefuld_node::fault::{During, Point};
use tokio::process::Child;

use crate::apart::Served;
use crate::harness::{Cluster, is_ready, run_of, shim_pids, until};

/// What is met by a pod with users of its own: what is different for such a one.
const OWN_USERS: [Point; 5] =
    [Point::UsersRecorded, Point::ShimSeparated, Point::ContainerMade, Point::LossNoted, Point::UsersFree];

#[tokio::test(flavor = "multi_thread")]
async fn e2e_an_agent_that_dies_while_a_pod_comes_up_is_followed_by_one_that_goes_on() {
    die_at_all(&[During::Raising]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_an_agent_that_dies_while_a_pod_goes_is_followed_by_one_that_goes_on() {
    die_at_all(&[During::Losing, During::Ending, During::Leaving]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_shim_that_dies_anywhere_is_followed_by_another_and_leaves_nothing() {
    die_at_all(&[During::Starting, During::Stopping]).await;
}

/// Each point of these parts of a pod's life, with a pod of its own.
async fn die_at_all(parts: &[During]) {
    let cluster = Cluster::prepare().await;
    let served = Served::start(&cluster);
    for point in Point::ALL.iter().filter(|p| parts.contains(&p.during())) {
        let mut one = One::new(&cluster, &served, *point);
        cluster.node_is_ready().await;
        one.live().await;
        one.check().await;
    }
    cluster.end().await;
}

/// One point, and the pod that meets it.
struct One<'a> {
    cluster: &'a Cluster,
    served: &'a Served,
    point: Point,
    name: String,
    /// Removed by the process that dies.
    token: PathBuf,
    agent: Child,
    deaths: u32,
}

impl<'a> One<'a> {
    fn new(cluster: &'a Cluster, served: &'a Served, point: Point) -> Self {
        let token = cluster.config.data_dir.join(format!("{}.armed", point.name()));
        fs::write(&token, "").expect("written");
        let agent = served.agent(Some(&format!("{}@{}", point.name(), token.display())));
        Self { cluster, served, point, name: format!("pod-{}-0", point.name()), token, agent, deaths: 0 }
    }

    fn dies_in_the_agent(&self) -> bool {
        !matches!(self.point.during(), During::Starting | During::Stopping)
    }

    /// The pod's whole life; agents are started anew as they die.
    async fn live(&mut self) {
        let (cluster, name, during) = (self.cluster, self.name.clone(), self.point.during());
        let claim = claim(cluster, &name).await;
        let life = async {
            if during == During::Ending {
                cluster.run(&name, ending()).await;
                cluster.status(&name, "over", |s| s.phase.as_deref() == Some("Succeeded")).await;
            } else {
                let mut spec = journal(&claim);
                if OWN_USERS.contains(&self.point) {
                    spec["hostUsers"] = json!(false);
                }
                let pod = cluster.run(&name, spec).await;
                let before = cluster.ready(&name).await;
                if during == During::Losing {
                    lose(cluster, &name, &pod, &run_of(&before)).await;
                }
            }
            let uid = cluster.pods().get(&name).await.expect("there").metadata.uid.expect("a uid");
            cluster.delete(&name).await;
            uid
        };
        let mut life = std::pin::pin!(life);
        let uid = loop {
            tokio::select! {
                uid = &mut life => break uid,
                died = self.agent.wait() => {
                    assert_eq!(self.deaths, 0, "{}: the agent dies but once; now {died:?}", self.point.name());
                    self.deaths += 1;
                    self.agent = self.served.agent(None);
                }
            }
        };
        // A death after the last word: the next agent has to find its way, too.
        if self.dies_in_the_agent() && self.deaths == 0 {
            tokio::time::timeout(Duration::from_secs(60), self.agent.wait()).await.expect("it dies").expect("ended");
            self.deaths += 1;
            self.agent = self.served.agent(None);
        }
        self.nothing_is_left(&uid).await;
    }

    /// Nothing that was made for the pod is there any more.
    async fn nothing_is_left(&self, uid: &str) {
        let config = &self.cluster.config;
        let point = self.point.name();
        let found = || -> Vec<String> {
            let mut found = Vec::new();
            let pids = shim_pids(config, uid);
            found.extend(pids.iter().map(|pid| format!("shim {pid}")));
            found.extend(processes_in(uid));
            found.extend(lines_with(Path::new("/proc/self/mountinfo"), uid));
            found.extend(cgroups(Path::new("/sys/fs/cgroup"), &format!("pod-{uid}")));
            if config.pod_dir(uid).exists() {
                found.push("folder".to_owned());
            }
            let ports = Path::new("/sys/class/net").join(&config.bridge).join("brif");
            let ports = fs::read_dir(ports).into_iter().flatten().flatten();
            found.extend(ports.map(|port| format!("interface {}", port.file_name().display())));
            found.extend(lines_with(&config.node_dir().join("addresses"), uid));
            found.extend(lines_with(&config.node_dir().join("users"), uid));
            found
        };
        let last = std::sync::Mutex::new(Vec::new());
        let what = format!("nothing is left at {point}");
        let clean = until(&what, || async {
            let now = found();
            let clean = now.is_empty();
            *last.lock().expect("nobody panics with it") = now;
            clean.then_some(())
        });
        if tokio::time::timeout(Duration::from_secs(60), clean).await.is_err() {
            panic!("{point}: left over: {:#?}", last.lock().expect("nobody panics with it"));
        }
    }

    /// The process died there, and the journal says that there was never a second writer.
    async fn check(&mut self) {
        let point = self.point.name();
        assert!(!self.token.exists(), "{point}: nobody came there, so nothing was shown");
        assert_eq!(self.deaths, u32::from(self.dies_in_the_agent()), "{point}");
        self.agent.kill().await.expect("ended");
        if self.point.during() == During::Ending {
            return;
        }
        let journal = folder(self.cluster, &self.name).join("journal/journal");
        let journal = fs::read_to_string(journal).expect("a journal");
        assert!(journal.contains(" started "), "{point}: {journal}");
        assert!(!journal.contains("beside=") && !journal.contains("overtaken-by="), "{point}: {journal}");
    }
}

/// Kills the pod's shim and waits until it is up again.
async fn lose(cluster: &Cluster, name: &str, pod: &Pod, run: &str) {
    let uid = pod.metadata.uid.clone().expect("a uid");
    for pid in shim_pids(&cluster.config, &uid) {
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    }
    cluster.status(name, "up again", |s| is_ready(s) && run_of(s) != run).await;
}

/// A pod that has something of every kind: a claim, files, a memory file system, an address.
fn journal(claim: &str) -> Value {
    json!({"terminationGracePeriodSeconds": 5, "containers": [{
        "name": "c", "image": "statefuld.local/sample",
        "args": ["--listen", "0.0.0.0:8080", "--data", "/data/journal"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "files", "mountPath": "/files"},
            {"name": "memory", "mountPath": "/memory"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "files", "configMap": {"name": "files"}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]})
}

/// A pod that ends by itself.
fn ending() -> Value {
    json!({"runtimeClassName": "host", "restartPolicy": "Never",
        "containers": [{"name": "c", "image": "any", "command": ["/bin/true"]}]})
}

fn folder(cluster: &Cluster, pod: &str) -> PathBuf {
    cluster.config.volumes_dir().join("default").join(format!("{pod}-data"))
}

/// A claim of the pod's own, bound to a volume of this node; and the files that all pods show.
async fn claim(cluster: &Cluster, pod: &str) -> String {
    let name = format!("data-{pod}");
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.admin());
    if maps.get_opt("files").await.expect("asked").is_none() {
        let map = serde_json::from_value(json!({"metadata": {"name": "files"}, "data": {"a": "1"}})).expect("a map");
        maps.create(&PostParams::default(), &map).await.expect("made");
    }
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(cluster.admin());
    let size = json!({"requests": {"storage": "1Mi"}});
    let made = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": size, "volumeName": name, "storageClassName": "local"}});
    let made = serde_json::from_value(made).expect("a claim");
    let made = claims.create(&PostParams::default(), &made).await.expect("made");
    let term = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-a"]}]});
    let volume = json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "local": {"path": folder(cluster, pod)},
        "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "local",
        "claimRef": {"namespace": "default", "name": name, "uid": made.metadata.uid},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}});
    let volumes: Api<PersistentVolume> = Api::all(cluster.admin());
    let volume = serde_json::from_value(volume).expect("a volume");
    volumes.create(&PostParams::default(), &volume).await.expect("made");
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    volumes.patch_status(&name, &PatchParams::default(), &bound).await.expect("bound");
    claims.patch_status(&name, &PatchParams::default(), &bound).await.expect("bound");
    name
}

/// Processes in a cgroup of the pod: with them its namespaces live.
fn processes_in(uid: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(uid) {
            found.push(format!("process {}", entry.file_name().display()));
        }
    }
    found
}

fn lines_with(path: &Path, word: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| line.contains(word)).map(|line| format!("{}: {line}", path.display())).collect()
}

/// Cgroups of that name in any hierarchy.
fn cgroups(below: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![below.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_str() == Some(name) {
                    found.push(entry.path().display().to_string());
                }
                left.push(entry.path());
            }
        }
    }
    found
}
