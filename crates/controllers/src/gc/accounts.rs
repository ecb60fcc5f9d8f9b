//! Every namespace has a service account `default`: made with the namespace, and made again if it is deleted.

use ambient::Ambient;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::Term;
use crate::informers::Informers;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, name, namespace};

/// The account's name.
const DEFAULT: &str = "default";

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.namespaces.on_change(move |_, new| {
        if let Some(space) = new {
            own.add(name(&**space).to_owned());
        }
    });
    let own = queue.clone();
    informers.accounts.on_change(move |old, new| {
        if let Some(gone) = old.filter(|_| new.is_none()) {
            own.add(namespace(&**gone).to_owned());
        }
    });
    if !informers.namespaces.synced().await || !informers.accounts.synced().await {
        return Ok(());
    }
    work::run(&queue, 1, |space| ensure(&client, &term, &informers, space)).await;
    Ok(())
}

async fn ensure(client: &Client, term: &Term, informers: &Informers, space: String) -> Result<Outcome, Stop> {
    let known = informers.namespaces.get("", &space);
    let open = known.is_some_and(|known| known.metadata.deletion_timestamp.is_none());
    if !open || informers.accounts.get(&space, DEFAULT).is_some() {
        return Ok(Outcome::Done);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some(DEFAULT.into()), namespace: Some(space.clone()), ..ObjectMeta::default() },
        ..ServiceAccount::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &space);
    match call(term, api.create(&PostParams::default(), &account)).await {
        // There already; or the namespace is going, or gone.
        Err(stop) if matches!(stop.code(), Some(409 | 403 | 404)) => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}
