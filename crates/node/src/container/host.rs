//! What of the machine's own root a container of runtime class `host` may see.

use std::path::{Path, PathBuf};

/// Shown read-only, where they exist; links among them are made anew.
pub const PROGRAMS: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt"];

/// Shown through an overlay that takes the writes.
pub const OVERLAID: [&str; 3] = ["etc", "var", "srv"];

/// Hidden whatever the configuration: secrets of the machine, state and sockets of what runs containers or the
/// machine itself. A name that ends in `*` stands for all that start with it.
const ALWAYS_MASKED: [&str; 31] = [
    "/etc/NetworkManager/system-connections",
    "/etc/containers",
    "/etc/crypttab",
    "/etc/docker",
    "/etc/gshadow*",
    "/etc/ipsec*",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/machine-id",
    "/etc/netplan",
    "/etc/pki/tls/private",
    "/etc/rancher",
    "/etc/security/opasswd",
    "/etc/shadow*",
    "/etc/ssh/ssh_host_*",
    "/etc/ssl/private",
    "/etc/sudoers*",
    "/etc/wireguard",
    "/etc/wpa_supplicant",
    "/opt/containerd",
    "/var/backups",
    "/var/lib/NetworkManager",
    "/var/lib/cloud",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/lib/rancher",
    "/var/lib/statefuld*",
    "/var/lib/systemd",
];

/// The machine's own are nobody's business, but programs write there: empty folders take their place.
pub const EMPTIED: [(&str, u32); 3] = [("/var/log", 0o755), ("/var/spool", 0o755), ("/var/tmp", 0o1777)];

/// Every path to hide: the fixed ones that exist below the container's root, then the configured ones.
pub fn masked(configured: &[PathBuf]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = ALWAYS_MASKED.iter().flat_map(|pattern| expand(pattern)).collect();
    all.extend(configured.iter().cloned());
    all.sort();
    all.dedup();
    // What lies below a masked folder is gone with it.
    let parents = all.clone();
    all.retain(|path| !parents.iter().any(|parent| parent != path && path.starts_with(parent)));
    all
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some(prefix) = pattern.strip_suffix('*') else { return vec![PathBuf::from(pattern)] };
    let Some((folder, start)) = prefix.rsplit_once('/') else { return Vec::new() };
    let entries = std::fs::read_dir(Path::new(folder)).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(start)).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_paths_are_masked_once_and_not_below_another() {
        let configured = ["/var/lib/docker/x", "/data/a", "/data/a", "/data/a/b"].map(PathBuf::from);
        let all = masked(&configured);
        assert_eq!(all.iter().filter(|p| p.starts_with("/data")).count(), 1);
        assert!(!all.contains(&PathBuf::from("/var/lib/docker/x")));
        assert!(all.contains(&PathBuf::from("/var/lib/docker")));
    }
}
