//! The server under test: one that is there already, or the built binary.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::process::{Child, Command};

use crate::cluster::{AUDIT_LOG, Cluster};

/// Names the kubeconfig of a server to test.
const KUBECONFIG: &str = "STATEFULD_CONFORMANCE_KUBECONFIG";
/// Where the recorded server took addresses of services from; some messages name it.
const SERVICE_CIDR: &str = "10.0.0.0/16";
/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Stops the server when its own input ends, so that it never outlives this process, however that ends.
const KEEPER: &str = r#""$@" & pid=$!; read -r _; kill "$pid"; wait "$pid""#;

/// What the server runs besides its API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Running {
    /// What the recorded server had; no controller that would write into the objects that are compared.
    Housekeeping,
    /// The controllers of StatefulSets and of other workloads too.
    Sets,
    /// All controllers, and a node that runs pods. This needs root.
    Node,
    /// Small limits; events are soon forgotten, and requests are noted in an audit log.
    Small,
}

/// The command's limits for [`Running::Small`].
const SMALL: [&str; 6] = [
    "--max-requests-inflight=60",
    "--max-mutating-requests-inflight=60",
    "--max-watches=100",
    "--max-watch-backlog=16",
    "--max-answers-size=1",
    "--event-ttl=2s",
];

impl Running {
    /// The command that starts it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Running::Housekeeping => {
                &["server", "--controllers=garbagecollector,namespace,serviceaccount,pvc-protection,pv-protection"]
            }
            Running::Sets => &[
                "server",
                "--controllers=garbagecollector,namespace,serviceaccount,pvc-protection,pv-protection,statefulset,\
                 deployment,replicaset,job,cronjob,ttl-after-finished",
            ],
            Running::Node => &["up"],
            // As few as there can be: they watch, too.
            Running::Small => &["server", "--controllers=namespace,serviceaccount"],
        }
    }

    /// Why its cases cannot be asked of a server that was there before.
    pub(crate) fn own_alone(self) -> Option<&'static str> {
        (self == Running::Small).then_some("its limits and its audit log would have to be known")
    }
}

/// The server under test.
pub(crate) struct Target {
    cluster: Cluster,
    own: Option<Own>,
}

/// A server that was started for this run.
struct Own {
    keeper: Child,
    folder: tempfile::TempDir,
}

impl Target {
    /// Whether the environment names one.
    pub(crate) fn is_given() -> bool {
        std::env::var_os(KUBECONFIG).is_some()
    }

    /// The one that the environment names, or a new one that runs this.
    pub(crate) async fn start(running: Running) -> Result<Self, String> {
        if let Some(file) = std::env::var_os(KUBECONFIG) {
            return Ok(Self { cluster: connect(Path::new(&file), None).await?, own: None });
        }
        let folder = tempfile::Builder::new().prefix("statefuld-conformance-").tempdir().map_err(|e| e.to_string())?;
        let log = std::fs::File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let data = folder.path().join("data");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", env!("CARGO_BIN_EXE_statefuld")]).args(running.arguments());
        if running == Running::Small {
            command.args(SMALL).arg("--audit-log-path").arg(folder.path().join(AUDIT_LOG));
        }
        let keeper = command
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen", "127.0.0.1:0", "--service-cidr", SERVICE_CIDR])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(|e| e.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|e| e.to_string())?;
        let mut own = Own { keeper, folder };
        match tokio::time::timeout(PATIENCE, own.ready(&data.join("kubeconfig"))).await {
            Ok(Ok(cluster)) => Ok(Self { cluster, own: Some(own) }),
            Ok(Err(why)) => Err(format!("{why}\n{}", own.log())),
            Err(_) => Err(format!("it was not ready within {PATIENCE:?}\n{}", own.log())),
        }
    }

    /// How to speak with it.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Stops it if it was started here; shows the end of its log if something `failed`.
    pub(crate) async fn stop(self, failed: bool) {
        let Some(mut own) = self.own else { return };
        drop(own.keeper.stdin.take());
        let _ = own.keeper.wait().await;
        if failed {
            println!("\n---- the server's log ends with\n{}", own.log());
        }
    }
}

impl Own {
    /// Waits until the server answers.
    async fn ready(&mut self, kubeconfig: &Path) -> Result<Cluster, String> {
        loop {
            if let Ok(Some(status)) = self.keeper.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            if kubeconfig.exists()
                && let Ok(cluster) = connect(kubeconfig, Some(self.folder.path())).await
                && cluster.is_ready().await
            {
                return Ok(cluster);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The last lines of what the server said.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Reads a kubeconfig. `own`: the folder of a server that was started for this run.
async fn connect(file: &Path, own: Option<&Path>) -> Result<Cluster, String> {
    let read = Kubeconfig::read_from(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let options = KubeConfigOptions::default();
    let mut admin =
        Config::from_custom_kubeconfig(read, &options).await.map_err(|e| format!("{}: {e}", file.display()))?;
    // What the server answers is what is compared, a 429 too.
    admin.default_retry = false;
    Cluster::new(admin, own)
}
