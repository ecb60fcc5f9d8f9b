//! What facts about a machine mean for pods on it, without I/O.

use std::time::Duration;

use node::cgroup::Kind;

use super::Finding;
use super::facts::{Cgroups, Disk, Facts, Firewall};

/// Oldest kernel that has all that pods are made with: `cgroup.kill` came with 5.14.
const KERNEL: (u32, u32) = (5, 14);
/// What pods need of namespaces, by the kernel's names.
const NAMESPACES: [&str; 5] = ["net", "mnt", "pid", "uts", "ipc"];
/// Controllers that limits need on a machine with v2 alone.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Databases open a file per connection, table and segment.
const OPEN_FILES: u64 = 65_536;
/// What Elasticsearch and its kin ask for before they start.
const MAP_COUNT: u64 = 262_144;
/// Each program that follows files takes one; the kernel's default of 128 runs out with a few dozen pods.
const INOTIFY: u64 = 512;
/// Below it the store's own reserve is all that is left.
const DISK_LOW: u64 = 1 << 30;
/// What the store keeps free for itself.
const DISK_RESERVE: u64 = 64 << 20;
/// No disk says truthfully that something is safe in less: it takes a command to the device and an answer.
const FSYNC_IMPLAUSIBLE: Duration = Duration::from_micros(15);
/// More than that holds up every write of the API.
const FSYNC_SLOW: Duration = Duration::from_millis(20);
/// A clock before this program was written is wrong: 2026-01-01.
const PRESENT: i64 = 1_767_225_600;
/// File systems that forget, or do not keep what they promised.
const FORGETFUL: [&str; 3] = ["tmpfs", "ramfs", "overlay"];
/// File systems of another machine.
const REMOTE: [&str; 6] = ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"];

/// All checks, in the order in which a person mends them.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let checks = [
        root, kernel, cgroups, namespaces, overlay, seccomp, open_files, map_count, inotify, shm, port_53, forwarding,
        disk, inodes, fsync, clock,
    ];
    checks.into_iter().filter_map(|check| check(facts)).collect()
}

fn root(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "root";
    Some(if facts.root {
        Finding::good(CHECK, "runs as root")
    } else {
        Finding::bad(CHECK, "does not run as root", "pods need it: start it with sudo")
    })
}

fn kernel(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "kernel";
    let release = &facts.kernel;
    Some(match version(release) {
        Some(found) if found >= KERNEL => Finding::good(CHECK, release),
        Some(_) => Finding::bad(CHECK, format!("{release} is too old"), "take a kernel of version 5.14 or newer"),
        None => Finding::warning(CHECK, format!("{release} is of no known form"), "5.14 or newer is needed"),
    })
}

/// Major and minor version at the start of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cgroups(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "cgroups";
    const MOUNT: &str = "mount them: mount -t cgroup2 cgroup2 /sys/fs/cgroup";
    let Some(Cgroups { kind, controllers, read_only }) = &facts.cgroups else {
        return Some(Finding::bad(CHECK, "cannot be read", MOUNT));
    };
    if let Some(mount) = read_only {
        let remedy = "mount it for writing, or delegate a tree to this container (Docker: --privileged)";
        return Some(Finding::bad(CHECK, format!("{} is mounted read-only", mount.display()), remedy));
    }
    Some(match kind {
        Kind::None => Finding::bad(CHECK, "none are mounted", MOUNT),
        Kind::V1 => Finding::warning(
            CHECK,
            "v1 alone: pods are ended process by process",
            "mount a v2 tree beside it, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        Kind::Hybrid => Finding::good(CHECK, "v1 with a v2 tree"),
        Kind::V2 => {
            let missing: Vec<&str> =
                CONTROLLERS.into_iter().filter(|c| !controllers.iter().any(|found| found == c)).collect();
            if missing.is_empty() {
                Finding::good(CHECK, "v2")
            } else {
                Finding::bad(
                    CHECK,
                    format!("v2 without {}", missing.join(", ")),
                    "limits need them: boot with cgroup_enable=memory, or delegate them to this container",
                )
            }
        }
    })
}

