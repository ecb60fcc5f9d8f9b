//! How `doctor` asks the machine: one small function per question.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambient::Ambient;
use node::cgroup::Layout;

use node::services::neighbours::{self, Obstacle};

use super::facts::{Disk, Firewall};

/// How often the disk is asked to keep something.
const FSYNC_ROUNDS: usize = 25;
/// What it is asked to keep each time.
const FSYNC_BYTES: usize = 4096;

/// Programs that keep a clock right, as the kernel names their processes.
const CLOCK_KEEPERS: [&str; 6] = ["chronyd", "ntpd", "ntpsec", "systemd-timesyn", "openntpd", "ptp4l"];

/// The number in a file of one line.
pub(super) fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Names of the entries of a folder.
pub(super) fn names(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// File systems that the kernel knows.
pub(super) fn file_systems() -> Vec<String> {
    let text = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    text.lines().filter_map(|l| l.split_whitespace().last()).map(str::to_owned).collect()
}

/// Controllers that the root of the v2 tree offers.
pub(super) fn v2_controllers(layout: &Layout) -> Vec<String> {
    let Some(root) = &layout.unified else { return Vec::new() };
    let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The hard limit of open files of this process; none where there is no limit.
pub(super) fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum
}

/// The folder itself, or the nearest above it that is there.
pub(super) fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Kind of file system that is mounted at exactly that path; the last one counts.
pub(super) fn mounted_at(path: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = text.lines().rev().filter_map(|line| {
        let mut columns = line.split(' ').skip(1);
        Some((columns.next()?, columns.next()?))
    });
    lines.find(|(at, _)| *at == path).map(|(_, kind)| kind.to_owned())
}

/// Kind of file system of the mount that holds a path.
fn kind_of(path: &Path) -> String {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = ("", "unknown");
    for line in text.lines() {
        let mut columns = line.split(' ').skip(1);
        let (Some(at), Some(kind)) = (columns.next(), columns.next()) else { continue };
        if path.starts_with(at) && at.len() >= best.0.len() {
            best = (at, kind);
        }
    }
    best.1.to_owned()
}

/// The disk that holds a path.
pub(super) fn disk(path: &Path) -> Option<Disk> {
    let told = rustix::fs::statvfs(path).ok()?;
    let path = path.canonicalize().ok()?;
    Some(Disk {
        kind: kind_of(&path),
        free: told.f_bfree.saturating_mul(told.f_frsize),
        size: told.f_blocks.saturating_mul(told.f_frsize),
        free_inodes: (told.f_ffree * 100).checked_div(told.f_files).unwrap_or(100),
    })
}

/// Whether somebody listens on port 53 of every address. One address alone does not disturb us.
pub(super) fn port_53_taken() -> bool {
    let listens = |table: &str, state: &str| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines().skip(1).any(|line| is_53_everywhere(line, state))
    };
    // 0A is listening; a UDP socket without a peer is in state 07.
    listens("/proc/net/tcp", "0A")
        || listens("/proc/net/tcp6", "0A")
        || listens("/proc/net/udp", "07")
        || listens("/proc/net/udp6", "07")
}

/// A row of such a table, for port 53 (35 in base 16) of the address that stands for all.
fn is_53_everywhere(line: &str, state: &str) -> bool {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (Some(local), Some(found)) = (columns.get(1), columns.get(3)) else { return false };
    *found == state && local.split_once(':').is_some_and(|(ip, port)| port == "0035" && ip.bytes().all(|b| b == b'0'))
}

/// What else filters what this machine forwards.
pub(super) fn firewalls() -> Vec<Firewall> {
    let ufw = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    let found = [
        (Path::new("/sys/class/net/docker0").exists(), Firewall::Docker),
        (ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")), Firewall::Ufw),
        (Path::new("/run/firewalld").exists() || runs(&["firewalld"]).is_some(), Firewall::Firewalld),
    ];
    found.into_iter().filter(|(there, _)| *there).map(|(_, which)| which).collect()
}

/// What a person has to do so that an instance's pods pass other firewalls. Before its first start, bridge and range have no
/// names yet. `None` where the rules cannot be read: that needs root.
pub(super) fn obstacles(data: &Path) -> Option<Vec<String>> {
    let chosen = node::Config::load(data).ok().flatten();
    let (bridge, range) = chosen.map_or_else(
        || ("BRIDGE".to_owned(), "RANGE".to_owned()),
        |config| (config.bridge, config.pod_cidr.to_string()),
    );
    let found = neighbours::look(&node::nft::Socket::open().ok()?, &bridge, &range).ok()?;
    let told = found.into_iter().filter_map(|obstacle| match obstacle {
        Obstacle::Told(text) => Some(text),
        Obstacle::Passable(_) => None,
    });
    Some(told.collect())
}

/// Which program keeps the clock right.
pub(super) fn clock_keeper() -> Option<String> {
    runs(&CLOCK_KEEPERS)
}

/// The first process of one of these names.
fn runs(wanted: &[&str]) -> Option<String> {
    let processes = names("/proc").into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    let mut programs = processes.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    programs.find_map(|name| wanted.contains(&name.trim()).then(|| name.trim().to_owned()))
}

/// How long the disk takes to keep 4 KiB more of a file, median of several.
pub(super) fn fsync_median(folder: &Path, ambient: &Ambient) -> std::io::Result<Duration> {
    let path = folder.join(format!(".statefuld-doctor-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
    let measured = (0..FSYNC_ROUNDS).map(|_| {
        let start = ambient.boottime();
        file.write_all(&[0x5a; FSYNC_BYTES])?;
        file.sync_all()?;
        Ok(ambient.boottime() - start)
    });
    let measured: std::io::Result<Vec<Duration>> = measured.collect();
    fs::remove_file(&path)?;
    let mut measured = measured?;
    measured.sort_unstable();
    Ok(measured[FSYNC_ROUNDS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_port_53_of_all_addresses_is_taken_for_a_rival() {
        let all = "  1: 00000000:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        assert!(is_53_everywhere(all, "0A"));
        assert!(is_53_everywhere(&all.replace("00000000:0035", &format!("{}:0035", "0".repeat(32))), "0A"));
        assert!(!is_53_everywhere(&all.replace("00000000:0035", "3500007F:0035"), "0A"), "one address alone");
        assert!(!is_53_everywhere(&all.replace(":0035", ":0050"), "0A"), "another port");
        assert!(!is_53_everywhere(all, "07"), "another state");
        assert!(!is_53_everywhere("nonsense", "0A"));
    }

    #[test]
    fn the_nearest_folder_that_is_there_is_looked_at() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(nearest(&dir.path().join("not/there/yet")), dir.path());
    }

    #[test]
    fn measuring_the_disk_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        fsync_median(dir.path(), &Ambient::system()).expect("measured");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
    }
}
