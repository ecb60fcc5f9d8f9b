//! The nodes, and which pods take room on them: kept up to date change by change, so that a decision looks nothing up.
//!
//! A pod counts on a node when the API says that it is there, when it was bound there a moment ago, and when its
//! volumes are being made there ("assumed"). A pod that has ended counts nowhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Namespace, Node, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::amounts::Amounts;
use crate::informers::PodView;
use crate::work;

/// All that a decision looks at, beside the pod and its claims.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    /// By name. Pods can be on a node that is not (yet) known.
    nodes: BTreeMap<String, Entry>,
    /// Where each pod counts, by uid.
    places: HashMap<String, Place>,
    /// Pods without a node for which room was made, by uid.
    nominated: BTreeMap<String, Arc<PodView>>,
    /// Labels of the namespaces.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Disruption budgets by namespace and name.
    budgets: BTreeMap<(String, String), Budget>,
}

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// The object; none while it is not known.
    pub(crate) node: Option<Arc<Node>>,
    /// What pods can have of it.
    pub(crate) allocatable: Amounts,
    /// How many pods it takes.
    pub(crate) room: usize,
    /// What is on it.
    pub(crate) load: Load,
}

/// What is on a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Load {
    /// By uid.
    pub(crate) pods: BTreeMap<String, Arc<PodView>>,
    /// What they asked for.
    pub(crate) requested: Amounts,
    /// Processor and memory as they weigh.
    pub(crate) weight: (i64, i64),
    /// Those of them that are drawn to others, or keep them away.
    pub(crate) sociable: BTreeSet<String>,
}

/// Where a pod counts, and by whose word.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    node: String,
    word: Word,
}

/// By whose word a pod is somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The API's.
    Seen,
    /// Ours: it was bound just now.
    Bound,
    /// Ours: its volumes are being made there.
    Intended,
}

/// How many of some pods may be disturbed.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(crate) selector: LabelSelector,
    pub(crate) allowed: i64,
    /// Those that are counted already.
    pub(crate) disturbed: BTreeSet<String>,
}

impl Cluster {
    /// Takes in that a pod has changed, or is gone (no new version).
    pub(crate) fn pod(&mut self, old: Option<&Arc<PodView>>, new: Option<&Arc<PodView>>) {
        if let Some(old) = old.filter(|old| new.is_none_or(|new| new.uid != old.uid)) {
            self.remove(&old.uid);
            self.nominated.remove(&old.uid);
        }
        let Some(new) = new else { return };
        self.nominated.remove(&new.uid);
        match &new.node {
            _ if new.is_over() => self.remove(&new.uid),
            Some(node) => {
                let node = node.clone();
                self.put(new, node, Word::Seen);
            }
            None => {
                if new.needs.nominated.is_some() && !new.deleting {
                    self.nominated.insert(new.uid.clone(), new.clone());
                }
                // What we know better than the API stays, with the pod as it is now.
                match self.places.get(&new.uid).cloned() {
                    Some(place) if place.word != Word::Seen && !new.deleting => self.put(new, place.node, place.word),
                    _ => self.remove(&new.uid),
                }
            }
        }
    }

    /// Takes in that a node has changed, or is gone.
    pub(crate) fn node(&mut self, name: &str, node: Option<&Arc<Node>>) {
        let entry = self.nodes.entry(name.to_owned()).or_default();
        entry.node = node.cloned();
        let allocatable = node.and_then(|n| n.status.as_ref()?.allocatable.as_ref());
        entry.allocatable = Amounts::read(allocatable);
        // As many as come where it does not say.
        entry.room = allocatable.and_then(|a| a.get("pods")?.0.parse().ok()).unwrap_or(usize::MAX);
        if entry.is_idle() {
            self.nodes.remove(name);
        }
    }

    /// Takes in that a namespace has changed, or is gone.
    pub(crate) fn namespace(&mut self, name: &str, namespace: Option<&Arc<Namespace>>) {
        match namespace {
            Some(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.namespaces.insert(name.to_owned(), labels);
            }
            None => _ = self.namespaces.remove(name),
        }
    }

