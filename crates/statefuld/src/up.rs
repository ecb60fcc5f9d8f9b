//! `statefuld up`: start, apply, show progress, stay.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use kube::Client;
use serde::Serialize;

use crate::cli::{self, Output};
use crate::control::{self, Call, Request};
use crate::daemon::{Daemon, Parts, Signals};
use crate::manifest::{self, Object};
use crate::place::DataDir;
use crate::watch::{self, End, PodRow, Wanted};
use crate::{apply, doctor, say};

/// How often a starting daemon is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(10);

/// What `-o json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    server: String,
    kubeconfig: PathBuf,
    data_dir: PathBuf,
    pid: Option<i32>,
    pods: Vec<PodRow>,
}

/// Runs the command.
pub async fn run(args: cli::Up) -> Result<ExitCode> {
    let objects = manifest::read(&api::resource::Registry::builtin(), &args.files, &args.namespace)?;
    let data = DataDir::new(&args.instance.data_dir)?;
    let ambient = Ambient::system();
    if data.owner().is_some() {
        if objects.is_empty() {
            // Says in one sentence who has the directory.
            data.lock()?;
        }
        return with_running(&args, &data, &objects, &ambient).await;
    }
    if args.detach {
        start_in_background(&args, &data).await?;
        tokio::spawn(warn_of_machine(data.path().to_owned(), ambient.clone()));
        return with_running(&args, &data, &objects, &ambient).await;
    }
    in_foreground(&args, &objects, ambient).await
}

async fn in_foreground(args: &cli::Up, objects: &[Object], ambient: Ambient) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let daemon = Daemon::start(Parts::all(&args.instance, &args.start), ambient.clone()).await?;
    let (client, caller) = (daemon.client(), daemon.caller());
    let (server, data) = (daemon.url(), daemon.data().clone());
    // Signals and `statefuld down` are heard from the first moment on, also while pods are still starting.
    let serving = daemon.serve(signals, || tell(args, STOPPING));
    tokio::pin!(serving);
    let work = async {
        tell(args, &format!("API ready at {server}"));
        tokio::spawn(warn_of_machine(data.path().to_owned(), ambient.clone()));
        let wanted = apply_all(args, &client, objects).await?;
        if let Err(slow) = wait(args, &client, &wanted, &ambient).await {
            say::note(format_args!("statefuld: {slow:#}"));
        }
        report(args, &client, &wanted, &server, &data).await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        ended = &mut serving => return ended.map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(()) => {
            tell(args, "Ctrl-C stops everything; the data stays.");
            serving.await?;
            tell(args, &format!("stopped; `statefuld up --data-dir {}` returns to it", data.path().display()));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // Nothing of this call was applied; pods that ran before it go on running.
            let (answers, _) = tokio::sync::mpsc::channel(1);
            let _ = caller.send(Call { request: Request::Down { keep_pods: true }, answers }).await;
            serving.await?;
            Err(error)
        }
    }
}

/// Says what keeps pods from running well on this machine, beside what goes on.
async fn warn_of_machine(data: PathBuf, ambient: Ambient) {
    let looking = tokio::task::spawn_blocking(move || doctor::what_is_bad(&data, &ambient));
    for problem in looking.await.unwrap_or_default() {
        say::note(format_args!("statefuld: {problem} (`statefuld doctor` checks all)"));
    }
}

const STOPPING: &str = "stopping pods from the top ordinal; Ctrl-C again leaves the rest of them running";

/// Applies to a daemon that runs already, and waits as asked.
async fn with_running(args: &cli::Up, data: &DataDir, objects: &[Object], ambient: &Ambient) -> Result<ExitCode> {
    let kubeconfig = data.kubeconfig();
    let config = kube::config::Kubeconfig::read_from(&kubeconfig)
        .with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config)?;
    let wanted = apply_all(args, &client, objects).await?;
    if !(args.detach && objects.is_empty()) {
        wait(args, &client, &wanted, ambient).await?;
    }
    report(args, &client, &wanted, server.trim_end_matches('/'), data).await?;
    Ok(ExitCode::SUCCESS)
}

