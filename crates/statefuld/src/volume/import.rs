//! `statefuld volume import`: a folder becomes the data of a claim that is not there yet.
//!
//! ```text
//!  nobody uses it ─▶ copied beside the volumes (or moved), synced ─▶ still nobody ─▶ renamed to its place ─▶ volume, claim ─▶ Bound
//! ```
//! A crash before the renaming leaves a copy that the next try removes; after it, a folder in its place that the next try
//! adopts there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use kube::api::{ListParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};

use crate::cli;
use crate::{connect, say};

use super::objects::{self, Wanted};
use super::{claim_of, copy, copy_whole, human, refuse_used};

/// Where a node says that its volumes lie.
const VOLUMES_DIR: &str = "statefuld.io/volumes-dir";
/// Label of a node that volumes are tied to it by.
const HOSTNAME: &str = "kubernetes.io/hostname";
/// How long a server may take to have a node, and the time between two looks.
const NODE_LIMIT: Duration = Duration::from_secs(30);
const NODE_EVERY: Duration = Duration::from_millis(100);
/// How long the claim may take to be bound to its volume.
const BIND_LIMIT: Duration = Duration::from_secs(30);
/// Folder, hidden beside the data, for copies under way.
const HIDDEN: &str = ".statefuld";

/// Runs the command.
pub(super) async fn run(args: cli::VolumeImport) -> Result<ExitCode> {
    let (namespace, claim) = claim_of(&args.claim)?;
    let from = args.folder.canonicalize().with_context(|| format!("{} cannot be found", args.folder.display()))?;
    if !from.is_dir() {
        bail!("{} is no folder", from.display());
    }
    let client = connect::client(&args.server).await?;
    refuse_taken(&client, namespace, claim).await?;
    let node = node(&client, args.node.as_deref()).await?;
    let home = node.volumes.join(namespace);
    let taken = folders_of_volumes(&client).await?;
    let place = place(&from, &home, claim, &taken)?;
    let bytes = copy::content(&from).with_context(|| format!("{} cannot be read", from.display()))?.bytes;
    {
        let (from, place, args) = (from.clone(), place.clone(), (args.moved, args.owner, claim.to_owned()));
        tokio::task::spawn_blocking(move || bring(&from, &place, &home, args.0, args.1, &args.2)).await??;
    }
    let size = args.size.unwrap_or_else(|| objects::size_for(bytes));
    let folder = place.to_str().context("the folder's name is no text")?;
    let wanted = Wanted {
        namespace,
        claim,
        folder,
        node: &node.host,
        size: &size,
        access_mode: &args.access_mode,
        class: &args.class,
    };
    create(&client, &wanted).await.with_context(|| {
        format!("the data is in {folder}; `statefuld volume import {folder} --as {}` goes on from there", args.claim)
    })?;
    say::note(format_args!("claim {} holds {} in {folder}", args.claim, human(bytes)));
    Ok(ExitCode::SUCCESS)
}

/// A claim that is there has data of its own.
async fn refuse_taken(client: &Client, namespace: &str, claim: &str) -> Result<()> {
    let spaces: Api<Namespace> = Api::all(client.clone());
    if spaces.get_opt(namespace).await?.is_none() {
        bail!("there is no namespace {namespace}; make it with kubectl create namespace {namespace}");
    }
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    if claims.get_opt(claim).await?.is_some() {
        bail!("claim {namespace}/{claim} is there already, with data of its own; name another, or delete it first");
    }
    Ok(())
}

/// The node that gets the data.
struct Target {
    /// What volumes are tied to.
    host: String,
    /// Where its volumes lie on this machine.
    volumes: PathBuf,
}

