//! What a machine loses when its power fails, taken from an instance.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use node::shim::state::PodState;

use crate::harness::{Instance, eventually, kill};

/// The shim's process id of a pod.
pub fn shim_of(instance: &Instance, pod: &str) -> i32 {
    let uid = instance.get("pod", pod)["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let state = PodState::read(&instance.data().join("node/pods").join(uid)).expect("readable");
    state.expect("the shim has written its state").shim_pid
}

/// Everything of the instance ends at once: processes, mounts, the bridge, rules and control groups.
pub fn power_off(instance: &Instance) {
    let data = instance.data();
    let config = node::config::Config::load(&data).expect("readable").expect("the node has its choices");
    eventually("all processes are gone", || {
        let left: Vec<i32> = processes(&data, &config.cgroup_root);
        left.iter().for_each(|pid| kill_if_there(*pid));
        left.is_empty().then_some(())
    });
    let needle = data.to_str().expect("UTF-8").to_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    for mount in mounts.lines().rev().filter_map(|l| l.split(' ').nth(1)).filter(|at| at.starts_with(&needle)) {
        rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    }
    // Interfaces go with the namespace that has their other end.
    let _ = Command::new("ip").args(["link", "delete", &config.bridge]).output();
    let socket = node::nft::Socket::open().expect("the packet filter");
    let table = config.bridge.replace("sfd-", "statefuld-");
    if node::nft::is_there(&socket, &table).unwrap_or(false) {
        node::nft::remove(&socket, &table).expect("removed");
    }
    for group in groups(&config.cgroup_root).iter().rev() {
        eventually("an empty control group goes", || fs::remove_dir(group).ok().or((!group.exists()).then_some(())));
    }
}

/// kill -9 for what may end meanwhile.
fn kill_if_there(pid: i32) {
    if Path::new("/proc").join(pid.to_string()).exists() {
        let _ = std::panic::catch_unwind(|| kill(pid));
    }
}

/// Of the daemon, helpers and containers.
fn processes(data: &Path, root: &str) -> Vec<i32> {
    let in_groups = groups(root).into_iter().filter_map(|g| fs::read_to_string(g.join("cgroup.procs")).ok());
    let mut found: Vec<i32> =
        in_groups.flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()).collect();
    let needle = data.to_str().expect("UTF-8");
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(needle) {
            found.push(pid);
        }
    }
    found
}

/// The instance's control groups in every hierarchy, outer ones first.
fn groups(root: &str) -> Vec<PathBuf> {
    let folders = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p.is_dir()).collect::<Vec<_>>()
    };
    let hierarchies = std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(folders(Path::new("/sys/fs/cgroup")));
    let mut found: Vec<PathBuf> = hierarchies.map(|h| h.join(root)).filter(|g| g.is_dir()).collect();
    let mut next = 0;
    while let Some(group) = found.get(next) {
        let inner = folders(group);
        found.extend(inner);
        next += 1;
    }
    found
}
