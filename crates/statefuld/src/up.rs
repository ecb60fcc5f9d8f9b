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
use serde_json::{Value, json};

use crate::apply::{self, Coming};
use crate::cli::{self, Output};
use crate::control::{self, Call, Request};
use crate::daemon::{Daemon, Parts, Signals};
use crate::manifest::{Document, Object, Rules};
use crate::place::DataDir;
use crate::watch::{self, End, PodRow, Wanted};
use crate::{classes, doctor, nodes, say, served};

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
    /// Objects that were not applied, because their kinds are not served.
    skipped: Vec<String>,
    /// What was changed on the way, or will not work as it may seem.
    warnings: Vec<String>,
}

/// What was applied.
#[derive(Debug, Default)]
struct Applied {
    wanted: Wanted,
    skipped: Vec<String>,
    warnings: Vec<String>,
}

/// Runs the command.
pub async fn run(args: cli::Up) -> Result<ExitCode> {
    let documents = served::read(&args.files, rules(&args))?;
    let data = DataDir::new(&args.instance.data_dir)?;
    let ambient = Ambient::system();
    if data.owner().is_some() {
        let running = nodes::recorded(&data)?.len();
        if let Some(asked) = args.start.node.nodes.filter(|asked| *asked as usize != running) {
            bail!(
                "this instance runs with {running} node(s), not {asked}; stop it first: `statefuld down --data-dir {}`",
                data.path().display()
            );
        }
        if documents.is_empty() {
            // Says in one sentence who has the directory.
            data.lock()?;
        }
        return with_running(&args, &data, documents, &ambient).await;
    }
    if args.detach {
        start_in_background(&args, &data).await?;
        tell_of_firewalls(&data).await;
        tokio::spawn(warn_of_machine(data.path().to_owned(), ambient.clone()));
        return with_running(&args, &data, documents, &ambient).await;
    }
    in_foreground(&args, documents, ambient).await
}

async fn in_foreground(args: &cli::Up, documents: Vec<Document>, ambient: Ambient) -> Result<ExitCode> {
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
        let applied = apply_all(args, &client, documents).await?;
        if let Err(slow) = wait(args, &client, &applied.wanted, &ambient).await {
            say::note(format_args!("statefuld: {slow:#}"));
        }
        report(args, &client, applied, &server, &data).await
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

/// In the foreground the log says it; in the background nobody reads that.
async fn tell_of_firewalls(data: &DataDir) {
    let path = data.path().to_owned();
    for sentence in tokio::task::spawn_blocking(move || doctor::in_the_way(&path)).await.unwrap_or_default() {
        say::note(format_args!("statefuld: {sentence}"));
    }
}

const STOPPING: &str = "stopping pods from the top ordinal; Ctrl-C again leaves the rest of them running";

/// Applies to a daemon that runs already, and waits as asked.
async fn with_running(args: &cli::Up, data: &DataDir, documents: Vec<Document>, ambient: &Ambient) -> Result<ExitCode> {
    let kubeconfig = data.kubeconfig();
    let config = kube::config::Kubeconfig::read_from(&kubeconfig)
        .with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config)?;
    let nothing = documents.is_empty();
    let applied = apply_all(args, &client, documents).await?;
    if !(args.detach && nothing) {
        wait(args, &client, &applied.wanted, ambient).await?;
    }
    report(args, &client, applied, server.trim_end_matches('/'), data).await?;
    Ok(ExitCode::SUCCESS)
}

/// How the files are sorted.
fn rules(args: &cli::Up) -> Rules<'_> {
    Rules { namespace: &args.namespace, strict: args.strict }
}

