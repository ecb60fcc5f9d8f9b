//! What the smaller controllers share: workers over a queue, and requests that respect the term.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use tracing::debug;

use crate::Term;
use crate::queue::{Outcome, Queue};

/// Works on keys, `workers` at a time, until the term ends; returns when all that had begun is done.
pub(crate) async fn run<K, F>(queue: &Queue<K>, workers: usize, work: impl Fn(K) -> F)
where
    K: Clone + Eq + std::hash::Hash + Ord + Send + std::fmt::Debug + 'static,
    F: Future<Output = Result<Outcome, Stop>>,
{
    let worker = || async {
        while let Some(key) = queue.next().await {
            let outcome = match work(key.clone()).await {
                Ok(outcome) => outcome,
                Err(Stop::Over) => Outcome::Done,
                Err(Stop::Api(error)) => {
                    debug!(?key, %error, "a request failed; trying again");
                    Outcome::Retry
                }
            };
            queue.finish(key, outcome);
        }
    };
    futures::future::join_all((0..workers).map(|_| worker())).await;
}

/// Makes one request, unless the term is over.
pub(crate) async fn call<T>(term: &Term, request: impl Future<Output = kube::Result<T>>) -> Result<T, Stop> {
    if term.is_over() {
        return Err(Stop::Over);
    }
    request.await.map_err(|error| Stop::Api(Box::new(error)))
}

/// As [`call`], where the object may be gone: `None` then.
pub(crate) async fn call_opt<T>(
    term: &Term,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, Stop> {
    match call(term, request).await {
        Ok(found) => Ok(Some(found)),
        Err(stop) if stop.code() == Some(404) => Ok(None),
        Err(stop) => Err(stop),
    }
}

/// Why a piece of work ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The term is over: nothing more may be asked.
    Over,
    /// The API refused, or could not be reached.
    Api(Box<kube::Error>),
}

impl Stop {
    /// The HTTP code of the API's answer, if there was one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Over => None,
        }
    }
}

/// How events name an object.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// The revision of an object, for [`crate::informer::Informer::wait_until`].
pub(crate) fn revision<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

/// An object's name; every object that the API gives has one.
pub(crate) fn name<K: Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// An object's namespace; empty for kinds without.
pub(crate) fn namespace<K: Resource>(object: &K) -> &str {
    object.meta().namespace.as_deref().unwrap_or_default()
}

/// An object's uid; every object that the API gives has one.
pub(crate) fn uid<K: Resource>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}
