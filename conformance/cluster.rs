//! How cases speak with the server: requests as they go on the wire, answers as they come, watches.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::AuthInfo;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Where the audit log of a server of one's own is, below its folder.
pub(crate) const AUDIT_LOG: &str = "audit.log";
/// What the suite calls itself; it becomes the field manager of requests that name none.
const USER_AGENT: &str = "golden";
/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(30);
/// Longest wait for a service account that a controller makes.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// The server under test. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    admin: kube::Client,
    anonymous: kube::Client,
    config: Arc<kube::Config>,
    anybody: Arc<kube::Config>,
    own: Option<Arc<Path>>,
}

/// A request. Built with the methods that follow [`Ask::new`].
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, Option<String>>,
    body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) code: u16,
    /// Headers, names in lower case; several of one name are joined with commas.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body: JSON, or text.
    pub(crate) body: Value,
    /// The body as it came.
    pub(crate) bytes: Bytes,
}

impl Ask {
    /// A request without a body.
    pub(crate) fn new(method: &str, path: &str) -> Self {
        let method = method.parse().expect("a method");
        let headers = [("accept", "application/json"), ("user-agent", USER_AGENT)];
        let headers = headers.into_iter().map(|(n, v)| (n.to_owned(), Some(v.to_owned()))).collect();
        Self { method, path: path.to_owned(), query: Vec::new(), headers, body: Vec::new() }
    }

    /// With something in the query.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a header; `None`: without it. (An `authorization` of its own takes the place of the usual
    /// credentials; without it: without credentials.)
    pub(crate) fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.insert(name.to_ascii_lowercase(), value.map(str::to_owned));
        self
    }

    /// With this token and no other credentials.
    pub(crate) fn token(self, token: &str) -> Self {
        self.header("authorization", Some(&format!("Bearer {token}")))
    }

    /// With a document.
    pub(crate) fn json(self, body: &Value) -> Self {
        self.raw(body.to_string().into_bytes())
    }

    /// With bytes; they count as JSON unless a header says otherwise.
    pub(crate) fn raw(mut self, body: Vec<u8>) -> Self {
        self.headers.entry("content-type".to_owned()).or_insert_with(|| Some("application/json".to_owned()));
        self.body = body;
        self
    }

    /// Path and query.
    pub(crate) fn uri(&self) -> String {
        let mut uri = self.path.clone();
        for (n, (name, value)) in self.query.iter().enumerate() {
            uri += if n == 0 { "?" } else { "&" };
            uri += &format!("{}={}", escaped(name), escaped(value));
        }
        uri
    }

    fn request(&self) -> Result<Request<Body>, String> {
        let mut request = Request::builder().method(self.method.clone()).uri(self.uri());
        for (name, value) in &self.headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request.body(Body::from(self.body.clone())).map_err(|e| e.to_string())
    }
}

impl Cluster {
    /// A server by the kubeconfig of its administrator, and by the folder of one that was started for this run.
    pub(crate) fn new(admin: kube::Config, own: Option<&Path>) -> Result<Self, String> {
        let mut anybody = admin.clone();
        anybody.auth_info = AuthInfo::default();
        let client = |config: &kube::Config| kube::Client::try_from(config.clone()).map_err(|e| e.to_string());
        Ok(Self {
            admin: client(&admin)?,
            anonymous: client(&anybody)?,
            config: Arc::new(admin),
            anybody: Arc::new(anybody),
            own: own.map(Arc::from),
        })
    }

    /// Where it is and how to get in, for connections of one's own.
    pub(crate) fn config(&self) -> &kube::Config {
        &self.config
    }

    /// The same without anybody's credentials.
    pub(crate) fn config_of_anybody(&self) -> &kube::Config {
        &self.anybody
    }

    /// Whether the server says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        self.send(&Ask::new("GET", "/readyz")).await.is_ok_and(|answer| answer.code == 200)
    }

    /// Asks, and reads the answer to its end.
    pub(crate) async fn send(&self, ask: &Ask) -> Result<Answer, String> {
        let response = self.start(ask).await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok(Answer { code: parts.status.as_u16(), headers: joined(&parts.headers), body: parsed(&bytes), bytes })
    }

    /// Asks, and gives the answer as it begins.
    async fn start(&self, ask: &Ask) -> Result<http::Response<Body>, String> {
        // Credentials of its own, or none: the usual ones stay away.
        let own = ask.headers.contains_key("authorization");
        let client = if own { &self.anonymous } else { &self.admin };
        client.send(ask.request()?).await.map_err(|e| format!("{} {}: {e}", ask.method, ask.path))
    }

    /// Opens a watch; the answer instead where that is refused.
    pub(crate) async fn watch(&self, ask: &Ask) -> Result<Result<Watch, Answer>, String> {
        let response = self.start(ask).await?;
        let (parts, body) = response.into_parts();
        if parts.status != 200 {
            let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            let (code, headers) = (parts.status.as_u16(), joined(&parts.headers));
            return Ok(Err(Answer { code, headers, body: parsed(&bytes), bytes }));
        }
        Ok(Ok(Watch::read(body)))
    }

    /// Whether the server was started for this run, with limits that are known.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The audit log of such a server, where it has one.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.own.as_deref().expect("a server that was started for this run").join(AUDIT_LOG)
    }

    /// A namespace of its own for a case.
    pub(crate) async fn case(&self) -> Result<Case, String> {
        let namespace = format!("golden-{}", letters(8));
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let made = self.send(&Ask::new("POST", "/api/v1/namespaces").json(&body)).await?;
        if made.code != 201 {
            return Err(format!("cannot create a namespace: {} {}", made.code, made.body));
        }
        let case = Case { cluster: self.clone(), namespace: namespace.into() };
        case.account().await?;
        Ok(case)
    }
}

