//! What flows between a container and a client of the API: a program that is run, a log that is followed.

use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use futures::{AsyncReadExt as _, StreamExt as _};
use http::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, LogParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::report::{Exec, Log, Report};
use super::starts;
use crate::bench::load::percentile;
use crate::bench::millis;
use crate::cli;
use crate::say;

/// The pod that is asked. It is on the machine's own root, which has `true`, `seq` and a shell.
const NAME: &str = "bench-shell";
/// What tells its second container to print.
const MARK: &str = "/tmp/go";
/// How long one thing may take.
const LIMIT: Duration = Duration::from_secs(120);
/// A log that has been silent for so long has told what it will tell.
const SILENCE: Duration = Duration::from_secs(10);
/// Digits of a numbered line; with its end it takes 100 bytes.
const DIGITS: usize = 99;
/// The channel that tells how a program ended.
const STATUS: u8 = 3;
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Measures both, as far as they are asked for.
pub(super) async fn run(args: &cli::BenchPods, client: &Client, report: &mut Report, ambient: &Ambient) -> Result<()> {
    if args.execs == 0 && args.log_lines == 0 {
        return Ok(());
    }
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    pods.create(&PostParams::default(), &pod(args.log_lines)?).await.context("the pod cannot be made")?;
    let ready = async {
        while !starts::is_ready(&pods.get(NAME).await?) {
            tokio::time::sleep(POLL).await;
        }
        Ok::<(), kube::Error>(())
    };
    tokio::time::timeout(LIMIT, ready).await.context("the pod for exec and logs was not Ready in time")??;
    if args.execs > 0 {
        report.exec = Some(execs(client, args.execs, ambient).await?);
    }
    if args.log_lines > 0 {
        report.log = Some(log(client, &pods, args.log_lines, ambient).await?);
    }
    pods.delete(NAME, &DeleteParams::default()).await?;
    let gone = async {
        while pods.get_opt(NAME).await?.is_some() {
            tokio::time::sleep(POLL).await;
        }
        Ok::<(), kube::Error>(())
    };
    tokio::time::timeout(LIMIT, gone).await.context("the pod for exec and logs did not go in time")??;
    Ok(())
}

fn pod(lines: u64) -> Result<Pod> {
    let sleep = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let print = format!("while [ ! -e {MARK} ]; do sleep 0.01; done; seq -f '%0{DIGITS}.0f' 1 {lines}; {sleep}");
    let container =
        |name: &str, script: &str| json!({"name": name, "image": "none", "command": ["/bin/sh", "-c", script]});
    let pod = json!({"metadata": {"name": NAME}, "spec": {
        "runtimeClassName": node::agent::translate::HOST_CLASS, "terminationGracePeriodSeconds": 3,
        "containers": [container("idle", sleep), container("printer", &print)]}});
    Ok(serde_json::from_value(pod)?)
}

async fn execs(client: &Client, count: u32, ambient: &Ambient) -> Result<Exec> {
    say::note(format_args!("`true` run {count} times"));
    // What is done for the first time is not measured.
    exec(client, "idle", &["true"]).await?;
    let mut took = Vec::new();
    for _ in 0..count {
        let begin = ambient.boottime();
        exec(client, "idle", &["true"]).await?;
        took.push(ambient.boottime().saturating_sub(begin));
    }
    took.sort_unstable();
    Ok(Exec { count, p50_ms: millis(percentile(&took, 50)), p99_ms: millis(percentile(&took, 99)) })
}

