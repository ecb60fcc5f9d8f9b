//! Mounts below a volume: which are seen on the other side, and which can be written to.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use statefuld_node::shim::Shim;
use statefuld_node::shim::spec::{ContainerSpec, Mount, Propagation};

use crate::harness::*;

/// A memory file system of the machine that passes mounts on; gone with everything in it when the test is.
struct Shared {
    folder: tempfile::TempDir,
}

impl Shared {
    fn new(kind: MountPropagationFlags) -> Self {
        let shared = Self { folder: tempfile::tempdir_in("/tmp").unwrap() };
        memory(&shared.path());
        mount_change(shared.path(), kind).unwrap();
        shared
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

fn memory(at: &Path) {
    fs::create_dir_all(at).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

async fn idle(mounts: Vec<Mount>) -> (TestPod, Shim) {
    let privileged = mounts.iter().any(|m| m.propagation == Propagation::Bidirectional);
    let container = ContainerSpec { mounts, privileged, ..script("a", "sleep 100000") };
    let mut pod = TestPod::new(vec![container]);
    let shim = pod.run().await;
    running(&shim).await;
    (pod, shim)
}

#[tokio::test]
async fn later_mounts_of_the_machine_are_seen_only_where_that_is_asked_for() {
    let shared = Shared::new(MountPropagationFlags::SHARED);
    let seen = Mount { propagation: Propagation::HostToContainer, ..bind(&shared.path(), "/seen") };
    let (_pod, shim) = idle(vec![seen, bind(&shared.path(), "/unseen")]).await;
    let late = shared.path().join("late");
    memory(&late);
    fs::write(late.join("file"), "").unwrap();
    prints(&shim, "a", "until test -e /seen/late/file; do sleep 0.01; done").await;
    assert_eq!(prints(&shim, "a", "ls /unseen/late").await, "");
    // Not the other way round.
    assert_ne!(sh(&shim, "a", "mount -t tmpfs none /seen/late").await.exit.code, 0);
}

#[tokio::test]
async fn a_privileged_container_passes_its_mounts_on_where_that_is_asked_for() {
    let shared = Shared::new(MountPropagationFlags::SHARED);
    let both = Mount { propagation: Propagation::Bidirectional, ..bind(&shared.path(), "/both") };
    let (_pod, shim) = idle(vec![both]).await;
    prints(&shim, "a", "mkdir /both/made && mount -t tmpfs none /both/made && echo x >/both/made/file").await;
    assert_eq!(fs::read_to_string(shared.path().join("made/file")).unwrap(), "x\n");
}

#[tokio::test]
async fn what_cannot_pass_mounts_on_is_refused() {
    let private = Shared::new(MountPropagationFlags::PRIVATE);
    for (propagation, kind) in
        [(Propagation::Bidirectional, "shared mount"), (Propagation::HostToContainer, "shared or slave mount")]
    {
        let wanted = Mount { propagation, ..bind(&private.path(), "/v") };
        let mut pod = TestPod::new(vec![ContainerSpec { mounts: vec![wanted], ..script("a", "true") }]);
        let state = pod.run_to_end().await;
        let message = &ended(&state.containers[0]).message;
        assert!(message.contains(&format!("but it is not a {kind}")), "{message}");
    }
}

#[tokio::test]
async fn read_only_reaches_what_is_mounted_below_only_where_that_is_asked_for() {
    let outer = Shared::new(MountPropagationFlags::PRIVATE);
    memory(&outer.path().join("inner"));
    let flat = Mount { read_only: true, ..bind(&outer.path(), "/flat") };
    let deep = Mount { read_only: true, recursive_read_only: true, ..bind(&outer.path(), "/deep") };
    let (_pod, shim) = idle(vec![flat, deep]).await;
    assert_ne!(sh(&shim, "a", "echo x >/flat/file").await.exit.code, 0);
    assert_eq!(sh(&shim, "a", "echo x >/flat/inner/file").await.exit.code, 0);
    assert_ne!(sh(&shim, "a", "echo x >/deep/inner/file").await.exit.code, 0);
}
