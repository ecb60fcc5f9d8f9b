//! A profile of system calls as the OCI runtime specification writes it in JSON.
//!
//! Source: <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>. What cannot be carried out
//! (asking another process, conditions of other tools) is refused: a rule that is left out may be the one that matters.

use serde::{Deserialize, Serialize};

/// Longest profile that is read, bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Which system calls a program may make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// What happens to calls that no rule names.
    pub default_action: Action,
    /// Error number of such calls, where the action is an error; EPERM where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u16>,
    /// Architectures besides the machine's own whose programs run under the same rules.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Flags of seccomp(2).
    #[serde(default)]
    pub flags: Vec<Flag>,
    /// The rules.
    #[serde(default)]
    pub syscalls: Vec<Rule>,
}

/// What happens to some calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// The calls. Names that the machine does not know are skipped.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// Error number, where the action is an error; EPERM where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u16>,
    /// Conditions, all of which must hold.
    #[serde(default)]
    pub args: Vec<Arg>,
    /// For people.
    #[serde(default, skip_serializing)]
    #[allow(dead_code, reason = "profiles may have it")]
    pub(super) comment: Option<String>,
}

/// A condition on one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arg {
    /// Which: 0 to 5.
    pub index: u8,
    /// Compared with; the mask of [`Op::MaskedEq`].
    pub value: u64,
    /// What the masked argument must be.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: Op,
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Differs.
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    /// Is less.
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    /// Is less or equal.
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    /// Is equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    /// Is greater or equal.
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    /// Is greater.
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    /// Is equal under a mask.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The thread is killed.
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// The process is killed.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// The process gets SIGSYS.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// The call fails with an error number.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// A tracer decides; the call fails where there is none.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// The call is made.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// The call is made, and logged by the kernel.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

/// A flag of seccomp(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flag {
    /// All threads at once; a program that is about to start has one.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Everything but allowed calls is logged.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// No mitigation of speculation is switched on.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
}

/// What calls fail with where a profile names no number.
const EPERM: u16 = 1;

impl Profile {
    /// Reads the text of a profile.
    pub fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match profile.syscalls.iter().flat_map(|rule| &rule.args).find(|arg| arg.index > 5) {
            Some(arg) => Err(format!("a system call has no argument {}: they are 0 to 5", arg.index)),
            None => Ok(profile),
        }
    }

    /// As a filter returns it.
    pub(super) fn default_verdict(&self) -> u32 {
        self.default_action.verdict(self.default_errno_ret)
    }

    /// As seccomp(2) takes them.
    pub(super) fn kernel_flags(&self) -> u32 {
        // Source: linux/seccomp.h.
        self.flags.iter().fold(0, |all, flag| {
            all | match flag {
                Flag::Tsync => 1,
                Flag::Log => 2,
                Flag::SpecAllow => 4,
            }
        })
    }
}

impl Rule {
    /// Calls with one action, whatever their arguments.
    pub(super) fn of(names: &str, action: Action) -> Self {
        let names = names.split_whitespace().map(str::to_owned).collect();
        Self { names, action, errno_ret: None, args: Vec::new(), comment: None }
    }

    /// As a filter returns it.
    pub(super) fn verdict(&self) -> u32 {
        self.action.verdict(self.errno_ret)
    }
}

impl Action {
    /// As a filter returns it. Source: linux/seccomp.h.
    fn verdict(self, errno: Option<u16>) -> u32 {
        match self {
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Errno => errno_verdict(errno.unwrap_or(EPERM)),
            Self::Trace => 0x7ff0_0000 | u32::from(errno.unwrap_or(EPERM)),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

/// A call that fails with that number.
pub(super) fn errno_verdict(errno: u16) -> u32 {
    0x0005_0000 | u32::from(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        for (text, why) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#, "listenerPath"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO",
                "includes": {"caps": ["CAP_X"]}}]}"#,
                "includes",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
        ] {
            let error = Profile::parse(text).expect_err("refused");
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
