//! Fair to all: what one client may take, and that whatever it does reaches nobody else.
//!
//! | module | about |
//! |---|---|
//! | `sizes` | how much one request may bring |
//! | `shares` | requests, watches and answers of one client at once, and watchers that do not keep up |
//! | `hostile` | requests made to break a server, while others work on |

mod hostile;
mod shares;
mod sizes;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{Answer, Ask, Case};
use crate::runner::{Named, cases};
use crate::target::Running;
use crate::verbs::text;
use crate::wire;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    let mut all = cases! {
        "limits" on Running::Housekeeping;
        sizes:
            a_body_that_is_too_large_is_refused
            an_object_that_is_too_large_is_refused;
        hostile:
            what_is_made_to_break_a_server_is_refused_and_others_work_on;
    };
    all.extend(cases! {
        "limits" on Running::Small;
        shares:
            a_client_that_writes_too_much_at_once_is_asked_to_come_back
            a_client_that_reads_too_much_at_once_is_asked_to_come_back
            a_client_gets_its_share_of_watches
            a_client_that_reads_no_answers_gets_no_more_of_them
            a_slow_watcher_is_dropped_and_told_and_slows_nobody;
    });
    all
}

/// What is sent, to its end or not.
type Body = BoxBody<Bytes, std::io::Error>;

/// Somebody who may edit the namespace of a case, by a token.
struct Client {
    case: Case,
    token: String,
}

impl Client {
    /// A service account of that name.
    async fn new(case: &Case, name: &str) -> Self {
        let accounts = case.core("serviceaccounts");
        case.create(&accounts, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})).await;
        let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", case.namespace);
        let subject = json!({"kind": "ServiceAccount", "name": name, "namespace": &*case.namespace});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name}, "subjects": [subject], "roleRef": role});
        case.create(&bindings, binding).await;
        let made = case.create(&format!("{accounts}/{name}/token"), json!({"spec": {}})).await;
        let client = Self { case: case.clone(), token: text(&made, "/status/token").to_owned() };
        client.until(Ask::new("GET", &case.core("configmaps")), 200).await;
        client
    }

    async fn ask(&self, ask: Ask) -> Answer {
        self.case.ask(ask.token(&self.token)).await
    }

    /// Asks until the answer has this code.
    async fn until(&self, ask: Ask, code: u16) -> Answer {
        self.case
            .until(ask.token(&self.token), &format!("it is answered with {code}"), |answer| answer.code == code)
            .await
    }

    /// A connection that this client does not use as it should.
    async fn connection(&self) -> Connection {
        Connection::open(&self.case, &self.token).await
    }
}

/// One connection for requests that never end and answers that nobody reads.
struct Connection {
    sender: http2::SendRequest<Body>,
    authority: String,
    token: String,
    /// The connection itself, and what is never answered.
    tasks: JoinSet<()>,
}

impl Connection {
    async fn open(case: &Case, token: &str) -> Self {
        let config = case.cluster.config_of_anybody();
        let stream = wire::connect(config, "h2").await;
        let mut http = http2::Builder::new(TokioExecutor::new());
        // So much may be under way before somebody reads: the least that there is.
        http.initial_stream_window_size(65_535);
        let (sender, connection) = http.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { _ = connection.await });
        Self { sender, authority: wire::host(config), token: token.to_owned(), tasks }
    }

    fn request(&self, method: &str, uri: &str, body: Body) -> Request<Body> {
        let request = Request::builder().method(method).uri(format!("https://{}{uri}", self.authority));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        request.header("content-type", "application/json").body(body).expect("a request")
    }

    /// Begins a request whose body never ends. It is under way until the connection is dropped.
    fn begin(&mut self, method: &str, uri: &str) {
        let never = futures::stream::pending::<Result<Frame<Bytes>, std::io::Error>>();
        let body = http_body_util::StreamBody::new(never).boxed();
        let request = self.request(method, uri, body);
        let answer = self.sender.send_request(request);
        self.tasks.spawn(async move { _ = answer.await });
    }

    /// Asks, and gives the answer's beginning. Its body waits at the server until it is read.
    async fn unread(&mut self, uri: &str) -> Response<Incoming> {
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed();
        let request = self.request("GET", uri, body);
        self.sender.send_request(request).await.expect("an answer")
    }
}

/// A config map with so many bytes.
fn large(name: &str, bytes: usize) -> Value {
    let mut map = crate::verbs::config(name);
    map["data"]["k"] = "x".repeat(bytes).into();
    map
}
