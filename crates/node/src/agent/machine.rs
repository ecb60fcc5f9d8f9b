//! What the machine has: the numbers and names of a Node object.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::OnceLock;

/// Processors that this process may use.
pub fn cpus() -> u64 {
    static CPUS: OnceLock<u64> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

/// Memory, bytes.
pub fn memory_bytes() -> u64 {
    static MEMORY: OnceLock<u64> = OnceLock::new();
    *MEMORY.get_or_init(|| {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
        total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    })
}

/// Size of the file system that holds a folder, bytes.
pub fn disk_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize))
}

/// The boot that the machine is in.
pub fn boot_id() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

/// The machine's own identity.
pub fn machine_id() -> String {
    first_line("/etc/machine-id")
}

/// The kernel's release.
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The distribution, as it calls itself.
pub fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

/// The processor architecture in Go's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The address that the machine uses towards the outside; none where it has no route there.
pub fn address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Connecting a datagram socket sends nothing: it only asks the routing table. The address is one for documentation.
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() => Some(address),
        _ => None,
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
