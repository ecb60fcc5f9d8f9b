//! What every piece of software goes through, under load from the first to the last moment:
//!
//! | what | to whom |
//! |---|---|
//! | kill -9 | each member's first process, one after the other |
//! | kill -9 of the shim | the first member |
//! | kill -9 of the daemon, and of the last member's shim while it is away | |
//! | memory beyond the limit | the last member |
//! | a full disk | the first member, whose volume is a small disk of its own |
//! | power loss | all at once |
//!
//! After each, all members become Ready again by themselves, in place, and the client's writes go on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use imagetest::{Image, Options, Registry};
use serde_json::{Value, json};

use super::disk::Disk;
use super::machine::{power_off, shim_of};
use crate::harness::{Instance, eventually, is_ready, kill, statefuld};

/// How many members each set has.
const MEMBERS: usize = 3;

/// A piece of software.
pub struct Software {
    /// Name of its set, its containers and `acknowledged/<name>/`.
    pub name: &'static str,
    /// Its manifest.
    pub manifest: PathBuf,
    /// What it runs from. A registry of the test's own has it, as a mirror of the one that the manifest names.
    pub image: Image,
    /// The client's program in `acknowledged/<name>/`: it writes numbers one after the other, goes on where it stopped, and adds
    /// those that were acknowledged to `/data/acknowledged`, line by line, and perhaps those that were not to `/data/refused`.
    pub client: &'static str,
    /// Bytes of the first member's disk.
    pub disk: u64,
    /// Its members take each other for dead where they wait long for a processor: it never runs beside another such.
    pub hurries: bool,
    /// Numbers that a member has, all of them.
    pub kept: fn(&Instance, &str) -> Option<BTreeSet<u32>>,
}

/// A piece of software that runs.
struct Trial {
    /// Where.
    instance: Instance,
    software: Software,
    disk: Option<Disk>,
    /// Before the disk was filled: how often the first member had been started again, and how many writes refused.
    before: (u64, usize),
    _registry: Registry,
}

impl Software {
    /// All of it.
    pub fn survives(self) {
        static HURRIED: Mutex<()> = Mutex::new(());
        let _alone = self.hurries.then(|| HURRIED.lock().unwrap_or_else(PoisonError::into_inner));
        let mut trial = Trial::start(self);
        let identities = trial.identities();
        trial.goes_on("in peace");

        for member in 0..MEMBERS {
            let pod = trial.member(member);
            trial.instance.kill_container(&pod);
            trial.goes_on(&format!("after {pod} was killed"));
        }
        trial.loses_a_shim();
        trial.loses_the_daemon_and_a_shim();
        trial.is_given_too_little_memory();
        trial.is_given_a_full_disk();
        power_off(&trial.instance);
        trial.instance.up(&[]);
        trial.goes_on("after the machine was started again");

        assert_eq!(trial.identities(), identities);
        trial.has_all_that_was_acknowledged();
    }
}

impl Trial {
    fn start(software: Software) -> Self {
        let registry = Registry::start(Options::default());
        let called = image_of(&software.manifest);
        let (mirrored, repository, tag) = parts(&called);
        registry.put(repository, tag, &software.image.built());
        let instance = Instance::new();
        fs::create_dir_all(instance.data()).expect("a folder");
        let settings =
            json!({"registries": {mirrored: {"mirrors": [registry.host()]}, registry.host(): {"plainHttp": true}}});
        fs::write(instance.data().join("registries.json"), settings.to_string()).expect("written");
        let disk = Disk::new(instance.scratch(), software.disk);
        let name = software.name;
        let files = [write(&instance, "disk.json", &disk.volume(&format!("data-{name}-0"))), software.manifest.clone()];
        let client = write(&instance, "client.json", &client(&software, &called));
        let mut trial = Self { instance, software, disk: Some(disk), before: (0, 0), _registry: registry };
        trial.instance.up(&files);
        trial.instance.kubectl(&["apply", "-f", client.to_str().expect("UTF-8")]);
        trial
    }

    /// The name of a member's pod.
    fn member(&self, ordinal: usize) -> String {
        format!("{}-{ordinal}", self.software.name)
    }

    /// How often a member's container was started again.
    fn restarts(&self, ordinal: usize) -> u64 {
        self.instance.get("pod", &self.member(ordinal))["status"]["containerStatuses"][0]["restartCount"]
            .as_u64()
            .unwrap_or(0)
    }

    /// Numbers that were acknowledged to the client.
    fn acknowledged(&self) -> BTreeSet<u32> {
        numbers(&self.noted("acknowledged"))
    }

    /// How many writes were refused, where the client tells.
    fn refused(&self) -> usize {
        self.noted("refused").lines().count()
    }

    /// What the client has noted.
    fn noted(&self, file: &str) -> String {
        let folder = self.instance.data().join("volumes/default/client-0-data");
        fs::read_to_string(folder.join(file)).unwrap_or_default()
    }

    /// All members are Ready, and more is acknowledged than before.
    fn goes_on(&self, when: &str) {
        self.instance.settled(self.software.name, MEMBERS);
        self.writes_go_on(when);
    }

    fn writes_go_on(&self, when: &str) {
        let before = self.acknowledged().len();
        eventually(&format!("writes go on {when}"), || (self.acknowledged().len() >= before + 5).then_some(()));
    }

    /// What must not change: claims, with their volumes.
    fn identities(&self) -> Vec<(Value, Value)> {
        let claims = (0..MEMBERS).map(|n| self.instance.get("pvc", &format!("data-{}", self.member(n))));
        claims.map(|claim| (claim["metadata"]["uid"].clone(), claim["spec"]["volumeName"].clone())).collect()
    }

