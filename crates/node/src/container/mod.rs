//! From a description to a running program: namespaces, roots, mounts, credentials.
//!
//! ```text
//!   shim ──clone3──▶ keeper             sleeps; kills the containers' cgroup if the shim is killed
//!     │
//!     ├──clone3(pid, mount)──▶ pause  where containers share a pid namespace: its first process, which does nothing
//!     │
//!     ├──clone3(pid, mount)──▶ init   joins its cgroups, builds its root, pivots into it,
//!     │                                 gives up what it must not have, executes the program
//!     │ ◀──── report pipe: closed by the exec, or one line that says what went wrong
//!     │
//!     └──clone3──▶ joiner ──setns(all of init's)──clone3(CLONE_PARENT)──▶ exec child of the shim
//!                         └─setns(pid of init's)───clone3(CLONE_PARENT)──▶ first process of an ephemeral container
//! ```
//!
//! Everything after clone3 runs in a copy of the single-threaded shim, so ordinary Rust is safe there. It runs from
//! the sealed copy of the program that the shim runs from, never from the file.

mod cgroups;
pub mod credentials;
mod devices;
mod handing;
pub mod host;
mod image;
mod join;
mod keeper;
mod mounts;
mod pause;
mod propagation;
pub mod root;
pub mod seccomp;
mod start;
pub mod users;

use std::io;
use std::os::fd::OwnedFd;

pub use join::{Joined, join};
pub use keeper::Keeper;
pub use pause::Pause;
pub use start::{Start, Started, start, start_beside};
pub use users::{Users, UsersError};

use crate::shim::spec::User;
use credentials::Granted;

/// What is executed, and as whom, once everything around it is in place.
#[derive(Clone, Debug)]
pub struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory in the container.
    pub cwd: String,
    /// Whom it runs as.
    pub user: User,
    /// What it may do.
    pub capabilities: Granted,
    /// Whether it can never gain more.
    pub no_new_privileges: bool,
    /// Which system calls it may make; none filters nothing.
    pub filter: Option<seccomp::Filter>,
}

/// A program's three descriptors.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
    /// They are a terminal, which becomes the controlling one.
    pub tty: bool,
}

/// Why a program did not start, as told through the report pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// 127 where it does not exist, 126 where it cannot be executed, 128 for all else.
    pub code: i32,
    /// One sentence.
    pub message: String,
}

impl StartFailure {
    /// Of a step that went wrong before the program was tried.
    fn step(what: impl std::fmt::Display, error: io::Error) -> Self {
        Self { code: 128, message: format!("{what}: {error}") }
    }

    /// As it goes through a report pipe.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A pipe takes up to 4096 bytes whole.
        let mut text = format!("{} {}", self.code, self.message);
        while text.len() > 4096 {
            text.pop();
        }
        text.into_bytes()
    }

    /// Reads what came through a report pipe; None where it was closed in silence: the program was executed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(bytes);
        let (code, message) = text.split_once(' ').unwrap_or(("128", &text));
        Some(Self { code: code.parse().unwrap_or(128), message: message.to_owned() })
    }
}

/// Adds to a step's error what was being done.
trait During<T> {
    fn during(self, what: impl std::fmt::Display) -> Result<T, StartFailure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: impl std::fmt::Display) -> Result<T, StartFailure> {
        self.map_err(|error| StartFailure::step(what, error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_through_the_pipe_as_it_was() {
        let failure = StartFailure { code: 127, message: "no such program: x y".into() };
        assert_eq!(StartFailure::from_bytes(&failure.to_bytes()), Some(failure));
        assert_eq!(StartFailure::from_bytes(b""), None);
    }

    #[test]
    fn a_long_failure_fits_into_one_write() {
        let failure = StartFailure { code: 1, message: "ä".repeat(9000) };
        assert!(failure.to_bytes().len() <= 4096);
    }
}
