//! Folders of the store that one process works in.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ambient::Ambient;
use rustix::fs::{FlockOperation, flock};

use super::StoreError;

/// A folder of one process, removed when it is dropped; after a crash, by whoever looks next.
#[derive(Debug)]
pub struct Staging {
    /// Where it is.
    pub path: PathBuf,
    mark: PathBuf,
    _lock: fs::File,
}

impl Staging {
    pub(super) fn new(dir: PathBuf, ambient: &Ambient) -> Result<Self, StoreError> {
        let path = dir.join(ambient.suffix(16));
        let mark = lock_path(&path);
        let lock = fs::OpenOptions::new().create_new(true).append(true).open(&mark);
        let lock = lock.map_err(StoreError::io("make", &mark))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| StoreError::io("lock", &mark)(e.into()))?;
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(StoreError::io("make", &path))?;
        Ok(Self { path, mark, _lock: lock })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        discard(&self.path);
        let _ = fs::remove_file(&self.mark);
    }
}

/// Removes a folder. What cannot be removed now is tried again at the next start.
pub(super) fn discard(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a folder of images cannot be removed yet");
        }
        _ => {}
    }
}

pub(super) fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}
