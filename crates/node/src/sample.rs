//! The journal server of the built-in image: `statefuld sample [--listen ADDRESS:PORT] [--data DIR]`.
//!
//! It writes one line to its journal when it starts and one when it stops, each with fsync, and serves the journal
//! over HTTP: `GET /` is all of it, `POST /append` adds the body as a line (answered when it is on the disk),
//! `GET /healthz` says that it is up. Every line names its writer and that writer's own sequence number:
//!
//! ```text
//! 2026-01-02T03:04:05.123456789Z started host=journal-1 incarnation=3 epoch=1099511627811 writer=9f2c61d0a7b3e845 seq=0
//! ```
//!
//! A writer that finds lines of another behind its own last one says so in its next (`overtaken-by=`), and one that
//! finds the lock file held by another live writer goes on and says that, too (`beside=`): two writers at once, which
//! statefuld promises never to let happen, cannot stay unseen.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambient::Ambient;
use rustix::fs::FlockOperation;

use crate::sys;

/// Longest body and longest header section that is read.
const MAX_BYTES: u64 = 64 * 1024;
/// Most requests served at the same time.
const MAX_CLIENTS: usize = 64;
/// A client that sends or takes nothing for this long is let go.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process; `args` are those after `sample`. Returns when it was asked to stop.
pub fn main(args: &[String]) -> ExitCode {
    match run(args, &Ambient::system()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String], ambient: &Ambient) -> Result<(), SampleError> {
    let options = Options::parse(args, std::env::var_os("JOURNAL_DIR").map(PathBuf::from))?;
    // Before any thread exists, so that all of them leave the signals to the descriptor.
    let signals = sys::signal_fd(&[libc::SIGTERM, libc::SIGINT])?;
    let journal = Journal::open(&options.data, Identity::of_this_pod(), ambient.clone())
        .map_err(|source| SampleError::Journal { path: options.data.clone(), source })?;
    let listener = TcpListener::bind(&options.listen)
        .map_err(|source| SampleError::Listen { address: options.listen.clone(), source })?;
    let journal = Arc::new(Mutex::new(journal));
    let serving = journal.clone();
    println!("listening on {}, journal in {}", options.listen, options.data.display());
    std::thread::spawn(move || serve(&listener, &serving));
    wait_for_signal(&signals)?;
    let mut journal = journal.lock().expect("no holder of this lock panics");
    journal.append("stopped")?;
    println!("stopped");
    Ok(())
}

fn wait_for_signal(signals: &std::os::fd::OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    loop {
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if sys::read_signal(signals.as_fd())?.is_some() {
            return Ok(());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    listen: String,
    data: PathBuf,
}

impl Options {
    fn parse(args: &[String], journal_dir: Option<PathBuf>) -> Result<Self, SampleError> {
        let data = journal_dir.unwrap_or_else(|| PathBuf::from("/data/journal"));
        let mut options = Self { listen: "0.0.0.0:8080".into(), data };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), args.next().cloned()),
            };
            let value = value.ok_or_else(|| SampleError::Usage(format!("{name} needs a value")))?;
            match name {
                "--listen" => options.listen = value,
                "--data" => options.data = value.into(),
                other => {
                    return Err(SampleError::Usage(format!("unknown option {other:?}: there are --listen and --data")));
                }
            }
        }
        Ok(options)
    }
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    host: String,
    incarnation: String,
    epoch: String,
}

impl Identity {
    fn of_this_pod() -> Self {
        let env = |name: &str| std::env::var(name).unwrap_or_else(|_| "none".into());
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            incarnation: env("STATEFULD_INCARNATION"),
            epoch: env("STATEFULD_EPOCH"),
        }
    }
}

/// The journal file and this process's place in it.
#[derive(Debug)]
struct Journal {
    file: File,
    identity: Identity,
    ambient: Ambient,
    writer: String,
    sequence: u64,
    /// Where this writer's last line ended.
    end: u64,
    /// Held locked while this writer lives, if nobody else held it.
    lock: File,
    path: PathBuf,
}

