//! What a node's operator allows and limits, by the command line. Nothing of it is recorded: it holds from one start of
//! the agent to the next.

use crate::shim::spec::Limits;

/// Most pods of a node where nobody says otherwise; as a kubelet has it.
const MAX_PODS: u32 = 110;

/// The operator's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Sysctls beyond the safe ones that pods may set; `kernel.msg*` stands for all that begin so.
    pub unsafe_sysctls: Vec<String>,
    /// Most pods that the node takes.
    pub max_pods: u32,
    /// Most processes and threads of one pod; none leaves it to the machine.
    pub pod_pids: Option<u64>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { unsafe_sysctls: Vec::new(), max_pods: MAX_PODS, pod_pids: None }
    }
}

impl Rules {
    /// Checks what an operator wrote, so that a typing error is told at the start and not by the first pod.
    pub fn check(&self) -> Result<(), String> {
        for pattern in &self.unsafe_sysctls {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            if name.contains('*') || crate::sysctl::Namespace::of(name).is_none() {
                return Err(format!(
                    "the sysctl {pattern:?} cannot be allowed: pods have {} of their own, and a * may stand at the end only",
                    crate::sysctl::KNOWN
                ));
            }
        }
        Ok(())
    }

    /// What a pod may use whatever it says itself.
    pub(crate) fn cap(&self, limits: Limits) -> Limits {
        let pids = match (limits.pids, self.pod_pids) {
            (Some(own), Some(most)) => Some(own.min(most)),
            (own, most) => own.or(most),
        };
        Limits { pids, ..limits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(pattern: &str) -> Rules {
        Rules { unsafe_sysctls: vec![pattern.to_owned()], ..Rules::default() }
    }

    #[test]
    fn only_what_a_pod_can_have_of_its_own_may_be_allowed() {
        for pattern in ["kernel.msg*", "kernel.shmmax", "net.core.somaxconn", "net.*", "fs.mqueue.*", "kernel.sem"] {
            assert_eq!(allowing(pattern).check(), Ok(()), "{pattern}");
        }
        for pattern in ["vm.swappiness", "kernel.*", "kernel.panic", "*", "net.*.x", ""] {
            assert!(allowing(pattern).check().is_err(), "{pattern}");
        }
    }
}
