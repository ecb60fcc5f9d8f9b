//! What comes from the API: a new overview after every change, and the log and events of one pod.

use std::time::Duration;

use ambient::Ambient;
use futures::{AsyncBufReadExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{ListParams, LogParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::overview::Overview;
use crate::why::{facts, span};

/// No two looks are closer than this; changes that come between are seen by the next.
const PAUSE: Duration = Duration::from_millis(400);
/// What no watch tells (how full volumes are, how long something has waited) is asked for this often.
const OFTEN: Duration = Duration::from_secs(10);
/// Pause before a log that ended is asked for again.
const LOG_PAUSE: Duration = Duration::from_secs(2);
/// Lines of the past that a log begins with.
const TAIL: i64 = 200;
/// Events that are shown.
const EVENTS: usize = 50;

/// Something new.
#[derive(Debug)]
pub enum News {
    /// The namespace, or why it cannot be read.
    Overview(Result<Overview, String>),
    /// A pod printed a line.
    Log(String, String),
    /// A pod's events as sentences, newest first.
    Events(String, Vec<String>),
    /// What came of an action.
    Done(Result<String, String>),
}

/// What runs to bring news. Dropping it ends all.
pub struct Feed {
    client: Client,
    namespace: String,
    ambient: Ambient,
    news: mpsc::Sender<News>,
    tasks: JoinSet<()>,
    /// What follows the pod in detail.
    of_pod: Vec<AbortHandle>,
}

impl Feed {
    /// Follows a namespace.
    pub fn start(client: Client, namespace: String, ambient: Ambient, news: mpsc::Sender<News>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(look(client.clone(), namespace.clone(), ambient.clone(), news.clone()));
        Self { client, namespace, ambient, news, tasks, of_pod: Vec::new() }
    }

    /// Follows one pod, and no other any more.
    pub fn open(&mut self, container: Option<String>, pod: String) {
        self.close();
        let (client, namespace, news) = (self.client.clone(), self.namespace.clone(), self.news.clone());
        let events = follow_events(client.clone(), namespace.clone(), self.ambient.clone(), pod.clone(), news.clone());
        self.of_pod.push(self.tasks.spawn(events));
        if let Some(container) = container {
            self.of_pod.push(self.tasks.spawn(follow_log(client, namespace, pod, container, news)));
        }
    }

    /// Follows no pod any more.
    pub fn close(&mut self) {
        self.of_pod.drain(..).for_each(|task| task.abort());
    }
}

/// Looks after every change, and now and then.
async fn look(client: Client, namespace: String, ambient: Ambient, news: mpsc::Sender<News>) {
    let mut changes = std::pin::pin!(changes(&client, &namespace));
    loop {
        tokio::select! {
            changed = changes.next() => if changed.is_none() { return },
            () = tokio::time::sleep(OFTEN) => {}
        }
        // What changes together is looked at once.
        let rest = async { while changes.next().await.is_some() {} };
        let _ = tokio::time::timeout(PAUSE, rest).await;
        let seen = Overview::read(&client, &namespace, ambient.now()).await.map_err(|error| format!("{error:#}"));
        if news.send(News::Overview(seen)).await.is_err() {
            return;
        }
    }
}

/// One item for every change. A watch that fails is begun again, less and less often.
fn changes(client: &Client, namespace: &str) -> impl Stream<Item = ()> + use<> {
    let config = watcher::Config::default;
    let sets: Api<PartialObjectMeta<StatefulSet>> = Api::namespaced(client.clone(), namespace);
    let pods: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PartialObjectMeta<PersistentVolumeClaim>> = Api::namespaced(client.clone(), namespace);
    let events: Api<PartialObjectMeta<Event>> = Api::namespaced(client.clone(), namespace);
    stream::select_all([
        watcher(sets, config()).default_backoff().map(drop).boxed(),
        watcher(pods, config()).default_backoff().map(drop).boxed(),
        watcher(claims, config()).default_backoff().map(drop).boxed(),
        watcher(events, config()).default_backoff().map(drop).boxed(),
    ])
}

async fn follow_log(client: Client, namespace: String, pod: String, container: String, news: mpsc::Sender<News>) {
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let mut since = None;
    loop {
        let past = if since.is_none() { Some(TAIL) } else { None };
        let params = LogParams {
            container: Some(container.clone()),
            follow: true,
            tail_lines: past,
            since_time: since,
            timestamps: true,
            ..LogParams::default()
        };
        if let Ok(log) = api.log_stream(&pod, &params).await {
            let mut lines = log.lines();
            while let Ok(Some(line)) = lines.try_next().await {
                let (time, text) = line.split_once(' ').unwrap_or(("", &line));
                // A container that starts again goes on after what was shown.
                if let Ok(time) = time.parse::<Timestamp>() {
                    since = time.checked_add(Duration::from_nanos(1)).ok().or(since);
                }
                if news.send(News::Log(pod.clone(), plain(text))).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(LOG_PAUSE).await;
    }
}

async fn follow_events(client: Client, namespace: String, ambient: Ambient, pod: String, news: mpsc::Sender<News>) {
    let api: Api<Event> = Api::namespaced(client, &namespace);
    let fields = format!("involvedObject.kind=Pod,involvedObject.name={pod}");
    let mut changes = watcher(api.clone(), watcher::Config::default().fields(&fields)).default_backoff().boxed();
    loop {
        if let Ok(list) = api.list(&ListParams::default().fields(&fields)).await {
            let mut events = list.items;
            events.sort_by_key(|event| std::cmp::Reverse(facts::happened(event)));
            let sentences = events.iter().take(EVENTS).map(|event| sentence(event, ambient.now())).collect();
            if news.send(News::Events(pod.clone(), sentences)).await.is_err() {
                return;
            }
        }
        if changes.next().await.is_none() {
            return;
        }
        let rest = async { while changes.next().await.is_some() {} };
        let _ = tokio::time::timeout(PAUSE, rest).await;
    }
}

/// An event in a line.
fn sentence(event: &Event, now: Timestamp) -> String {
    let ago = facts::happened(event).map(|time| format!("{} ago", span(now.duration_since(time)))).unwrap_or_default();
    let times = facts::times(event);
    let often = if times > 1 { format!(", {times} times") } else { String::new() };
    let (reason, message) = (event.reason.as_deref().unwrap_or_default(), event.message.as_deref().unwrap_or_default());
    plain(&format!("{reason}: {message} ({ago}{often})"))
}

/// Without what would steer the terminal.
fn plain(text: &str) -> String {
    text.replace('\t', "    ").chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_prints_never_steers_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\tc\r\x07"), "a[2Jb    c");
    }

    #[test]
    fn an_event_is_a_line_with_its_age_and_how_often_it_was() {
        let event: Event =
            serde_json::from_value(serde_json::json!({"metadata": {}, "involvedObject": {}, "reason": "Unhealthy",
            "message": "Readiness probe failed:\n503", "count": 3, "lastTimestamp": "1970-01-01T00:00:00Z"}))
            .unwrap();
        let now = Timestamp::from_second(5).unwrap();
        assert_eq!(sentence(&event, now), "Unhealthy: Readiness probe failed:503 (5s ago, 3 times)");
    }
}
