//! `statefuld bench start`: what DESIGN's budgets promise, measured on this machine with this binary.
//!
//! Each round starts the program anew in a data directory of its own, as a user would, and takes the time from
//! just before exec. The clock stops when a real client gets a real answer.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};

use super::{Figure, millis, process, scratch};
use crate::cli;
use crate::control::{self, Request};
use crate::place::DataDir;
use crate::say;

/// How long an instance stands idle before its memory is read.
const IDLE: Duration = Duration::from_secs(3);
/// Nothing measured here takes longer, or something is wrong.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the command.
pub(super) async fn run(args: &cli::BenchStart, ambient: &Ambient) -> Result<Vec<Figure>> {
    if args.pods < 2 || args.rounds == 0 {
        bail!("--pods must be at least 2 and --rounds at least 1");
    }
    let (mut api, mut first, mut further, mut idle) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        say::note(format_args!("round {} of {}", round + 1, args.rounds));
        api.push(api_ready(ambient).await?);
        let one = all_ready(ambient, 1).await?;
        let many = all_ready(ambient, args.pods).await?;
        first.push(one.elapsed);
        further.push((many.elapsed - one.elapsed) / f64::from(args.pods - 1));
        idle.push(one.resident_mb);
    }
    let size = std::fs::metadata("/proc/self/exe").context("the program's file cannot be seen")?.len();
    Ok(vec![
        Figure::new("exec to API ready", median(api), "ms").within(50.0),
        Figure::new("exec to first pod Ready", median(first), "ms").within(150.0),
        Figure::new("each further ordered pod", median(further), "ms").within(15.0),
        Figure::new("idle memory with one pod, daemon", median(idle), "MB").within(30.0),
        #[allow(clippy::cast_precision_loss, reason = "sizes of programs are far below 2^52")]
        Figure::new("binary", size as f64 / 1e6, "MB").within(25.0),
    ])
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// A started program, killed and cleaned up when dropped.
struct Instance {
    child: Child,
    data: DataDir,
}

impl Instance {
    fn start(command: &str, data: &Path, file: Option<&Path>) -> Result<Self> {
        let mut program = Command::new("/proc/self/exe");
        program.arg(command).arg("--data-dir").arg(data).args(["--listen", "127.0.0.1:0"]);
        if let Some(file) = file {
            program.arg(file).args(["-o", "json"]);
        }
        let child = program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Ok(Self { child: child.context("the program cannot be started again")?, data: DataDir::new(data)? })
    }

    async fn down(mut self) -> Result<()> {
        control::ask(&self.data.control_socket(), Request::Down { keep_pods: false }, |_| {}).await?;
        self.child.wait().context("the program cannot be waited for")?;
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Gone already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn api_ready(ambient: &Ambient) -> Result<f64> {
    let dir = scratch(ambient)?;
    let began = ambient.boottime();
    let instance = Instance::start("daemon", &dir.0, None)?;
    let ready = async {
        while control::ask(&instance.data.control_socket(), Request::Ready, |_| {}).await.is_err() {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    };
    tokio::time::timeout(LIMIT, ready).await.context("the API was not ready in time")?;
    // The whole way of a client: connect, handshake, an answer.
    let config = kube::config::Kubeconfig::read_from(instance.data.kubeconfig())?;
    let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(config, &Default::default()).await?)?;
    client.apiserver_version().await.context("the API does not answer")?;
    let elapsed = millis(ambient.boottime().saturating_sub(began));
    instance.down().await?;
    Ok(elapsed)
}

/// What a start with a set of the built-in image showed.
struct Start {
    elapsed: f64,
    resident_mb: f64,
}

async fn all_ready(ambient: &Ambient, pods: u32) -> Result<Start> {
    let dir = scratch(ambient)?;
    let file = dir.0.join("set.yaml");
    std::fs::write(&file, manifest(pods)).with_context(|| format!("{} cannot be written", file.display()))?;
    let data = dir.0.join("data");
    let began = ambient.boottime();
    let mut instance = Instance::start("up", &data, Some(&file))?;
    let output = instance.child.stdout.take().context("the program has no output")?;
    // The report is printed the moment that all pods are Ready.
    let first_line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(LIMIT, first_line).await.context("the pods were not Ready in time")???;
    let elapsed = millis(ambient.boottime().saturating_sub(began));
    if line.trim() != "{" {
        bail!("the set did not become Ready");
    }
    tokio::time::sleep(IDLE).await;
    let resident_mb = process::Usage::of(instance.child.id())?.resident_bytes / 1e6;
    instance.down().await?;
    Ok(Start { elapsed, resident_mb })
}

fn manifest(pods: u32) -> String {
    format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: bench}}
spec: {{clusterIP: None, selector: {{app: bench}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: bench}}
spec:
  serviceName: bench
  replicas: {pods}
  selector: {{matchLabels: {{app: bench}}}}
  template:
    metadata: {{labels: {{app: bench}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: journal
          image: statefuld.local/sample
          args: ["--listen", "0.0.0.0:8080", "--data", "/data"]
          readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
          volumeMounts: [{{name: data, mountPath: /data}}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 10Mi}}}}}}
"#
    )
}
