//! `statefuld backup` and `restore`: the state of the API, with the keys that make it the same server, in one file.
//!
//! | file | holds |
//! |---|---|
//! | `format` | the file, written and read |
//! | `restore` | a store made from it, of a new generation |
//!
//! Volumes are not in it: their folders are copied as any others are.

mod format;
pub mod restore;

use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use store::embedded::Embedded;
use store::{RangeQuery, Store as _};

use crate::cli;
use crate::control::{self, Request};
use crate::daemon;
use crate::place::DataDir;
use crate::say;

use format::{Backup, Header, Kept};

/// What belongs to a backup of the data directory and of each further node's: the authority and the signing keys, and what
/// a node has chosen once. Nothing of what runs.
const KEPT: [&str; 2] = ["pki", "node/config.json"];
/// Where the further nodes of an instance have their folders.
const FURTHER_NODES: &str = "nodes";

/// Runs the command.
pub async fn run(args: cli::Backup) -> Result<ExitCode> {
    let data = DataDir::new(&args.instance.data_dir)?;
    let file =
        std::path::absolute(&args.file).with_context(|| format!("{}: not a usable path", args.file.display()))?;
    if data.owner().is_some() {
        control::ask(&data.control_socket(), Request::Backup { file }, |text| say::note(text)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if !data.store().exists() {
        anyhow::bail!("there is nothing to back up in {}", data.path().display());
    }
    let _lock = data.lock()?;
    let ambient = Ambient::system();
    let (store, _fatal) = daemon::open_store(&data, &ambient).await?;
    say::note(take(store.clone(), data, &ambient, file).await?);
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

/// Writes a backup of that store, whole or not at all. Says what was written.
pub async fn take(store: Arc<Embedded>, data: DataDir, ambient: &Ambient, file: PathBuf) -> Result<String> {
    // One range read is of one state, however long it takes to write down.
    let range = store.range(RangeQuery::default()).await?;
    let identity = store.identity();
    let header = Header {
        store: identity.id.iter().map(|b| format!("{b:02x}")).collect(),
        generation: identity.generation,
        revision: range.revision,
        created: ambient.now().to_string(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let written = tokio::task::spawn_blocking(move || {
        let backup = Backup { header, entries: range.entries, files: files_of(data.path())? };
        write(&backup, &file)?;
        let (objects, revision) = (backup.entries.len(), backup.header.revision);
        anyhow::Ok(format!(
            "wrote {}: {objects} entries as of revision {revision}; volumes are not in it",
            file.display()
        ))
    });
    written.await.context("writing the backup panicked")?
}

fn write(backup: &Backup, path: &Path) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    let folder = path.parent().with_context(failed)?;
    let mut name = path.file_name().with_context(failed)?.to_owned();
    name.push(".new");
    let neighbour = path.with_file_name(name);
    let _ = fs::remove_file(&neighbour);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&neighbour).with_context(failed)?;
    let mut out = BufWriter::new(file);
    let written = backup.write(&mut out).and_then(|()| out.flush()).and_then(|()| out.get_ref().sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(&neighbour);
        return Err(error).with_context(failed);
    }
    fs::rename(&neighbour, path).with_context(failed)?;
    fs::File::open(folder).and_then(|f| f.sync_all()).with_context(failed)
}

/// The files that belong to a backup.
fn files_of(data: &Path) -> Result<Vec<Kept>> {
    let mut files = Vec::new();
    for node in node_folders(data) {
        for name in KEPT {
            collect(data, &node.join(name), &mut files)?;
        }
    }
    Ok(files)
}

/// The folders of an instance's nodes, below its data directory; the first node's is the directory itself.
fn node_folders(data: &Path) -> Vec<PathBuf> {
    let further = fs::read_dir(data.join(FURTHER_NODES)).into_iter().flatten().flatten();
    let mut folders: Vec<_> = further.map(|entry| Path::new(FURTHER_NODES).join(entry.file_name())).collect();
    folders.push(PathBuf::new());
    folders.sort();
    folders
}

fn collect(data: &Path, below: &Path, files: &mut Vec<Kept>) -> Result<()> {
    let path = data.join(below);
    let failed = || format!("{} cannot be read", path.display());
    let Ok(meta) = fs::symlink_metadata(&path) else { return Ok(()) };
    if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&path).with_context(failed)?.flatten().map(|e| e.file_name()).collect();
        names.sort();
        return names.into_iter().try_for_each(|name| collect(data, &below.join(name), files));
    }
    if meta.is_file() {
        files.push(Kept {
            path: below.to_str().with_context(failed)?.to_owned(),
            mode: meta.permissions().mode() & 0o7777,
            content: fs::read(&path).with_context(failed)?,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_for_its_owner_alone_and_holds_keys_but_nothing_that_runs() {
        let dir = tempfile::tempdir().expect("a folder");
        for file in [
            "pki/ca.key",
            "node/config.json",
            "node/addresses",
            "nodes/2/node/config.json",
            "nodes/2/volumes/d/web-1-data/x",
            "volumes/d/web-0-data/x",
            "statefuld.pid",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, file).expect("written");
        }
        let files = files_of(dir.path()).expect("read");
        let names: Vec<_> = files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["pki/ca.key", "node/config.json", "nodes/2/node/config.json"]);
        let header =
            Header { store: String::new(), generation: 1, revision: 1, created: String::new(), program: String::new() };
        let target = dir.path().join("backup");
        write(&Backup { header, entries: Vec::new(), files }, &target).expect("written");
        assert_eq!(fs::metadata(&target).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
