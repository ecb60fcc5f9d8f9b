//! Sets whose governing service is missing or is not headless are told so, once, by an event.
//!
//! Such a set works: nothing about its pods waits for the service. But their names do not resolve, or the service's
//! own name does not lead to them, which is hard to see from within.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::{Api, Client};

use crate::Term;
use crate::events::{Level, Recorder};
use crate::informer::{Informer, Key};
use crate::informers::Informers;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, name, namespace, reference, uid};

/// How long a set may be without its service until it is told: it often comes a moment later.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is kept of a set.
struct Governed {
    service: String,
    reference: ObjectReference,
}

/// Runs until the term ends.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let project = |set: StatefulSet| {
        let service = set.spec.service_name.clone().filter(|name| !name.is_empty())?;
        set.metadata.deletion_timestamp.is_none().then(|| Governed { service, reference: reference(&set) })
    };
    let by_service = |set: &Governed| {
        let namespace = set.reference.namespace.as_deref().unwrap_or_default();
        vec![format!("{namespace}/{}", set.service)]
    };
    let sets = Informer::builder(Api::<StatefulSet>::all(client.clone()), project).index(by_service);
    let sets = sets.start(&term, &ambient);
    let own = queue.clone();
    let key = |set: &Governed| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key::new(text(&set.reference.namespace), text(&set.reference.name))
    };
    sets.on_change(move |old, new| {
        if let Some(set) = new.or(old) {
            own.add(key(set));
        }
    });
    let (own, governed) = (queue.clone(), sets.clone());
    informers.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            let index = format!("{}/{}", namespace(&**service), name(&**service));
            governed.by_index(&index).iter().for_each(|set| own.add(key(set)));
        }
    });
    if !sets.synced().await || !informers.services.synced().await {
        return Ok(());
    }
    let recorder = Recorder::start(client, "statefulset-controller", &term, &ambient);
    let watcher = Watcher { ambient, informers, sets, recorder, since: Mutex::default() };
    work::run(&queue, 1, |key| watcher.look(key)).await;
    Ok(())
}

struct Watcher {
    ambient: Ambient,
    informers: Informers,
    sets: Informer<Governed>,
    recorder: Recorder,
    /// Since when something is wrong, what, and whether it was told.
    since: Mutex<HashMap<Key, (String, Duration, bool)>>,
}

impl Watcher {
    async fn look(&self, key: Key) -> Result<Outcome, Stop> {
        let set = self.sets.get(&key.namespace, &key.name);
        let wrong = set.as_ref().and_then(|set| {
            let service = self.informers.services.get(&key.namespace, &set.service);
            Some((set.reference.clone(), trouble(&set.service, service.as_deref())?))
        });
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((set, words)) = wrong else {
            since.remove(&key);
            return Ok(Outcome::Done);
        };
        let now = self.ambient.boottime();
        let entry = since.entry(key).or_insert_with(|| (words.clone(), now, false));
        if entry.0 != words {
            *entry = (words.clone(), now, false);
        }
        let left = (entry.1 + PATIENCE).saturating_sub(now);
        if !entry.2 && left.is_zero() {
            entry.2 = true;
            self.recorder.event(&set, Level::Warning, "GoverningService", words);
        }
        Ok(if left.is_zero() { Outcome::Done } else { Outcome::After(left) })
    }
}

/// What is wrong with a set's governing service of this name; nothing if it is as it should be.
pub fn trouble(wanted: &str, service: Option<&Service>) -> Option<String> {
    let Some(service) = service.filter(|service| !uid(*service).is_empty()) else {
        return Some(format!(
            "service {wanted:?}, which serviceName names, does not exist: the pods run, and their DNS names do not \
             resolve until it does"
        ));
    };
    let headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    (!headless).then(|| {
        format!(
            "service {wanted:?}, which serviceName names, is not headless: its name leads to its cluster IP, not to all \
             pods; clusterIP: None makes it headless"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_headless_service_that_is_there_is_as_it_should_be() {
        let service = |ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"clusterIP": ip}})).expect("a service")
        };
        assert_eq!(trouble("web", Some(&service("None"))), None);
        assert!(trouble("web", Some(&service("10.96.0.7"))).is_some_and(|words| words.contains("is not headless")));
        assert!(trouble("web", None).is_some_and(|words| words.contains("does not exist")));
    }
}
