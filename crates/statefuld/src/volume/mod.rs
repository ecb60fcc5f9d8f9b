//! `statefuld volume`: what claims hold, and data taken over from elsewhere or given away.
//!
//! | file | holds |
//! |---|---|
//! | `import` | a folder becomes a claim's data |
//! | `objects` | the claim and volume for it |
//! | `copy` | a folder copied as it is |
//! | `open` | who uses a folder |
//!
//! The API says which folder is whose; the folder itself is read on the machine that it is on.

mod copy;
mod import;
mod objects;
mod open;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;

use crate::cli::{self, Output, VolumeWhat};
use crate::{connect, say};

/// A claim and where its data is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    claim: String,
    phase: String,
    size: String,
    class: String,
    volume: String,
    /// On the node; none where the volume is no folder.
    folder: Option<PathBuf>,
    node: String,
    /// Pods that mount it.
    pods: Vec<String>,
}

/// Runs the command.
pub async fn run(args: cli::Volume) -> Result<ExitCode> {
    match args.what {
        VolumeWhat::List(args) => list(args).await,
        VolumeWhat::Inspect(args) => inspect(args).await,
        VolumeWhat::Import(args) => import::run(args).await,
        VolumeWhat::Export(args) => export(args).await,
    }
}

async fn list(args: cli::VolumeList) -> Result<ExitCode> {
    let rows = rows(&connect::client(&args.server).await?, args.namespace.as_deref()).await?;
    if args.output == Output::Json {
        say::print(serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        say::note("there are no claims");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NAMESPACE", "CLAIM", "STATUS", "SIZE", "CLASS", "NODE", "USED BY", "FOLDER"]);
    for row in &rows {
        let folder = row.folder.as_ref().map_or_else(String::new, |f| f.display().to_string());
        let pods = row.pods.join(",");
        let cells = [&row.namespace, &row.claim, &row.phase, &row.size, &row.class, &row.node, &pods, &folder];
        table.add_row(cells);
    }
    say::print(table);
    Ok(ExitCode::SUCCESS)
}

/// What `inspect` tells of a folder on this machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inside {
    files: u64,
    bytes: u64,
    users: Vec<String>,
}

async fn inspect(args: cli::VolumeInspect) -> Result<ExitCode> {
    let row = find(&connect::client(&args.server).await?, &args.claim).await?;
    let inside = match row.folder.clone().filter(|folder| folder.is_dir()) {
        Some(folder) => Some(tokio::task::spawn_blocking(move || look_inside(&folder)).await??),
        None => None,
    };
    if args.output == Output::Json {
        let mut value = serde_json::to_value(&row)?;
        value["inside"] = serde_json::to_value(&inside)?;
        say::print(serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &str| if value.is_empty() { "-".to_owned() } else { value.to_owned() };
    say::print(format_args!("claim    {}/{} ({})", row.namespace, row.claim, text(&row.phase)));
    say::print(format_args!("volume   {}, {} of class {}", text(&row.volume), text(&row.size), text(&row.class)));
    say::print(format_args!("node     {}", text(&row.node)));
    say::print(format_args!("pods     {}", text(&row.pods.join(", "))));
    let folder = row.folder.as_ref().map_or_else(|| "-".to_owned(), |f| f.display().to_string());
    say::print(format_args!("folder   {folder}"));
    match inside {
        Some(inside) => {
            say::print(format_args!("holds    {} files, {}", inside.files, human(inside.bytes)));
            say::print(format_args!("in use   {}", text(&inside.users.join("; "))));
        }
        None => say::print("holds    its folder is not on this machine, or was never used"),
    }
    Ok(ExitCode::SUCCESS)
}

fn look_inside(folder: &Path) -> Result<Inside> {
    let failed = || format!("{} cannot be read", folder.display());
    let content = copy::content(folder).with_context(failed)?;
    let users = open::users(folder).with_context(failed)?;
    Ok(Inside { files: content.files, bytes: content.bytes, users: users.iter().map(ToString::to_string).collect() })
}

async fn export(args: cli::VolumeExport) -> Result<ExitCode> {
    let row = find(&connect::client(&args.server).await?, &args.claim).await?;
    let Some(from) = row.folder else { bail!("claim {} has no folder: its volume is of another kind", args.claim) };
    if !row.pods.is_empty() {
        bail!("claim {} is used by {}; scale its set down first", args.claim, row.pods.join(", "));
    }
    if !from.is_dir() {
        bail!("{} is not on this machine; it is on node {}", from.display(), row.node);
    }
    let to = std::path::absolute(&args.folder)?;
    if to.symlink_metadata().is_ok() {
        bail!("{} is there already; name a folder that is not", to.display());
    }
    let (source, target) = (from.clone(), to.clone());
    tokio::task::spawn_blocking(move || {
        refuse_used(&source)?;
        copy_whole(&source, &target, args.owner)?;
        // Somebody may have begun to write meanwhile: then the copy is of no one moment.
        refuse_used(&source).inspect_err(|_| drop(std::fs::remove_dir_all(&target)))
    })
    .await??;
    say::note(format_args!("copied {} to {}", from.display(), to.display()));
    Ok(ExitCode::SUCCESS)
}

/// An error where somebody uses the folder.
fn refuse_used(folder: &Path) -> Result<()> {
    let users = open::users(folder).with_context(|| format!("{} cannot be looked at", folder.display()))?;
    if !users.is_empty() {
        let users: Vec<String> = users.iter().map(ToString::to_string).collect();
        bail!("{} is in use: {}; stop it first", folder.display(), users.join("; "));
    }
    Ok(())
}

/// Copies a folder with progress; what was begun and failed is removed.
fn copy_whole(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let content = copy::content(from).with_context(|| format!("{} cannot be read", from.display()))?;
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes} ({binary_bytes_per_sec})");
    let bar = ProgressBar::new(content.bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut progress = |bytes| bar.inc(bytes);
    let mut copy = copy::Copy::new(owner, &mut progress);
    let copied = copy.folder(from, to);
    let left_out = std::mem::take(&mut copy.left_out);
    bar.finish_and_clear();
    if let Err(error) = copied {
        let _ = std::fs::remove_dir_all(to);
        return Err(error.into());
    }
    for path in left_out {
        say::note(format_args!("{} is a socket; it was left out", path.display()));
    }
    Ok(())
}

/// The row of one claim.
async fn find(client: &Client, text: &str) -> Result<Row> {
    let (namespace, claim) = claim_of(text)?;
    let rows = rows(client, Some(namespace)).await?;
    let row = rows.into_iter().find(|row| row.claim == claim);
    row.with_context(|| {
        format!("there is no claim {claim} in namespace {namespace}; `statefuld volume list` shows them")
    })
}

fn claim_of(text: &str) -> Result<(&str, &str)> {
    objects::split_claim(text)
        .with_context(|| format!("{text:?} is no claim; write NAMESPACE/CLAIM, as default/data-web-0"))
}

/// All claims with their volumes and users.
async fn rows(client: &Client, namespace: Option<&str>) -> Result<Vec<Row>> {
    let everything = ListParams::default();
    let claims: Api<PersistentVolumeClaim> = scoped(client, namespace);
    let pods: Api<Pod> = scoped(client, namespace);
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let (claims, pods, volumes) =
        tokio::try_join!(claims.list(&everything), pods.list(&everything), volumes.list(&everything))?;
    let volumes: BTreeMap<String, PersistentVolume> =
        volumes.items.into_iter().filter_map(|v| Some((v.metadata.name.clone()?, v))).collect();
    let mut rows: Vec<Row> = claims.items.iter().map(|claim| row(claim, &volumes, &pods.items)).collect();
    rows.sort_by(|a, b| (&a.namespace, &a.claim).cmp(&(&b.namespace, &b.claim)));
    Ok(rows)
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn row(claim: &PersistentVolumeClaim, volumes: &BTreeMap<String, PersistentVolume>, pods: &[Pod]) -> Row {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let (name, namespace) = (text(claim.metadata.name.as_ref()), text(claim.metadata.namespace.as_ref()));
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let volume = spec.volume_name.as_ref().and_then(|volume| volumes.get(volume));
    let volume_spec = volume.and_then(|v| v.spec.as_ref());
    let path =
        volume_spec.and_then(|s| s.local.as_ref().map(|l| &l.path).or_else(|| s.host_path.as_ref().map(|h| &h.path)));
    let terms = volume_spec.and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    let values =
        terms.and_then(|r| r.node_selector_terms.first()?.match_expressions.as_ref()?.first()?.values.as_ref());
    Row {
        phase: text(claim.status.as_ref().and_then(|s| s.phase.as_ref())),
        size: requests.and_then(|r| r.get("storage")).map(|q| q.0.clone()).unwrap_or_default(),
        class: text(spec.storage_class_name.as_ref()),
        volume: text(spec.volume_name.as_ref()),
        folder: path.map(PathBuf::from),
        node: text(values.and_then(|v| v.first())),
        pods: pods
            .iter()
            .filter(|pod| mounts(pod, &namespace, &name))
            .filter_map(|p| p.metadata.name.clone())
            .collect(),
        namespace,
        claim: name,
    }
}

fn mounts(pod: &Pod, namespace: &str, claim: &str) -> bool {
    let over =
        pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|p| matches!(p, "Succeeded" | "Failed"));
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
    let mut claims = volumes.filter_map(|v| v.persistent_volume_claim.as_ref());
    !over && pod.metadata.namespace.as_deref() == Some(namespace) && claims.any(|c| c.claim_name == claim)
}

/// Bytes as a person reads them.
fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
