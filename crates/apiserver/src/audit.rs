//! The audit log: who asked for what, and what came of it, one line of JSON (`audit.k8s.io/v1` Event) per request.
//!
//! Level `Metadata`: no body, asked or answered, is ever in it; so no secret is, nor any token. Requests never wait
//! for it: lines queue up to a limit, a thread of its own writes them, and what does not fit is counted and said.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ambient::Ambient;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::auth::Identity;
use crate::route::{Route, Target};

/// Events that wait to be written.
const QUEUE: usize = 10_000;
/// Longest user agent that is noted, in characters, as upstream.
const AGENT_MAX: usize = 1024;
/// Longest address (path and query) that is noted, in characters.
const URI_MAX: usize = 4096;

/// Where the log is, and how it is kept small.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file. Older ones lie beside it, with the time in their names.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside, in bytes.
    pub max_bytes: u64,
    /// How many are kept besides the newest; 0 keeps all.
    pub max_backups: usize,
}

/// A log that is being written.
pub struct Log {
    queue: Mutex<Option<SyncSender<Event>>>,
    dropped: Arc<AtomicU64>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens the file, and goes on where it ends.
    pub fn open(options: Options, ambient: Ambient) -> io::Result<Arc<Self>> {
        let files = Files::open(options, ambient)?;
        Self::over(Box::new(files), QUEUE)
    }

    /// A log into anything, with a queue of so many.
    fn over(sink: Box<dyn Sink>, queue: usize) -> io::Result<Arc<Self>> {
        let (sender, receiver) = sync_channel(queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        let writer =
            std::thread::Builder::new().name("audit".into()).spawn(move || write_all(sink, &receiver, &lost))?;
        Ok(Arc::new(Self { queue: Mutex::new(Some(sender)), dropped, writer: Mutex::new(Some(writer)) }))
    }

    /// Notes an event, or counts it as dropped. Never waits for the disk.
    pub(crate) fn note(&self, event: Event) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = &*queue else { return };
        match queue.try_send(event) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => _ = self.dropped.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// How many events were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what waits and closes the file. What comes afterwards is not noted.
    pub fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // It ends when it has written what is queued; a panic there has been told already.
            let _ = writer.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

/// What is noted of a request.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Its id, also told to the client.
    pub(crate) id: String,
    /// `ResponseComplete`, or `ResponseStarted` for what goes on.
    pub(crate) stage: &'static str,
    /// Path and query.
    pub(crate) uri: String,
    /// As authorization names it.
    pub(crate) verb: String,
    /// Who asked; `None` where that could not be established.
    pub(crate) caller: Option<Identity>,
    /// For whom.
    pub(crate) impersonated: Option<Identity>,
    /// From where.
    pub(crate) address: Option<String>,
    /// The program.
    pub(crate) agent: String,
    /// About what.
    pub(crate) target: Option<Target>,
    /// What came of it.
    pub(crate) code: u16,
    /// When it arrived.
    pub(crate) received: Timestamp,
    /// When it was answered.
    pub(crate) answered: Timestamp,
}

/// Put on an answer by who knows it: for whom the request was made.
#[derive(Clone, Debug)]
pub(crate) struct Impersonated(pub(crate) Identity);

/// Put on an answer by who knows it: the name of what was created.
#[derive(Clone, Debug)]
pub(crate) struct Named(pub(crate) String);

/// Put on a request by the listener: where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin(pub(crate) std::net::IpAddr);

impl Event {
    /// What can be said of a request before it is answered.
    pub(crate) fn of(parts: &http::request::Parts, ambient: &Ambient) -> Self {
        let route = crate::route::parse(parts.uri.path());
        let query = crate::query::Query::parse(parts.uri.query().unwrap_or_default());
        let (verb, target) = match route {
            Route::Document(_) => (parts.method.as_str().to_ascii_lowercase(), None),
            Route::Resource(target) => {
                let watch = target.watch || query.flag("watch");
                let verb = crate::handler::verb_of(&parts.method, &target, watch);
                (verb.map_or_else(|| parts.method.as_str().to_ascii_lowercase(), str::to_owned), Some(target))
            }
        };
        let now = ambient.now();
        let uri = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let agent = parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Self {
            id: ambient.uid(),
            stage: if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" },
            uri: uri.chars().take(URI_MAX).collect(),
            verb,
            caller: parts.extensions.get::<Identity>().cloned(),
            impersonated: None,
            address: parts.extensions.get::<Origin>().map(|from| from.0.to_string()),
            agent: agent.chars().take(AGENT_MAX).collect(),
            target,
            code: 0,
            received: now,
            answered: now,
        }
    }

