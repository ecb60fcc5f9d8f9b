//! Who uses a folder just now: open files, working directories, and containers that have it mounted.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A process that uses a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: String,
    /// What it uses.
    pub what: String,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {}) has {}", self.name, self.pid, self.what)
    }
}

/// The processes of this machine that use something at or below the folder, this one not counted; the first few.
pub fn users(folder: &Path) -> std::io::Result<Vec<User>> {
    const ENOUGH: usize = 5;
    let folder = folder.canonicalize()?;
    let mounted = Origin::of(&folder)?;
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // A process may end while it is looked at: then it uses nothing.
        let what = open_file(&entry.path(), &folder).or_else(|| mount(&entry.path(), &folder, &mounted));
        if let Some(what) = what {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
            users.push(User { pid, name, what });
        }
        if users.len() == ENOUGH {
            break;
        }
    }
    Ok(users)
}

/// An open file, the working directory or the root of a process, where it lies in the folder.
fn open_file(process: &Path, folder: &Path) -> Option<String> {
    let links = ["cwd", "root"].map(|name| process.join(name));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
    let mut targets = links.into_iter().chain(files).filter_map(|link| fs::read_link(link).ok());
    targets.find(|target| target.starts_with(folder)).map(|target| format!("{} open", target.display()))
}

/// A folder as the file system itself knows it, whatever it is mounted at.
struct Origin {
    /// Device, as major:minor.
    device: String,
    /// Path from the file system's own root.
    path: PathBuf,
}

impl Origin {
    fn of(folder: &Path) -> std::io::Result<Self> {
        let device = fs::metadata(folder)?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let mut best: Option<(usize, PathBuf)> = None;
        for (_, root, point) in rows(&table).filter(|(found, ..)| *found == device) {
            let Ok(rest) = folder.strip_prefix(point) else { continue };
            if best.as_ref().is_none_or(|(length, _)| point.len() >= *length) {
                best = Some((point.len(), Path::new(root).join(rest)));
            }
        }
        Ok(Self { device, path: best.map_or_else(|| folder.to_owned(), |(_, path)| path) })
    }
}

/// Device, root and mount point of every mount.
fn rows(table: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    table.lines().filter_map(|line| {
        let mut columns = line.split(' ').skip(2);
        Some((columns.next()?, columns.next()?, columns.next()?))
    })
}

/// A mount of the folder, or of a part of it, that the machine itself does not have: a container's.
fn mount(process: &Path, folder: &Path, origin: &Origin) -> Option<String> {
    let table = fs::read_to_string(process.join("mountinfo")).ok()?;
    let inside = |root: &str| Path::new(root).starts_with(&origin.path);
    let mut found = rows(&table).filter(|(device, root, _)| *device == origin.device && inside(root));
    found.find(|(_, _, point)| Path::new(point) != folder).map(|(_, _, point)| format!("it mounted at {point}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A process that says that it is there, and stays until its input ends.
    fn running(command: &mut Command) -> Running {
        use std::io::Read as _;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
        let mut said = [0; 1];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("it says that it is there");
        Running(child)
    }

    #[test]
    fn a_process_with_an_open_file_or_a_mount_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("deep")).expect("made");
        assert_eq!(users(&data).expect("looked at"), []);
        let script = "exec 3> \"$0/deep/file\"; echo x; read line";
        let holder = running(Command::new("sh").args(["-c", script]).arg(&data));
        let found = users(&data).expect("looked at");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].pid == holder.0.id() && found[0].what.ends_with("deep/file open"), "{found:?}");
        drop(holder);
        let script = "mount --bind \"$0\" /mnt && cd / && echo x && read line";
        let container = running(Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(&data));
        let found = users(&data).expect("looked at");
        assert!(found.iter().any(|user| user.what == "it mounted at /mnt"), "{found:?}");
        drop(container);
    }
}
