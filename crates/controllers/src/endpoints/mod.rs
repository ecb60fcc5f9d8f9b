//! Which pods stand behind each service: EndpointSlices, and the old Endpoints objects.
//!
//! DNS and every client's view of readiness follow from these, so a pod that turns Ready is written at once:
//! no batching, no delay. What is right already is not written. `slices` and `legacy` decide, without I/O.
//!
//! Three controllers, [`run`], [`run_legacy`] and [`run_mirror`], each under an account of its own as upstream has them;
//! the old objects never hold the slices up. The third makes slices of old objects that were written by hand.

mod legacy;
mod mirror;
mod slices;

use std::sync::Arc;

use ambient::Ambient;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};

use self::slices::{MANAGED_BY, MANAGED_BY_LABEL, SERVICE_LABEL};
use crate::Term;
use crate::informer::Key;
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt, name, namespace, revision};

/// Services worked on at once.
const WORKERS: usize = 4;

/// Keeps the EndpointSlices until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    watch_services(&queue, &informers);
    // What others did to our objects is put right.
    let own = queue.clone();
    informers.slices.on_change(move |old, new| {
        let slice = new.or(old).filter(|slice| is_ours(slice));
        let labels = slice.and_then(|slice| Some((namespace(&**slice), slice.metadata.labels.as_ref()?)));
        if let Some((space, service)) = labels.and_then(|(space, labels)| Some((space, labels.get(SERVICE_LABEL)?))) {
            own.add(Key::new(space, service));
        }
    });
    if !informers.pods.synced().await || !informers.services.synced().await || !informers.slices.synced().await {
        return Ok(());
    }
    let controller = Controller { client, term, informers };
    work::run(&queue, WORKERS, |key| controller.slices(key)).await;
    Ok(())
}

/// Keeps the old Endpoints objects until the term ends and its requests are settled.
pub async fn run_legacy(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    watch_services(&queue, &informers);
    let own = queue.clone();
    informers.endpoints.on_change(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            own.add(Key::new(namespace(&**endpoints), name(&**endpoints)));
        }
    });
    if !informers.pods.synced().await || !informers.services.synced().await || !informers.endpoints.synced().await {
        return Ok(());
    }
    let controller = Controller { client, term, informers };
    work::run(&queue, WORKERS, |key| controller.endpoints(key)).await;
    Ok(())
}

/// Mirrors Endpoints that were written for services without selector, until the term ends and its requests are settled.
pub async fn run_mirror(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            own.add(Key::new(namespace(&**service), name(&**service)));
        }
    });
    let own = queue.clone();
    informers.endpoints.on_change(move |old, new| {
        if let Some(endpoints) = new.or(old) {
            own.add(Key::new(namespace(&**endpoints), name(&**endpoints)));
        }
    });
    let own = queue.clone();
    informers.slices.on_change(move |old, new| {
        let slice = new.or(old).filter(|slice| is_of(slice, mirror::MANAGED_BY));
        let labels = slice.and_then(|slice| Some((namespace(&**slice), slice.metadata.labels.as_ref()?)));
        if let Some((space, service)) = labels.and_then(|(space, labels)| Some((space, labels.get(SERVICE_LABEL)?))) {
            own.add(Key::new(space, service));
        }
    });
    if !informers.services.synced().await || !informers.endpoints.synced().await || !informers.slices.synced().await {
        return Ok(());
    }
    let controller = Controller { client, term, informers };
    work::run(&queue, WORKERS, |key| controller.mirrors(key)).await;
    Ok(())
}

/// Queues a service when it changed, or a pod that it takes or took.
fn watch_services(queue: &Queue<Key>, informers: &Informers) {
    let own = queue.clone();
    informers.services.on_change(move |old, new| {
        if let Some(service) = new.or(old) {
            own.add(Key::new(namespace(&**service), name(&**service)));
        }
    });
    let (own, services) = (queue.clone(), informers.services.clone());
    informers.pods.on_change(move |old, new| {
        let Some(pod) = new.or(old) else { return };
        if old.zip(new).is_some_and(|(old, new)| same_to_services(old, new)) {
            return;
        }
        let taken =
            |pod: Option<&Arc<PodView>>, service: &Service| pod.is_some_and(|pod| slices::takes(service, &pod.labels));
        for service in services.in_namespace(&pod.namespace) {
            if taken(old, &service) || taken(new, &service) {
                own.add(Key::new(namespace(&*service), name(&*service)));
            }
        }
    });
}

/// Whether a change of a pod is none to the services that take it.
fn same_to_services(old: &PodView, new: &PodView) -> bool {
    let looked_at = |pod: &PodView| PodView { scheduled: None, needs: Arc::default(), ..pod.clone() };
    looked_at(old) == looked_at(new)
}

