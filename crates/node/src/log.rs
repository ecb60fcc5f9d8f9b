//! Container output on disk, in the CRI log format: `<RFC 3339 time> <stdout|stderr> <F|P> <text>`.
//!
//! [`LogFile`] writes and rotates; [`Line`] reads. A line that was cut (because it is long, or because its end
//! has not come yet) is marked `P`, its last piece `F`. When the disk is full, lines are dropped and counted, the
//! file stays whole, and a line of our own says how many are missing once there is room again.
//!
//! Source of the format: <https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longest text of one log line; longer output is cut into pieces.
pub const MAX_TEXT: usize = 16 * 1024;

/// Which of a program's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As written in the log.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One line of a log file, borrowed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was read from the program.
    pub time: Timestamp,
    /// Where it was printed.
    pub stream: Stream,
    /// More of the same line follows in a later one of the same stream.
    pub partial: bool,
    /// The text, without newline.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads one line, with or without its newline; None where it is not of this format.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // Tags may be joined by colons; the first tells partial from full.
        let partial = match parts.next()?.split(|b| *b == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, stream, partial, text: parts.next()? })
    }
}

/// The path of the log of a container's start: `<pod's log folder>/<container>/<restart count>.log`.
pub fn path(pod_logs: &Path, container: &str, restart_count: u32) -> PathBuf {
    pod_logs.join(container).join(format!("{restart_count}.log"))
}

/// A log file being written. Never blocks on anything but the disk, and never fails: it counts.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    max_bytes: u64,
    max_files: u32,
    dropped: u64,
    unreported: u64,
}

impl LogFile {
    /// Opens (or goes on with) a file, rotating beyond `max_bytes`, keeping `max_files` in all. A file that cannot
    /// be opened is tried again with every line.
    pub fn open(path: PathBuf, max_bytes: u64, max_files: u32) -> Self {
        let mut log = Self { path, file: None, length: 0, max_bytes, max_files, dropped: 0, unreported: 0 };
        let _ = log.reopen();
        log
    }

    /// Writes what a program printed; `full` says that a newline ended it. Text longer than [`MAX_TEXT`] is cut.
    pub fn write(&mut self, now: Timestamp, stream: Stream, text: &[u8], full: bool) {
        let mut pieces = text.chunks(MAX_TEXT).peekable();
        if pieces.peek().is_none() {
            self.line(now, stream, b"", full);
        }
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            self.line(now, stream, piece, full && last);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines that could not be written so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn line(&mut self, now: Timestamp, stream: Stream, text: &[u8], full: bool) {
        if self.unreported > 0 {
            let note = format!("[statefuld: {} lines were dropped here, the disk was full]", self.unreported);
            if self.put(&format_line(now, Stream::Stderr, note.as_bytes(), true)).is_ok() {
                self.unreported = 0;
            }
        }
        if self.put(&format_line(now, stream, text, full)).is_err() {
            self.dropped += 1;
            self.unreported += 1;
        }
        if self.length > self.max_bytes {
            self.rotate(now);
        }
    }

    /// Appends a whole line or nothing.
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let file = self.file.as_mut().expect("it was opened above");
        match file.write_all(line) {
            Ok(()) => {
                self.length += line.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Part of the line may be in; a reader must not see it joined to the next.
                let _ = file.set_len(self.length);
                Err(error)
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.length = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Renames the full file after the time and removes the oldest of those beyond the limit.
    fn rotate(&mut self, now: Timestamp) {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rotated = self.path.with_file_name(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S-%9f")));
        self.file = None;
        self.length = 0;
        if fs::rename(&self.path, rotated).is_ok() {
            self.prune(&format!("{name}."));
        }
    }

    fn prune(&self, prefix: &str) {
        let Some(entries) = self.path.parent().and_then(|folder| fs::read_dir(folder).ok()) else { return };
        let mut old: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path())
            .collect();
        old.sort();
        let keep = self.max_files.saturating_sub(1) as usize;
        for path in old.iter().take(old.len().saturating_sub(keep)) {
            let _ = fs::remove_file(path);
        }
    }
}

fn format_line(now: Timestamp, stream: Stream, text: &[u8], full: bool) -> Vec<u8> {
    let tag = if full { 'F' } else { 'P' };
    let mut line = format!("{now:.9} {} {tag} ", stream.name()).into_bytes();
    line.extend_from_slice(text);
    line.push(b'\n');
    line
}

/// Cuts a byte stream into lines for a [`LogFile`]; one per output of a program.
#[derive(Debug)]
pub struct LineCutter {
    stream: Stream,
    pending: Vec<u8>,
}

impl LineCutter {
    /// Of that output.
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes bytes and writes the lines that are complete, or too long to wait for.
    pub fn push(&mut self, bytes: &[u8], now: Timestamp, log: &mut LogFile) {
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            if self.pending.is_empty() {
                log.write(now, self.stream, &rest[..at], true);
            } else {
                self.pending.extend_from_slice(&rest[..at]);
                log.write(now, self.stream, &self.pending, true);
                self.pending.clear();
            }
            rest = &rest[at + 1..];
        }
        self.pending.extend_from_slice(rest);
        while self.pending.len() >= MAX_TEXT {
            log.write(now, self.stream, &self.pending[..MAX_TEXT], false);
            self.pending.drain(..MAX_TEXT);
        }
    }

    /// The program ended: what is left is a line without its newline.
    pub fn finish(&mut self, now: Timestamp, log: &mut LogFile) {
        if !self.pending.is_empty() {
            log.write(now, self.stream, &std::mem::take(&mut self.pending), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    /// The text of a log, put together again.
    fn joined(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let line = Line::parse(line).unwrap();
            out.extend_from_slice(line.text);
            if !line.partial {
                out.push(b'\n');
            }
        }
        out
    }

    #[test]
    fn a_line_looks_as_a_kubelet_expects() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), "db", 2);
        let mut log = LogFile::open(path.clone(), 1000, 2);
        log.write(Timestamp::UNIX_EPOCH, Stream::Stdout, b"ready", true);
        log.write(Timestamp::UNIX_EPOCH, Stream::Stderr, b"half", false);
        assert_eq!(
            String::from_utf8(read(&path)).unwrap(),
            "1970-01-01T00:00:00.000000000Z stdout F ready\n1970-01-01T00:00:00.000000000Z stderr P half\n"
        );
        assert!(path.ends_with("db/2.log"));
    }

    #[test]
    fn a_full_file_is_rotated_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(path.clone(), 100, 3);
        for second in 0..20 {
            log.write(Timestamp::from_second(second).unwrap(), Stream::Stdout, &[b'x'; 60], true);
        }
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert!(names.len() <= 3, "{names:?}");
        assert_eq!(names.last().unwrap(), "0.log.19700101-000019-000000000");
    }

