//! Claims of class `local`: a folder below the node's volumes folder, and beside it the epoch of its last user.
//!
//! ```text
//!   volumes/<namespace>/<set>-<ordinal>-<template>/      the data, nothing else in it
//!   volumes/<namespace>/.statefuld/<folder>.epoch        who attached it last
//!   volumes/<namespace>/.statefuld/removed-<volume>/     a released folder on its way out
//! ```
//!
//! A pod attaches a folder with the epoch of its binding. A lower epoch than the one on record is refused:
//! it belongs to an owner that has been replaced. Nothing outside of the volumes folder is ever made or removed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use super::{Error, mounts_below};
use crate::config::write_durably;
use crate::fault::{self, Point};

const MARK_MAGIC: &str = "statefuld-epoch";
const MARK_VERSION: u32 = 1;
/// Folder, hidden beside the data, for what is ours.
const HIDDEN: &str = ".statefuld";

/// The folders of one node's claims.
#[derive(Clone, Debug)]
pub struct LocalVolumes {
    root: PathBuf,
}

impl LocalVolumes {
    /// Below that folder.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the folder where it is missing, records the epoch, and answers where the data is. When this returns, folder and
    /// record survive a power loss.
    pub fn attach(&self, path: &Path, epoch: u64, uid: &str) -> Result<PathBuf, Error> {
        let (namespace, folder) = self.split(path)?;
        let home = self.root.join(namespace);
        make_folder(&self.root, 0o700).map_err(|e| Error::io("make", &self.root, e))?;
        make_folder(&home, 0o755).map_err(|e| Error::io("make", &home, e))?;
        let hidden = home.join(HIDDEN);
        make_folder(&hidden, 0o700).map_err(|e| Error::io("make", &hidden, e))?;
        let mark = hidden.join(format!("{folder}.epoch"));
        if let Some((last, _)) = read_mark(&mark)?
            && epoch < last
        {
            return Err(Error::OldEpoch { path: path.to_path_buf(), epoch, last });
        }
        // The record goes first: data of a new owner must never lie beside an old record.
        let text = format!("{MARK_MAGIC} {MARK_VERSION}\n{epoch}\n{uid}\n");
        write_durably(&mark, text.as_bytes()).map_err(|e| Error::io("write", &mark, e))?;
        fault::point(Point::EpochRecorded);
        let data = home.join(folder);
        // Wide open, as other local provisioners make it: the folder above keeps strangers out, and the pod's user is not known.
        make_folder(&data, 0o777).map_err(|e| Error::io("make", &data, e))?;
        Ok(data)
    }

    /// Whether the pod of that uid was the last to attach the folder.
    pub fn is_attached_to(&self, path: &Path, uid: &str) -> Result<bool, Error> {
        let (namespace, folder) = self.split(path)?;
        let mark = self.root.join(namespace).join(HIDDEN).join(format!("{folder}.epoch"));
        Ok(read_mark(&mark)?.is_some_and(|(_, last)| last == uid))
    }

    /// Removes a released folder with all data in it: renamed aside first, so that a folder of that name is whole or not there.
    /// Removing one that is not there is fine. Named by its volume, so that Ok means that nothing is left of an earlier
    /// attempt either.
    pub fn reclaim(&self, path: &Path, volume: &str) -> Result<(), Error> {
        let (namespace, folder) = self.split(path)?;
        let home = self.root.join(namespace);
        let hidden = home.join(HIDDEN);
        let data = home.join(folder);
        // Names may be as long as a file name; where two are cut to the same, both are on their way out.
        let name: String = volume.chars().filter(|c| *c != '/').take(200).collect();
        let aside = hidden.join(format!("removed-{name}"));
        remove_tree(&aside)?;
        match fs::symlink_metadata(&data) {
            Ok(meta) if meta.is_dir() => {
                refuse_mounts(&data)?;
                make_folder(&hidden, 0o700).map_err(|e| Error::io("make", &hidden, e))?;
                fs::rename(&data, &aside).map_err(|e| Error::io("rename", &data, e))?;
                sync_folder(&home).map_err(|e| Error::io("sync", &home, e))?;
                remove_tree(&aside)?;
            }
            Ok(_) => return Err(Error::Outside { path: path.to_path_buf(), root: self.root.clone() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", &data, e)),
        }
        let _ = fs::remove_file(hidden.join(format!("{folder}.epoch")));
        Ok(())
    }

    /// Finishes removals that a crash interrupted.
    pub fn sweep(&self) {
        let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
        for namespace in folders(&self.root) {
            for entry in folders(&namespace.join(HIDDEN)) {
                let removed = entry.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"removed-"));
                if removed && let Err(error) = remove_tree(&entry) {
                    tracing::warn!(path = %entry.display(), %error, "cannot finish removing a released volume");
                }
            }
        }
    }