impl Journal {
    fn open(folder: &Path, identity: Identity, ambient: Ambient) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("journal");
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(folder.join("lock"))?;
        File::open(folder)?.sync_all()?;
        let end = file.metadata()?.len();
        let mut bytes = [0; 8];
        ambient.fill(&mut bytes);
        let writer = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let mut journal = Self { file, identity, ambient, writer, sequence: 0, end, lock, path };
        let beside = journal.take_lock()?;
        journal.append(&format!("started{beside}"))?;
        Ok(journal)
    }

    /// Says who holds the lock, if another does.
    fn take_lock(&mut self) -> io::Result<String> {
        match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                self.lock.set_len(0)?;
                self.lock.seek(SeekFrom::Start(0))?;
                self.lock.write_all(self.writer.as_bytes())?;
                Ok(String::new())
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                (&mut self.lock).take(64).read_to_string(&mut holder)?;
                Ok(format!(" beside={holder}"))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Adds a line; it is on the disk when this returns.
    fn append(&mut self, text: &str) -> io::Result<String> {
        let overtaken =
            if self.file.metadata()?.len() > self.end { self.last_foreign_writer()? } else { String::new() };
        let Identity { host, incarnation, epoch } = &self.identity;
        let line = format!(
            "{:.9} {text} host={host} incarnation={incarnation} epoch={epoch} writer={} seq={}{overtaken}\n",
            self.ambient.now(),
            self.writer,
            self.sequence
        );
        self.file.write_all(line.as_bytes())?;
        self.file.sync_data()?;
        self.sequence += 1;
        self.end = self.file.metadata()?.len();
        Ok(line)
    }

    fn last_foreign_writer(&self) -> io::Result<String> {
        let mut added = File::open(&self.path)?;
        added.seek(SeekFrom::Start(self.end))?;
        let mut text = String::new();
        added.take(MAX_BYTES).read_to_string(&mut text)?;
        let writer = text.split_whitespace().filter_map(|word| word.strip_prefix("writer=")).next_back();
        Ok(format!(" overtaken-by={}", writer.unwrap_or("unknown")))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        fs::read(&self.path)
    }
}

fn serve(listener: &TcpListener, journal: &Arc<Mutex<Journal>>) {
    let clients = Arc::new(());
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if Arc::strong_count(&clients) > MAX_CLIENTS {
            continue;
        }
        let (journal, client) = (journal.clone(), clients.clone());
        std::thread::spawn(move || {
            // A client that hangs up is its own business.
            let _ = answer(&stream, &journal);
            drop(client);
        });
    }
}

fn answer(stream: &TcpStream, journal: &Mutex<Journal>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (code, body) = match Request::read(BufReader::new(stream)) {
        Ok(request) => request.handle(journal),
        Err(error) if error.kind() == ErrorKind::InvalidData => (400, format!("{error}\n").into_bytes()),
        Err(error) => return Err(error),
    };
    let reason = match code {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Internal Server Error",
    };
    let head = format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: impl BufRead) -> io::Result<Self> {
        let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let mut reader = reader.take(2 * MAX_BYTES);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut words = first.split_whitespace();
        let (Some(method), Some(target), Some(_)) = (words.next(), words.next(), words.next()) else {
            return Err(bad("the first line is no HTTP request"));
        };
        let path = target.split('?').next().unwrap_or(target).to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(bad("the request ends in its header"));
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(|_| bad("content-length is no number"))?;
            }
        }
        if length > MAX_BYTES {
            return Err(bad("the body is longer than 64 KiB"));
        }
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body)?;
        Ok(Self { method: method.to_owned(), path, body })
    }

    fn handle(&self, journal: &Mutex<Journal>) -> (u16, Vec<u8>) {
        let mut journal = journal.lock().expect("no holder of this lock panics");
        let result = match (self.method.as_str(), self.path.as_str()) {
            ("GET" | "HEAD", "/") => journal.read(),
            ("GET" | "HEAD", "/healthz") => return (200, b"ok\n".to_vec()),
            ("POST" | "PUT", "/append") => journal.append(&one_line(&self.body)).map(String::into_bytes),
            (_, "/" | "/healthz" | "/append") => return (405, b"GET / and /healthz, POST /append\n".to_vec()),
            _ => return (404, b"there are /, /healthz and /append\n".to_vec()),
        };
        result.map_or_else(|error| (500, format!("{error}\n").into_bytes()), |body| (200, body))
    }
}

