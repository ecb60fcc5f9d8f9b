//! Reads a container's log as `kubectl logs` shows it.
//!
//! The log of one run is a file and, once that grew, its rotated predecessors (`0.log.<time>`). Reading needs
//! neither shim nor agent state, so logs can be read whatever happens to the pod.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::log::{self, Line};

/// Longest line of a log file that is read; longer ones are not ours.
const MAX_LINE: u64 = 64 * 1024;
/// Bytes handed on at once.
const PIECE: usize = 32 * 1024;

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
    /// Only the last lines.
    pub tail: Option<u64>,
}

/// A position in the log of one run.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    wanted: Wanted,
    /// Files that are still to be read before the current one, oldest first.
    older: VecDeque<PathBuf>,
    /// The open file.
    file: Option<BufReader<File>>,
    /// Part of a line whose rest was not written yet.
    pending: Vec<u8>,
    /// Whether the next text begins a line.
    line_start: bool,
}

impl Reader {
    /// At the start of what is wanted.
    pub fn open(pod_logs: &Path, container: &str, restart: u32, wanted: Wanted) -> io::Result<Self> {
        let path = log::path(pod_logs, container, restart);
        let mut reader =
            Self { older: rotated(&path), path, wanted, file: None, pending: Vec::new(), line_start: true };
        if let Some(tail) = reader.wanted.tail {
            reader.skip_to_tail(tail)?;
        }
        Ok(reader)
    }

