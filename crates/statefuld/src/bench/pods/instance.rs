//! The instance that is measured: a daemon in a process group of its own, so that a signal from the terminal reaches
//! the benchmark alone, which then takes it down in order.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::bench::api::connect;
use crate::cli;
use crate::control::{self, Request};
use crate::place::DataDir;

/// How long the API and the node may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks whether they are.
const POLL: Duration = Duration::from_millis(20);
/// How long all pods may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(180);
/// Pods that the node takes beside those of a set.
const SPARE: u32 = 10;

/// A daemon that runs.
pub(super) struct Instance {
    child: Child,
    data: DataDir,
}

impl Instance {
    /// Starts one below that folder.
    pub(super) fn start(scratch: &Path, args: &cli::BenchPods) -> Result<Self> {
        let data = DataDir::new(&scratch.join("data"))?;
        let most = args.pods.iter().chain(&args.idle).max().copied().unwrap_or_default();
        let mut program = Command::new("/proc/self/exe");
        program.arg("daemon").arg("--data-dir").arg(data.path()).args(["--listen", "127.0.0.1:0"]);
        program.args(["--max-pods", &(most + SPARE).to_string()]).process_group(0);
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = program.spawn().context("the program cannot be started again")?;
        Ok(Self { child, data })
    }

    /// The administrator's client, once the API serves and the node takes pods.
    pub(super) async fn ready(&self) -> Result<Client> {
        let ready = async {
            while control::ask(&self.data.control_socket(), Request::Ready, |_| {}).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
            let client = connect(&self.data.kubeconfig()).await?;
            let nodes: Api<Node> = Api::all(client.clone());
            while !nodes.list(&ListParams::default()).await?.items.iter().any(takes_pods) {
                tokio::time::sleep(POLL).await;
            }
            Ok(client)
        };
        match tokio::time::timeout(READY_LIMIT, ready).await {
            Ok(client) => client,
            Err(_) => bail!("the instance was not ready in {} seconds", READY_LIMIT.as_secs()),
        }
    }

    /// The daemon's process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it lives.
    pub(super) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Stops its pods and ends it. Whatever has become of the daemon, nothing of it runs when this returns.
    pub(super) async fn stop(mut self) -> Result<()> {
        let socket = self.data.control_socket();
        let ask = control::ask(&socket, Request::Down { keep_pods: false }, |_| {});
        let asked = tokio::time::timeout(STOP_LIMIT, ask).await.context("it did not stop in time").and_then(|r| r);
        if asked.is_err() {
            // Gone before it listened, or stuck: its pods are stopped without it.
            let _ = self.child.kill();
        }
        tokio::task::spawn_blocking(move || {
            self.child.wait().context("the daemon cannot be waited for")?;
            if asked.is_ok() {
                return Ok(());
            }
            let mut down = Command::new("/proc/self/exe");
            down.arg("down").arg("--data-dir").arg(self.data.path()).stdin(Stdio::null()).stdout(Stdio::null());
            let status = down.status().context("the program cannot be started again")?;
            if status.success() { Ok(()) } else { bail!("`statefuld down` has ended with {status}") }
        })
        .await
        .context("stopping panicked")?
    }
}

fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