    #[test]
    fn a_full_disk_drops_whole_lines_counts_them_and_says_so() {
        // A file in a folder that is a file cannot be made: as good as a full disk, and can be mended.
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        fs::write(&folder, "").unwrap();
        let path = folder.join("0.log");
        let mut log = LogFile::open(path.clone(), 1000, 3);
        log.write(Timestamp::UNIX_EPOCH, Stream::Stdout, b"lost", true);
        log.write(Timestamp::UNIX_EPOCH, Stream::Stdout, b"lost", true);
        assert_eq!(log.dropped(), 2);
        fs::remove_file(&folder).unwrap();
        log.write(Timestamp::UNIX_EPOCH, Stream::Stdout, b"kept", true);
        let text = String::from_utf8(read(&path)).unwrap();
        assert!(text.contains("2 lines were dropped") && text.ends_with("kept\n"), "{text}");
        assert_eq!(log.dropped(), 2);
    }

    proptest! {
        #[test]
        fn output_comes_back_however_it_was_cut(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cut in 1usize..50,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            let mut log = LogFile::open(path.clone(), u64::MAX, 1);
            let mut cutter = LineCutter::new(Stream::Stdout);
            for piece in text.chunks(cut) {
                cutter.push(piece, Timestamp::UNIX_EPOCH, &mut log);
            }
            cutter.finish(Timestamp::UNIX_EPOCH, &mut log);
            let mut expected = text.clone();
            if expected.last().is_some_and(|b| *b != b'\n') {
                expected.push(b'\n');
            }
            prop_assert_eq!(joined(&read(&path)), expected);
        }
    }

    #[test]
    fn a_long_line_is_cut_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(path.clone(), u64::MAX, 1);
        let mut cutter = LineCutter::new(Stream::Stdout);
        let long = vec![b'a'; 3 * MAX_TEXT + 5];
        cutter.push(&long, Timestamp::UNIX_EPOCH, &mut log);
        assert_eq!(read(&path).iter().filter(|b| **b == b'\n').count(), 3);
        cutter.push(b"\n", Timestamp::UNIX_EPOCH, &mut log);
        assert_eq!(joined(&read(&path)).len(), long.len() + 1);
    }

    #[test]
    fn lines_of_another_format_are_refused() {
        for line in ["", "x", "1970-01-01T00:00:00Z stdin F x", "1970-01-01T00:00:00Z stdout X x", "now stdout F x"] {
            assert_eq!(Line::parse(line.as_bytes()), None, "{line}");
        }
    }
}