/// Applies all objects, or none where the server would refuse one.
async fn apply_all(args: &cli::Up, client: &Client, documents: Vec<Document>) -> Result<Applied> {
    if documents.is_empty() {
        return Ok(Applied { wanted: Wanted::everything(), ..Applied::default() });
    }
    let mut sorted = served::sort(client, documents, rules(args)).await?;
    let mut coming = Coming::find(client, &sorted.objects).await?;
    let mut first = new_namespaces(args, client, &sorted.objects, &mut coming).await?;
    let classes = classes::settle(client, &mut sorted.objects, args.storage_class_fallback).await?;
    first.extend(classes.made);
    sorted.warnings.extend(classes.words);
    sorted.warnings.extend(services(client, &sorted.objects).await?);
    for skipped in &sorted.skipped {
        tell(args, &format!("skipped: {skipped}"));
    }
    for warning in &sorted.warnings {
        tell(args, &format!("warning: {warning}"));
    }
    let all: Vec<&Object> = sorted.objects.iter().collect();
    apply::check(client, all.iter().copied().filter(|object| !coming.holds(object)), "nothing was applied").await?;
    let is_ground =
        |object: &Object| ["Namespace", "CustomResourceDefinition"].contains(&object.resource.kind.as_str());
    let (ground, rest): (Vec<&Object>, Vec<&Object>) = all.into_iter().partition(|object| is_ground(object));
    for object in first.iter().chain(ground) {
        apply_one(args, client, object).await?;
        if object.resource.kind == "CustomResourceDefinition" && !coming.kinds.is_empty() {
            apply::until_defined(client, object).await?;
        }
    }
    // What had to wait for these can be tried now.
    let held = rest.iter().copied().filter(|object| coming.holds(object));
    apply::check(client, held, "nothing but namespaces and definitions was applied").await?;
    for object in rest {
        apply_one(args, client, object).await?;
    }
    let wanted = Wanted::of(&sorted.objects);
    Ok(Applied { wanted, skipped: sorted.skipped, warnings: sorted.warnings })
}

async fn apply_one(args: &cli::Up, client: &Client, object: &Object) -> Result<()> {
    let outcome = apply::apply(client, object).await?;
    tell(args, &format!("{}/{} {}", object.resource.singular, object.name, outcome.word()));
    Ok(())
}

/// The namespaces that have to be made first. Refused where nobody said that they may be.
async fn new_namespaces(
    args: &cli::Up,
    client: &Client,
    objects: &[Object],
    coming: &mut Coming,
) -> Result<Vec<Object>> {
    let missing = apply::missing_namespaces(client, objects, coming).await?;
    if !missing.is_empty() && !args.create_namespaces {
        let sentence = |(name, first): &(&str, &Object)| {
            format!("{}: {}: namespace {name:?} does not exist", first.place, first.title())
        };
        let sentences: Vec<String> = missing.iter().map(sentence).collect();
        bail!("{}\ncreate it, or let `up` do it with --create-namespaces; nothing was applied", sentences.join("\n"));
    }
    let made: Vec<Object> = missing
        .into_iter()
        .map(|(name, first)| Object {
            place: first.place.clone(),
            resource: served::builtin("", "v1", "Namespace"),
            namespace: String::new(),
            name: name.to_owned(),
            value: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        })
        .collect();
    coming.namespaces.extend(made.iter().map(|namespace| namespace.name.clone()));
    Ok(made)
}

/// Sets whose governing service will not be as it should be.
async fn services(client: &Client, objects: &[Object]) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for set in objects.iter().filter(|object| object.resource.kind == "StatefulSet") {
        let Some(wanted) = set.value.pointer("/spec/serviceName").and_then(Value::as_str).filter(|s| !s.is_empty())
        else {
            continue;
        };
        let same = |o: &&Object| o.resource.kind == "Service" && o.name == wanted && o.namespace == set.namespace;
        let mut service = match objects.iter().find(same) {
            Some(object) => Some(object.value.clone()),
            None => {
                let path = format!("/api/v1/namespaces/{}/services/{wanted}", set.namespace);
                if apply::exists(client, &path).await? { Some(apply::read(client, &path).await?) } else { None }
            }
        };
        if let Some(service) = &mut service {
            // One that comes with the set has no uid yet.
            service["metadata"]["uid"] = json!("coming");
        }
        // What is no service the server refuses.
        let service = service.and_then(|service| serde_json::from_value(service).ok());
        if let Some(trouble) = controllers::governing::trouble(wanted, service.as_ref()) {
            words.push(format!("{}: {}: {trouble}", set.place, set.title()));
        }
    }
    Ok(words)
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

async fn report(args: &cli::Up, client: &Client, applied: Applied, server: &str, data: &DataDir) -> Result<()> {
    let pods = watch::rows(client, &applied.wanted).await?;
    match args.output {
        Output::Json => {
            let report = Report {
                server: server.to_owned(),
                kubeconfig: data.kubeconfig(),
                data_dir: data.path().to_owned(),
                pid: data.owner(),
                pods,
                skipped: applied.skipped,
                warnings: applied.warnings,
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