    /// With what the answer tells.
    pub(crate) fn answered<B>(mut self, response: &http::Response<B>, ambient: &Ambient) -> Self {
        self.code = response.status().as_u16();
        self.impersonated = response.extensions().get::<Impersonated>().map(|i| i.0.clone());
        if let (Some(target), Some(named)) = (&mut self.target, response.extensions().get::<Named>())
            && target.name.is_empty()
        {
            target.name.clone_from(&named.0);
        }
        self.answered = ambient.now();
        self
    }

    /// The line.
    fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": self.id,
            "stage": self.stage,
            "requestURI": self.uri,
            "verb": self.verb,
            "user": self.caller.as_ref().map_or_else(|| json!({}), who),
            "responseStatus": {"metadata": {}, "code": self.code},
            "requestReceivedTimestamp": micros(self.received),
            "stageTimestamp": micros(self.answered),
        });
        if let Some(impersonated) = &self.impersonated {
            value["impersonatedUser"] = who(impersonated);
        }
        if let Some(address) = &self.address {
            value["sourceIPs"] = json!([address]);
        }
        if !self.agent.is_empty() {
            value["userAgent"] = self.agent.as_str().into();
        }
        if let Some(target) = &self.target {
            value["objectRef"] = about(target);
        }
        let decision = match self.code {
            401 => return value,
            403 => "forbid",
            _ => "allow",
        };
        value["annotations"] = json!({"authorization.k8s.io/decision": decision});
        value
    }
}

fn who(identity: &Identity) -> Value {
    let mut value = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        value["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        value["extra"] = json!(identity.extra);
    }
    value
}

fn about(target: &Target) -> Value {
    let mut value = json!({"resource": target.plural, "apiVersion": target.version});
    let parts = [
        ("apiGroup", &target.group),
        ("namespace", &target.namespace),
        ("name", &target.name),
        ("subresource", &target.subresource),
    ];
    for (field, text) in parts {
        if !text.is_empty() {
            value[field] = text.as_str().into();
        }
    }
    value
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Where lines go.
trait Sink: Send {
    /// Takes a line, its end included.
    fn line(&mut self, line: &[u8]) -> io::Result<()>;
    /// Nothing more waits for now.
    fn rest(&mut self) -> io::Result<()>;
}

/// Writes events until there are no more to come.
fn write_all(mut sink: Box<dyn Sink>, events: &Receiver<Event>, dropped: &AtomicU64) {
    let mut told = 0;
    let mut well = true;
    while let Ok(first) = events.recv() {
        let mut next = Some(first);
        while let Some(event) = next {
            let mut line = event.to_value().to_string().into_bytes();
            line.push(b'\n');
            tell_failure(sink.line(&line), &mut well);
            next = events.try_recv().ok();
        }
        tell_failure(sink.rest(), &mut well);
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            tracing::warn!(dropped = lost - told, "the audit log could not keep up; events are missing from it");
            told = lost;
        }
    }
}

/// Says a failure once, until it works again.
fn tell_failure(result: io::Result<()>, well: &mut bool) {
    if let (Err(error), true) = (&result, *well) {
        tracing::error!(%error, "the audit log cannot be written; events are missing from it");
    }
    *well = result.is_ok();
}

/// The file, and those put aside.
struct Files {
    options: Options,
    ambient: Ambient,
    file: BufWriter<File>,
    bytes: u64,
}

impl Files {
    fn open(options: Options, ambient: Ambient) -> io::Result<Self> {
        let file = append(&options.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { options, ambient, file: BufWriter::new(file), bytes })
    }