    /// Takes in that a disruption budget has changed, or is gone.
    pub(crate) fn budget(&mut self, budget: &PodDisruptionBudget, there: bool) {
        let key = (work::namespace(budget).to_owned(), work::name(budget).to_owned());
        if !there {
            self.budgets.remove(&key);
            return;
        }
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let selector = serde_json::to_value(selector).ok().and_then(|value| LabelSelector::from_json(&value).ok());
        let status = budget.status.clone().unwrap_or_default();
        let budget = Budget {
            selector: selector.unwrap_or_else(LabelSelector::nothing),
            allowed: i64::from(status.disruptions_allowed.unwrap_or(0)),
            disturbed: status.disrupted_pods.into_iter().flatten().map(|(name, _)| name).collect(),
        };
        self.budgets.insert(key, budget);
    }

    /// Counts a pod on a node by our own word.
    pub(crate) fn assume(&mut self, pod: &Arc<PodView>, node: &str, word: Word) {
        if self.word(&pod.uid) != Some(Word::Seen) && !pod.is_over() {
            self.put(pod, node.to_owned(), word);
        }
    }

    /// A pod no longer counts by our own word.
    pub(crate) fn forget(&mut self, uid: &str) {
        if self.word(uid).is_some_and(|word| word != Word::Seen) {
            self.remove(uid);
        }
    }

    /// By whose word the pod counts somewhere.
    pub(crate) fn word(&self, uid: &str) -> Option<Word> {
        self.places.get(uid).map(|place| place.word)
    }

    /// The nodes that are known, in the order of their names.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.nodes.iter().filter(|(_, entry)| entry.node.is_some()).map(|(name, entry)| (name.as_str(), entry))
    }

    /// A node that is known.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.nodes.get(name).filter(|entry| entry.node.is_some())
    }

    /// Pods without a node for which room was made on this one.
    pub(crate) fn nominated_to(&self, node: &str) -> impl Iterator<Item = &Arc<PodView>> {
        let there = move |pod: &&Arc<PodView>| pod.needs.nominated.as_deref() == Some(node);
        self.nominated.values().filter(there)
    }

    /// The labels of a namespace.
    pub(crate) fn namespace_labels(&self, name: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.namespaces.get(name).unwrap_or(&NONE)
    }

    /// The budgets that cover a pod.
    pub(crate) fn budgets_of(&self, pod: &PodView) -> impl Iterator<Item = (&(String, String), &Budget)> {
        let from = (pod.namespace.clone(), String::new());
        let own = self.budgets.range(from..).take_while(|((namespace, _), _)| *namespace == pod.namespace);
        own.filter(|(_, budget)| {
            !pod.labels.is_empty()
                && !budget.selector.is_everything()
                && budget.selector.matches(&pod.labels)
                && !budget.disturbed.contains(&pod.name)
        })
    }

    fn put(&mut self, pod: &Arc<PodView>, node: String, word: Word) {
        self.remove(&pod.uid);
        self.nodes.entry(node.clone()).or_default().load.add(pod);
        self.places.insert(pod.uid.clone(), Place { node, word });
    }

    fn remove(&mut self, uid: &str) {
        let Some(place) = self.places.remove(uid) else { return };
        let Some(entry) = self.nodes.get_mut(&place.node) else { return };
        entry.load.remove(uid);
        if entry.is_idle() {
            self.nodes.remove(&place.node);
        }
    }
}

impl Entry {
    /// Neither node nor pods: nothing to remember.
    fn is_idle(&self) -> bool {
        self.node.is_none() && self.load.pods.is_empty()
    }

    /// The value of one of the node's labels.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// The node's taints.
    pub(crate) fn taints(&self) -> &[Taint] {
        let spec = self.node.as_ref().and_then(|node| node.spec.as_ref());
        spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
    }
}