/// A body as part of one line, which it cannot end or fake fields in.
fn one_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    format!("appended {:?}", text.trim_end())
}

/// The journal cannot be served.
#[derive(Debug, thiserror::Error)]
enum SampleError {
    /// Wrong arguments.
    #[error("{0}")]
    Usage(String),
    /// The folder cannot be written: no volume there, or no room.
    #[error("journal in {}: {source}", path.display())]
    Journal { path: PathBuf, source: io::Error },
    /// The address is taken, or not of this pod.
    #[error("listening on {address}: {source}")]
    Listen { address: String, source: io::Error },
    /// Anything else of the system's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(folder: &Path, seed: u64) -> Journal {
        let identity = Identity { host: "web-0".into(), incarnation: "2".into(), epoch: "7".into() };
        Journal::open(folder, identity, Ambient::manual(jiff::Timestamp::UNIX_EPOCH, seed).0).unwrap()
    }

    fn lines(journal: &Journal) -> Vec<String> {
        String::from_utf8(journal.read().unwrap()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_start_is_a_line_with_identity() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), 1);
        let lines = lines(&journal);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].starts_with("1970-01-01T00:00:00.000000000Z started host=web-0 incarnation=2 epoch=7 writer=")
        );
        assert!(lines[0].ends_with("seq=0"), "{lines:?}");
    }

    #[test]
    fn two_writers_at_once_are_seen_by_both() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = journal(dir.path(), 1);
        let two = journal(dir.path(), 2);
        one.append("x").unwrap();
        let lines = lines(&one);
        assert!(lines[1].contains(&format!("beside={}", one.writer)), "{lines:?}");
        assert!(lines[2].ends_with(&format!("overtaken-by={}", two.writer)), "{lines:?}");
    }

    #[test]
    fn writers_one_after_the_other_are_not_taken_for_two() {
        let dir = tempfile::tempdir().unwrap();
        drop(journal(dir.path(), 1));
        let mut two = journal(dir.path(), 2);
        two.append("x").unwrap();
        let text = lines(&two).join("\n");
        assert!(!text.contains("beside") && !text.contains("overtaken"), "{text}");
    }

    #[test]
    fn requests_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Mutex::new(journal(dir.path(), 1));
        let ask = |text: &str| Request::read(text.as_bytes()).unwrap().handle(&journal);
        assert_eq!(ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), (200, b"ok\n".to_vec()));
        let (code, line) = ask("POST /append HTTP/1.1\r\nContent-Length: 9\r\n\r\na\nseq=99\n");
        assert_eq!(code, 200);
        let (_, all) = ask("GET /?x HTTP/1.0\r\n\r\n");
        assert!(all.ends_with(&line));
        assert_eq!(all.iter().filter(|b| **b == b'\n').count(), 2);
        assert_eq!(ask("GET /x HTTP/1.1\r\n\r\n").0, 404);
        assert_eq!(ask("DELETE / HTTP/1.1\r\n\r\n").0, 405);
    }

    #[test]
    fn broken_requests_are_refused() {
        for text in ["", "GET\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"]
        {
            assert!(Request::read(text.as_bytes()).is_err(), "{text:?}");
        }
        let long = format!("POST /append HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BYTES + 1);
        assert!(Request::read(long.as_bytes()).is_err());
    }

    #[test]
    fn options_come_from_arguments_before_the_environment() {
        let parse = |args: &[&str], env: Option<&str>| {
            Options::parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), env.map(PathBuf::from))
        };
        assert_eq!(parse(&[], None).unwrap().data, Path::new("/data/journal"));
        assert_eq!(parse(&[], Some("/x")).unwrap().data, Path::new("/x"));
        let both = parse(&["--data=/y", "--listen", "127.0.0.1:0"], Some("/x")).unwrap();
        assert_eq!(both, Options { listen: "127.0.0.1:0".into(), data: "/y".into() });
        assert!(parse(&["--listen"], None).is_err());
        assert!(parse(&["--color", "red"], None).is_err());
    }
}