    /// Namespace and folder of a path that is exactly two levels below the root, without links on the way.
    fn split<'a>(&self, path: &'a Path) -> Result<(&'a str, &'a str), Error> {
        let outside = || Error::Outside { path: path.to_path_buf(), root: self.root.clone() };
        let below = path.strip_prefix(&self.root).map_err(|_| outside())?;
        let names: Vec<_> = below.components().collect();
        let [Component::Normal(namespace), Component::Normal(folder)] = names[..] else { return Err(outside()) };
        let (namespace, folder) = (namespace.to_str().ok_or_else(outside)?, folder.to_str().ok_or_else(outside)?);
        if namespace.starts_with('.') || folder.starts_with('.') {
            return Err(outside());
        }
        for step in [self.root.join(namespace), self.root.join(namespace).join(folder)] {
            if fs::symlink_metadata(&step).is_ok_and(|m| !m.is_dir()) {
                return Err(outside());
            }
        }
        Ok((namespace, folder))
    }
}

/// Makes one folder durably, with exactly this mode; one that is there is kept as it is.
fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            // The process's umask does not decide.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            sync_folder(path)?;
            sync_folder(path.parent().unwrap_or(Path::new("/")))
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes a folder and all data in it, but nothing of another file system.
fn remove_tree(path: &Path) -> Result<(), Error> {
    match refuse_mounts(path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && !path.exists() => return Ok(()),
        result => result?,
    }
    fs::remove_dir_all(path).map_err(|e| Error::io("remove", path, e))
}

