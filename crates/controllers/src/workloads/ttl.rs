//! Jobs that are to go some time after they finished.

use std::time::Duration;

use ambient::Ambient;
use kube::Client;
use kube::api::PropagationPolicy;
use workloads::Millis;

use super::calls::{Caller, JOBS};
use super::project::JobView;
use super::{Informers, settled};
use crate::Term;
use crate::informer::Key;
use crate::queue::{Outcome, Queue};
use crate::work::{self, Stop};

/// Jobs deleted at the same time.
const WORKERS: usize = 2;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, informers: Informers) -> kube::Result<()> {
    let queue: Queue<Key> = Queue::new(&term, &ambient);
    let (own, caller) = (queue.clone(), Caller { client, term });
    informers.jobs.on_change(move |_, new| {
        if let Some(view) = new.filter(|view| due(view).is_some()) {
            own.add(view.meta.key());
        }
    });
    if !informers.jobs.synced().await {
        return Ok(());
    }
    work::run(&queue, WORKERS, |key| expire(&caller, &ambient, &informers, key)).await;
    Ok(())
}

/// When a job is to go; `None` while it is not finished, or if it stays.
fn due(view: &JobView) -> Option<Millis> {
    let finished = view.job.finished_at().filter(|_| !view.meta.deleting)?;
    Some(finished.saturating_add(view.ttl_seconds?.saturating_mul(1000)))
}

/// Deletes a job whose time has come, pods first, unless it has changed since it was seen.
async fn expire(caller: &Caller, ambient: &Ambient, informers: &Informers, key: Key) -> Result<Outcome, Stop> {
    let Some(view) = informers.jobs.get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
    let Some(due) = due(&view) else { return Ok(Outcome::Done) };
    let now = ambient.now().as_millisecond();
    if due > now {
        return Ok(settled(Some(due), now));
    }
    let at = (view.meta.name.as_str(), view.meta.uid.as_str(), view.meta.version);
    match caller.delete(JOBS, &key.namespace, at, PropagationPolicy::Foreground).await {
        // It has changed; the change brings it here again, but its time has come all the same.
        Err(stop) if stop.code() == Some(409) => Ok(Outcome::After(Duration::from_millis(100))),
        other => other.map(|()| Outcome::Done),
    }
}
