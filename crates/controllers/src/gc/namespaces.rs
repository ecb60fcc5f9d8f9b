//! A namespace that is deleted: its content goes first, pods before all else, then its last finalizer. What it waits
//! for is in its conditions.

use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};

use super::conditions::Left;
use super::{Kind, kinds};
use crate::Term;
use crate::informers::Informers;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt, name};

/// The finalizer that this controller takes off.
const KUBERNETES: &str = "kubernetes";
/// Namespaces worked on at once.
const WORKERS: usize = 4;
/// Content that has not gone yet (pods in their grace period, finalizers) is looked at again this often.
const CONTENT_AGAIN: Duration = Duration::from_millis(250);
/// Objects deleted per request where a whole collection cannot be.
const PAGE: u32 = 500;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new.filter(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            own.add(name(&**namespace).to_owned());
        }
    });
    let Some(mut kinds) = kinds(&client, &term).await else { return Ok(()) };
    kinds.retain(|kind| kind.namespaced);
    let controller = Controller { client, term, ambient, informers, kinds };
    work::run(&queue, WORKERS, |namespace| controller.namespace(namespace)).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    kinds: Vec<Kind>,
}

impl Controller {
    async fn namespace(&self, key: String) -> Result<Outcome, Stop> {
        let known = self.informers.namespaces.get("", &key);
        if known.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
            return Ok(Outcome::Done);
        }
        if self.drain(&key).await? {
            return Ok(Outcome::After(CONTENT_AGAIN));
        }
        let mut left = Left::default();
        // Pods first: what they use (secrets, claims, policies) stays until they have ended.
        for first in [true, false] {
            for kind in self.kinds.iter().filter(|kind| (kind.resource.kind == "Pod") == first) {
                match self.clear(kind, &key, &mut left).await {
                    Err(Stop::Api(error)) => left.failures.push(error.to_string()),
                    other => other?,
                }
            }
            if !left.is_nothing() {
                break;
            }
        }
        if left.is_nothing() {
            self.finalize(&key).await?;
            return Ok(Outcome::Done);
        }
        self.report(&key, &left).await?;
        Ok(if left.failures.is_empty() { Outcome::After(CONTENT_AGAIN) } else { Outcome::Retry })
    }

    /// Sets that stop their pods in order come first: what their pods use stays until they are gone. True while
    /// there are any.
    async fn drain(&self, namespace: &str) -> Result<bool, Stop> {
        let Some(sets) = self.kinds.iter().find(|kind| kind.resource.plural == "statefulsets") else {
            return Ok(false);
        };
        let api = sets.api(&self.client, namespace);
        let found = call(&self.term, api.list(&ListParams::default())).await?;
        let ordered = |meta: &ObjectMeta| meta.finalizers.iter().flatten().any(|f| f == api::beyond::ORDERED_DELETION);
        let mut any = false;
        for set in found.items.iter().filter(|set| ordered(&set.metadata)) {
            any = true;
            if set.metadata.deletion_timestamp.is_none() {
                let preconditions = Preconditions { uid: set.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams::background().preconditions(preconditions);
                call_opt(&self.term, api.delete(name(set), &params)).await?;
            }
        }
        Ok(any)
    }

    /// Deletes all objects of a kind, and notes in `left` those that are still there.
    async fn clear(&self, kind: &Kind, namespace: &str, left: &mut Left) -> Result<(), Stop> {
        let api = kind.api(&self.client, namespace);
        let found = call(&self.term, api.list_metadata(&ListParams::default().limit(PAGE))).await?;
        if found.items.is_empty() {
            return Ok(());
        }
        let params = DeleteParams::background();
        if kind.collections {
            call(&self.term, api.delete_collection(&params, &ListParams::default())).await?;
        } else {
            for object in &found.items {
                let preconditions = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
                let params = params.clone().preconditions(preconditions);
                match call_opt(&self.term, api.delete(name(object), &params)).await {
                    // Replaced by another of that name: the next look finds that one.
                    Err(stop) if stop.code() == Some(409) => {}
                    other => other.map(|_| ())?,
                }
            }
        }
        let found = call(&self.term, api.list_metadata(&ListParams::default())).await?;
        let resource = &kind.resource;
        for object in found.items {
            left.add(&resource.plural, &resource.group, object.metadata.finalizers.unwrap_or_default());
        }
        Ok(())
    }

    /// Says in the namespace's status what it waits for.
    async fn report(&self, key: &str, left: &Left) -> Result<(), Stop> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let Some(mut namespace) = call_opt(&self.term, namespaces.get(key)).await? else { return Ok(()) };
        let status = namespace.status.get_or_insert_default();
        let old = status.conditions.take().unwrap_or_default();
        let Some(conditions) = left.conditions(old, Time(self.ambient.now())) else { return Ok(()) };
        status.conditions = Some(conditions);
        let params = PostParams::default();
        match call_opt(&self.term, namespaces.replace_subresource("status", key, &params, &namespace)).await {
            // Changed meanwhile: the next look tells.
            Err(stop) if stop.code() == Some(409) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Takes our finalizer off; with the last one the namespace goes.
    async fn finalize(&self, key: &str) -> Result<(), Stop> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let Some(mut namespace) = call_opt(&self.term, namespaces.get(key)).await? else { return Ok(()) };
        let deleting = namespace.metadata.deletion_timestamp.is_some();
        let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
        let before = finalizers.len();
        finalizers.retain(|finalizer| finalizer != KUBERNETES);
        if !deleting || finalizers.len() == before {
            return Ok(());
        }
        let params = PostParams::default();
        call_opt(&self.term, namespaces.replace_subresource("finalize", key, &params, &namespace)).await?;
        Ok(())
    }
}
