//! A server in a process of its own, and what it takes of memory and processor.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// A child that is ended when dropped.
pub(super) struct Process(Child);

impl Process {
    /// Starts a program; what it prints as errors is dropped.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{} cannot be started", Path::new(command.get_program()).display()))?))
    }

    /// Its standard output, once, if it was piped.
    pub(super) fn output(&mut self) -> Result<std::process::ChildStdout> {
        self.0.stdout.take().context("the program has no output")
    }

    /// Its id.
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// What it takes now.
    pub(super) fn usage(&self) -> Result<Usage> {
        Usage::of(self.0.id())
    }

    /// SIGTERM, and waits for its end.
    pub(super) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).context("the program cannot be stopped")?;
        self.0.wait().context("the program cannot be waited for")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already in the good case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In what /proc counts processor time, on every architecture that this program is for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory and processor time of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Resident memory.
    pub(super) resident_bytes: f64,
    /// Time on processors, user and system, since its start.
    pub(super) cpu_seconds: f64,
}

impl Usage {
    /// Of a process that lives.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("process {pid} is gone"))
        };
        let status = read("status")?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is not a number")?;
        let stat = read("stat")?;
        // After the name, which may hold anything: user and system time are the 14th and 15th field of the line.
        let rest = stat.rsplit_once(')').context("no name in /proc")?.1;
        let ticks = rest.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
        Ok(Self { resident_bytes: kib * 1024.0, cpu_seconds: ticks.sum::<f64>() / TICKS_PER_SECOND })
    }
}

/// Lets this process and its children have as many connections as the machine allows.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, many watchers will say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
