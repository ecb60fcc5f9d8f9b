//! What a namespace that is deleted waits for, in upstream's words. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What is left of a namespace's content after a round of deletes.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Objects by resource and group.
    remaining: BTreeMap<String, usize>,
    /// How many objects each finalizer keeps.
    finalizers: BTreeMap<String, usize>,
    /// What could not be deleted, and why.
    pub(super) failures: Vec<String>,
}

/// One condition: its type, and what is said while all is well.
struct Kind {
    name: &'static str,
    fine: (&'static str, &'static str),
}

/// Every condition of such a namespace.
const KINDS: [Kind; 5] = [
    Kind {
        name: "NamespaceDeletionDiscoveryFailure",
        fine: ("ResourcesDiscovered", "All resources successfully discovered"),
    },
    Kind {
        name: "NamespaceDeletionGroupVersionParsingFailure",
        fine: ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
    },
    Kind {
        name: "NamespaceDeletionContentFailure",
        fine: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    },
    Kind { name: "NamespaceContentRemaining", fine: ("ContentRemoved", "All content successfully removed") },
    Kind {
        name: "NamespaceFinalizersRemaining",
        fine: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
    },
];

impl Left {
    /// Notes an object that is still there.
    pub(super) fn add(&mut self, plural: &str, group: &str, finalizers: Vec<String>) {
        *self.remaining.entry(format!("{plural}.{group}")).or_default() += 1;
        for finalizer in finalizers {
            *self.finalizers.entry(finalizer).or_default() += 1;
        }
    }

    /// Whether all is gone.
    pub(super) fn is_nothing(&self) -> bool {
        self.remaining.is_empty() && self.failures.is_empty()
    }

    /// The conditions after `old`; `None` if they are the same.
    pub(super) fn conditions(&self, old: Vec<NamespaceCondition>, now: Time) -> Option<Vec<NamespaceCondition>> {
        let mut conditions = old;
        let mut changed = false;
        for kind in &KINDS {
            let (status, reason, message) = match self.trouble(kind.name) {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", kind.fine.0, kind.fine.1.to_owned()),
            };
            let new = NamespaceCondition {
                last_transition_time: Some(now.clone()),
                message: Some(message),
                reason: Some(reason.to_owned()),
                status: status.to_owned(),
                type_: kind.name.to_owned(),
            };
            match conditions.iter_mut().find(|known| known.type_ == kind.name) {
                Some(known)
                    if (&known.status, &known.reason, &known.message) == (&new.status, &new.reason, &new.message) => {}
                Some(known) => {
                    *known = new;
                    changed = true;
                }
                None => {
                    conditions.push(new);
                    changed = true;
                }
            }
        }
        changed.then_some(conditions)
    }

    /// Reason and message of a condition that holds.
    fn trouble(&self, kind: &str) -> Option<(&'static str, String)> {
        let listed = |all: &BTreeMap<String, usize>, word: &str| {
            all.iter()
                .map(|(what, count)| format!("{what} {word} {count} resource instances"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        match kind {
            "NamespaceDeletionContentFailure" if !self.failures.is_empty() => {
                let (count, all) = (self.failures.len(), self.failures.join(", "));
                Some((
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {count} remaining: {all}"),
                ))
            }
            "NamespaceContentRemaining" if !self.remaining.is_empty() => {
                let all = listed(&self.remaining, "has");
                Some(("SomeResourcesRemain", format!("Some resources are remaining: {all}")))
            }
            "NamespaceFinalizersRemaining" if !self.finalizers.is_empty() => {
                let all = listed(&self.finalizers, "in");
                Some(("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {all}")))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_namespace_says_what_it_waits_for_and_once_only() {
        let mut left = Left::default();
        assert!(left.is_nothing());
        left.add("pods", "", vec!["example.com/a".into()]);
        left.add("pods", "", vec!["example.com/a".into()]);
        left.add("statefulsets", "apps", Vec::new());
        let now = Time(Timestamp::UNIX_EPOCH);
        let conditions = left.conditions(Vec::new(), now.clone()).expect("they are new");
        let said: Vec<_> =
            conditions.iter().filter(|c| c.status == "True").map(|c| c.message.clone().unwrap()).collect();
        assert_eq!(
            said,
            [
                "Some resources are remaining: pods. has 2 resource instances, statefulsets.apps has 1 resource instances",
                "Some content in the namespace has finalizers remaining: example.com/a in 2 resource instances",
            ]
        );
        assert!(left.conditions(conditions.clone(), now.clone()).is_none(), "nothing new to say");
        let later = Left::default().conditions(conditions, now).expect("all has changed");
        assert_eq!((later.len(), later.iter().filter(|c| c.status == "True").count()), (5, 0));
    }
}
