//! Who owns whom, as far as it has been seen. No I/O.
//!
//! ```text
//!   owner ◀──ownerReferences── dependent          an owner may be absent: not seen yet, or gone
//! ```
//! The graph only says where to look. Whether an owner is gone is asked of the API before anything is deleted.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::informer::parse;

/// Finalizer of an object whose dependents go first.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub(super) const ORPHAN: &str = "orphan";

/// Finalizer of a set whose pods go one after another, at its controller's hand: its dependents are left alone.
pub(super) const ORDERED: &str = api::beyond::ORDERED_DELETION;

/// One object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// Which of the watched kinds it is.
    pub(super) kind: usize,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// metadata.resourceVersion; 0 if it is unknown.
    pub(super) version: u64,
    pub(super) owners: Vec<Owner>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    pub(super) orphan: bool,
    /// Its controller sees to its dependents first.
    pub(super) ordered: bool,
}

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// The owner may not go, in the foreground, before this dependent has.
    pub(super) blocks: bool,
}

impl Item {
    /// An object, reduced.
    pub(super) fn of(kind: usize, meta: ObjectMeta) -> Option<Self> {
        let finalizers = meta.finalizers.unwrap_or_default();
        let has = |finalizer: &str| finalizers.iter().any(|f| f == finalizer);
        Some(Self {
            kind,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name?,
            uid: meta.uid?,
            version: parse(meta.resource_version.as_deref().unwrap_or_default()),
            owners: meta.owner_references.into_iter().flatten().map(Owner::of).collect(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
            ordered: has(ORDERED),
        })
    }

    /// Whether a reference of this object can mean `known`: of that name, and in its own namespace or in none.
    pub(super) fn may_mean(&self, owner: &Owner, known: &Self) -> bool {
        owner.name == known.name && (known.namespace.is_empty() || known.namespace == self.namespace)
    }

    /// It is being deleted, and waits for its dependents to go first.
    pub(super) fn awaits_dependents(&self) -> bool {
        self.deleting && self.foreground && !self.ordered
    }
}

impl Owner {
    /// The owner that this means where it stands in an object of a namespace.
    pub(super) fn within(&self, namespace: &str) -> (String, Self) {
        (namespace.to_owned(), Self { blocks: false, ..self.clone() })
    }

    fn of(reference: OwnerReference) -> Self {
        Self {
            api_version: reference.api_version,
            kind: reference.kind,
            name: reference.name,
            uid: reference.uid,
            blocks: reference.block_owner_deletion == Some(true),
        }
    }
}

/// All objects, and the edges between them.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    /// Owner's uid → its dependents' uids; the owner need not be there.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The object of this uid.
    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// The objects that name this uid as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<&Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.items.get(uid)).collect()
    }

    /// Takes an object in, new or changed; gives the uids that should be looked at.
    pub(super) fn put(&mut self, item: Item) -> Vec<String> {
        let mut look: Vec<String> = Vec::new();
        let old = self.unlink(&item.uid);
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(item.uid.clone());
        }
        // An owner that waits for its dependents may have lost one.
        let before = old.iter().flat_map(|old| &old.owners).map(|owner| &owner.uid);
        look.extend(before.filter(|uid| self.items.get(*uid).is_some_and(Item::awaits_dependents)).cloned());
        let doubtful = |owner: &Owner| {
            self.items.get(&owner.uid).is_none_or(|o| o.awaits_dependents() || !item.may_mean(owner, o))
        };
        let held = item.deleting && (item.foreground || item.orphan);
        if held || (!item.deleting && item.owners.iter().any(doubtful)) {
            look.push(item.uid.clone());
        }
        self.items.insert(item.uid.clone(), item);
        look
    }

    /// Forgets an object that is gone; gives the uids that should be looked at.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.unlink(uid) else { return Vec::new() };
        let mut look: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        let waits = |owner: &&Owner| self.items.get(&owner.uid).is_some_and(Item::awaits_dependents);
        look.extend(item.owners.iter().filter(waits).map(|owner| owner.uid.clone()));
        look
    }

    fn unlink(&mut self, uid: &str) -> Option<Item> {
        let item = self.items.remove(uid)?;
        for owner in &item.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(item)
    }
}

/// How an owner is, according to the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// There, and not waiting to go.
    Solid,
    /// Being deleted in the foreground: it waits for its dependents.
    Waiting,
    /// Gone: no object of that name, or one of another uid.
    Gone,
}

/// What becomes of a dependent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays as it is.
    Keep,
    /// It stays, without its references to these uids.
    Release(Vec<String>),
    /// It goes; its own dependents first if `foreground`.
    Delete { foreground: bool },
}

