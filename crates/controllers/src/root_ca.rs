//! Every namespace has a config map `kube-root-ca.crt`: the certificate that programs in pods check the API server
//! against. Made with the namespace, and put back if it is changed or deleted.

use std::collections::BTreeMap;

use ambient::Ambient;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::Term;
use crate::informer::Informer;
use crate::informers::Informers;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop, call, name, namespace};

/// The config map.
const NAME: &str = "kube-root-ca.crt";
/// Its key.
const KEY: &str = "ca.crt";
/// Tells people what it is good for.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "The certificate by which programs in pods know this API server, at kubernetes.default.svc and its service address.",
);
/// Namespaces worked on at once.
const WORKERS: usize = 4;

/// Runs until the term ends and its requests are settled. `authority` is the certificate, PEM.
pub async fn run(
    client: Client,
    term: Term,
    ambient: Ambient,
    informers: Informers,
    authority: String,
) -> kube::Result<()> {
    let maps: Informer<ConfigMap> = Informer::builder(Api::all(client.clone()), Some)
        .fields(format!("metadata.name={NAME}"))
        .start(&term, &ambient);
    let queue: Queue<String> = Queue::new(&term, &ambient);
    let own = queue.clone();
    informers.namespaces.on_change(move |_, new| {
        if let Some(space) = new {
            own.add(name(&**space).to_owned());
        }
    });
    let own = queue.clone();
    maps.on_change(move |old, new| {
        if let Some(map) = new.or(old) {
            own.add(namespace(&**map).to_owned());
        }
    });
    if !informers.namespaces.synced().await || !maps.synced().await {
        return Ok(());
    }
    let publisher = Publisher { client, term, informers, maps, authority };
    work::run(&queue, WORKERS, |space| publisher.ensure(space)).await;
    Ok(())
}

struct Publisher {
    client: Client,
    term: Term,
    informers: Informers,
    maps: Informer<ConfigMap>,
    authority: String,
}

impl Publisher {
    async fn ensure(&self, space: String) -> Result<Outcome, Stop> {
        let known = self.informers.namespaces.get("", &space);
        if known.is_none_or(|known| known.metadata.deletion_timestamp.is_some()) {
            return Ok(Outcome::Done);
        }
        let data = BTreeMap::from([(KEY.to_owned(), self.authority.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &space);
        let there = self.maps.get(&space, NAME);
        let written = match there {
            Some(map) if map.data.as_ref().is_some_and(|has| has.iter().eq(&data)) => return Ok(Outcome::Done),
            Some(map) => {
                let mut map = (*map).clone();
                map.data = Some(data.into_iter().collect());
                call(&self.term, api.replace(NAME, &PostParams::default(), &map)).await
            }
            None => {
                let annotations = BTreeMap::from([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())]);
                let metadata = ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(space.clone()),
                    annotations: Some(annotations.into_iter().collect()),
                    ..ObjectMeta::default()
                };
                let map = ConfigMap { metadata, data: Some(data.into_iter().collect()), ..ConfigMap::default() };
                call(&self.term, api.create(&PostParams::default(), &map)).await
            }
        };
        match written {
            // There already, or changed meanwhile: that change brings us back. Or the namespace is going, or gone.
            Err(stop) if matches!(stop.code(), Some(409 | 403 | 404)) => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}
