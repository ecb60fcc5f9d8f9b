//! Which system calls a container's programs may make: profiles become filters that the kernel runs.
//!
//! A filter is installed as the last thing before the program is executed, and holds for everything that the program
//! starts. Filters are compiled here rather than by a library, since profiles mix verdicts, error numbers and the
//! 32-bit ABI of the machine.

mod bpf;
mod default;
mod profile;
mod table;

use std::io;
use std::sync::Arc;

pub use bpf::Instruction;
pub use profile::{MAX_BYTES, Profile};

use crate::sys;

/// A compiled profile. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    program: Arc<[Instruction]>,
    flags: u32,
}

impl Filter {
    /// The filter for a profile.
    pub fn new(profile: &Profile) -> Result<Self, String> {
        let native = table::Arch::native().ok_or("system calls of this machine's architecture cannot be filtered")?;
        Ok(Self { program: bpf::compile(profile, native)?.into(), flags: profile.kernel_flags() })
    }

    /// The filter that a container has by default, where its programs have those capabilities.
    pub fn default_for(capabilities: &[String]) -> Result<Self, String> {
        Self::new(&default::profile(capabilities))
    }

    /// Puts the calling thread, and all that it starts, under the filter. Needs no_new_privs or CAP_SYS_ADMIN.
    pub(super) fn install(&self) -> io::Result<()> {
        sys::install_filter(&self.program, self.flags)
    }
}