/// Where a case does what it does. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Case {
    /// The server.
    pub(crate) cluster: Cluster,
    /// A namespace that nobody else uses; it is deleted after the case.
    pub(crate) namespace: Arc<str>,
}

impl Case {
    /// Waits for the namespace's service account, or makes it where no controller does.
    async fn account(&self) -> Result<(), String> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        let one = Ask::new("GET", &format!("{path}/default"));
        let there = async {
            while self.cluster.send(&one).await.is_ok_and(|a| a.code != 200) {
                pause().await
            }
        };
        if tokio::time::timeout(ACCOUNT_PATIENCE, there).await.is_err() {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            self.cluster.send(&Ask::new("POST", &path).json(&account)).await?;
        }
        Ok(())
    }

    /// Where objects of a kind of core v1 are in the namespace.
    pub(crate) fn core(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// Where objects of a kind of apps/v1 are in the namespace.
    pub(crate) fn apps(&self, plural: &str) -> String {
        format!("/apis/apps/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// Asks; whatever is answered is an answer.
    pub(crate) async fn ask(&self, ask: Ask) -> Answer {
        self.cluster.send(&ask).await.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Reads something, of which nothing more is to be said.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Ask::new("GET", path)).await
    }

    /// Creates an object, which must succeed; gives it as created.
    pub(crate) async fn create(&self, path: &str, object: Value) -> Value {
        let answer = self.ask(Ask::new("POST", path).json(&object)).await;
        assert_eq!(answer.code, 201, "{path}: {}", answer.body);
        answer.body
    }

    /// Patches an object with a merge patch, which must succeed; gives it as it is then.
    pub(crate) async fn merge(&self, path: &str, patch: Value) -> Value {
        let media = Some("application/merge-patch+json");
        let answer = self.ask(Ask::new("PATCH", path).header("content-type", media).json(&patch)).await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// Opens a watch, which must succeed.
    pub(crate) async fn watch(&self, ask: Ask) -> Watch {
        let opened = self.cluster.watch(&ask.query("watch", "true")).await;
        opened.unwrap_or_else(|why| panic!("{why}")).unwrap_or_else(|answer| panic!("{}", answer.body))
    }

    /// Asks again and again until the answer is the one.
    pub(crate) async fn until(&self, ask: Ask, what: &str, is: impl Fn(&Answer) -> bool) -> Answer {
        let mut last = None;
        let wait = async {
            loop {
                let answer = self.ask(ask.clone()).await;
                if is(&answer) {
                    return answer;
                }
                last = Some(answer);
                pause().await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        found.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; the last answer: {last:?}"))
    }

    /// Waits until there is nothing at a path.
    pub(crate) async fn gone(&self, path: &str) {
        self.until(Ask::new("GET", path), &format!("{path} is gone"), |answer| answer.code == 404).await;
    }

    /// Deletes the namespace; it need not be gone when this returns.
    pub(crate) async fn clean_up(&self) {
        let _ = self.cluster.send(&Ask::new("DELETE", &format!("/api/v1/namespaces/{}", self.namespace))).await;
    }
}

/// A watch that is read in the background.
pub(crate) struct Watch {
    seen: watch::Receiver<Seen>,
    taken: usize,
    reader: JoinHandle<()>,
}

/// What came so far.
#[derive(Default)]
struct Seen {
    events: Vec<Value>,
    ended: bool,
}

impl Watch {
    fn read(mut body: Body) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let reader = tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                rest.extend_from_slice(&data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    sender.send_modify(|seen| seen.events.extend(serde_json::from_slice::<Value>(&line)));
                }
            }
            sender.send_modify(|seen| seen.ended = true);
        });
        Self { seen, taken: 0, reader }
    }

    /// Waits until what came since the last call satisfies `enough` or the stream ended, at most `patience`; takes it.
    pub(crate) async fn until(&mut self, patience: Duration, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let taken = self.taken;
        let done = self.seen.wait_for(|seen| seen.ended || enough(&seen.events[taken..]));
        let _ = tokio::time::timeout(patience, done).await;
        let events = self.seen.borrow().events[taken..].to_vec();
        self.taken += events.len();
        events
    }

    /// The next `count` events, bookmarks among them; fewer if the stream ends or is silent for too long.
    pub(crate) async fn next(&mut self, count: usize) -> Vec<Value> {
        let taken = self.taken;
        let done = self.seen.wait_for(|seen| seen.ended || seen.events.len() >= taken + count);
        let _ = tokio::time::timeout(PATIENCE, done).await;
        let events: Vec<Value> = self.seen.borrow().events.iter().skip(taken).take(count).cloned().collect();
        self.taken += events.len();
        events
    }

    /// Whether the stream ended.
    pub(crate) fn ended(&self) -> bool {
        self.seen.borrow().ended
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A short pause between two looks.
pub(crate) async fn pause() {
    tokio::time::sleep(LOOK_AGAIN).await;
}

/// Random small letters.
pub(crate) fn letters(count: usize) -> String {
    Ambient::system().suffix(count).chars().map(|c| if c.is_ascii_digit() { 'q' } else { c }).collect()
}

/// Headers by name in lower case.
fn joined(headers: &http::HeaderMap) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let place = all.entry(name.as_str().to_owned()).or_default();
        if !place.is_empty() {
            place.push_str(", ");
        }
        place.push_str(&value);
    }
    all
}

/// JSON, or the text itself.
fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// Text as it stands in a query.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}
