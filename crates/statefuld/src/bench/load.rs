//! Writers and watchers, whatever is behind them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Figure, millis};

/// Nothing measured here takes longer, or something is wrong.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

/// Makes one durable write; the number is never the same.
pub(super) type Write = Arc<dyn Fn(u64) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// What many writers got done.
pub(super) struct Throughput {
    per_second: f64,
    latencies: Vec<Duration>,
}

impl Throughput {
    /// Its rows in the table.
    pub(super) fn figures(mut self, what: &str, writers: usize) -> Vec<Figure> {
        self.latencies.sort_unstable();
        let of = if writers == 1 { "1 writer".to_owned() } else { format!("{writers} writers") };
        vec![
            Figure::new(format!("{what}, {of}"), self.per_second, "/s"),
            Figure::new("  one takes, p50", millis(percentile(&self.latencies, 50)), "ms"),
            Figure::new("  one takes, p99", millis(percentile(&self.latencies, 99)), "ms"),
        ]
    }
}

/// The value below which so many percent lie; of sorted ones.
pub(super) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// Lets so many writers write for so long; each waits for its answer before it writes again.
pub(super) async fn writers(
    write: &Write,
    writers: usize,
    duration: Duration,
    ambient: &Ambient,
) -> Result<Throughput> {
    let begin = ambient.boottime();
    let end = begin + duration;
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let (write, ambient) = (write.clone(), ambient.clone());
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            let mut now = ambient.boottime();
            for n in 0u64.. {
                if now >= end {
                    break;
                }
                write((writer as u64) << 32 | n).await?;
                let then = ambient.boottime();
                latencies.push(then.saturating_sub(now));
                now = then;
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done.context("a writer panicked")??);
    }
    let seconds = ambient.boottime().saturating_sub(begin).as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "millions at most")]
    let per_second = latencies.len() as f64 / seconds;
    Ok(Throughput { per_second, latencies })
}

/// Makes so many writes, many at a time.
pub(super) async fn fill(write: &Write, count: usize) -> Result<()> {
    const AT_A_TIME: usize = 64;
    let mut tasks = JoinSet::new();
    for n in 0..count as u64 {
        if tasks.len() >= AT_A_TIME
            && let Some(done) = tasks.join_next().await
        {
            done.context("a writer panicked")??;
        }
        tasks.spawn(write(n));
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a writer panicked")??;
    }
    Ok(())
}

/// What a watcher's bytes are looked through for: this, and the change's number in four digits.
pub(super) const MARK: &str = "change-";

/// A running watch: gives what arrives, piece by piece.
pub(super) type Pieces = mpsc::Receiver<bytes::Bytes>;

/// What fan-out showed: how long each change took to each watcher, from just before its write was sent.
pub(super) struct FanOut(Vec<Duration>);

impl FanOut {
    /// Its rows in the table.
    pub(super) fn figures(mut self, watchers: usize) -> Vec<Figure> {
        self.0.sort_unstable();
        vec![
            Figure::new(format!("a write to each of {watchers} watchers, p50"), millis(percentile(&self.0, 50)), "ms"),
            Figure::new(format!("a write to each of {watchers} watchers, p99"), millis(percentile(&self.0, 99)), "ms"),
        ]
    }
}

/// Writes changes one after the other, each when all watchers have seen the one before.
pub(super) async fn fan_out(watches: Vec<Pieces>, write: &Write, changes: usize, ambient: &Ambient) -> Result<FanOut> {
    let watchers = watches.len();
    let sent: Arc<Mutex<Duration>> = Arc::default();
    let (seen, mut heard) = mpsc::channel::<(usize, Duration)>(watchers.max(1));
    let (stop, stopped) = watch::channel(());
    let mut tasks = JoinSet::new();
    for mut pieces in watches {
        let (seen, ambient, sent, mut stopped) = (seen.clone(), ambient.clone(), sent.clone(), stopped.clone());
        tasks.spawn(async move {
            let mut scanner = Scanner::default();
            loop {
                let piece = tokio::select! {
                    piece = pieces.recv() => piece,
                    _ = stopped.changed() => return,
                };
                let Some(piece) = piece else { return };
                if let Some(change) = scanner.newest(&piece) {
                    let began = *sent.lock().unwrap_or_else(PoisonError::into_inner);
                    let _ = seen.send((change, ambient.boottime().saturating_sub(began))).await;
                }
            }
        });
    }
    let mut latencies = Vec::with_capacity(watchers * changes);
    for change in 1..=changes {
        *sent.lock().unwrap_or_else(PoisonError::into_inner) = ambient.boottime();
        write(change as u64).await?;
        let mut left = watchers;
        while left > 0 {
            let arrival = tokio::time::timeout(LIMIT, heard.recv()).await;
            let (number, latency) = arrival.context("not every watcher was told")?.context("all watches ended")?;
            if number == change {
                latencies.push(latency);
                left -= 1;
            }
        }
    }
    drop(stop);
    tasks.shutdown().await;
    Ok(FanOut(latencies))
}

/// Finds marks in bytes that arrive in pieces.
#[derive(Default)]
struct Scanner {
    rest: Vec<u8>,
    last: usize,
}

impl Scanner {
    /// The newest change in this piece, if it is newer than all before.
    fn newest(&mut self, piece: &[u8]) -> Option<usize> {
        const DIGITS: usize = 4;
        self.rest.extend_from_slice(piece);
        let mut newest = self.last;
        for at in memchr_all(&self.rest, MARK.as_bytes()) {
            let digits = self.rest.get(at + MARK.len()..at + MARK.len() + DIGITS);
            let number = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| d.parse().ok());
            newest = newest.max(number.unwrap_or(0));
        }
        let keep = self.rest.len().min(MARK.len() + DIGITS);
        self.rest.drain(..self.rest.len() - keep);
        let found = (newest > self.last).then_some(newest);
        self.last = newest;
        found
    }
}

fn memchr_all<'a>(bytes: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(needle.len()).enumerate().filter(move |(_, window)| *window == needle).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_they_are_cut() {
        let text = b"xx change-0001 yy change-0002\n";
        for cut in 0..text.len() {
            let mut scanner = Scanner::default();
            let first = scanner.newest(&text[..cut]);
            let second = scanner.newest(&text[cut..]);
            assert_eq!(first.max(second), Some(2), "cut at {cut}");
            assert_eq!(scanner.newest(text), None, "each is told once");
        }
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (0..100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(50));
        assert_eq!(percentile(&times, 99), Duration::from_millis(99));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