/// The node of that name, or the only one; its volumes have to be on this machine. A server that has just started may not
/// have its node yet: that is waited for.
async fn node(client: &Client, wanted: Option<&str>) -> Result<Target> {
    let nodes: Api<Node> = Api::all(client.clone());
    let first = async {
        loop {
            let found = nodes.list(&ListParams::default()).await?.items;
            if !found.is_empty() {
                return Ok::<_, kube::Error>(found);
            }
            tokio::time::sleep(NODE_EVERY).await;
        }
    };
    let found = tokio::time::timeout(NODE_LIMIT, first).await.context("this server has no node")??;
    let mut here = Vec::new();
    for node in found {
        let name = node.metadata.name.clone().unwrap_or_default();
        let dir = node.metadata.annotations.as_ref().and_then(|a| a.get(VOLUMES_DIR)).map(PathBuf::from);
        let Some(volumes) = dir.filter(|dir| dir.parent().is_some_and(Path::is_dir)) else { continue };
        let host = node.metadata.labels.as_ref().and_then(|l| l.get(HOSTNAME)).cloned().unwrap_or_else(|| name.clone());
        if wanted.is_none_or(|wanted| wanted == name) {
            here.push((name, Target { host, volumes }));
        }
    }
    if here.len() > 1 {
        let names: Vec<&str> = here.iter().map(|(name, _)| name.as_str()).collect();
        bail!("several nodes are on this machine; choose one with --node: {}", names.join(", "));
    }
    let found = here.pop().map(|(_, target)| target);
    found.context("no such node has its volumes on this machine; run this where the data is to be")
}

/// Folders that volumes lie in.
async fn folders_of_volumes(client: &Client) -> Result<Vec<PathBuf>> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volumes = volumes.list(&ListParams::default()).await?.items;
    Ok(volumes.into_iter().filter_map(|v| Some(PathBuf::from(v.spec?.local?.path))).collect())
}

/// Where the data is to lie. A folder that lies among the volumes already and is nobody's is adopted where it is.
fn place(from: &Path, home: &Path, claim: &str, taken: &[PathBuf]) -> Result<PathBuf> {
    if taken.iter().any(|folder| folder.starts_with(from) || from.starts_with(folder)) {
        bail!("{} belongs to a volume already", from.display());
    }
    let home_real = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    let visible = |path: &Path| path.file_name().is_some_and(|n| !n.as_encoded_bytes().starts_with(b"."));
    if from.parent() == Some(&home_real) && visible(from) {
        return Ok(home.join(from.file_name().context("a folder has a name")?));
    }
    if from.starts_with(&home_real) || home_real.starts_with(from) {
        bail!("{} cannot be taken over: the volumes lie in it, or it is a part of one", from.display());
    }
    let free = |folder: &PathBuf| !taken.contains(folder) && folder.symlink_metadata().is_err();
    let names = [objects::folder_name(claim), claim.to_owned()];
    let place = names.iter().map(|name| home.join(name)).find(free);
    place.with_context(|| format!("{} is there already; look at it, and move it away", home.join(&names[0]).display()))
}

/// Brings the data to its place, durably. Blocks.
fn bring(from: &Path, place: &Path, home: &Path, moved: bool, owner: Option<(u32, u32)>, claim: &str) -> Result<()> {
    refuse_used(from)?;
    if place.symlink_metadata().is_ok() {
        return adopt(from, owner);
    }
    let hidden = home.join(HIDDEN);
    make_folder(home.parent().context("volumes lie in a folder")?, 0o700)?;
    make_folder(home, 0o755)?;
    make_folder(&hidden, 0o700)?;
    let staged = hidden.join(format!("import-{claim}"));
    if staged.exists() {
        fs::remove_dir_all(&staged).with_context(|| format!("{} cannot be removed", staged.display()))?;
    }
    if moved && owner.is_none() && fs::rename(from, &staged).is_ok() {
        sync_folder(from.parent().unwrap_or(Path::new("/")))?;
    } else {
        copy_whole(from, &staged, owner)?;
        // Somebody may have begun to write meanwhile: then the copy is of no one moment.
        refuse_used(from).inspect_err(|_| drop(fs::remove_dir_all(&staged)))?;
    }
    fs::rename(&staged, place).with_context(|| format!("{} cannot be made", place.display()))?;
    sync_folder(&hidden)?;
    sync_folder(home)?;
    if moved && from.exists() {
        fs::remove_dir_all(from).with_context(|| format!("{} was copied and cannot be removed", from.display()))?;
    }
    Ok(())
}