/// Applies all objects, or none where the server would refuse one.
async fn apply_all(args: &cli::Up, client: &Client, objects: &[Object]) -> Result<Wanted> {
    if objects.is_empty() {
        return Ok(Wanted::everything());
    }
    apply::check(client, objects).await?;
    for object in objects {
        let outcome = apply::apply(client, object).await?;
        tell(args, &format!("{}/{} {}", object.resource.singular, object.name, outcome.word()));
    }
    Ok(Wanted::of(objects))
}

async fn wait(args: &cli::Up, client: &Client, wanted: &Wanted, ambient: &Ambient) -> Result<()> {
    match watch::until_ready(client, wanted, args.timeout, ambient).await? {
        End::Ready => Ok(()),
        End::TimedOut => {
            let rows = watch::rows(client, wanted).await?;
            let waiting: Vec<String> =
                rows.iter().filter_map(|r| r.waits.as_ref().map(|why| format!("{} {why}", r.name))).collect();
            bail!("not everything is Ready after {:?}: {}", args.timeout, waiting.join("; "))
        }
    }
}

/// Progress goes to standard error, so that standard output is the report alone.
fn tell(args: &cli::Up, text: &str) {
    if args.output == Output::Table {
        say::note(text);
    }
}

async fn report(args: &cli::Up, client: &Client, wanted: &Wanted, server: &str, data: &DataDir) -> Result<()> {
    let pods = watch::rows(client, wanted).await?;
    match args.output {
        Output::Json => {
            let report = Report {
                server: server.to_owned(),
                kubeconfig: data.kubeconfig(),
                data_dir: data.path().to_owned(),
                pid: data.owner(),
                pods,
            };
            say::print(serde_json::to_string_pretty(&report)?);
        }
        Output::Table => {
            if !pods.is_empty() {
                say::print(table(&pods));
            }
            say::print(format_args!("\nexport KUBECONFIG={}", data.kubeconfig().display()));
        }
    }
    Ok(())
}

fn table(pods: &[PodRow]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["POD", "READY", "NODE", "IP", "DNS NAME", "VOLUMES"]);
    for pod in pods {
        let ready = if pod.ready { "yes" } else { "no" };
        let volumes = pod.volumes.join("\n");
        table.add_row([&pod.name, ready, &pod.node, &pod.ip, &pod.dns, &volumes]);
    }
    table
}

/// Starts `statefuld daemon` as a process of its own and waits until its API serves.
async fn start_in_background(args: &cli::Up, data: &DataDir) -> Result<()> {
    std::fs::create_dir_all(data.path()).with_context(|| format!("{} cannot be made", data.path().display()))?;
    let log_path = data.log();
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("{} cannot be written", log_path.display()))?;
    let log_start = log.metadata().map(|m| m.len()).unwrap_or(0);
    let mut command = Command::new("/proc/self/exe");
    command.arg0("statefuld").arg("daemon").arg("--data-dir").arg(data.path());
    command.args(args.start.arguments());
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
    // Of its own group: an interrupt at the terminal is not for it.
    command.process_group(0);
    let mut child = command.spawn().context("the daemon cannot be started")?;
    let deadline = tokio::time::sleep(args.timeout);
    tokio::pin!(deadline);
    loop {
        if control::ask(&data.control_socket(), Request::Ready, |_| {}).await.is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().context("the daemon cannot be watched")? {
            let said = std::fs::read(&log_path).unwrap_or_default();
            let said =
                String::from_utf8_lossy(said.get(usize::try_from(log_start)?..).unwrap_or_default()).into_owned();
            let last = said.lines().rev().find_map(|l| l.strip_prefix("statefuld: ")).unwrap_or("");
            bail!(
                "{}",
                if last.is_empty() {
                    format!("the daemon ended ({status}); see {}", log_path.display())
                } else {
                    last.to_owned()
                }
            );
        }
        tokio::select! {
            () = tokio::time::sleep(READY_POLL) => {}
            () = &mut deadline => bail!("the API was not ready in time; see {}", log_path.display()),
        }
    }
}
