//! Whether a folder of the machine can pass mounts on.

use std::fs;
use std::path::{Path, PathBuf};

use super::{During, StartFailure};
use crate::shim::spec::Propagation;

/// A mount, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Point {
    path: PathBuf,
    shared: bool,
    slave: bool,
}

/// Refuses where what a path lies on does not pass mounts on as wanted. Sentences are a container runtime's.
pub(super) fn check(path: &Path, wanted: Propagation) -> Result<(), StartFailure> {
    if wanted == Propagation::None {
        return Ok(());
    }
    let doing = || format!("looking what {} lies on", path.display());
    let real = fs::canonicalize(path).during(doing())?;
    let table = fs::read_to_string("/proc/self/mountinfo").during(doing())?;
    let Some(on) = table.lines().filter_map(parse).filter(|point| real.starts_with(&point.path)).max_by_key(depth)
    else {
        return Ok(());
    };
    let (fits, kind) = match wanted {
        Propagation::Bidirectional => (on.shared, "shared"),
        _ => (on.shared || on.slave, "shared or slave"),
    };
    if fits {
        return Ok(());
    }
    let message =
        format!("path {:?} is mounted on {:?} but it is not a {kind} mount", path.display(), on.path.display());
    Err(StartFailure { code: 128, message })
}

fn depth(point: &Point) -> usize {
    point.path.components().count()
}

/// One line of mountinfo; `proc_pid_mountinfo(5)` has the fields.
fn parse(line: &str) -> Option<Point> {
    let (front, _) = line.split_once(" - ")?;
    let mut fields = front.split(' ').skip(4);
    let path = PathBuf::from(fields.next()?.replace("\\040", " "));
    let tags: Vec<&str> = fields.skip(1).collect();
    let has = |tag: &str| tags.iter().any(|t| t.starts_with(tag));
    Some(Point { path, shared: has("shared:"), slave: has("master:") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_and_with_whom() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:1 master:7 - ext3 /dev/root rw,errors=continue";
        assert_eq!(parse(line), Some(Point { path: "/mnt 2".into(), shared: true, slave: true }));
        let line = "36 35 98:0 / / rw - overlay overlay rw";
        assert_eq!(parse(line), Some(Point { path: "/".into(), shared: false, slave: false }));
    }

    #[test]
    fn nothing_is_asked_of_a_folder_that_passes_nothing_on() {
        assert!(check(Path::new("/no/such/folder"), Propagation::None).is_ok());
        assert!(check(Path::new("/no/such/folder"), Propagation::Bidirectional).is_err());
    }
}