impl Load {
    /// A further pod.
    pub(crate) fn add(&mut self, pod: &Arc<PodView>) {
        self.requested.add(&pod.needs.requests);
        self.weight.0 = self.weight.0.saturating_add(pod.needs.weight.0);
        self.weight.1 = self.weight.1.saturating_add(pod.needs.weight.1);
        if pod.needs.company.is_some() {
            self.sociable.insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), pod.clone());
    }

    /// One pod less.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(pod) = self.pods.remove(uid) else { return };
        self.requested.subtract(&pod.needs.requests);
        self.weight.0 = self.weight.0.saturating_sub(pod.needs.weight.0);
        self.weight.1 = self.weight.1.saturating_sub(pod.needs.weight.1);
        self.sociable.remove(uid);
    }

    /// The pods that are drawn to others, or keep them away.
    pub(crate) fn sociable(&self) -> impl Iterator<Item = &Arc<PodView>> {
        self.sociable.iter().filter_map(|uid| self.pods.get(uid))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{node, pod};
    use super::*;

    #[test]
    fn a_pod_counts_where_it_was_bound_until_the_api_says_otherwise() {
        let mut cluster = Cluster::default();
        cluster.node("a", Some(&node("a")));
        let waiting = pod("web-0", |_| ());
        cluster.pod(None, Some(&waiting));
        assert_eq!(cluster.word("web-0"), None);
        cluster.assume(&waiting, "a", Word::Bound);
        // A late version of the pod, from before the binding.
        cluster.pod(Some(&waiting), Some(&waiting));
        assert_eq!(cluster.entry("a").map(|e| e.load.pods.len()), Some(1));
        let bound = pod("web-0", |p| p["spec"]["nodeName"] = "b".into());
        cluster.pod(Some(&waiting), Some(&bound));
        assert_eq!(cluster.entry("a").map(|e| e.load.pods.len()), Some(0));
        assert_eq!(cluster.word("web-0"), Some(Word::Seen));
        cluster.forget("web-0");
        assert_eq!(cluster.word("web-0"), Some(Word::Seen), "the API knows better");
        assert!(cluster.entry("b").is_none(), "a node that is not known is no node");
        cluster.node("b", Some(&node("b")));
        assert_eq!(cluster.entry("b").map(|e| e.load.pods.len()), Some(1), "its pod was not forgotten");
    }

    /// One change of a pod: uid, node (0: none), and whether it goes, ends, or is assumed instead.
    fn changes() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
        proptest::collection::vec((0..6u8, 0..4u8, 0..6u8), 0..60)
    }

    proptest! {
        /// Whatever happened before, the sums are those of the pods that are there.
        #[test]
        fn anytime_the_load_is_the_sum_of_its_pods(changes in changes()) {
            let mut cluster = Cluster::default();
            let mut known: BTreeMap<u8, Arc<PodView>> = BTreeMap::new();
            for (id, place, what) in changes {
                let new = pod(&format!("p{id}"), |p| {
                    p["spec"]["containers"][0]["resources"] = serde_json::json!({"requests": {"cpu": format!("{}m", id + 1), "x/y": "1"}});
                    if place > 0 {
                        p["spec"]["nodeName"] = format!("n{place}").into();
                    }
                    if what == 1 {
                        p["status"]["phase"] = "Succeeded".into();
                    }
                });
                match what {
                    0 => cluster.pod(known.remove(&id).as_ref(), None),
                    2 => if let Some(there) = known.get(&id) { cluster.assume(there, "n1", Word::Bound) },
                    3 => cluster.forget(&format!("p{id}")),
                    _ => cluster.pod(known.insert(id, new.clone()).as_ref(), Some(&new)),
                }
                for entry in cluster.nodes.values() {
                    let mut sum = Load::default();
                    for pod in entry.load.pods.values() {
                        sum.add(pod);
                    }
                    prop_assert_eq!(&sum, &entry.load);
                }
                let placed: usize = cluster.nodes.values().map(|e| e.load.pods.len()).sum();
                prop_assert_eq!(placed, cluster.places.len());
                for (id, pod) in &known {
                    let counts = cluster.places.get(&format!("p{id}")).map(|p| p.node.clone());
                    if pod.is_over() {
                        prop_assert_eq!(counts, None);
                    } else if pod.node.is_some() {
                        prop_assert_eq!(&counts, &pod.node);
                    }
                }
            }
        }
    }
}
