//! What the node is short of: conditions that the scheduler keeps new pods away by, as taints follow them.
//!
//! A condition turns on as soon as too little is left, and off when there has been enough for five minutes, so that a
//! node at the edge does not flicker. Nothing is evicted: pods that are there stay.
//!
//! | condition | below | as |
//! |---|---|---|
//! | MemoryPressure | 100 MiB of memory | a kubelet |
//! | DiskPressure | 5 % of bytes or of inodes, where the data directory lies | k3s; a kubelet alone says 15 % and 5 % |
//! | PIDPressure | 5 % of process ids | a kubelet says nothing unless it is told to |

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Memory that has to be left, bytes.
const MEMORY: u64 = 100 << 20;
/// Of a disk and of process ids one in so many has to be left.
const SHARE: u64 = 20;
/// How long there has to be enough again. A kubelet's `evictionPressureTransitionPeriod`.
const HOLD: Duration = Duration::from_secs(300);

/// What there is and what is left of it. What cannot be read is not short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes that programs could still have.
    pub memory_left: Option<u64>,
    /// Of bytes: all, left.
    pub disk: Option<(u64, u64)>,
    /// Of inodes: all, left; none where the file system does not count them.
    pub inodes: Option<(u64, u64)>,
    /// Of process ids: all, left.
    pub processes: Option<(u64, u64)>,
}

impl Facts {
    /// Looks at the machine, and at the disk of a folder.
    pub fn look(folder: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let disk = rustix::fs::statvfs(folder).ok();
        Self {
            memory_left: memory_left(&text("/proc/meminfo")),
            disk: disk.as_ref().map(|d| (d.f_blocks.saturating_mul(d.f_frsize), d.f_bavail.saturating_mul(d.f_frsize))),
            inodes: disk.filter(|d| d.f_files > 0).map(|d| (d.f_files, d.f_favail)),
            processes: processes(
                &text("/proc/sys/kernel/pid_max"),
                &text("/proc/sys/kernel/threads-max"),
                &text("/proc/loadavg"),
            ),
        }
    }
}

/// The node's conditions of this kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// When each was last seen to be short, on the monotonic clock.
    memory: Option<Duration>,
    disk: Option<Duration>,
    processes: Option<Duration>,
}

/// Which of them hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// MemoryPressure.
    pub memory: bool,
    /// DiskPressure.
    pub disk: bool,
    /// PIDPressure.
    pub processes: bool,
}

impl Pressures {
    /// Takes a look into account, and answers what holds now.
    pub fn observe(&mut self, facts: &Facts, now: Duration) -> Held {
        let few = |of: Option<(u64, u64)>| of.is_some_and(|(all, left)| left < all / SHARE);
        let note = |last: &mut Option<Duration>, short: bool| {
            if short {
                *last = Some(now);
            }
            let holds = last.is_some_and(|last| now.saturating_sub(last) < HOLD);
            if !holds {
                *last = None;
            }
            holds
        };
        Held {
            memory: note(&mut self.memory, facts.memory_left.is_some_and(|left| left < MEMORY)),
            disk: note(&mut self.disk, few(facts.disk) || few(facts.inodes)),
            processes: note(&mut self.processes, few(facts.processes)),
        }
    }
}

/// From the text of `/proc/meminfo`.
fn memory_left(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// From the texts of the two limits and of `/proc/loadavg`, whose fourth column ends with how many there are.
fn processes(pid_max: &str, threads_max: &str, loadavg: &str) -> Option<(u64, u64)> {
    let most: u64 = [pid_max, threads_max].iter().filter_map(|text| text.trim().parse().ok()).min()?;
    let there: u64 = loadavg.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some((most, most.saturating_sub(there)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENOUGH: Facts = Facts {
        memory_left: Some(MEMORY),
        disk: Some((1000, 50)),
        inodes: Some((1000, 50)),
        processes: Some((32_768, 1638)),
    };

    #[test]
    fn each_shortage_is_its_own_condition_and_none_is_none() {
        let held = |facts: Facts| Pressures::default().observe(&facts, Duration::from_secs(1));
        assert_eq!(held(ENOUGH), Held::default());
        assert_eq!(held(Facts::default()), Held::default());
        let memory = Facts { memory_left: Some(MEMORY - 1), ..ENOUGH };
        assert_eq!(held(memory), Held { memory: true, ..Held::default() });
        for facts in [Facts { disk: Some((1000, 49)), ..ENOUGH }, Facts { inodes: Some((1000, 49)), ..ENOUGH }] {
            assert_eq!(held(facts), Held { disk: true, ..Held::default() });
        }
        let processes = Facts { processes: Some((32_768, 1637)), ..ENOUGH };
        assert_eq!(held(processes), Held { processes: true, ..Held::default() });
    }

    #[test]
    fn it_is_over_when_there_was_enough_for_five_minutes() {
        let short = Facts { memory_left: Some(0), ..ENOUGH };
        let mut pressures = Pressures::default();
        let at = Duration::from_secs;
        let seen: Vec<bool> = [(100, short), (110, ENOUGH), (200, short), (499, ENOUGH), (500, ENOUGH), (510, short)]
            .iter()
            .map(|(second, facts)| pressures.observe(facts, at(*second)).memory)
            .collect();
        assert_eq!(seen, [true, true, true, true, false, true]);
    }

    #[test]
    fn the_kernels_texts_are_read() {
        let text = "MemTotal:       24683656 kB\nMemAvailable:   22517032 kB\n";
        assert_eq!(memory_left(text), Some(22_517_032 * 1024));
        assert_eq!(memory_left("MemTotal: 1 kB\n"), None);
        assert_eq!(processes("32768\n", "192729\n", "4.94 3.43 2.76 9/227 4914\n"), Some((32_768, 32_541)));
        assert_eq!(processes("", "", "4.94 3.43 2.76 9/227 4914\n"), None);
        let facts = Facts::look(Path::new("/"));
        assert!(facts.memory_left.is_some() && facts.disk.is_some() && facts.processes.is_some(), "{facts:?}");
    }

    proptest! {
        #[test]
        fn whatever_holds_was_short_within_five_minutes(looks in proptest::collection::vec((0u64..200, any::<bool>()), 1..60)) {
            let (mut pressures, mut now, mut last) = (Pressures::default(), 0, None);
            for (pause, short) in looks {
                now += pause;
                let facts = if short { Facts { disk: Some((100, 0)), ..ENOUGH } } else { ENOUGH };
                if short {
                    last = Some(now);
                }
                let held = pressures.observe(&facts, Duration::from_secs(now));
                prop_assert_eq!(held.disk, last.is_some_and(|last| now - last < 300));
                prop_assert!(!held.memory && !held.processes);
            }
        }
    }
}