    /// Kills a member's shim; the pod comes up again in place.
    fn loses_a_shim(&self) {
        let pod = self.member(0);
        let before = self.instance.get("pod", &pod);
        kill(shim_of(&self.instance, &pod));
        self.starts_again(&pod, &before);
        self.goes_on("after the shim was killed");
    }

    fn loses_the_daemon_and_a_shim(&mut self) {
        let pod = self.member(MEMBERS - 1);
        let before = self.instance.get("pod", &pod);
        let shim = shim_of(&self.instance, &pod);
        self.instance.kill_daemon();
        self.writes_go_on("without the daemon");
        kill(shim);
        self.instance.up(&[]);
        self.starts_again(&pod, &before);
        self.goes_on("after the daemon was killed");
    }

    /// Waits until the pod's container is another run of the same pod.
    fn starts_again(&self, pod: &str, before: &Value) {
        eventually(&format!("{pod} is started again"), || {
            let now: Value =
                serde_json::from_str(&self.instance.try_kubectl(&["get", "pod", pod, "-o", "json"]).ok()?).ok()?;
            assert_eq!(now["metadata"]["uid"], before["metadata"]["uid"], "it is the same pod");
            let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
            (!id(&now).is_null() && id(&now) != id(before)).then_some(())
        });
    }

    /// Something in the container takes all memory; the kernel is told to end the first process for it.
    fn is_given_too_little_memory(&self) {
        let pod = self.member(MEMBERS - 1);
        let restarts = self.restarts(MEMBERS - 1);
        let _ = self.instance.exec(&pod, "echo 1000 > /proc/1/oom_score_adj; tail /dev/zero");
        eventually(&format!("{pod} is ended for its memory"), || (self.restarts(MEMBERS - 1) > restarts).then_some(()));
        let status = self.instance.get("pod", &pod)["status"]["containerStatuses"][0].clone();
        assert_eq!(status["lastState"]["terminated"]["reason"], "OOMKilled", "{status}");
        self.goes_on("after memory ran out");
    }

    fn is_given_a_full_disk(&mut self) {
        self.before = (self.restarts(0), self.refused());
        let disk = self.disk.as_ref().expect("mounted");
        disk.fill();
        eventually("the full disk is noticed", || self.suffers().then_some(()));
        disk.free();
        self.goes_on("after the disk was full");
    }

    /// Whether a write was refused since, or the first member has ended or takes no work.
    fn suffers(&self) -> bool {
        let (restarts, refused) = self.before;
        let ready = is_ready(&self.instance.get("pod", &self.member(0)));
        !ready || self.restarts(0) > restarts || self.refused() > refused
    }

    /// The client is stopped; every member has everything, at last.
    fn has_all_that_was_acknowledged(mut self) {
        self.instance.kubectl(&["scale", "statefulset", "client", "--replicas=0"]);
        self.instance.gone("client-0");
        let acknowledged = self.acknowledged();
        assert!(acknowledged.len() > 50, "only {} writes were acknowledged", acknowledged.len());
        for member in (0..MEMBERS).map(|n| self.member(n)) {
            eventually(&format!("{member} has all that was acknowledged"), || {
                let kept = (self.software.kept)(&self.instance, &member)?;
                acknowledged.is_subset(&kept).then_some(())
            });
        }
        self.instance.down(&[]);
        self.disk = None;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for pod in (0..MEMBERS).map(|n| self.member(n)).chain(["client-0".to_owned()]) {
            for run in [&["logs", &pod, "--tail=40"][..], &["logs", &pod, "--previous", "--tail=40"]] {
                eprintln!("{run:?}: {}", self.instance.try_kubectl(run).unwrap_or_else(|e| e));
            }
        }
        // The disk can be taken away when nobody has it any more.
        let _ = statefuld().arg("down").arg("--data-dir").arg(self.instance.data()).output();
        self.disk = None;
    }
}

/// Numbers, one in each line; a last line that was cut off by the end of its writer is none.
pub fn numbers(text: &str) -> BTreeSet<u32> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.trim().parse().unwrap_or_else(|_| panic!("{line:?} is no number"))).collect()
}

/// A set of one pod that runs the client's program, from the software's image.
fn client(software: &Software, image: &str) -> Value {
    let Software { name, client, .. } = software;
    let program = fs::read_to_string(beside(name, client)).expect("the client's program");
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"}, "data": {*client: program}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "client"}, "spec": {
            "serviceName": "client", "selector": {"matchLabels": {"app": "client"}},
            "template": {"metadata": {"labels": {"app": "client"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsUser": super::images::USER, "fsGroup": super::images::USER},
                "containers": [{"name": "client", "image": image,
                    "command": [format!("/client/{client}")],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "client", "mountPath": "/client"}]}],
                "volumes": [{"name": "client", "configMap": {"name": "client", "defaultMode": 0o755}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}}]}}]})
}

/// A file of the test's own.
fn write(instance: &Instance, name: &str, content: &Value) -> PathBuf {
    let path = instance.scratch().join(name);
    fs::write(&path, content.to_string()).expect("written");
    path
}

/// What a manifest calls its image.
fn image_of(manifest: &Path) -> String {
    let text = fs::read_to_string(manifest).expect("a manifest");
    let called = text.lines().find_map(|line| line.trim().strip_prefix("image: ")).expect("an image");
    called.to_owned()
}

/// Registry, repository and tag of an image's name.
fn parts(called: &str) -> (&str, &str, &str) {
    let (registry, rest) = called.split_once('/').expect("a registry");
    let (repository, tag) = rest.rsplit_once(':').expect("a tag");
    (registry, repository, tag)
}

/// A file beside the software's module.
pub fn beside(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/acknowledged").join(name).join(file)
}