/// Runs a program through the API, as kubectl does: a connection leaves HTTP for a WebSocket, whose channel 3 tells how it
/// ended.
async fn exec(client: &Client, container: &str, command: &[&str]) -> Result<()> {
    let words: String = command.iter().map(|word| format!("&command={}", word.replace('/', "%2F"))).collect();
    let uri = format!("/api/v1/namespaces/default/pods/{NAME}/exec?container={container}&stdout=true{words}");
    let request = Request::get(uri)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "c3RhdGVmdWxkIGJlbmNoIQ==")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .body(kube::client::Body::empty())?;
    let ran = async {
        let response = client.send(request).await.context("exec is not answered")?;
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            bail!("exec is refused: {}", response.status());
        }
        let upgraded = hyper::upgrade::on(response).await.context("the connection does not leave HTTP")?;
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
        while let Some(message) = socket.next().await {
            if let Message::Binary(bytes) = message.context("exec broke off")?
                && let Some((&STATUS, status)) = bytes.split_first()
            {
                let status: Value = serde_json::from_slice(status).context("the end of exec is not JSON")?;
                return if status["status"] == "Success" { Ok(()) } else { bail!("exec: {}", status["message"]) };
            }
        }
        bail!("exec has ended without a word")
    };
    tokio::time::timeout(LIMIT, ran).await.context("exec took too long")?
}

async fn log(client: &Client, pods: &Api<Pod>, lines: u64, ambient: &Ambient) -> Result<Log> {
    say::note(format_args!("a log of {lines} lines"));
    let follow = LogParams { container: Some("printer".to_owned()), follow: true, ..LogParams::default() };
    let mut stream = std::pin::pin!(pods.log_stream(NAME, &follow).await.context("the log is refused")?);
    let begin = ambient.boottime();
    exec(client, "printer", &["touch", MARK]).await?;
    let mut tally = Tally::default();
    let (mut buffer, mut end) = (vec![0; 64 * 1024], begin);
    while tally.last < lines {
        let read = match tokio::time::timeout(SILENCE, stream.read(&mut buffer)).await {
            Ok(read) => read.context("the log broke off")?,
            Err(_) => break,
        };
        if read == 0 {
            break;
        }
        tally.take(&buffer[..read])?;
        end = ambient.boottime();
    }
    let seconds = end.saturating_sub(begin).as_secs_f64().max(f64::EPSILON);
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (per_second, bytes_per_second) = (tally.lines as f64 / seconds, tally.bytes as f64 / seconds);
    Ok(Log {
        lines: tally.lines,
        lost: lines - tally.lines,
        bytes: tally.bytes,
        seconds,
        lines_per_second: per_second,
        megabytes_per_second: bytes_per_second / 1e6,
    })
}

/// Numbered lines that came.
#[derive(Debug, Default)]
struct Tally {
    lines: u64,
    bytes: u64,
    /// The number of the last one.
    last: u64,
    /// The beginning of the next one.
    pending: Vec<u8>,
}

impl Tally {
    /// Takes a piece of the log. A line twice, out of order or cut is an error; one that is missing is not.
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        self.bytes += piece.len() as u64;
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.pending);
                self.line(&line)?;
                // Its room is used again.
                self.pending = line;
                self.pending.clear();
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<()> {
        let text = str::from_utf8(line).unwrap_or_default().trim_end_matches('\n');
        let number: Option<u64> = text.parse().ok().filter(|_| text.len() == DIGITS);
        match number {
            Some(number) if number > self.last => {
                (self.lines, self.last) = (self.lines + 1, number);
                Ok(())
            }
            Some(number) => bail!("line {number} of the log came after line {}", self.last),
            None => bail!("this line of the log was never printed: {text:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> String {
        format!("{number:0DIGITS$}\n")
    }

    #[test]
    fn lines_are_counted_wherever_they_are_cut() {
        let text: String = (1..=50).map(line).collect();
        for size in [1, 7, 99, 100, 101, 4096] {
            let mut tally = Tally::default();
            for piece in text.as_bytes().chunks(size) {
                tally.take(piece).expect("good lines");
            }
            assert_eq!((tally.lines, tally.last, tally.bytes), (50, 50, 5000), "{size}");
        }
    }

    #[test]
    fn a_missing_line_is_counted_and_a_wrong_one_refused() {
        let mut tally = Tally::default();
        tally.take((line(1) + &line(3)).as_bytes()).expect("one is missing");
        assert_eq!((tally.lines, tally.last), (2, 3));
        assert!(tally.take(line(3).as_bytes()).is_err(), "twice");
        assert!(Tally::default().take(b"4\n").is_err(), "cut");
    }
}
