//! What pods take that do nothing: memory and processor time of the daemon, and of what guards each pod.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::instance::Instance;
use super::report::{Idle, Report};
use super::starts::{self, STATEFULD};
use crate::bench::process::Usage;
use crate::cli;
use crate::say;

/// How long pods are left alone before they count as idle.
const REST: Duration = Duration::from_secs(5);
/// What the set is called.
const NAME: &str = "idle";

/// Measures every number, from the least on: one set that grows.
pub(super) async fn run(
    args: &cli::BenchPods,
    instance: &Instance,
    client: &Client,
    report: &mut Report,
    ambient: &Ambient,
) -> Result<()> {
    let mut numbers: Vec<u32> = args.idle.iter().copied().filter(|pods| *pods > 0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    for (n, &pods) in numbers.iter().enumerate() {
        say::note(format_args!("{pods} idle pods for {} seconds", args.idle_window.as_secs()));
        if n == 0 {
            starts::make_set(client, &starts::set(NAME, "Parallel", pods, false)?).await?;
        } else {
            let more = Patch::Merge(json!({"spec": {"replicas": pods}}));
            sets.patch(NAME, &PatchParams::default(), &more).await?;
        }
        starts::until_ready(client, NAME, pods).await?;
        report.idle.push(measure(STATEFULD, pods, args.idle_window, ambient, || ours(instance)).await?);
    }
    if !numbers.is_empty() {
        starts::remove_set(client, NAME, false).await?;
    }
    Ok(())
}

/// Processes, by what they are.
#[derive(Debug, Default)]
pub(super) struct Processes {
    /// The daemon, and others that there is one of.
    pub(super) daemon: Vec<u32>,
    /// By pod, what guards it.
    pub(super) guards: BTreeMap<String, Vec<u32>>,
}

/// Measures what `processes` tells, which must be the same ones all the time.
pub(super) async fn measure(
    by: &'static str,
    pods: u32,
    window: Duration,
    ambient: &Ambient,
    processes: impl Fn() -> Result<Processes>,
) -> Result<Idle> {
    tokio::time::sleep(REST).await;
    let found = processes()?;
    let guards: Vec<u32> = found.guards.values().flatten().copied().collect();
    let (begin, daemon_before, guards_before) = (ambient.boottime(), usage(&found.daemon)?, cpu(&guards)?);
    tokio::time::sleep(window).await;
    let (end, daemon_after, guards_after) = (ambient.boottime(), usage(&found.daemon)?, cpu(&guards)?);
    let minutes = end.saturating_sub(begin).as_secs_f64().max(f64::EPSILON) / 60.0;
    let each: Vec<f64> = found.guards.values().map(|pids| memory(pids)).collect::<Result<_>>()?;
    Ok(Idle {
        by,
        pods,
        window_seconds: minutes * 60.0,
        daemon_megabytes: memory(&found.daemon)? / 1e6,
        daemon_resident_megabytes: daemon_after.resident_bytes / 1e6,
        daemon_cpu_seconds_per_minute: (daemon_after.cpu_seconds - daemon_before.cpu_seconds) / minutes,
        guard_megabytes: each.iter().sum::<f64>() / f64::from(pods) / 1e6,
        guard_megabytes_max: each.iter().copied().fold(0.0, f64::max) / 1e6,
        guards_cpu_seconds_per_minute: (guards_after - guards_before) / minutes,
    })
}

/// The instance's processes: those that carry its folder in their command line. A shim's names the pod's folder.
fn ours(instance: &Instance) -> Result<Processes> {
    let mut found = Processes { daemon: vec![instance.pid()], ..Processes::default() };
    let folder = instance.data();
    for (pid, words) in command_lines()? {
        let Some(place) = words.iter().find(|word| Path::new(word).starts_with(folder)) else { continue };
        if words.first().is_some_and(|program| program == "shim") {
            found.guards.entry(place.clone()).or_default().push(pid);
        } else if pid != instance.pid() {
            found.daemon.push(pid);
        }
    }
    Ok(found)
}

/// Every process with the words of its command line.
pub(super) fn command_lines() -> Result<Vec<(u32, Vec<String>)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").context("/proc cannot be read")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has ended meanwhile is none.
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        all.push((pid, words.collect()));
    }
    Ok(all)
}

/// Proportional memory of these processes, bytes.
fn memory(pids: &[u32]) -> Result<f64> {
    let mut sum = 0.0;
    for pid in pids {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        sum += pss(&text.with_context(|| format!("process {pid} is gone"))?)?;
    }
    Ok(sum)
}

/// From the text of `smaps_rollup`, bytes.
fn pss(text: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("Pss is not a number")?;
    Ok(kib * 1024.0)
}

/// Resident memory and processor time of these processes together; time of threads that have ended counts.
fn usage(pids: &[u32]) -> Result<Usage> {
    let mut sum = Usage::default();
    for pid in pids {
        let one = Usage::of(*pid)?;
        sum.resident_bytes += one.resident_bytes;
        sum.cpu_seconds += one.cpu_seconds;
    }
    Ok(sum)
}

/// Seconds on processors of the threads that these processes have.
fn cpu(pids: &[u32]) -> Result<f64> {
    let mut nanos = 0.0;
    for pid in pids {
        let gone = || format!("process {pid} is gone");
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(gone)?.flatten() {
            // Finer than the ticks of `stat`, which show nothing of what a shim does.
            let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let first = text.split_ascii_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            nanos += first.context("schedstat is not a number")?;
        }
    }
    Ok(nanos / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportional_memory_is_read() {
        let text =
            "5581a000-7ffd2000 ---p 00000000 00:00 0    [rollup]\nRss:  9264 kB\nPss:  1500 kB\nPss_Dirty: 3 kB\n";
        assert_eq!(pss(text).expect("a number"), 1_536_000.0);
        assert!(pss("Rss: 1 kB").is_err());
    }

    #[test]
    fn this_process_is_found_with_its_memory_and_time() {
        let own = std::process::id();
        assert!(command_lines().expect("/proc").iter().any(|(pid, words)| *pid == own && words.len() > 1));
        assert!(memory(&[own]).expect("memory") > 1e6);
        assert!(cpu(&[own]).expect("time") > 0.0);
    }
}