/// Decides about an object by how its owners are. `has_dependents`: it owns something itself.
pub(super) fn fate(owners: &[(String, OwnerState)], has_dependents: bool) -> Fate {
    let of = |state: OwnerState| owners.iter().filter(move |(_, s)| *s == state);
    if owners.is_empty() {
        return Fate::Keep;
    }
    if of(OwnerState::Solid).next().is_some() {
        let others: Vec<String> =
            owners.iter().filter(|(_, s)| *s != OwnerState::Solid).map(|(u, _)| u.clone()).collect();
        return if others.is_empty() { Fate::Keep } else { Fate::Release(others) };
    }
    Fate::Delete { foreground: of(OwnerState::Waiting).next().is_some() && has_dependents }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: &str, owners: &[&str]) -> Item {
        let owner = |uid: &&str| Owner {
            api_version: "v1".into(),
            kind: "K".into(),
            name: (*uid).into(),
            uid: (*uid).into(),
            blocks: true,
        };
        Item { name: uid.into(), uid: uid.into(), owners: owners.iter().map(owner).collect(), ..Item::default() }
    }

    #[test]
    fn a_dependent_is_looked_at_when_its_owner_is_unknown_or_goes() {
        let mut graph = Graph::default();
        assert_eq!(graph.put(item("pod", &["set"])), ["pod"], "its owner was not seen");
        assert!(graph.put(item("set", &[])).is_empty());
        assert!(graph.put(item("pod", &["set"])).is_empty(), "its owner is there");
        assert_eq!(graph.remove("set"), ["pod"]);
        assert!(graph.remove("pod").is_empty());
        assert!(graph.items.is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn a_dependent_is_looked_at_when_its_owner_is_known_elsewhere() {
        let mut graph = Graph::default();
        let of =
            |namespace: &str, uid: &str, owners: &[&str]| Item { namespace: namespace.into(), ..item(uid, owners) };
        graph.put(of("there", "set", &[]));
        graph.put(of("", "node", &[]));
        assert_eq!(graph.put(of("here", "pod", &["set"])), ["pod"], "an owner is in the same namespace or in none");
        assert!(graph.put(of("there", "pod", &["set"])).is_empty());
        assert!(graph.put(of("here", "pod", &["node"])).is_empty());
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_a_dependent_goes_or_lets_go() {
        let mut graph = Graph::default();
        graph.put(item("set", &[]));
        graph.put(item("a", &["set"]));
        graph.put(item("b", &["set"]));
        let waiting = Item { deleting: true, foreground: true, ..item("set", &[]) };
        assert_eq!(graph.put(waiting), ["set"]);
        assert_eq!(graph.dependents("set").len(), 2);
        assert_eq!(graph.remove("a"), ["set"]);
        assert_eq!(graph.put(item("b", &[])), ["set"]);
        assert!(graph.dependents("set").is_empty());
    }

    #[test]
    fn dependents_of_a_set_that_goes_in_order_are_left_to_it_until_it_lets_go() {
        let mut graph = Graph::default();
        graph.put(item("set", &[]));
        graph.put(item("pod", &["set"]));
        let ordered = Item { deleting: true, foreground: true, ordered: true, ..item("set", &[]) };
        graph.put(ordered.clone());
        assert!(!ordered.awaits_dependents());
        assert!(graph.put(item("pod", &["set"])).is_empty(), "the pod is not looked at");
        assert_eq!(graph.put(Item { ordered: false, ..ordered }), ["set"], "now the rest goes in the foreground");
    }

    #[test]
    fn only_what_has_lost_all_owners_is_deleted() {
        use OwnerState::{Gone, Solid, Waiting};
        let owners = |states: &[OwnerState]| -> Vec<(String, OwnerState)> {
            states.iter().enumerate().map(|(i, state)| (i.to_string(), *state)).collect()
        };
        assert_eq!(fate(&owners(&[]), false), Fate::Keep);
        assert_eq!(fate(&owners(&[Solid]), false), Fate::Keep);
        assert_eq!(fate(&owners(&[Gone, Solid, Waiting]), true), Fate::Release(vec!["0".into(), "2".into()]));
        assert_eq!(fate(&owners(&[Gone]), true), Fate::Delete { foreground: false });
        assert_eq!(fate(&owners(&[Gone, Gone]), true), Fate::Delete { foreground: false });
        assert_eq!(fate(&owners(&[Waiting, Gone]), true), Fate::Delete { foreground: true });
        assert_eq!(fate(&owners(&[Waiting]), false), Fate::Delete { foreground: false });
    }
}