fn namespaces(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "namespaces";
    let missing: Vec<&str> =
        NAMESPACES.into_iter().filter(|n| !facts.namespaces.iter().any(|found| found == n)).collect();
    if !missing.is_empty() {
        let found = format!("the kernel has none of kind {}", missing.join(", "));
        return Some(Finding::bad(CHECK, found, "pods need them: take a distribution's kernel"));
    }
    Some(if facts.namespaces.iter().any(|n| n == "user") {
        Finding::good(CHECK, "all kinds")
    } else {
        Finding::warning(CHECK, "no user namespaces", "pods with hostUsers: false are refused")
    })
}

fn overlay(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "overlayfs";
    Some(if facts.overlay {
        Finding::good(CHECK, "there")
    } else {
        Finding::bad(
            CHECK,
            "not loaded",
            "load it: modprobe overlay, and name it in /etc/modules-load.d/statefuld.conf",
        )
    })
}

fn seccomp(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "seccomp";
    Some(if facts.seccomp {
        Finding::good(CHECK, "there")
    } else {
        Finding::bad(CHECK, "the kernel has no filters", "pods are started with one: take a distribution's kernel")
    })
}

fn open_files(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "open files";
    Some(match facts.open_files {
        None => Finding::good(CHECK, "no limit"),
        Some(limit) if limit >= OPEN_FILES => Finding::good(CHECK, format!("{limit}")),
        Some(limit) => Finding::warning(
            CHECK,
            format!("{limit} at most"),
            format!("databases want {OPEN_FILES}: raise it with ulimit -Hn, or LimitNOFILE= in the unit"),
        ),
    })
}

fn map_count(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "vm.max_map_count";
    let count = facts.map_count?;
    Some(if count >= MAP_COUNT {
        Finding::good(CHECK, format!("{count}"))
    } else {
        let remedy = format!("Elasticsearch and others want {MAP_COUNT}: sysctl -w vm.max_map_count={MAP_COUNT}");
        Finding::warning(CHECK, format!("{count}"), remedy)
    })
}

fn inotify(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "inotify";
    let count = facts.inotify?;
    Some(if count >= INOTIFY {
        Finding::good(CHECK, format!("{count} instances for each user"))
    } else {
        let found = format!("{count} instances for each user");
        Finding::warning(
            CHECK,
            found,
            format!("many pods want more: sysctl -w fs.inotify.max_user_instances={INOTIFY}"),
        )
    })
}

fn shm(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "/dev/shm";
    Some(match facts.shm.as_deref() {
        Some("tmpfs") => Finding::good(CHECK, "tmpfs"),
        _ => {
            Finding::warning(CHECK, "no tmpfs is mounted there", "pods get their own; the machine's programs want one")
        }
    })
}

fn port_53(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "port 53";
    Some(if facts.port_53_taken {
        Finding::bad(
            CHECK,
            "a name server listens on all addresses, also on those that pods ask",
            "let it listen on chosen addresses alone (bind-interfaces with dnsmasq, listen-on with bind)",
        )
    } else {
        Finding::good(CHECK, "free on the pods' bridge")
    })
}

fn forwarding(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "forwarding";
    let names: Vec<&str> = facts.firewalls.iter().map(|f| f.name()).collect();
    let who = if names.is_empty() { "another firewall".to_owned() } else { names.join(" and ") };
    Some(match &facts.obstacles {
        Some(told) if !told.is_empty() => {
            Finding::warning(CHECK, format!("{who} may stop what pods send"), told.join("; "))
        }
        _ if names.is_empty() => Finding::good(CHECK, "no other firewall was found"),
        Some(_) => Finding::good(CHECK, format!("{who} filters here; statefuld sees to it that pods pass")),
        None => Finding::warning(CHECK, format!("{who} filters here"), "run this as root: it says what is to be done"),
    })
}

