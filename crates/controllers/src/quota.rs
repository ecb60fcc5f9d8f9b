//! ResourceQuotas: what is used of each is counted anew when something was given back, and when its bounds change.
//!
//! The API server charges a quota in the transaction that creates an object, so its status changes with every object
//! that counts. A count is written only upon the version that was read before the objects were listed: an object that
//! came in between has changed the quota, the write is refused, and the next count sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use ambient::Ambient;
use api::amounts::{self, Amounts};
use api::quota;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{ListParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::discovery::ApiGroup;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::Term;
use crate::informer::{Informer, Key};
use crate::informers::{Informers, PodView};
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, call_opt, name, namespace};

/// Quotas counted at once.
const WORKERS: usize = 2;
/// Objects asked for per list request.
const PAGE: u32 = 500;
/// What other kinds give back is found this late.
const AGAIN: Duration = Duration::from_secs(10);

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let quotas: Informer<ResourceQuota> = Informer::builder(Api::all(client.clone()), Some).start(&term, &ambient);
    let own = queue.clone();
    quotas.on_change(move |old, new| {
        let Some(new) = new else { return };
        // Charges change only the status; they need no count.
        if old.is_none_or(|old| old.spec != new.spec) {
            own.add(Key::new(namespace(&**new), name(&**new)));
        }
    });
    watch_returns(&queue, &quotas, &informers);
    if !quotas.synced().await {
        return Ok(());
    }
    let controller = Controller { client, term, ambient };
    work::run(&queue, WORKERS, |key| controller.count(key)).await;
    Ok(())
}

/// Queues the quotas of a namespace when a pod has ended, or a pod, claim or service has gone.
fn watch_returns(queue: &Queue<Key>, quotas: &Informer<ResourceQuota>, informers: &Informers) {
    let again = |queue: &Queue<Key>, quotas: &Informer<ResourceQuota>| {
        let (queue, quotas) = (queue.clone(), quotas.clone());
        move |space: &str| {
            for quota in quotas.in_namespace(space) {
                queue.add(Key::new(namespace(&*quota), name(&*quota)));
            }
        }
    };
    let of = again(queue, quotas);
    informers.pods.on_change(move |old, new| {
        let ended = |pod: Option<&std::sync::Arc<PodView>>| pod.is_none_or(|pod| pod.is_over());
        if let Some(was) = old.filter(|_| ended(new) && !ended(old) || new.is_none()) {
            of(&was.namespace);
        }
    });
    let of = again(queue, quotas);
    informers.claims.on_change(move |old, new| {
        if let (Some(was), None) = (old, new) {
            of(namespace(&**was));
        }
    });
    let of = again(queue, quotas);
    informers.services.on_change(move |old, new| {
        if let Some(was) = old.filter(|old| new.is_none_or(|new| new.spec != old.spec)) {
            of(namespace(&**was));
        }
    });
}

struct Controller {
    client: Client,
    term: Term,
    ambient: Ambient,
}

impl Controller {
    /// Counts what is used of one quota and writes it if it differs.
    async fn count(&self, key: Key) -> Result<Outcome, Stop> {
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.namespace);
        // By list, as the role of this controller has it.
        let one = ListParams::default().fields(&format!("metadata.name={}", key.name));
        let Some(found) = call(&self.term, api.list(&one)).await?.items.pop() else { return Ok(Outcome::Done) };
        let mut value = json!(found);
        let hard = value["spec"]["hard"].clone();
        let kinds = quota::counted_kinds(&hard);
        let mut used = Amounts::new();
        for (group, plural) in &kinds {
            let objects = self.objects(group, plural, &key.namespace).await?;
            let now = self.ambient.now();
            amounts::add(&mut used, &quota::total(&value, (group, plural), objects.iter(), now));
        }
        let used: BTreeMap<&String, String> = hard
            .as_object()
            .into_iter()
            .flatten()
            .map(|(bound, _)| (bound, used.get(bound).map_or_else(|| "0".to_owned(), ToString::to_string)))
            .collect();
        let status = json!({"hard": hard, "used": used});
        if value["status"] != status {
            value["status"] = status;
            let Ok(new) = serde_json::from_value(value) else { return Ok(Outcome::Done) };
            match call_opt(&self.term, api.replace_status(&key.name, &PostParams::default(), &new)).await {
                Err(stop) if stop.code() == Some(409) => return Ok(Outcome::Retry),
                other => other.map(|_| ())?,
            }
        }
        let seen = |(group, plural): &(String, String)| {
            group.is_empty() && matches!(plural.as_str(), "pods" | "services" | "persistentvolumeclaims")
        };
        Ok(if kinds.iter().all(seen) { Outcome::Done } else { Outcome::After(AGAIN) })
    }

    /// The objects of a kind in a namespace, as they are now; none of a kind that is not served.
    async fn objects(&self, group: &str, plural: &str, space: &str) -> Result<Vec<Value>, Stop> {
        let Some(kind) = self.kind(group, plural).await? else { return Ok(Vec::new()) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), space, &kind);
        let mut params = ListParams::default().limit(PAGE);
        let mut out = Vec::new();
        loop {
            let page = call(&self.term, api.list(&params)).await?;
            out.extend(page.items.iter().map(|object| json!(object)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(out),
            }
        }
    }

    /// The kind of a group and plural.
    async fn kind(&self, group: &str, plural: &str) -> Result<Option<ApiResource>, Stop> {
        let known = |kind: &str| {
            let kind = GroupVersionKind::gvk("", "v1", kind);
            Ok(Some(ApiResource::from_gvk_with_plural(&kind, plural)))
        };
        match (group, plural) {
            ("", "pods") => return known("Pod"),
            ("", "services") => return known("Service"),
            ("", "persistentvolumeclaims") => return known("PersistentVolumeClaim"),
            ("", "configmaps") => return known("ConfigMap"),
            ("", "secrets") => return known("Secret"),
            _ => {}
        }
        let found: Option<ApiGroup> = call_opt(&self.term, kube::discovery::group(&self.client, group)).await?;
        let resources = found.into_iter().flat_map(|group| group.recommended_resources());
        Ok(resources.map(|(resource, _)| resource).find(|resource| resource.plural == plural))
    }
}
