//! What ends a running pod for good although nobody asked for it: its own deadline, and what it writes.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::status::Verdict;
use super::storage::{self, Places};

/// A clock that stood still while the machine slept is looked at again after so long.
const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// Pause between two looks at what a pod writes, at least.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A look may take this part of the time; a large tree is looked at less often.
const SHARE: u32 = 100;

/// Ends when the pod broke a limit.
pub(super) async fn broken(
    ambient: Ambient,
    pod: watch::Receiver<Option<Arc<Pod>>>,
    beginning: Beginning,
    places: Places,
) -> Verdict {
    tokio::select! {
        verdict = outlived(ambient.clone(), pod.clone(), beginning) => verdict,
        verdict = overgrown(ambient, pod, places) => verdict,
    }
}

/// What a pod has outlived its deadline is told.
pub(super) fn deadline_verdict() -> Verdict {
    Verdict {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
        evicted: false,
        grace: None,
    }
}

/// When a pod began, as its agent knows it. Its status says so on the clock that people set; that is looked at once, and
/// from there on its age is counted on the clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// How old it was then.
    age: Duration,
    /// When that was, on the monotonic clock.
    seen: Duration,
}

impl Beginning {
    /// Of a pod that is seen for the first time. One that has not begun begins now.
    pub(super) fn of(pod: Option<&Pod>, ambient: &Ambient) -> Self {
        let now = ambient.now();
        let started = pod.and_then(|p| p.status.as_ref()?.start_time.as_ref()).map_or(now, |t| t.0);
        let age = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        Self { age, seen: ambient.boottime() }
    }

    fn age(self, ambient: &Ambient) -> Duration {
        self.age.saturating_add(ambient.boottime().saturating_sub(self.seen))
    }

    /// How long the pod may still run: none where it has no deadline.
    pub(super) fn left(self, pod: &Pod, ambient: &Ambient) -> Option<Duration> {
        let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Some(limit.saturating_sub(self.age(ambient)))
    }
}

async fn outlived(ambient: Ambient, mut pod: watch::Receiver<Option<Arc<Pod>>>, beginning: Beginning) -> Verdict {
    loop {
        let asked = |p: &Pod| p.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        let now = pod.borrow_and_update().clone();
        let before = now.as_deref().and_then(asked);
        let end = now.as_deref().and_then(|pod| beginning.left(pod, &ambient)).map(|left| ambient.boottime() + left);
        let wait = async {
            match end {
                // Again and again: a machine that slept has less time left than it thinks.
                Some(end) => {
                    while let Some(left) = end.checked_sub(ambient.boottime()).filter(|left| !left.is_zero()) {
                        tokio::time::sleep(left.min(CLOCK_EVERY)).await;
                    }
                }
                None => pending().await,
            }
        };
        tokio::select! {
            () = wait => return deadline_verdict(),
            gone = changes(&mut pod, |pod| asked(pod) != before) => {
                if gone {
                    return pending().await;
                }
            }
        }
    }
}

/// Waits until the pod is one like that. True where nobody will tell of it any more.
async fn changes(pod: &mut watch::Receiver<Option<Arc<Pod>>>, is: impl Fn(&Pod) -> bool) -> bool {
    pod.wait_for(|pod| pod.as_deref().is_some_and(&is)).await.is_err()
}

async fn overgrown(ambient: Ambient, pod: watch::Receiver<Option<Arc<Pod>>>, places: Places) -> Verdict {
    let mut pause = LOOK_EVERY;
    loop {
        // What is limited may change with a resize.
        let spec = pod.borrow().as_deref().and_then(|pod| pod.spec.clone()).filter(storage::is_limited);
        tokio::time::sleep(pause).await;
        let Some(spec) = spec else { continue };
        let (places, before) = (places.clone(), ambient.boottime());
        let look = move || storage::judge(&spec, &storage::measure(&spec, &places));
        if let Some(verdict) = tokio::task::spawn_blocking(look).await.expect("looking does not panic") {
            return verdict;
        }
        pause = LOOK_EVERY.max(ambient.boottime().saturating_sub(before) * SHARE);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn a_deadline_counts_from_the_pods_start() {
        let (ambient, _) = Ambient::manual("2026-01-01T00:01:00Z".parse().expect("a time"), 1);
        let left = |pod: Pod| Beginning::of(Some(&pod), &ambient).left(&pod, &ambient);
        let started = json!({"spec": {"activeDeadlineSeconds": 90, "containers": []},
            "status": {"startTime": "2026-01-01T00:00:00Z"}});
        assert_eq!(left(pod(started)), Some(Duration::from_secs(30)));
        let fresh = json!({"spec": {"activeDeadlineSeconds": 5, "containers": []}});
        assert_eq!(left(pod(fresh)), Some(Duration::from_secs(5)));
        assert_eq!(left(pod(json!({"spec": {"containers": []}}))), None);
    }

    #[test]
    fn a_pod_that_comes_up_again_after_a_jump_of_the_clock_is_no_older() {
        let (ambient, clock) = Ambient::manual("2026-01-01T00:01:00Z".parse().expect("a time"), 1);
        let started = json!({"spec": {"activeDeadlineSeconds": 90, "containers": []},
            "status": {"startTime": "2026-01-01T00:00:00Z"}});
        let pod = pod(started);
        let beginning = Beginning::of(Some(&pod), &ambient);
        for jump in ["2030-01-01T00:00:00Z", "1999-01-01T00:00:00Z"] {
            clock.jump(jump.parse().expect("a time"));
            assert_eq!(beginning.left(&pod, &ambient), Some(Duration::from_secs(30)), "{jump}");
        }
        clock.advance(Duration::from_secs(31));
        assert_eq!(beginning.left(&pod, &ambient), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_or_forth_ends_no_pod_early_and_keeps_none() {
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().expect("a time"), 1);
        let object = pod(json!({"spec": {"activeDeadlineSeconds": 90, "containers": []},
            "status": {"startTime": "2026-01-01T00:00:00Z"}}));
        let beginning = Beginning::of(Some(&object), &ambient);
        let (_tell, told) = watch::channel(Some(Arc::new(object)));
        let mut ends = Box::pin(outlived(ambient, told, beginning));
        assert!(futures::poll!(&mut ends).is_pending());
        clock.jump("2030-01-01T00:00:00Z".parse().expect("a time"));
        assert!(futures::poll!(&mut ends).is_pending(), "a jump is no time");
        clock.advance(Duration::from_secs(91));
        assert_eq!(ends.await, deadline_verdict());
    }
}
