//! A container's termination message: a file that it may write to, or the end of its log.
//!
//! Limits are a kubelet's: 4096 bytes of the file; of the log 80 lines and 2048 bytes. Source:
//! <https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/>.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::life::Process;
use super::spec::{ContainerSpec, LastWords, Mount, Propagation, Source};
use crate::log::Line;

/// Folder in the pod's folder with one file per container.
const FOLDER: &str = "last-words";
/// Most that is taken of the file, from its end.
const MAX_FILE: u64 = 4096;
/// Most that is taken of the log, from its end.
const MAX_LOG: usize = 2048;
/// Most lines of the log.
const MAX_LINES: usize = 80;
/// As much of the log file is read as holds [`MAX_LOG`] bytes of text in any lines but empty ones.
const LOG_WINDOW: u64 = 128 * 1024;

/// Makes the empty file of one start and says how it is mounted.
pub(super) fn prepare(pod_dir: &Path, container: &str, words: &LastWords) -> io::Result<(PathBuf, Mount)> {
    let folder = pod_dir.join(FOLDER);
    fs::create_dir_all(&folder)?;
    // Nobody but root comes through here by name.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
    let path = folder.join(container);
    // Another file for each start: what is left of the last one may still hold the old.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    // Whoever the program runs as may write there; the umask does not decide.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    let mount = Mount {
        target: Path::new("/").join(&words.path),
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::None,
        source: Source::Bind { path: path.clone(), sub: None },
    };
    Ok((path, mount))
}

/// What a container that has ended leaves to be said.
pub(super) fn read(spec: &ContainerSpec, process: &Process, exit_code: i32) -> String {
    let (Some(words), Some(path)) = (&spec.last_words, &process.last_words) else { return String::new() };
    let said = match tail(path, MAX_FILE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return format!("Error on reading termination log {}: {error}", words.path.display()),
    };
    if said.is_empty() && words.or_log && exit_code != 0 {
        return tail(process.log.path(), LOG_WINDOW).map(|log| end_of_log(&log)).unwrap_or_default();
    }
    said
}

/// The last bytes of a file.
fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of the last lines of a log in the CRI format; its first line may be cut off.
fn end_of_log(log: &[u8]) -> String {
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    for line in log.split(|b| *b == b'\n').filter_map(Line::parse) {
        let last = lines.last_mut().expect("there is always one");
        last.extend_from_slice(line.text);
        if !line.partial {
            last.push(b'\n');
            lines.push(Vec::new());
        }
    }
    let text = lines.iter().rev().filter(|line| !line.is_empty()).take(MAX_LINES).collect::<Vec<_>>();
    let text: Vec<u8> = text.into_iter().rev().flatten().copied().collect();
    String::from_utf8_lossy(&text[text.len().saturating_sub(MAX_LOG)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_and_no_more_than_2048_bytes() {
        let line = |tag: &str, text: &str| format!("2026-01-02T03:04:05.000000000Z stdout {tag} {text}\n");
        let log = format!("cut off\n{}{}{}", line("F", "first"), line("P", "a"), line("F", "b"));
        assert_eq!(end_of_log(log.as_bytes()), "first\nab\n");
        let many: String = (0..100).map(|n| line("F", &n.to_string())).collect();
        assert_eq!(end_of_log(many.as_bytes()).lines().next(), Some("20"));
        assert_eq!(end_of_log(line("F", &"x".repeat(5000)).as_bytes()).len(), MAX_LOG);
        assert_eq!(end_of_log(b""), "");
    }

    #[test]
    fn of_a_long_file_the_end_is_taken() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let words = LastWords { path: "/dev/termination-log".into(), or_log: false };
        let (path, mount) = prepare(dir.path(), "c", &words).expect("made");
        assert_eq!(mount.target, Path::new("/dev/termination-log"));
        fs::write(&path, format!("{}end", "x".repeat(5000))).expect("written");
        let bytes = tail(&path, MAX_FILE).expect("read");
        assert_eq!(bytes.len(), 4096);
        assert!(bytes.ends_with(b"xend"));
        let (path, _) = prepare(dir.path(), "c", &words).expect("made again");
        assert_eq!(fs::read(path).expect("read"), b"");
    }
}