/// A folder that is in its place already.
fn adopt(folder: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    if owner.is_some() {
        bail!("{} is adopted where it is; change its owner with chown -R, without --owner", folder.display());
    }
    say::note(format_args!("{} is adopted where it is", folder.display()));
    Ok(())
}

fn make_folder(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().mode(mode).create(path);
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("{} cannot be made; run this as root", path.display()))
        }
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|f| f.sync_all()).with_context(|| format!("{} cannot be synced", path.display()))
}

/// Makes the volume, or finds the one that an earlier try made; its name.
async fn create_volume(client: &Client, wanted: &Wanted<'_>) -> Result<String> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for name in objects::volume_names(wanted) {
        let volume: PersistentVolume = serde_json::from_value(objects::volume(wanted, &name))?;
        match volumes.create(&PostParams::default(), &volume).await {
            Ok(_) => return Ok(name),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).context("the volume cannot be made"),
        }
        if volumes.get_opt(&name).await?.is_some_and(|there| objects::is_begun(&there, wanted)) {
            return Ok(name);
        }
    }
    bail!(
        "too many volumes were taken over for claims of this name; delete those that nobody needs with kubectl delete pv"
    )
}

/// Makes volume and claim, and waits until they have found each other.
async fn create(client: &Client, wanted: &Wanted<'_>) -> Result<()> {
    let volume = create_volume(client, wanted).await?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), wanted.namespace);
    let claim: PersistentVolumeClaim = serde_json::from_value(objects::claim(wanted, &volume))?;
    claims.create(&PostParams::default(), &claim).await.context("the claim cannot be made")?;
    let bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|c| c.status.as_ref()?.phase.as_deref()).is_some_and(|phase| phase == "Bound")
    };
    let waiting = await_condition(claims, wanted.claim, bound);
    let result = tokio::time::timeout(BIND_LIMIT, waiting).await;
    result.context("the claim is not bound yet; statefuld why says what it waits for")?.context("the claim is gone")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_where_a_set_would_look_and_never_onto_other_data() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("a path");
        let (home, from) = (root.join("volumes/prod"), root.join("old"));
        fs::create_dir_all(&home).expect("made");
        fs::create_dir_all(&from).expect("made");
        let wanted = home.join("web-0-data");
        assert_eq!(place(&from, &home, "data-web-0", &[]).expect("a place"), wanted);
        let second = place(&from, &home, "data-web-0", std::slice::from_ref(&wanted)).expect("a place");
        assert_eq!(second, home.join("data-web-0"));
        fs::create_dir(&wanted).expect("made");
        fs::create_dir(home.join("data-web-0")).expect("made");
        assert!(place(&from, &home, "data-web-0", &[]).is_err(), "both are there");
        assert_eq!(place(&wanted, &home, "data-web-0", &[]).expect("adopted"), wanted);
        assert!(place(&wanted, &home, "other", std::slice::from_ref(&wanted)).is_err(), "it is a volume's");
        for wrong in [root.clone(), home.clone(), wanted.join("deep")] {
            assert!(place(&wrong, &home, "other", &[]).is_err(), "{}", wrong.display());
        }
    }

    #[test]
    fn a_move_takes_the_folder_itself_and_a_copy_leaves_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().join("volumes/prod");
        fs::create_dir(dir.path().join("volumes")).expect("made");
        for (name, moved) in [("copied", false), ("moved", true)] {
            let from = dir.path().join(name);
            fs::create_dir(&from).expect("made");
            fs::write(from.join("file"), "data").expect("written");
            bring(&from, &home.join(name), &home, moved, None, name).expect("brought");
            assert_eq!(fs::read_to_string(home.join(name).join("file")).expect("there"), "data");
            assert_eq!(from.exists(), !moved);
        }
        assert_eq!(fs::read_dir(home.join(HIDDEN)).expect("listed").count(), 0);
    }
}
