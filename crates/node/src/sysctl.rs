//! Kernel settings that a pod may have of its own, and which of them do no harm to others.
//!
//! Source: <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>.

/// For messages.
pub(crate) const KNOWN: &str = "kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.*";

/// Settings that are the pod's own and touch nothing beyond it.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Which of a pod's namespaces a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// Message queues, semaphores, shared memory.
    Ipc,
    /// The network.
    Network,
}

impl Namespace {
    /// Of a setting by its name; none for settings of the whole machine.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
        match name {
            "kernel.sem" => Some(Self::Ipc),
            _ if ipc.iter().any(|prefix| name.starts_with(prefix)) => Some(Self::Ipc),
            _ if name.starts_with("net.") => Some(Self::Network),
            _ => None,
        }
    }
}

/// A setting's name with dots, however it was written: where the first separator is a slash, the slashes separate.
pub(crate) fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Where the kernel has a setting.
pub(crate) fn path(dotted: &str) -> std::path::PathBuf {
    let parts: String = dotted
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    std::path::Path::new("/proc/sys").join(parts)
}

/// Whether a pod may have a setting. The sentence says why it may not, in upstream's words.
pub(crate) fn permit(name: &str, allowed: &[String], host_network: bool, host_ipc: bool) -> Result<(), String> {
    let listed = SAFE.contains(&name)
        || allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        });
    let refused = |why: &str| Err(format!("forbidden sysctl: {name:?} {why}"));
    match Namespace::of(name) {
        Some(Namespace::Ipc) if listed && host_ipc => refused("not allowed with host ipc enabled"),
        Some(Namespace::Network) if listed && host_network => refused("not allowed with host net enabled"),
        Some(_) if listed => Ok(()),
        _ => refused("not allowlisted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_ones_are_permitted_and_others_where_they_are_allowed() {
        let allowed = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()];
        for name in ["net.ipv4.tcp_syncookies", "kernel.msgmax", "net.core.somaxconn"] {
            assert_eq!(permit(name, &allowed, false, false), Ok(()), "{name}");
        }
        for name in ["net.core.somaxconn2", "kernel.shmmax", "vm.swappiness", "kernel.hostname"] {
            assert_eq!(
                permit(name, &allowed, false, false),
                Err(format!("forbidden sysctl: \"{name}\" not allowlisted"))
            );
        }
    }

    #[test]
    fn what_is_shared_with_the_machine_is_not_changed() {
        let refused = permit("net.ipv4.tcp_syncookies", &[], true, false);
        assert_eq!(
            refused.expect_err("refused"),
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
        );
        assert!(permit("kernel.shm_rmid_forced", &[], false, true).is_err());
    }

    #[test]
    fn names_are_understood_in_both_forms() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(dotted("net.ipv4.tcp_syncookies"), "net.ipv4.tcp_syncookies");
        assert_eq!(
            path("net.ipv4.conf.eth0/1.rp_filter"),
            std::path::Path::new("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")
        );
    }
}
