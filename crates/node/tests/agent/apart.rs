//! An agent in a process of its own, which a test can let die: it speaks to the test's API server over a socket.

use std::path::{Path, PathBuf};

use ambient::Ambient;
use apiserver::auth::Identity;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use statefuld_node::agent;
use statefuld_node::{Config, Wishes, fault};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::Cluster;

/// Tells [`played_by_the_tests_own_program`] for which data directory it is to be the agent.
const PLAYED: &str = "STATEFULD_TEST_AGENT";

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn api_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("api.sock")
}

fn conn_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("conn.sock")
}

/// What the agent's process is connected to. Ends when dropped.
pub(crate) struct Served {
    data_dir: PathBuf,
    _tasks: JoinSet<()>,
}

impl Served {
    /// Opens both sockets in the cluster's data directory.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let data_dir = cluster.config.data_dir.clone();
        let api = UnixListener::bind(api_socket(&data_dir)).expect("a socket");
        let conn = UnixListener::bind(conn_socket(&data_dir)).expect("a socket");
        let service = cluster.api.client(Identity::node("node-a"));
        let nodes = cluster.api.nodes().clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((stream, _)) = api.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(service.clone());
                // An agent that died in a request ends its connection with an error.
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        tasks.spawn(async move {
            while let Ok((stream, _)) = conn.accept().await {
                let nodes = nodes.clone();
                tokio::spawn(async move { nodes.attach("node-a", stream).await });
            }
        });
        Self { data_dir, _tasks: tasks }
    }

    /// Starts the agent's process; it is killed when dropped.
    pub(crate) fn agent(&self, fault: Option<&str>) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("the tests' own program"));
        command.args(["--exact", "apart::played_by_the_tests_own_program", "--nocapture"]);
        command.env(PLAYED, &self.data_dir).kill_on_drop(true);
        command.stdout(std::process::Stdio::null());
        if let Some(fault) = fault {
            command.env(fault::VARIABLE, fault);
        }
        command.spawn().expect("started")
    }
}

/// Not a test of anything: the agent's process of the tests beside it. Alone it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn played_by_the_tests_own_program() {
    let Some(data_dir) = std::env::var_os(PLAYED).map(PathBuf::from) else { return };
    let wishes = Wishes { node_name: Some("node-a".to_owned()), ..Wishes::default() };
    let config = Config::choose(&data_dir, &wishes).expect("a configuration");
    let socket = api_socket(&data_dir);
    let service = tower::service_fn(move |request: http::Request<Body>| ask(socket.clone(), request));
    let client = Client::new(service, "default");
    let conn = UnixStream::connect(conn_socket(&data_dir)).await.expect("a connection");
    let program = Some(Path::new(env!("CARGO_BIN_EXE_statefuld-node-helper")).to_path_buf());
    let ran = agent::run_with(client, config, conn, CancellationToken::new(), Ambient::system(), program).await;
    ran.expect("the agent runs");
}

/// One request on a connection of its own.
async fn ask(
    socket: PathBuf,
    mut request: http::Request<Body>,
) -> Result<http::Response<hyper::body::Incoming>, Failure> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    Ok(sender.send_request(request).await?)
}
