//! The socket over which `statefuld down`, `backup` and a detaching `up` speak to the daemon.
//!
//! One connection, one request: a line of JSON that begins with magic and version; then lines of JSON back until
//! [`Answer::Done`] or [`Answer::Failed`]. The socket lies in the data directory, for root alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Version that this program speaks.
const VERSION: u32 = 1;
const MAGIC: &str = "statefuld-control";
/// No line of this protocol is longer.
const MAX_LINE: u64 = 64 * 1024;
/// How long a last answer may take to leave.
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    magic: String,
    version: u32,
    request: Request,
}

/// What the daemon can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Request {
    /// Answer once the API serves.
    Ready,
    /// Stop everything.
    #[serde(rename_all = "camelCase")]
    Down {
        /// Leave the pods running.
        keep_pods: bool,
    },
    /// Write the state of the API into a file.
    #[serde(rename_all = "camelCase")]
    Backup {
        /// Where to, absolute.
        file: PathBuf,
    },
}

/// What the daemon says meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "text")]
pub enum Answer {
    /// Something happened; a sentence.
    Progress(String),
    /// It is done.
    Done,
    /// It cannot be done; why.
    Failed(String),
}

/// A request that arrived, and where its answers go.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Answers; the connection closes after the last one.
    pub answers: mpsc::Sender<Answer>,
}

impl Call {
    /// Gives the last answer and waits, a moment at most, until it is on its way.
    pub async fn finish(answers: &mpsc::Sender<Answer>, last: Answer) {
        let heard = async {
            if answers.send(last).await.is_ok() {
                answers.closed().await;
            }
        };
        // Somebody who neither reads nor hangs up is not waited for.
        let _ = tokio::time::timeout(LAST_ANSWER_LIMIT, heard).await;
    }
}

/// Opens the socket and passes on what is asked; also gives the way to ask from within the process.
pub fn listen(path: &Path) -> Result<(mpsc::Sender<Call>, mpsc::Receiver<Call>)> {
    use std::os::unix::fs::PermissionsExt as _;
    // A former daemon's socket; whoever calls this holds the directory's lock.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("{} cannot be protected", path.display()))?;
    let (calls, arrivals) = mpsc::channel(8);
    let caller = calls.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, calls.clone()));
        }
    });
    Ok((caller, arrivals))
}

async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>) {
    let (read, mut write) = stream.into_split();
    let (answers, mut to_send) = mpsc::channel(64);
    let mut line = String::new();
    if BufReader::new(read.take(MAX_LINE)).read_line(&mut line).await.is_err() {
        return;
    }
    match serde_json::from_str::<Envelope>(&line) {
        Ok(envelope) if envelope.magic == MAGIC && envelope.version == VERSION => {
            if calls.send(Call { request: envelope.request, answers }).await.is_err() {
                return;
            }
        }
        Ok(envelope) => {
            let text = format!("control protocol version {} is not spoken here, only {VERSION}", envelope.version);
            let _ = answers.send(Answer::Failed(text)).await;
            drop(answers);
        }
        Err(error) => {
            let _ = answers.send(Answer::Failed(format!("not a control request: {error}"))).await;
            drop(answers);
        }
    }
    while let Some(answer) = to_send.recv().await {
        let mut text = serde_json::to_string(&answer).expect("answers are plain data");
        text.push('\n');
        let gone = write.write_all(text.as_bytes()).await.is_err();
        // The last answer closes the channel: that is how the daemon knows that it was heard.
        if matches!(answer, Answer::Done | Answer::Failed(_)) {
            return;
        }
        if gone {
            break;
        }
    }
    // A client that went away does not stop what it asked for: drain, so that the daemon never waits for it.
    while to_send.recv().await.is_some() {}
}

/// Asks a daemon, passing on its progress.
pub async fn ask(path: &Path, request: Request, mut progress: impl FnMut(&str)) -> Result<()> {
    let mut stream =
        UnixStream::connect(path).await.with_context(|| format!("nobody answers at {}", path.display()))?;
    let envelope = Envelope { magic: MAGIC.to_owned(), version: VERSION, request };
    let mut line = serde_json::to_string(&envelope).expect("requests are plain data");
    line.push('\n');
    stream.write_all(line.as_bytes()).await.context("the daemon does not listen")?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await.context("the daemon's answer was cut off")? {
        match serde_json::from_str(&line).context("the daemon answered something unknown")? {
            Answer::Progress(text) => progress(&text),
            Answer::Done => return Ok(()),
            Answer::Failed(why) => bail!("{why}"),
        }
    }
    bail!("the daemon ended before it had answered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_reaches_the_daemon_and_its_answers_come_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let (_caller, mut calls) = listen(&path).expect("a socket");
        let daemon = tokio::spawn(async move {
            let call = calls.recv().await.expect("a call");
            assert_eq!(call.request, Request::Down { keep_pods: true });
            call.answers.send(Answer::Progress("web-1 stopped".to_owned())).await.expect("the asker listens");
            call.answers.send(Answer::Done).await.expect("the asker listens");
        });
        let mut heard = Vec::new();
        ask(&path, Request::Down { keep_pods: true }, |text| heard.push(text.to_owned())).await.expect("done");
        assert_eq!(heard, ["web-1 stopped"]);
        daemon.await.expect("no panic");
    }

    #[tokio::test]
    async fn another_version_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("control.sock");
        let _calls = listen(&path).expect("a socket");
        let mut stream = UnixStream::connect(&path).await.expect("it listens");
        stream
            .write_all(b"{\"magic\":\"statefuld-control\",\"version\":99,\"request\":{\"kind\":\"ready\"}}\n")
            .await
            .expect("it reads");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await.expect("an answer");
        assert!(answer.contains("version 99 is not spoken here"), "{answer}");
    }
}