    /// Puts the file aside, begins another, and removes what is too old.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let time = self.ambient.now().strftime("%Y-%m-%dT%H-%M-%S").to_string();
        let aside = (0..1000)
            .map(|n| self.named(&format!("{time}.{n:03}")))
            .find(|path| !path.exists())
            .ok_or_else(|| io::Error::other("a thousand files of this second are there already"))?;
        std::fs::rename(&self.options.path, aside)?;
        self.file = BufWriter::new(append(&self.options.path)?);
        self.bytes = 0;
        if self.options.max_backups > 0 {
            let mut old: VecDeque<PathBuf> = self.aside()?.into();
            while old.len() > self.options.max_backups {
                if let Some(oldest) = old.pop_front() {
                    std::fs::remove_file(oldest)?;
                }
            }
        }
        Ok(())
    }

    /// Name and ending of the file.
    fn name(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let ending = part(self.options.path.extension());
        let ending = if ending.is_empty() { ending } else { format!(".{ending}") };
        (part(self.options.path.file_stem()), ending)
    }

    fn named(&self, time: &str) -> PathBuf {
        let (stem, ending) = self.name();
        self.options.path.with_file_name(format!("{stem}-{time}{ending}"))
    }

    /// The files put aside, oldest first.
    fn aside(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, ending) = self.name();
        let folder = self.options.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&ending));
            if time.is_some_and(|t| {
                t.len() == "2026-01-01T00-00-00.000".len() && t.starts_with(|c: char| c.is_ascii_digit())
            }) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

impl Sink for Files {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.options.max_bytes {
            self.rotate()?;
        }
        self.bytes += length;
        self.file.write_all(line)
    }

    fn rest(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(uri: &str) -> Event {
        let request = http::Request::get(uri).header("user-agent", "test/1").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        Event::of(&parts, &Ambient::system())
    }

    /// Takes a line only when it is allowed to.
    struct Slow(Receiver<()>);

    impl Sink for Slow {
        fn line(&mut self, _: &[u8]) -> io::Result<()> {
            self.0.recv().map_err(io::Error::other)
        }

        fn rest(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_stands_still_holds_up_nobody_and_what_is_lost_is_counted() {
        let (allow, allowed) = sync_channel(0);
        let log = Log::over(Box::new(Slow(allowed)), 4).unwrap();
        // One is being written at most, four wait: of twenty, fifteen at least are lost, and nothing here waits.
        for _ in 0..20 {
            log.note(event("/api/v1/pods"));
        }
        let dropped = log.dropped();
        assert!((15..=16).contains(&dropped), "{dropped}");
        drop(allow);
        log.close();
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 1);
        let options = Options { path: path.clone(), max_bytes: 100, max_backups: 2 };
        let mut files = Files::open(options, ambient).unwrap();
        std::fs::write(dir.path().join("audit-of-mine.log"), "mine").unwrap();
        for n in 0..5u8 {
            files.line(&[b'0' + n; 80]).unwrap();
            clock.advance(std::time::Duration::from_secs(1));
        }
        files.rest().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [b'4'; 80]);
        let kept = files.aside().unwrap();
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(std::fs::read(&kept[0]).unwrap(), [b'2'; 80]);
        assert!(dir.path().join("audit-of-mine.log").exists());
    }

    #[test]
    fn a_line_is_upstreams_event() {
        let (ambient, _) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 1);
        let mut request = http::Request::post("/apis/apps/v1/namespaces/ns/statefulsets?x=1").body(()).unwrap();
        request.extensions_mut().insert(Identity::user("ann", &["crew"]));
        let (parts, ()) = request.into_parts();
        let mut response = http::Response::builder().status(201).body(()).unwrap();
        response.extensions_mut().insert(Named("web".to_owned()));
        response.extensions_mut().insert(Impersonated(Identity::user("bob", &[])));
        let mut line = Event::of(&parts, &ambient).answered(&response, &ambient).to_value();
        assert!(line["auditID"].take().is_string());
        assert_eq!(
            line,
            json!({
                "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": null,
                "stage": "ResponseComplete", "requestURI": "/apis/apps/v1/namespaces/ns/statefulsets?x=1",
                "verb": "create",
                "user": {"username": "ann", "groups": ["crew", "system:authenticated"]},
                "impersonatedUser": {"username": "bob", "groups": ["system:authenticated"]},
                "objectRef": {"resource": "statefulsets", "apiGroup": "apps", "apiVersion": "v1",
                    "namespace": "ns", "name": "web"},
                "responseStatus": {"metadata": {}, "code": 201},
                "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z",
                "stageTimestamp": "2026-01-01T00:00:00.000000Z",
                "annotations": {"authorization.k8s.io/decision": "allow"},
            })
        );
    }
}
