//! Which cgroup hierarchies a machine has, and where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// The hierarchies found at start. They are used as found and never remounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Mount points of the v1 controllers, by controller; named hierarchies are left out.
    pub v1: BTreeMap<String, PathBuf>,
    /// Mount point of the v2 hierarchy.
    pub unified: Option<PathBuf>,
}

/// How the two versions are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is mounted: no limits, no whole-pod kill.
    None,
    /// Controllers on v1, nothing else.
    V1,
    /// Controllers on v1 and a v2 tree without them.
    Hybrid,
    /// One tree for all.
    V2,
}

impl Layout {
    /// Looks at this machine.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|source| CgroupError::Io { path: path.to_owned(), source })?;
        Ok(Self::from_mountinfo(&text))
    }

    /// Reads the text of `/proc/self/mountinfo`. Where a hierarchy is mounted twice, the first counts.
    pub fn from_mountinfo(text: &str) -> Self {
        let mut layout = Self::default();
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = left.split(' ').nth(4) else { continue };
            let mut fields = right.split(' ');
            let (Some(kind), Some(options)) = (fields.next(), fields.nth(1)) else { continue };
            let mount_point = PathBuf::from(unescape(mount_point));
            match kind {
                "cgroup2" => {
                    layout.unified.get_or_insert(mount_point);
                }
                "cgroup" => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        layout.v1.entry(controller.into()).or_insert_with(|| mount_point.clone());
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// The first hierarchy in use that is mounted read-only, as in containers: no group can be made in it.
    pub fn read_only(&self) -> Option<&Path> {
        let writable = |mount: &Path| rustix::fs::access(mount, rustix::fs::Access::WRITE_OK).is_ok();
        self.v1.values().chain(&self.unified).map(PathBuf::as_path).find(|mount| !writable(mount))
    }

    /// How the two versions are combined.
    pub fn kind(&self) -> Kind {
        match (self.v1.is_empty(), self.unified.is_some()) {
            (true, false) => Kind::None,
            (false, false) => Kind::V1,
            (false, true) => Kind::Hybrid,
            (true, true) => Kind::V2,
        }
    }
}

/// The v1 controllers that pods use. Each one more costs a move per container start.
pub(super) const CONTROLLERS: [&str; 5] = ["memory", "pids", "cpu", "cpuacct", "devices"];

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code as char);
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_machine_is_told_apart() {
        let layout = Layout::from_mountinfo(HYBRID);
        assert_eq!(layout.kind(), Kind::Hybrid);
        assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/uni fied")));
        let controllers: Vec<&str> = layout.v1.keys().map(String::as_str).collect();
        assert_eq!(controllers, ["cpu", "cpuacct", "memory"]);
        assert_eq!(layout.v1["cpu"], layout.v1["cpuacct"]);
    }

    #[test]
    fn a_v2_machine_and_a_bare_one_are_told_apart() {
        let v2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Layout::from_mountinfo(v2).kind(), Kind::V2);
        assert_eq!(Layout::from_mountinfo("").kind(), Kind::None);
        assert_eq!(Layout::from_mountinfo("nonsense\n - \n").kind(), Kind::None);
    }
}