impl Firewall {
    fn name(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
        }
    }
}

fn disk(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "disk";
    let disk @ Disk { kind, free, size, .. } = facts.disk.as_ref()?;
    let found = format!("{kind}, {} of {} free", megabytes(*free), megabytes(*size));
    Some(if FORGETFUL.contains(&kind.as_str()) {
        let remedy = "what it holds is gone with the machine or its container: choose another --data-dir";
        Finding::warning(CHECK, found, remedy)
    } else if REMOTE.contains(&kind.as_str()) {
        Finding::bad(CHECK, found, "the store needs a local disk: choose another --data-dir")
    } else if *free < DISK_RESERVE {
        Finding::bad(CHECK, found, "the store cannot grow: make room")
    } else if disk.free < DISK_LOW || disk.free < disk.size / 20 {
        Finding::warning(CHECK, found, "make room before a pod fills it")
    } else {
        Finding::good(CHECK, found)
    })
}

/// Bytes as a person reads them.
fn megabytes(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

fn inodes(facts: &Facts) -> Option<Finding> {
    let disk = facts.disk.as_ref()?;
    (disk.free_inodes < 5).then(|| {
        Finding::warning(
            "inodes",
            format!("{} % free", disk.free_inodes),
            "remove small files, or take a file system with more",
        )
    })
}

fn fsync(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "fsync";
    let took = facts.fsync?;
    let found = format!("4 KiB are kept in {:.2} ms", took.as_secs_f64() * 1000.0);
    Some(if took < FSYNC_IMPLAUSIBLE {
        let remedy = "no disk is that fast: it does not flush, and a loss of power loses what was acknowledged; \
                      check the disk's write cache and the hypervisor's cache mode";
        Finding::warning(CHECK, format!("{found}, which is implausible"), remedy)
    } else if took > FSYNC_SLOW {
        Finding::warning(
            CHECK,
            found,
            "every write of the API waits that long: take a faster disk, or one with a protected cache",
        )
    } else {
        Finding::good(CHECK, found)
    })
}

fn clock(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "clock";
    if facts.now < PRESENT {
        let remedy = "certificates are not valid then: set it (date -s …), and run chrony or systemd-timesyncd";
        return Some(Finding::bad(CHECK, "is years behind", remedy));
    }
    Some(match &facts.clock {
        Some(keeper) => Finding::good(CHECK, format!("kept by {keeper}")),
        None => Finding::warning(
            CHECK,
            "nothing was found that keeps it right",
            "run chrony or systemd-timesyncd, unless the hypervisor does it",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn sound() -> Facts {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Facts {
            root: true,
            kernel: "6.1.0-18-amd64".to_owned(),
            cgroups: Some(Cgroups {
                kind: Kind::V2,
                controllers: words(&["cpuset", "cpu", "io", "memory", "pids"]),
                read_only: None,
            }),
            namespaces: words(&["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]),
            overlay: true,
            seccomp: true,
            open_files: Some(1 << 20),
            map_count: Some(262_144),
            inotify: Some(1024),
            shm: Some("tmpfs".to_owned()),
            port_53_taken: false,
            firewalls: Vec::new(),
            obstacles: Some(Vec::new()),
            disk: Some(Disk { kind: "ext4".to_owned(), free: 80 << 30, size: 100 << 30, free_inodes: 90 }),
            fsync: Some(Duration::from_micros(900)),
            clock: Some("chronyd".to_owned()),
            now: PRESENT + 1,
        }
    }

    /// What makes a sound machine unsound, and the check that finds it.
    type Spoilt = (&'static str, fn(&mut Facts));

    /// What the check of that name says once a fact was changed.
    fn verdict(check: &str, spoil: impl FnOnce(&mut Facts)) -> (Verdict, String) {
        let mut facts = sound();
        spoil(&mut facts);
        let finding = judge(&facts).into_iter().find(|f| f.check == check).expect("the check is made");
        (finding.verdict, format!("{}; {}", finding.found, finding.remedy))
    }

    #[test]
    fn a_sound_machine_has_no_remedies() {
        for finding in judge(&sound()) {
            assert_eq!((finding.verdict, finding.remedy.as_str()), (Verdict::Good, ""), "{}", finding.check);
        }
    }

    #[test]
    fn what_keeps_pods_from_running_is_bad_and_has_a_remedy() {
        fn groups(f: &mut Facts) -> &mut Cgroups {
            f.cgroups.as_mut().expect("they are known")
        }
        let spoilt: [Spoilt; 11] = [
            ("root", |f| f.root = false),
            ("kernel", |f| f.kernel = "5.4.0-generic".to_owned()),
            ("cgroups", |f| groups(f).kind = Kind::None),
            ("cgroups", |f| groups(f).controllers = vec!["cpu".to_owned()]),
            ("cgroups", |f| groups(f).read_only = Some("/sys/fs/cgroup".into())),
            ("namespaces", |f| f.namespaces.retain(|n| n != "net")),
            ("overlayfs", |f| f.overlay = false),
            ("seccomp", |f| f.seccomp = false),
            ("port 53", |f| f.port_53_taken = true),
            ("disk", |f| f.disk.as_mut().expect("a disk").free = 1 << 20),
            ("clock", |f| f.now = 0),
        ];
        for (check, spoil) in spoilt {
            let (verdict, text) = verdict(check, spoil);
            assert_eq!(verdict, Verdict::Bad, "{check}");
            assert!(!text.ends_with("; "), "{check} has no remedy");
        }
    }

    #[test]
    fn what_can_be_better_is_a_warning() {
        let spoilt: [Spoilt; 9] = [
            ("open files", |f| f.open_files = Some(1024)),
            ("vm.max_map_count", |f| f.map_count = Some(65_530)),
            ("inotify", |f| f.inotify = Some(128)),
            ("/dev/shm", |f| f.shm = None),
            ("forwarding", |f| f.obstacles = Some(vec!["firewalld is active: run `firewall-cmd`".to_owned()])),
            ("disk", |f| f.disk.as_mut().expect("a disk").kind = "tmpfs".to_owned()),
            ("inodes", |f| f.disk.as_mut().expect("a disk").free_inodes = 1),
            ("fsync", |f| f.fsync = Some(Duration::from_millis(80))),
            ("clock", |f| f.clock = None),
        ];
        for (check, spoil) in spoilt {
            assert_eq!(verdict(check, spoil).0, Verdict::Warning, "{check}");
        }
    }

    #[test]
    fn a_disk_that_is_too_fast_to_be_true_is_called_so() {
        let (verdict, text) = verdict("fsync", |f| f.fsync = Some(Duration::from_micros(2)));
        assert_eq!(verdict, Verdict::Warning);
        assert!(text.contains("implausible") && text.contains("does not flush"), "{text}");
    }

    #[test]
    fn firewalls_that_statefuld_passes_by_itself_are_fine_and_others_name_what_to_run() {
        let found = |obstacles: Option<Vec<String>>| {
            verdict("forwarding", |f| (f.firewalls, f.obstacles) = (vec![Firewall::Docker, Firewall::Ufw], obstacles))
        };
        let (fine, text) = found(Some(Vec::new()));
        assert_eq!(fine, Verdict::Good);
        assert!(text.starts_with("Docker and ufw filters here; statefuld sees to it"), "{text}");
        let (warned, text) = found(Some(vec!["run `nft insert`".to_owned()]));
        assert_eq!(warned, Verdict::Warning);
        assert!(text.ends_with("; run `nft insert`"), "{text}");
        assert_eq!(found(None).0, Verdict::Warning);
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(version("rolling"), None);
    }
}
