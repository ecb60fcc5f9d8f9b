//! What the watches of one namespace show, and the trace that follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};
use tokio::time::timeout;

use super::client::{Client, version};
use super::objects::{
    Kind, REVISION_LABEL, controller, image, label, name, natural, phase, ready, terminating, text, uid,
};

/// Everything that was seen in a namespace. Cheap to clone: all clones are one.
#[derive(Clone)]
pub(crate) struct World {
    shared: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Seen>,
    changed: Notify,
    pods: broadcast::Sender<(Change, Arc<Value>)>,
}

/// What a watch event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The object is there, new or changed.
    There,
    /// It is gone.
    Gone,
}

/// The objects as last seen, and the trace so far.
#[derive(Default)]
pub(crate) struct Seen {
    objects: HashMap<Kind, BTreeMap<String, Arc<Value>>>,
    /// In the order in which things were seen.
    pub(crate) trace: Vec<Entry>,
    revision_names: HashMap<String, String>,
    revision_counts: HashMap<String, usize>,
    claim_versions: HashMap<String, Vec<String>>,
    /// Of each set: type, reason and message of its events.
    pub(crate) events: BTreeMap<String, BTreeSet<(String, String, String)>>,
    /// How often anything but an event changed.
    pub(crate) changes: u64,
}

/// One line of the trace. Revisions are named only when it is written, because pods may be seen before theirs.
pub(crate) struct Entry {
    kind: Kind,
    verb: &'static str,
    name: String,
    detail: Detail,
}

enum Detail {
    None,
    Text(String),
    Revision(String),
    NewPod(String, Arc<Value>),
}