    /// The next piece of text; empty where nothing more is written yet.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < PIECE {
            match self.next_line()? {
                Some(raw) => self.render(&raw, &mut out),
                None => break,
            }
        }
        Ok(out)
    }

    fn render(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = Line::parse(raw) else { return };
        if self.wanted.since.is_some_and(|since| line.time < since) {
            return;
        }
        if self.wanted.timestamps && self.line_start {
            out.extend_from_slice(format!("{:.9} ", line.time).as_bytes());
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.line_start = !line.partial;
    }

    /// The next whole line of the files.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.file.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let file = self.file.as_mut().expect("it was opened above");
            let left = MAX_LINE.saturating_sub(self.pending.len() as u64);
            let n = file.by_ref().take(left).read_until(b'\n', &mut self.pending)?;
            if self.pending.last() == Some(&b'\n') || self.pending.len() as u64 >= MAX_LINE {
                return Ok(Some(std::mem::take(&mut self.pending)));
            }
            if n > 0 {
                continue;
            }
            if !self.was_rotated()? {
                return Ok(None);
            }
            self.pending.clear();
            self.file = None;
        }
    }

    /// Opens the next file: a rotated one, else the current one.
    fn open_next(&mut self) -> io::Result<bool> {
        while let Some(path) = self.older.pop_front() {
            match File::open(&path) {
                Ok(file) => {
                    self.file = Some(BufReader::new(file));
                    return Ok(true);
                }
                // Pruned meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        match File::open(&self.path) {
            Ok(file) => {
                self.file = Some(BufReader::new(file));
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the open file is done with: another one stands under the current name, or follows in the list.
    fn was_rotated(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        if !self.older.is_empty() {
            return Ok(true);
        }
        let open = file.get_ref().metadata()?.ino();
        match std::fs::metadata(&self.path) {
            Ok(current) => Ok(current.ino() != open),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Moves so that the last `tail` lines are ahead.
    fn skip_to_tail(&mut self, tail: u64) -> io::Result<()> {
        let mut files: Vec<PathBuf> = self.older.iter().cloned().collect();
        files.push(self.path.clone());
        let mut missing = tail;
        for (at, path) in files.iter().enumerate().rev() {
            let Ok(mut file) = File::open(path) else { continue };
            let starts = line_starts(&mut file, self.wanted.since)?;
            let have = starts.len() as u64;
            if have >= missing {
                let skip = usize::try_from(have - missing).unwrap_or(usize::MAX);
                let offset = match starts.get(skip) {
                    Some(offset) => *offset,
                    None => file.metadata()?.len(),
                };
                file.seek(SeekFrom::Start(offset))?;
                self.older = files[at + 1..].iter().filter(|p| **p != self.path).cloned().collect();
                self.file = Some(BufReader::new(file));
                return Ok(());
            }
            missing -= have;
        }
        Ok(())
    }
}

/// Where whole lines of output begin in a file: pieces of a line that was cut belong to its first.
fn line_starts(file: &mut File, since: Option<Timestamp>) -> io::Result<Vec<u64>> {
    let mut reader = BufReader::new(file);
    let (mut starts, mut offset, mut fresh) = (Vec::new(), 0u64, true);
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut raw)?;
        if n == 0 {
            return Ok(starts);
        }
        if let Some(line) = Line::parse(&raw) {
            if fresh && since.is_none_or(|s| line.time >= s) {
                starts.push(offset);
            }
            fresh = !line.partial;
        }
        offset += n as u64;
    }
}

/// The rotated predecessors of a log file, oldest first.
fn rotated(path: &Path) -> VecDeque<PathBuf> {
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = path.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .map(|e| e.path())
        .collect();
    found.sort();
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u32, tag: char, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    fn logs(files: &[(&str, String)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("c")).expect("folder");
        for (name, text) in files {
            std::fs::write(dir.path().join("c").join(name), text).expect("written");
        }
        dir
    }

    fn read(dir: &tempfile::TempDir, wanted: Wanted) -> String {
        let mut reader = Reader::open(dir.path(), "c", 0, wanted).expect("opened");
        String::from_utf8(reader.read().expect("read")).expect("text")
    }

    fn two_files() -> tempfile::TempDir {
        let old = line(1, 'F', "one") + &line(2, 'P', "tw") + &line(2, 'F', "o");
        logs(&[("0.log.20260101-000002", old), ("0.log", line(3, 'F', "three") + &line(4, 'F', "four"))])
    }

    #[test]
    fn all_of_it_in_order_with_cut_lines_joined() {
        assert_eq!(read(&two_files(), Wanted::default()), "one\ntwo\nthree\nfour\n");
    }

    #[test]
    fn tail_counts_lines_over_files() {
        for (tail, expected) in [(0, ""), (1, "four\n"), (3, "two\nthree\nfour\n"), (9, "one\ntwo\nthree\nfour\n")] {
            assert_eq!(read(&two_files(), Wanted { tail: Some(tail), ..Wanted::default() }), expected, "{tail}");
        }
    }

    #[test]
    fn since_and_timestamps() {
        let since = Some("2026-01-01T00:00:02Z".parse().expect("a time"));
        let text = read(&two_files(), Wanted { since, timestamps: true, tail: None });
        let expected = "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z three\n\
                        2026-01-01T00:00:04.000000000Z four\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn follows_growth_and_rotation_and_half_written_lines() {
        let dir = logs(&[("0.log", line(1, 'F', "one"))]);
        let path = dir.path().join("c/0.log");
        let mut reader = Reader::open(dir.path(), "c", 0, Wanted::default()).expect("opened");
        assert_eq!(reader.read().expect("read"), b"one\n");
        let (half, rest) = (line(2, 'F', "two"), line(3, 'F', "three"));
        let append = |text: &str| {
            let mut file = File::options().append(true).create(true).open(&path).expect("opened");
            io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        };
        append(&half[..20]);
        assert_eq!(reader.read().expect("read"), b"");
        append(&half[20..]);
        assert_eq!(reader.read().expect("read"), b"two\n");
        std::fs::rename(&path, dir.path().join("c/0.log.1")).expect("rotated");
        append(&rest);
        assert_eq!(reader.read().expect("read"), b"three\n");
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty() {
        let dir = logs(&[]);
        assert_eq!(read(&dir, Wanted { tail: Some(3), ..Wanted::default() }), "");
    }
}
