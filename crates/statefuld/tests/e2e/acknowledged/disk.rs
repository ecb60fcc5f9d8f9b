//! A disk of its own for one volume, so small that it can be filled.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// A file system in a file, mounted until it is dropped.
pub struct Disk {
    at: PathBuf,
    bytes: u64,
}

impl Disk {
    /// An empty one of so many bytes.
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let file = folder.join("disk");
        let at = folder.join("mounted");
        std::fs::create_dir_all(&at).expect("a folder");
        File::create(&file).and_then(|f| f.set_len(bytes)).expect("a sparse file");
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&at));
        let disk = Self { at, bytes };
        std::fs::set_permissions(&disk.at, std::fs::Permissions::from_mode(0o777)).expect("open to all");
        disk
    }

    /// A volume on it, for that claim.
    pub fn volume(&self, claim: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("small-{claim}")},
            "spec": {"capacity": {"storage": self.bytes.to_string()}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "local", "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": self.at}, "claimRef": {"namespace": "default", "name": claim}}})
    }

    /// Nothing more can be written to it.
    pub fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        let mut piece = vec![0u8; 1 << 20];
        // Down to the block: a file system has nothing smaller to give.
        while piece.len() >= 4096 {
            if ballast.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
        let _ = ballast.sync_data();
    }

    /// There is room again.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("it is there");
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Somebody may be in it still.
            let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
        } else {
            run(Command::new("umount").arg(&self.at));
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