/// An error where something is mounted at a folder or below it: removing would go on into that.
fn refuse_mounts(path: &Path) -> Result<(), Error> {
    // The kernel's table has no links in its paths.
    let real = path.canonicalize().map_err(|e| Error::io("find", path, e))?;
    match mounts_below(&real)?.pop() {
        Some(point) => Err(Error::Mounted { path: path.to_path_buf(), point }),
        None => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// The epoch on record, and the pod.
fn read_mark(path: &Path) -> Result<Option<(u64, String)>, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let mut lines = text.lines();
    if lines.next() != Some(&format!("{MARK_MAGIC} {MARK_VERSION}")) {
        return Err(Error::Mark { path: path.to_path_buf() });
    }
    let epoch = lines.next().and_then(|l| l.parse().ok());
    let uid = lines.next().unwrap_or_default().to_owned();
    epoch.map(|epoch| Some((epoch, uid))).ok_or(Error::Mark { path: path.to_path_buf() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes() -> (tempfile::TempDir, LocalVolumes) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volumes = LocalVolumes::new(dir.path().join("volumes"));
        (dir, volumes)
    }

    #[test]
    fn lower_epoch_is_refused_and_equal_or_higher_attaches_the_same_data() {
        let (_dir, volumes) = volumes();
        let path = volumes.root.join("prod/web-0-data");
        let data = volumes.attach(&path, 7, "u1").expect("attached");
        fs::write(data.join("file"), "kept").expect("written");
        volumes.attach(&path, 7, "u1").expect("attached again by the same pod");
        volumes.attach(&path, 9, "u2").expect("attached by its successor");
        assert!(matches!(volumes.attach(&path, 8, "u1"), Err(Error::OldEpoch { epoch: 8, last: 9, .. })));
        assert_eq!(fs::read_to_string(data.join("file")).expect("read"), "kept");
        assert_eq!(fs::read_dir(&data).expect("listed").count(), 1, "nothing of ours lies in the data");
    }

    #[test]
    fn nothing_outside_is_made_or_removed() {
        let (dir, volumes) = volumes();
        let victim = dir.path().join("victim");
        fs::create_dir_all(volumes.root.join("prod")).expect("folder");
        fs::create_dir(&victim).expect("folder");
        std::os::unix::fs::symlink(&victim, volumes.root.join("prod/link")).expect("link");
        for path in [
            victim.clone(),
            volumes.root.clone(),
            volumes.root.join("prod"),
            volumes.root.join("prod/../../victim"),
            volumes.root.join("prod/link"),
            volumes.root.join("prod/.statefuld"),
            volumes.root.join("a/b/c"),
        ] {
            assert!(matches!(volumes.attach(&path, 1, "u"), Err(Error::Outside { .. })), "{}", path.display());
            assert!(matches!(volumes.reclaim(&path, "n"), Err(Error::Outside { .. })), "{}", path.display());
        }
        assert!(victim.is_dir());
    }

    #[test]
    fn reclaimed_folder_is_gone_and_can_be_made_anew() {
        let (_dir, volumes) = volumes();
        let path = volumes.root.join("prod/web-0-data");
        fs::write(volumes.attach(&path, 7, "u").expect("attached").join("x"), "x").expect("written");
        volumes.reclaim(&path, "n1").expect("removed");
        volumes.reclaim(&path, "n2").expect("nothing to remove");
        assert!(!path.exists());
        let data = volumes.attach(&path, 3, "v").expect("a new life may start at any epoch");
        assert_eq!(fs::read_dir(data).expect("listed").count(), 0);
    }

    #[test]
    fn interrupted_removal_is_finished() {
        let (_dir, volumes) = volumes();
        let left = volumes.root.join("prod/.statefuld/removed-x/data");
        fs::create_dir_all(&left).expect("folder");
        volumes.sweep();
        assert!(!left.exists());
        assert!(volumes.root.join("prod/.statefuld").exists());
    }

    #[test]
    fn another_file_system_in_a_volume_is_never_emptied() {
        struct Mounted(PathBuf);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let (_dir, volumes) = volumes();
        let path = volumes.root.join("prod/web-0-data");
        let point = volumes.attach(&path, 7, "u").expect("attached").join("in it");
        let left = volumes.root.join("prod/.statefuld/removed-x/deep");
        for (point, reclaimed) in [(point, true), (left, false)] {
            fs::create_dir_all(&point).expect("folder");
            rustix::mount::mount("tmpfs", &point, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mounted");
            let mounted = Mounted(point.clone());
            fs::write(point.join("precious"), "x").expect("written");
            if reclaimed {
                assert!(matches!(volumes.reclaim(&path, "n"), Err(Error::Mounted { .. })));
            } else {
                volumes.sweep();
            }
            assert!(point.join("precious").exists(), "{}", point.display());
            drop(mounted);
        }
        volumes.reclaim(&path, "n").expect("removed once nothing is mounted there");
        assert!(!path.exists());
    }

    #[test]
    fn removal_that_failed_is_not_forgotten() {
        let (_dir, volumes) = volumes();
        let path = volumes.root.join("prod/web-0-data");
        volumes.attach(&path, 7, "u").expect("attached");
        let name = "pv-1".repeat(60);
        volumes.reclaim(&path, &name).expect("removed");
        let left = volumes.root.join("prod/.statefuld/removed-pv-1/data");
        fs::create_dir_all(&left).expect("what an attempt left that was interrupted after the renaming");
        volumes.reclaim(&path, "pv-1").expect("removed");
        assert!(!left.exists());
    }

    #[test]
    fn damaged_mark_is_refused_not_guessed() {
        let (_dir, volumes) = volumes();
        let path = volumes.root.join("prod/web-0-data");
        volumes.attach(&path, 7, "u").expect("attached");
        fs::write(volumes.root.join("prod/.statefuld/web-0-data.epoch"), "7").expect("damaged");
        assert!(matches!(volumes.attach(&path, 8, "u"), Err(Error::Mark { .. })));
    }
}
