//! `statefuld restore`: a store made from a backup.
//!
//! It gets a new generation, and revisions above any that the old one can have served after the backup was taken, so that no
//! client and no volume ever meets a number twice. Nothing of the node may run meanwhile. In this order, each step durable
//! before the next: the old store aside, unknown volume folders aside, keys and choices, the store. A crash in between leaves
//! no store, and the command is run again.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use apiserver::carry::{self, Moved};
use store::embedded::{Embedded, Seed};
use store::{Identity, Store as _};

use crate::cli;
use crate::daemon;
use crate::place::DataDir;
use crate::say;

use super::format::{Backup, Kept};
use super::node_folders;

/// How far above the backup's revision the new store begins, where the old store's own last revision is not known: more than
/// any server writes between two backups (5,000 writes a second for two days).
const REVISION_GAP: u64 = 1 << 30;
/// An epoch has so many bits for the revision.
const REVISION_LIMIT: u64 = 1 << 40;

/// Runs the command.
pub async fn run(args: cli::Restore) -> Result<ExitCode> {
    let file = fs::File::open(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let backup = Backup::read(BufReader::new(file)).with_context(|| format!("{}", args.file.display()))?;
    let data = DataDir::new(&args.instance.data_dir)?;
    let ambient = Ambient::system();
    let _lock = data.lock()?;
    refuse_running(&data, &ambient).await?;
    let (identity, revision) = next(&backup, &data, args.replace, &ambient).await?;
    let from = old_place(&backup.files);
    let to = data.path().to_string_lossy().into_owned();
    let moved = from.as_deref().filter(|from| *from != to).map(|from| Moved { from, to: &to });
    let carried = carry::carry_over(backup.entries, revision, moved);
    let known = carried.volume_folders.iter().map(PathBuf::from).collect();
    let mut unknown = Vec::new();
    for node in node_folders(data.path()) {
        unknown.extend(unknown_folders(&data.path().join(node).join("volumes"), &known)?);
    }

    put_store_aside(&data, identity.generation)?;
    for folder in &unknown {
        treat_unknown(folder, args.adopt, identity.generation)?;
    }
    put_back(data.path(), &backup.files)?;
    let seed = Seed { identity, revision, entries: carried.entries };
    fs::create_dir_all(data.store().parent().context("the store lies in a folder")?)?;
    Embedded::restore(&data.store(), &seed)?;

    say::note(format_args!(
        "restored {} entries of {} as generation {}; {} pods are left to their controllers. \
         `statefuld up --data-dir {}` starts it.",
        seed.entries.len(),
        backup.header.created,
        identity.generation,
        carried.left_to_controllers.len(),
        data.path().display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Pods that run write into volumes whose owners the new store would not know.
async fn refuse_running(data: &DataDir, ambient: &Ambient) -> Result<()> {
    let mut running = Vec::new();
    for folder in node_folders(data.path()) {
        // A copy of a data directory is no place of pods; whatever is wrong with the record is told when it is used.
        // Without the slash that joining nothing leaves: names are made from the path as it is written.
        let folder: PathBuf = data.path().join(folder).components().collect();
        let Ok(Some(config)) = node::Config::load(&folder) else { continue };
        running.extend(node::agent::running_pods(&config, ambient).await?);
    }
    if !running.is_empty() {
        bail!(
            "pods of {dir} run: {}; stop them with `statefuld down --data-dir {dir}`",
            running.join(", "),
            dir = data.path().display()
        );
    }
    Ok(())
}

/// Who the new store is, and where its revisions begin.
async fn next(backup: &Backup, data: &DataDir, replace: bool, ambient: &Ambient) -> Result<(Identity, u64)> {
    let id = parse_id(&backup.header.store).context("the backup does not say whose it is")?;
    let (mut generation, mut revision) = (backup.header.generation, backup.header.revision + REVISION_GAP);
    if data.store().exists() {
        if !replace {
            bail!(
                "{} holds a store already; --replace puts it aside, or choose another --data-dir",
                data.path().display()
            );
        }
        match daemon::open_store(data, ambient).await {
            Ok((store, _fatal)) => {
                generation = generation.max(store.identity().generation);
                let last = store.current_revision().await?;
                if store.identity().id == id {
                    revision = last.max(backup.header.revision) + 1;
                }
                store.close().await;
            }
            // One that cannot be read is why somebody restores.
            Err(error) => {
                say::note(format_args!("the store that is there cannot be read ({error:#}); it is put aside"))
            }
        }
    }
    let generation = generation.checked_add(1).context("there are no more generations")?;
    if revision >= REVISION_LIMIT {
        bail!("the store has used up its revisions; begin with an empty one and apply the manifests again");
    }
    Ok((Identity { id, generation }, revision))
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    if text.len() != 2 * id.len() || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(id)
}

/// Where the data directory was when it was backed up: the node's record says.
fn old_place(files: &[Kept]) -> Option<String> {
    let config = files.iter().find(|file| file.path == "node/config.json")?;
    let config: serde_json::Value = serde_json::from_slice(&config.content).ok()?;
    config.get("dataDir")?.as_str().map(str::to_owned)
}

/// A store that is there is kept beside its place.
fn put_store_aside(data: &DataDir, generation: u32) -> Result<()> {
    let store = data.store();
    if !store.exists() {
        return Ok(());
    }
    let aside = store.with_extension(format!("redb.before-generation-{generation}"));
    fs::rename(&store, &aside).with_context(|| format!("{} cannot be put aside", store.display()))?;
    say::note(format_args!("the store that was there is {} now", aside.display()));
    Ok(())
}

/// Folders of claims that no volume of the backup lies in.
fn unknown_folders(volumes: &Path, known: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut unknown = Vec::new();
    for namespace in folders(volumes)? {
        unknown.extend(folders(&namespace)?.into_iter().filter(|folder| !known.contains(folder)));
    }
    Ok(unknown)
}

/// The folders in a folder, in order; hidden ones are ours.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    let visible = |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().starts_with(b".");
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|t| t.is_dir());
    let mut found: Vec<_> = entries.flatten().filter(|e| visible(e) && is_folder(e)).map(|e| e.path()).collect();
    found.sort();
    Ok(found)
}

/// Data that the backup does not know is never deleted. Where it stays, a claim of its name finds it; else it goes aside, so
/// that a claim of its name begins empty and nobody takes old data for new.
fn treat_unknown(folder: &Path, adopt: bool, generation: u32) -> Result<()> {
    if adopt {
        say::note(format_args!("{}: not known to the backup; it stays for a claim of its name", folder.display()));
        return Ok(());
    }
    let mut name = folder.file_name().context("a folder has a name")?.to_owned();
    name.push(format!(".unknown-{generation}"));
    let aside = folder.with_file_name(name);
    fs::rename(folder, &aside).with_context(|| format!("{} cannot be put aside", folder.display()))?;
    say::note(format_args!("{}: not known to the backup; it is {} now", folder.display(), aside.display()));
    Ok(())
}

/// Writes keys and choices. Those that are there already and differ belong to another server: they are put aside.
fn put_back(data: &Path, files: &[Kept]) -> Result<()> {
    for file in files {
        let path = data.join(&file.path);
        let failed = || format!("{} cannot be written", path.display());
        let folder = path.parent().with_context(failed)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(failed)?;
        match fs::read(&path) {
            Ok(content) if content == file.content => continue,
            Ok(_) => fs::rename(&path, path.with_added_extension("before-restore")).with_context(failed)?,
            Err(_) => {}
        }
        let neighbour = path.with_added_extension("new");
        let _ = fs::remove_file(&neighbour);
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode & 0o777)
            .open(&neighbour)
            .with_context(failed)?;
        out.write_all(&file.content).with_context(failed)?;
        out.set_permissions(fs::Permissions::from_mode(file.mode & 0o777)).with_context(failed)?;
        out.sync_all().with_context(failed)?;
        fs::rename(&neighbour, &path).with_context(failed)?;
        fs::File::open(folder).and_then(|f| f.sync_all()).with_context(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        assert_eq!(parse_id("000102030405060708090a0b0c0d0e0f").map(|id| id[15]), Some(15));
        for wrong in ["", "00", "zz0102030405060708090a0b0c0d0e0f", "ä0102030405060708090a0b0c0d0e0"] {
            assert_eq!(parse_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn folders_that_the_backup_does_not_know_are_found_and_never_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["prod/web-0-data", "prod/web-1-data", "prod/.statefuld", "test/x"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        let known = BTreeSet::from([dir.path().join("prod/web-0-data")]);
        let unknown = unknown_folders(dir.path(), &known).expect("read");
        assert_eq!(unknown, [dir.path().join("prod/web-1-data"), dir.path().join("test/x")]);
        fs::write(unknown[0].join("precious"), "x").expect("written");
        treat_unknown(&unknown[0], true, 2).expect("left alone");
        assert!(unknown[0].join("precious").exists());
        treat_unknown(&unknown[0], false, 2).expect("put aside");
        assert!(dir.path().join("prod/web-1-data.unknown-2/precious").exists());
    }
}