impl World {
    /// Starts the watches of a namespace. They end with the tasks of the caller's runtime or when `stop` is dropped.
    pub(crate) async fn start(
        client: &Client,
        namespace: &str,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Result<World, String> {
        let (pods, _) = broadcast::channel(4096);
        let world = World { shared: Arc::new(Shared { seen: Mutex::default(), changed: Notify::new(), pods }) };
        for kind in Kind::WATCHED {
            let path = kind.path(namespace, "", "");
            let listed = client.expect("GET", &path, None).await?;
            for item in listed["items"].as_array().into_iter().flatten() {
                world.see(kind, Change::There, item.clone());
            }
            tasks.spawn(world.clone().follow(client.clone(), kind, path, version(&listed)));
        }
        Ok(world)
    }

    async fn follow(self, client: Client, kind: Kind, path: String, mut from: String) {
        loop {
            let mut events = client.watch(&path, &from).await;
            while !events.ended() {
                for event in events.until(Duration::from_secs(600), |events| !events.is_empty()).await {
                    let object = &event["object"];
                    assert_ne!(event["type"], "ERROR", "the watch of {path} ended with {object}");
                    from = version(object);
                    match text(&event["type"]) {
                        "BOOKMARK" => {}
                        "DELETED" => self.see(kind, Change::Gone, object.clone()),
                        _ => self.see(kind, Change::There, object.clone()),
                    }
                }
            }
        }
    }

    fn see(&self, kind: Kind, change: Change, object: Value) {
        let object = Arc::new(object);
        self.look().see(kind, change, &object);
        self.shared.changed.notify_waiters();
        if kind == Kind::Pods {
            // Nobody listening is fine.
            let _ = self.shared.pods.send((change, object));
        }
    }

    /// What happens to pods from now on.
    pub(crate) fn pods(&self) -> broadcast::Receiver<(Change, Arc<Value>)> {
        self.shared.pods.subscribe()
    }

    /// What was seen until now. One at a time in a statement: the guard of the first lasts to the statement's end.
    pub(crate) fn look(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().expect("nobody panics while holding it")
    }

    /// Waits until something holds. False when it does not in time.
    pub(crate) async fn wait(&self, limit: Duration, mut holds: impl FnMut(&Seen) -> bool) -> bool {
        let wait = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.look()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Waits until nothing has changed for a while and `idle` holds then. False when that is not so in time.
    pub(crate) async fn quiet(&self, pause: Duration, limit: Duration, idle: impl Fn() -> bool) -> bool {
        let wait = async {
            loop {
                let changes = self.look().changes;
                let moved = timeout(pause, async {
                    loop {
                        let changed = self.shared.changed.notified();
                        tokio::pin!(changed);
                        changed.as_mut().enable();
                        if self.look().changes != changes {
                            return;
                        }
                        changed.await;
                    }
                });
                if moved.await.is_err() && idle() {
                    return;
                }
            }
        };
        timeout(limit, wait).await.is_ok()
    }
}

impl Seen {
    /// An object as last seen.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&kind)?.get(name)
    }

    /// All objects of a kind, by name.
    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = (&String, &Arc<Value>)> {
        self.objects.get(&kind).into_iter().flatten()
    }

    fn see(&mut self, kind: Kind, change: Change, object: &Arc<Value>) {
        if kind == Kind::Events {
            return self.see_event(object);
        }
        let of_kind = self.objects.entry(kind).or_default();
        let old = match change {
            Change::Gone => of_kind.remove(name(object)),
            Change::There => of_kind.insert(name(object).to_owned(), Arc::clone(object)),
        };
        let old = old.as_deref();
        match kind {
            Kind::Pods => self.see_pod(change, old, object),
            Kind::Claims => self.see_claim(change, old, object),
            Kind::Revisions => self.see_revision(change, object),
            _ => self.see_life(kind, change, old, object, Detail::None),
        }
        self.changes += 1;
    }

    fn note(&mut self, kind: Kind, verb: &'static str, object: &Value, detail: Detail) {
        self.trace.push(Entry { kind, verb, name: name(object).to_owned(), detail });
    }

    fn see_life(&mut self, kind: Kind, change: Change, old: Option<&Value>, object: &Value, detail: Detail) {
        if change == Change::Gone {
            return self.note(kind, "-", object, Detail::None);
        }
        let same = old.filter(|old| uid(old) == uid(object));
        if same.is_none() {
            if old.is_some() {
                self.note(kind, "-", object, Detail::None);
            }
            self.note(kind, "+", object, detail);
        }
        if terminating(object) && !same.is_some_and(terminating) {
            self.note(kind, "terminating ", object, Detail::None);
        }
    }

    fn see_pod(&mut self, change: Change, old: Option<&Value>, pod: &Arc<Value>) {
        let revision = |pod: &Value| label(pod, REVISION_LABEL).unwrap_or("no-revision").to_owned();
        self.see_life(Kind::Pods, change, old, pod, Detail::NewPod(revision(pod), Arc::clone(pod)));
        if change == Change::Gone {
            return;
        }
        let same = old.filter(|old| uid(old) == uid(pod));
        if let Some(old) = same {
            let (before, after) = (controller(old), controller(pod));
            if before.map(|owner| &owner["uid"]) != after.map(|owner| &owner["uid"]) {
                for (verb, owner) in [("released ", before), ("adopted ", after)] {
                    if let Some(owner) = owner {
                        self.note(Kind::Pods, verb, pod, Detail::Text(format!("by {}", text(&owner["name"]))));
                    }
                }
            }
            if revision(old) != revision(pod) {
                self.note(Kind::Pods, "relabelled ", pod, Detail::Revision(revision(pod)));
            }
        }
        let ended = match phase(pod) {
            "Failed" => Some("failed "),
            "Succeeded" => Some("succeeded "),
            _ => None,
        };
        if let Some(verb) = ended.filter(|_| same.map_or("Pending", phase) != phase(pod)) {
            self.note(Kind::Pods, verb, pod, Detail::None);
        } else if ready(pod) != same.is_some_and(ready) {
            self.note(Kind::Pods, if ready(pod) { "ready " } else { "unready " }, pod, Detail::None);
        }
    }

    fn see_claim(&mut self, change: Change, old: Option<&Value>, claim: &Value) {
        if old.is_none() && change == Change::There {
            let version = text(&claim["metadata"]["resourceVersion"]).to_owned();
            self.claim_versions.entry(name(claim).to_owned()).or_default().push(version);
        }
        self.see_life(Kind::Claims, change, old, claim, Detail::None);
    }

    fn see_revision(&mut self, change: Change, revision: &Value) {
        if change == Change::Gone || self.revision_names.contains_key(name(revision)) {
            return;
        }
        let owner = match controller(revision) {
            Some(owner) => text(&owner["name"]),
            None => name(revision).rsplit_once('-').map_or("", |(set, _)| set),
        };
        let count = self.revision_counts.entry(owner.to_owned()).or_default();
        *count += 1;
        self.revision_names.insert(name(revision).to_owned(), format!("rev#{count}"));
    }

    fn see_event(&mut self, event: &Value) {
        let about = &event["involvedObject"];
        if about["kind"] == "StatefulSet" {
            let field = |field: &str| text(&event[field]).to_owned();
            let line = (field("type"), field("reason"), field("message"));
            self.events.entry(text(&about["name"]).to_owned()).or_default().insert(line);
        }
    }

    /// A revision by its order of appearance: names carry hashes, which differ between versions of Kubernetes.
    pub(crate) fn revision(&self, name: &str) -> String {
        match name {
            "" | "no-revision" => name.to_owned(),
            _ => self.revision_names.get(name).cloned().unwrap_or_else(|| "rev#?".to_owned()),
        }
    }

    /// The lines of one kind in a part of the trace.
    pub(crate) fn lines(&self, kind: Kind, from: usize) -> Vec<String> {
        let entries = self.trace[from..].iter().filter(|entry| entry.kind == kind);
        entries.map(|entry| entry.line(self)).collect()
    }

    /// Says so when a claim of a new pod was made after the pod: versions are one sequence for the store.
    fn late_claims(&self, pod: &Value) -> String {
        let Ok(made) = text(&pod["metadata"]["resourceVersion"]).parse::<u64>() else { return String::new() };
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let claims = volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
        let before = |version: &String| version.parse::<u64>().is_ok_and(|version| version < made);
        let late: Vec<_> =
            claims.filter(|claim| !self.claim_versions.get(*claim).is_some_and(|v| v.iter().any(before))).collect();
        if late.is_empty() { String::new() } else { format!(" before its claim {}", late.join(" ")) }
    }

    /// What there is now, in normal form.
    pub(crate) fn state(&self) -> Value {
        let sorted = |kind: Kind| {
            let mut all: Vec<_> = self.all(kind).collect();
            all.sort_by_key(|(name, _)| natural(name));
            all
        };
        let pods: Vec<_> = sorted(Kind::Pods).into_iter().map(|(name, pod)| self.pod_line(name, pod)).collect();
        let claims: Vec<_> = sorted(Kind::Claims).into_iter().map(|(name, claim)| claim_line(name, claim)).collect();
        let revision_line = |(name, item): (&String, &Arc<Value>)| {
            let owner = controller(item).map_or("orphan", |owner| text(&owner["name"]));
            format!("{owner} {} revision {}", self.revision(name), item["revision"])
        };
        let mut revisions: Vec<_> = self.all(Kind::Revisions).map(revision_line).collect();
        revisions.sort();
        let status: serde_json::Map<_, _> =
            self.all(Kind::Sets).map(|(name, set)| (name.clone(), self.set_status(set))).collect();
        json!({"pods": pods, "claims": claims, "revisions": revisions, "status": status})
    }

    fn pod_line(&self, name: &str, pod: &Value) -> String {
        let mut words = vec![name.to_owned(), self.revision(label(pod, REVISION_LABEL).unwrap_or("no-revision"))];
        if terminating(pod) {
            words.push("terminating".to_owned());
        }
        words.push(match phase(pod) {
            _ if ready(pod) => "ready".to_owned(),
            "Running" => "unready".to_owned(),
            other => other.to_lowercase(),
        });
        words.push(controller(pod).map_or("orphan".to_owned(), |owner| format!("of {}", text(&owner["name"]))));
        if image(pod) != "v1" {
            words.push(format!("image {}", image(pod)));
        }
        words.join(" ")
    }

    fn set_status(&self, set: &Value) -> Value {
        let status = &set["status"];
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        let mut made = json!({
            "replicas": count("replicas"), "ready": count("readyReplicas"),
            "current": count("currentReplicas"), "updated": count("updatedReplicas"),
            "currentRevision": self.revision(text(&status["currentRevision"])),
            "updateRevision": self.revision(text(&status["updateRevision"])),
            "observed": status["observedGeneration"] == set["metadata"]["generation"],
        });
        if let Some(available) = status.get("availableReplicas") {
            made["available"] = available.clone();
        }
        made
    }
}

fn claim_line(name: &str, claim: &Value) -> String {
    let mut words = vec![name.to_owned()];
    if terminating(claim) {
        words.push("terminating".to_owned());
    }
    for owner in claim["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        words.push(format!("owner {}/{}", text(&owner["kind"]), text(&owner["name"])));
    }
    words.join(" ")
}

impl Entry {
    fn line(&self, seen: &Seen) -> String {
        let detail = match &self.detail {
            Detail::None => String::new(),
            Detail::Text(text) => text.clone(),
            Detail::Revision(revision) => seen.revision(revision),
            Detail::NewPod(..) if self.verb != "+" => String::new(),
            Detail::NewPod(revision, pod) => seen.revision(revision) + &seen.late_claims(pod),
        };
        let space = if detail.is_empty() { "" } else { " " };
        format!("{}{}{space}{detail}", self.verb, self.name)
    }
}
