//! Whom a program runs as and what it may do.

use std::collections::BTreeSet;
use std::str::FromStr;

use caps::{CapSet, Capability};
use rustix::fs::Mode;
use rustix::process::Signal;
use rustix::thread::{Gid, Uid, set_keep_capabilities};

use super::{During, Program, StartFailure};
use crate::shim::spec::{Capabilities, User};

/// What container runtimes agree on giving to a container that asks for nothing.
/// Source: containerd's default, <https://github.com/containerd/containerd/blob/main/pkg/oci/spec.go>.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// The capabilities that a program gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    set: BTreeSet<u8>,
}

impl Granted {
    /// The default set with a container's changes, as far as `bounding` permits. The words say what was wanted and
    /// is not there; unknown names are refused, since a dropped capability with a typing error would stay.
    pub fn new(
        changes: &Capabilities,
        privileged: bool,
        bounding: &[Capability],
    ) -> Result<(Self, Vec<String>), String> {
        let all: BTreeSet<u8> = caps::all().iter().map(|c| c.index()).collect();
        let mut set: BTreeSet<u8> = DEFAULT.iter().map(|c| c.index()).collect();
        let mut wanted = BTreeSet::new();
        if privileged {
            set.clone_from(&all);
        }
        for name in &changes.drop {
            match parse(name)? {
                Some(capability) => {
                    set.remove(&capability.index());
                }
                None => set.clear(),
            }
        }
        for name in &changes.add {
            match parse(name)? {
                Some(capability) => {
                    wanted.insert(capability.index());
                }
                None => set.clone_from(&all),
            }
        }
        set.extend(&wanted);
        let permitted: BTreeSet<u8> = bounding.iter().map(|c| c.index()).collect();
        let missing =
            caps::all().into_iter().filter(|c| wanted.contains(&c.index()) && !permitted.contains(&c.index()));
        let warnings = missing.map(|c| format!("{c} is not given: this machine does not have it")).collect();
        set.retain(|c| permitted.contains(c));
        Ok((Self { set }, warnings))
    }

    /// Without the right to make device nodes, for machines that cannot keep such nodes from being opened.
    pub fn without_device_nodes(mut self) -> Self {
        self.set.remove(&Capability::CAP_MKNOD.index());
        self
    }

    /// The names, as `CAP_CHOWN`.
    pub fn names(&self) -> Vec<String> {
        self.capabilities().iter().map(ToString::to_string).collect()
    }

    fn capabilities(&self) -> caps::CapsHashSet {
        caps::all().into_iter().filter(|c| self.set.contains(&c.index())).collect()
    }
}

/// None is `ALL`.
fn parse(name: &str) -> Result<Option<Capability>, String> {
    let upper = name.to_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare == "ALL" {
        return Ok(None);
    }
    let parsed = Capability::from_str(&format!("CAP_{bare}"));
    parsed.map(Some).map_err(|_| format!("there is no capability {name:?}"))
}

/// Gives up everything that the program must not have. What it takes to install its filter is kept until the program
/// is executed: the kernel takes it away then, since it is not in the bounding set or the user is not root.
pub(super) fn take_on(program: &Program) -> Result<(), StartFailure> {
    let granted = program.capabilities.capabilities();
    let failed =
        |what: &str, error: caps::errors::CapsError| StartFailure { code: 128, message: format!("{what}: {error}") };
    for capability in caps::all().into_iter().filter(|c| !granted.contains(c)) {
        // Newer ones than the kernel's are not in its set, and absent ones need no dropping.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).map_err(|e| failed("dropping capabilities", e))?;
        }
    }
    let filters = program.filter.is_some() && !program.no_new_privileges;
    if filters {
        set_keep_capabilities(true).during("keeping capabilities")?;
    }
    switch_user(&program.user)?;
    let mut held = if program.user.uid == 0 { granted } else { caps::CapsHashSet::new() };
    if filters {
        held.insert(Capability::CAP_SYS_ADMIN);
    }
    // Inheritable stays empty: a program never hands capabilities to one that a file does not grant them to.
    caps::set(None, CapSet::Effective, &held).map_err(|e| failed("setting capabilities", e))?;
    caps::set(None, CapSet::Permitted, &held).map_err(|e| failed("setting capabilities", e))?;
    if program.no_new_privileges {
        rustix::thread::set_no_new_privs(true).during("setting no_new_privs")?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // A change of user clears it, so it comes last: nothing outlives the shim.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).during("binding to the shim's life")
}

/// Puts the process under the program's filter, if it has one. Nothing but the execution may follow.
pub(super) fn install_filter(program: &Program) -> Result<(), StartFailure> {
    match &program.filter {
        Some(filter) => filter.install().during("installing the filter of system calls"),
        None => Ok(()),
    }
}

fn switch_user(user: &User) -> Result<(), StartFailure> {
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).during("setting supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).during("changing the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).during("changing the user")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Capability> {
        caps::all().into_iter().collect()
    }

    fn changes(add: &[&str], drop: &[&str]) -> Capabilities {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Capabilities { add: owned(add), drop: owned(drop) }
    }

    #[test]
    fn dropping_all_and_adding_one_leaves_one() {
        let (granted, warnings) = Granted::new(&changes(&["NET_ADMIN"], &["ALL"]), false, &all()).unwrap();
        assert_eq!(granted.capabilities(), [Capability::CAP_NET_ADMIN].into());
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_the_machine_lacks_is_left_out_and_told() {
        let bounding: Vec<Capability> = all().into_iter().filter(|c| *c != Capability::CAP_SYS_RESOURCE).collect();
        let (granted, warnings) = Granted::new(&changes(&["CAP_SYS_RESOURCE"], &[]), false, &bounding).unwrap();
        assert!(!granted.capabilities().contains(&Capability::CAP_SYS_RESOURCE));
        assert_eq!(warnings.len(), 1);
        let (granted, warnings) = Granted::new(&changes(&[], &[]), true, &bounding).unwrap();
        assert_eq!(granted.capabilities().len(), bounding.len());
        assert!(warnings.is_empty());
    }

    #[test]
    fn the_default_can_neither_administer_nor_trace() {
        let (granted, _) = Granted::new(&changes(&[], &[]), false, &all()).unwrap();
        for capability in [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE, Capability::CAP_NET_ADMIN] {
            assert!(!granted.capabilities().contains(&capability));
        }
        assert_eq!(granted.capabilities().len(), DEFAULT.len());
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(Granted::new(&changes(&[], &["NET_RAWW"]), false, &all()).is_err());
    }
}
