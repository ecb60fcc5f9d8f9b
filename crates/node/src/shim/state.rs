//! What a shim reports: the same [`PodState`] over its socket and, after every change, in `state.json`.
//!
//! The file is replaced atomically, so that an agent that finds the shim dead still learns how each container ended; and
//! synced whenever one has ended or is started again, so that it learns so after a loss of power, too. That one began
//! is not worth the wait: with the power it ended.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::file::{self, FileError, Format};

/// File name of the state in the pod's folder.
pub const STATE_FILE: &str = "state.json";

const FORMAT: Format = Format { magic: "statefuld-shim-state", version: 1 };

/// A pod as its shim reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// Uid of the pod object.
    pub uid: String,
    /// Process id of the shim; its network namespace is `/proc/<pid>/ns/net`.
    pub shim_pid: i32,
    /// Boot in which the shim runs (`/proc/sys/kernel/random/boot_id`): after another boot, pids mean nothing.
    pub boot_id: String,
    /// Raised by one with every change.
    pub sequence: u64,
    /// Where the pod is in its life.
    pub phase: Phase,
    /// Echo of the specification.
    pub epoch: u64,
    /// Highest `STATEFULD_INCARNATION` given to any container so far; the next sandbox starts above it.
    pub incarnation: u64,
    /// When the sandbox came up.
    pub created_at: Timestamp,
    /// In the order of the specification.
    pub containers: Vec<ContainerState>,
    /// Things that were wanted and not permitted, in words (limits, capabilities); never a reason to fail.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl PodState {
    /// Writes `state.json`, atomically and durably.
    pub fn write(&self, pod_dir: &Path) -> Result<(), FileError> {
        file::write(&pod_dir.join(STATE_FILE), FORMAT, self)
    }

    /// Writes `state.json`, atomically; a loss of power may take it.
    pub(super) fn write_for_now(&self, pod_dir: &Path) -> Result<(), FileError> {
        file::write_for_now(&pod_dir.join(STATE_FILE), FORMAT, self)
    }

    /// Reads `state.json`; None where the shim never got so far.
    pub fn read(pod_dir: &Path) -> Result<Option<Self>, FileError> {
        match file::read(&pod_dir.join(STATE_FILE), FORMAT) {
            Ok(state) => Ok(Some(state)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerState> {
        self.containers.iter().find(|c| c.name == name)
    }
}

/// Where a pod is in its life. It only moves downwards in this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// The sandbox is up; the shim waits for Start (the agent attaches the network meanwhile).
    Created,
    /// Containers are being started, run, or wait for their restart.
    Running,
    /// A stop was asked for; containers are ending.
    Stopping,
    /// No container runs and none will. The shim waits to be acknowledged.
    Finished,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: Status,
    /// How it ended the time before.
    #[serde(default)]
    pub last_termination: Option<Termination>,
    /// Restarts over the life of the pod object.
    pub restart_count: u32,
    /// Identity of the current (or last) start: 64 hex digits; empty before the first.
    pub id: String,
    /// `STATEFULD_INCARNATION` of the current (or last) start.
    pub incarnation: u64,
    /// Output lines that could not be written (disk full).
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// When its program was executed, on the clock that counts from the boot and that nobody sets, milliseconds.
    #[serde(default)]
    pub started_boot_ms: Option<u64>,
    /// Its program runs, and its postStart hook is not over yet.
    #[serde(default)]
    pub hooking: bool,
    /// How often its postStart hook failed.
    #[serde(default)]
    pub post_start_failures: u32,
    /// How often its preStop hook failed.
    #[serde(default)]
    pub pre_stop_failures: u32,
    /// It is due to start and asks what it is to be ([`super::protocol::Request::Respecify`]).
    #[serde(default)]
    pub asks: bool,
    /// Others wait for the word that it has started ([`super::protocol::Request::Started`]).
    #[serde(default)]
    pub awaited: bool,
}

/// What a container is doing; shape and reasons as in a pod's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Status {
    /// Not running yet, or not running again yet.
    Waiting {
        /// `PodInitializing`, `ContainerCreating` or `CrashLoopBackOff`.
        reason: String,
        /// One sentence.
        message: String,
    },
    /// Its program was executed.
    Running {
        /// When.
        started_at: Timestamp,
        /// Process id on the machine.
        pid: i32,
    },
    /// It ended and will not be started again (by itself).
    Terminated(Termination),
}

impl Status {
    /// True for [`Status::Running`].
    pub fn is_running(&self) -> bool {
        matches!(self, Status::Running { .. })
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Exit code; 128 + signal where a signal ended it; 128 where it could not be started.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled` or `StartError`.
    pub reason: String,
    /// One sentence where there is more to say.
    #[serde(default)]
    pub message: String,
    /// When its program was executed (or should have been).
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The start that ended, as in [`ContainerState::id`].
    pub id: String,
}
