//! A namespace that is deleted: its content goes first, then its last finalizer.

use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};

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
    let controller = Controller { client, term, informers, kinds };
    work::run(&queue, WORKERS, |namespace| controller.namespace(namespace)).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    informers: Informers,
    kinds: Vec<Kind>,
}

impl Controller {
    async fn namespace(&self, key: String) -> Result<Outcome, Stop> {
        let known = self.informers.namespaces.get("", &key);
        if known.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
            return Ok(Outcome::Done);
        }
        let mut left = false;
        for kind in &self.kinds {
            left |= self.clear(kind, &key).await?;
        }
        if left {
            return Ok(Outcome::After(CONTENT_AGAIN));
        }
        self.finalize(&key).await?;
        Ok(Outcome::Done)
    }

    /// Deletes all objects of a kind. True if there were any: they count until they are seen to be gone.
    async fn clear(&self, kind: &Kind, namespace: &str) -> Result<bool, Stop> {
        let api = kind.api(&self.client, namespace);
        let page = if kind.collections { 1 } else { PAGE };
        let found = call(&self.term, api.list(&ListParams::default().limit(page))).await?;
        if found.items.is_empty() {
            return Ok(false);
        }
        let params = DeleteParams::background();
        if kind.collections {
            call(&self.term, api.delete_collection(&params, &ListParams::default())).await?;
            return Ok(true);
        }
        for object in &found.items {
            let preconditions = Preconditions { uid: object.metadata.uid.clone(), resource_version: None };
            let params = params.clone().preconditions(preconditions);
            match call_opt(&self.term, api.delete(name(object), &params)).await {
                // Replaced by another of that name: the next look finds that one.
                Err(stop) if stop.code() == Some(409) => {}
                other => other.map(|_| ())?,
            }
        }
        Ok(true)
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
