//! The folder of node-dns: configuration, snapshot, lock. Every file says what it is and of which version.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Config, Error};
use crate::feed::SOCKET;
use crate::records::Cluster;

const CONFIG: &str = "config.json";
const CONFIG_MAGIC: &str = "statefuld node-dns config";
const CONFIG_VERSION: u32 = 1;
const SNAPSHOT: &str = "snapshot";
/// First line of the snapshot; the version is its last word.
const SNAPSHOT_HEAD: &str = "statefuld node-dns snapshot 1\n";
const LOCK: &str = "lock";
const PID: &str = "pid";
/// Files are for their owner alone.
const MODE: u32 = 0o600;

/// The configuration with its mark.
#[derive(Serialize, Deserialize)]
struct Marked {
    magic: String,
    version: u32,
    #[serde(flatten)]
    config: Config,
}

/// The right to serve a folder; ends with the process.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the right and writes the pid file; `None` if another process has it.
    pub(super) fn take(dir: &Path) -> Result<Option<Self>, Error> {
        let wrap = |what: &str, source| Error::Folder { what: dir.join(what).display().to_string(), source };
        let options = File::options().create(true).truncate(false).write(true).mode(MODE).open(dir.join(LOCK));
        let file = options.map_err(|e| wrap(LOCK, e))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(wrap(LOCK, error.into())),
        }
        replace(dir, PID, format!("{}\n", std::process::id()).as_bytes()).map_err(|e| wrap(PID, e))?;
        Ok(Some(Self { _file: file }))
    }
}

/// Writes the configuration.
pub(super) fn write_config(dir: &Path, config: &Config) -> io::Result<()> {
    let marked = Marked { magic: CONFIG_MAGIC.into(), version: CONFIG_VERSION, config: config.clone() };
    replace(dir, CONFIG, &serde_json::to_vec_pretty(&marked)?)
}

/// Reads the configuration.
pub(super) fn read_config(dir: &Path) -> Result<Config, Error> {
    let file = dir.join(CONFIG);
    let wrong = |why: String| Error::Config { file: file.display().to_string(), why };
    let bytes = fs::read(&file).map_err(|e| wrong(e.to_string()))?;
    let marked: Marked = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if marked.magic != CONFIG_MAGIC || marked.version != CONFIG_VERSION {
        return Err(wrong(format!("it is {:?} of version {}", marked.magic, marked.version)));
    }
    Ok(marked.config)
}

/// Writes the state and its serial. Not synced: after a power loss no pod runs that could ask.
pub(super) fn write_snapshot(dir: &Path, serial: u32, cluster: &Cluster) -> io::Result<()> {
    let mut bytes = SNAPSHOT_HEAD.as_bytes().to_vec();
    serde_json::to_writer(&mut bytes, &(serial, cluster))?;
    replace(dir, SNAPSHOT, &bytes)
}

/// Reads the state. What is missing, damaged or of another version is as if it were not there: the agent pushes anew.
pub(super) fn read_snapshot(dir: &Path) -> Option<(u32, Cluster)> {
    let bytes = fs::read(dir.join(SNAPSHOT)).ok()?;
    let body = bytes.strip_prefix(SNAPSHOT_HEAD.as_bytes())?;
    serde_json::from_slice(body).ok()
}

/// Removes what says that this process serves the folder.
pub(super) fn remove_traces(dir: &Path) {
    for name in [SOCKET, PID] {
        let _ = fs::remove_file(dir.join(name));
    }
}

/// Replaces a file in one step.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let draft = dir.join(format!("{name}.new"));
    let mut file = File::options().create(true).write(true).truncate(true).mode(MODE).open(&draft)?;
    file.write_all(bytes)?;
    fs::rename(&draft, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { listen: Vec::new(), domain: "cluster.local".into(), upstreams: None }
    }

    #[test]
    fn a_configuration_comes_back_and_a_foreign_one_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        write_config(dir.path(), &config()).expect("writes");
        assert_eq!(read_config(dir.path()).expect("reads"), config());
        let text = fs::read_to_string(dir.path().join(CONFIG)).expect("is there");
        fs::write(dir.path().join(CONFIG), text.replace("\"version\": 1", "\"version\": 2")).expect("writes");
        assert!(read_config(dir.path()).expect_err("another version").to_string().contains("version 2"));
    }

    #[test]
    fn a_snapshot_comes_back_and_a_damaged_one_counts_as_none() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(read_snapshot(dir.path()).is_none());
        write_snapshot(dir.path(), 7, &Cluster::default()).expect("writes");
        assert_eq!(read_snapshot(dir.path()), Some((7, Cluster::default())));
        fs::write(dir.path().join(SNAPSHOT), "statefuld node-dns snapshot 2\n[7,{}]").expect("writes");
        assert!(read_snapshot(dir.path()).is_none());
    }

    #[test]
    fn a_folder_is_served_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Lock::take(dir.path()).expect("usable");
        assert!(first.is_some());
        assert!(Lock::take(dir.path()).expect("usable").is_none());
        drop(first);
        assert!(Lock::take(dir.path()).expect("usable").is_some());
    }
}
