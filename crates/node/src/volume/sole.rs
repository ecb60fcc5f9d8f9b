//! Claims of access mode ReadWriteOncePod: one pod of the node has such a claim at a time.
//!
//! Who has it is a mark in the pod's folder, so that it survives the agent and goes with the pod.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use super::Error;

/// Folder in a pod's folder with one empty file per claim that it alone has, named by the claim's uid.
const FOLDER: &str = "sole-claims";

/// Looking and marking is one step for all pods of the process.
static LOOKING: Mutex<()> = Mutex::new(());

/// Takes a claim for the pod of that folder; refused while another pod has it. Taking it again is fine.
pub(super) fn take(pod_dir: &Path, claim: &str) -> Result<(), Error> {
    let _looking = LOOKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let pods = pod_dir.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(pods).map_err(|e| Error::io("read", pods, e))?;
    let others = entries.flatten().map(|entry| entry.path()).filter(|dir| dir != pod_dir);
    if others.into_iter().any(|dir| dir.join(FOLDER).join(claim).exists()) {
        let words = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
        return Err(Error::Payload(words.to_owned()));
    }
    let folder = pod_dir.join(FOLDER);
    let marked = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(claim), ""));
    marked.map_err(|e| Error::io("write", &folder, e))
}

/// Gives back all claims that a pod alone has. Call it when nothing of it runs and nothing will.
pub(crate) fn give_back(pod_dir: &Path) {
    let folder = pod_dir.join(FOLDER);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %folder.display(), %error, "claims are not given back before the pod is removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_at_a_time_has_it() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for pod in [&one, &two] {
            fs::create_dir(pod).expect("folder");
        }
        take(&one, "claim").expect("free");
        take(&one, "claim").expect("its own");
        take(&two, "other").expect("another claim");
        assert!(take(&two, "claim").is_err());
        give_back(&one);
        take(&two, "claim").expect("free again");
        fs::remove_dir_all(&two).expect("removed");
        take(&one, "claim").expect("gone with its pod");
    }
}