fn is_ours(slice: &EndpointSlice) -> bool {
    is_of(slice, MANAGED_BY)
}

/// Whether that controller keeps the slice.
fn is_of(slice: &EndpointSlice, controller: &str) -> bool {
    let labels = slice.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY_LABEL)).is_some_and(|by| by == controller)
}

struct Controller {
    client: Client,
    term: Term,
    informers: Informers,
}

impl Controller {
    async fn slices(&self, key: Key) -> Result<Outcome, Stop> {
        match self.service(&key) {
            Some(service) => {
                let pods = self.informers.pods.in_namespace(&key.namespace);
                self.write_slices(&key, &service, &pods).await?;
            }
            // Without their service they are of no use; nobody waits for the garbage collector.
            None => {
                let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
                for slice in self.slices_of(&key, MANAGED_BY) {
                    self.delete(&api, name(&*slice), work::uid(&*slice).to_owned()).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    async fn endpoints(&self, key: Key) -> Result<Outcome, Stop> {
        match self.service(&key) {
            Some(service) => {
                let pods = self.informers.pods.in_namespace(&key.namespace);
                self.write_endpoints(&key, &service, &pods).await?;
            }
            None => {
                let found = self.informers.endpoints.get(&key.namespace, &key.name);
                // One that a person made without a service is theirs.
                if let Some(found) = found.filter(|found| legacy::is_ours(found)) {
                    let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
                    self.delete(&api, &key.name, work::uid(&*found).to_owned()).await?;
                }
            }
        }
        Ok(Outcome::Done)
    }

    async fn mirrors(&self, key: Key) -> Result<Outcome, Stop> {
        let service = self.service(&key);
        let endpoints = self.informers.endpoints.get(&key.namespace, &key.name);
        let existing = self.slices_of(&key, mirror::MANAGED_BY);
        self.carry_out(&key, mirror::changes(service.as_deref(), endpoints.as_deref(), &existing)).await?;
        Ok(Outcome::Done)
    }

    /// The service, if it is there to stay.
    fn service(&self, key: &Key) -> Option<Arc<Service>> {
        let service = self.informers.services.get(&key.namespace, &key.name);
        service.filter(|service| service.metadata.deletion_timestamp.is_none())
    }

    async fn write_slices(&self, key: &Key, service: &Service, pods: &[Arc<PodView>]) -> Result<(), Stop> {
        let existing = self.slices_of(key, MANAGED_BY);
        self.carry_out(key, slices::changes(service, pods, &existing)).await
    }

    async fn carry_out(&self, key: &Key, changes: slices::Changes) -> Result<(), Stop> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut reached = 0;
        for slice in &changes.update {
            // The resourceVersion that it carries is the condition.
            let written = call(&self.term, api.replace(name(slice), &PostParams::default(), slice)).await?;
            reached = reached.max(revision(&written).unwrap_or(0));
        }
        for slice in &changes.create {
            let written = call(&self.term, api.create(&PostParams::default(), slice)).await?;
            reached = reached.max(revision(&written).unwrap_or(0));
        }
        for (name, uid) in changes.delete {
            self.delete(&api, &name, uid).await?;
        }
        // The next look at this service must see these, or it would make them again.
        self.informers.slices.wait_until(reached).await;
        Ok(())
    }

    async fn write_endpoints(&self, key: &Key, service: &Service, pods: &[Arc<PodView>]) -> Result<(), Stop> {
        if !slices::selects(service) {
            return Ok(());
        }
        let have = self.informers.endpoints.get(&key.namespace, &key.name);
        let Some(wanted) = legacy::wanted(service, pods, have.as_deref()) else { return Ok(()) };
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        let written = match have {
            Some(_) => call(&self.term, api.replace(&key.name, &params, &wanted)).await?,
            None => call(&self.term, api.create(&params, &wanted)).await?,
        };
        self.informers.endpoints.wait_until(revision(&written).unwrap_or(0)).await;
        Ok(())
    }

    /// The slices of a service that this controller keeps.
    fn slices_of(&self, key: &Key, controller: &str) -> Vec<Arc<EndpointSlice>> {
        let slices = self.informers.slices.by_index(&format!("{}/{}", key.namespace, key.name));
        slices.into_iter().filter(|slice| is_of(slice, controller)).collect()
    }

    async fn delete<K>(&self, api: &Api<K>, name: &str, uid: String) -> Result<(), Stop>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let preconditions = Preconditions { uid: Some(uid), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        match call_opt(&self.term, api.delete(name, &params)).await {
            // Another one has the name by now.
            Err(stop) if stop.code() == Some(409) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}
