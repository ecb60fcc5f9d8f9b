//! A disk that others have filled. Needs root, for a small file system of its own.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use statefuld_store::embedded::Options;

const MIB: u64 = 1 << 20;

/// A memory file system of 40 MiB, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).expect("a folder");
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"size=40m")).expect("mounted: this test needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut file = fs::File::options().append(true).open(path).expect("the file");
    while file.write_all(b"x").is_ok() {}
}

#[tokio::test]
async fn the_store_goes_on_when_others_have_filled_the_disk() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let disk = SmallDisk::mount(&dir.path().join("disk"));
    let options = Options { reserve: 4 * MIB, disk_reserve: MIB / 2, ..Options::default() };
    let store = open_with(&disk.0, options);
    commit(&*store, ops(vec![put("before", "1")])).await;
    let reserve = disk.0.join("store.reserve");
    assert_eq!(fs::metadata(&reserve).expect("room is taken").len(), 4 * MIB);
    let ballast = disk.0.join("ballast");
    fill(&ballast);
    let large = "x".repeat(64 << 10);
    for n in 0..16 {
        commit(&*store, ops(vec![put(&format!("k{n}"), &large)])).await;
    }
    assert!(fs::metadata(&reserve).expect("still there").len() < 4 * MIB, "it gave up a part");
    // With room again, it is taken again.
    fs::remove_file(&ballast).expect("removed");
    commit(&*store, ops(vec![put("after", "1")])).await;
    commit(&*store, ops(vec![put("after", "2")])).await;
    assert_eq!(fs::metadata(&reserve).expect("still there").len(), 4 * MIB);
    store.close().await;
    let again = open_with(&disk.0, Options { reserve: 4 * MIB, ..Options::default() });
    for key in ["before", "k0", "k15"] {
        assert!(value(&*again, key).await.is_some(), "{key}");
    }
    again.close().await;
}
