//! The same server, started in the same numbers by others, on the same machine right after.
//!
//! | module | drives |
//! |---|---|
//! | `runc` | runc by hand: a bundle, a network namespace with a pair of interfaces on a bridge, `runc run` |
//! | `containerd`, `cri` | a containerd of its own through its CRI, as a kubelet does |
//! | `root` | what the server sees as its root, as a folder and as an image |
//!
//! Neither is given what statefuld does besides: an API, claims, tokens, names, readiness in a status. Their pods count
//! as ready when the server answers, which is asked for every millisecond.

mod containerd;
mod cri;
mod root;
mod runc;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use futures::future::{join_all, try_join_all};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::report::{Report, Start, Step};
use crate::bench::millis;
use crate::cli;
use crate::say;

/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two questions.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// How long one question may take.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Where servers listen.
const PORT: u16 = 8080;

/// Who is measured.
pub(super) enum Reference {
    /// runc.
    Runc(runc::Runc),
    /// containerd.
    Containerd(containerd::Containerd),
}

impl Reference {
    /// Makes ready what all pods need. An error says what is not installed; then nothing is left.
    pub(super) async fn prepare(which: cli::Reference, ambient: &Ambient) -> Result<Self> {
        Ok(match which {
            cli::Reference::Runc => Self::Runc(runc::Runc::prepare(ambient).await?),
            cli::Reference::Containerd => Self::Containerd(containerd::Containerd::prepare(ambient).await?),
            cli::Reference::None => bail!("there is nothing to compare with"),
        })
    }

    /// Starts pods in every number, one after the other and all at once.
    pub(super) async fn measure(
        &mut self,
        args: &cli::BenchPods,
        report: &mut Report,
        ambient: &Ambient,
    ) -> Result<()> {
        for &pods in &args.pods {
            for at_once in [false, true] {
                let (order, by) = (if at_once { "at once" } else { "in order" }, self.name());
                let (mut sums, mut whole) = (Laps::default(), Vec::new());
                for round in 1..=args.rounds {
                    say::note(format_args!("{by}: {pods} {order}, round {round} of {}", args.rounds));
                    let begin = ambient.boottime();
                    let all = self.start_all(pods, at_once, ambient).await?;
                    whole.push(ambient.boottime().saturating_sub(begin));
                    all.iter().for_each(|laps| sums.add(laps));
                    let removed = join_all((0..pods).map(|n| self.remove(n))).await;
                    removed.into_iter().collect::<Result<()>>()?;
                }
                whole.sort_unstable();
                let all_ready_ms = millis(whole[whole.len() / 2]);
                let steps = sums.means(pods * args.rounds);
                report.starts.push(Start { by, order, pods, rounds: args.rounds, all_ready_ms, steps });
            }
        }
        if let Self::Containerd(containerd) = self {
            containerd.idle(args, report, ambient).await?;
        }
        Ok(())
    }

    async fn start_all(&self, pods: u32, at_once: bool, ambient: &Ambient) -> Result<Vec<Laps>> {
        if at_once {
            return try_join_all((0..pods).map(|n| self.start(n, ambient))).await;
        }
        let mut all = Vec::new();
        for n in 0..pods {
            all.push(self.start(n, ambient).await?);
        }
        Ok(all)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Runc(_) => runc::NAME,
            Self::Containerd(_) => containerd::NAME,
        }
    }

    /// Starts the pod of that number; returns when its server answers.
    async fn start(&self, n: u32, ambient: &Ambient) -> Result<Laps> {
        match self {
            Self::Runc(runc) => runc.start(n, ambient).await,
            Self::Containerd(containerd) => containerd.start(n, ambient).await,
        }
    }

    async fn remove(&self, n: u32) -> Result<()> {
        match self {
            Self::Runc(runc) => runc.remove(n).await,
            Self::Containerd(containerd) => containerd.remove(n).await,
        }
    }

    /// Removes whatever is there of it.
    pub(super) async fn clean_up(self) -> Result<()> {
        match self {
            Self::Runc(runc) => runc.clean_up().await,
            Self::Containerd(containerd) => containerd.clean_up().await,
        }
    }
}

/// Seconds of each step.
#[derive(Clone, Debug, Default, PartialEq)]
struct Laps(Vec<(&'static str, f64)>);

impl Laps {
    fn add(&mut self, other: &Self) {
        for (step, seconds) in &other.0 {
            match self.0.iter_mut().find(|(known, _)| known == step) {
                Some((_, sum)) => *sum += seconds,
                None => self.0.push((step, *seconds)),
            }
        }
    }

    fn means(&self, pods: u32) -> Vec<Step> {
        let mean = |seconds: f64| seconds * 1000.0 / f64::from(pods.max(1));
        self.0.iter().map(|(step, sum)| Step { step: (*step).to_owned(), mean_ms: mean(*sum) }).collect()
    }
}

/// Times steps that follow each other.
struct Clock<'a> {
    ambient: &'a Ambient,
    since: Duration,
    laps: Laps,
}

impl<'a> Clock<'a> {
    fn start(ambient: &'a Ambient) -> Self {
        Self { ambient, since: ambient.boottime(), laps: Laps::default() }
    }

    /// A step is done.
    fn lap(&mut self, step: &'static str) {
        let now = self.ambient.boottime();
        self.laps.0.push((step, now.saturating_sub(self.since).as_secs_f64()));
        self.since = now;
    }
}

/// Waits until a server answers that it is well.
async fn until_it_answers(address: Ipv4Addr) -> Result<()> {
    let answered = async {
        while !matches!(tokio::time::timeout(ASK_LIMIT, is_well(address)).await, Ok(Ok(true))) {
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let answered = tokio::time::timeout(ANSWER_LIMIT, answered).await;
    answered.with_context(|| format!("the server at {address} does not answer"))
}

async fn is_well(address: Ipv4Addr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((address, PORT)).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(head.ends_with(b" 200"))
}

/// Where a program lies, in the folders that are searched, or these besides.
fn program(name: &str, package: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed (Debian's package {package} has it)"))
}

/// Runs a program that is to succeed, with this on its standard input.
async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let named = || format!("{} {}", program.display(), arguments.join(" "));
    let mut child = command.kill_on_drop(true).spawn().with_context(named)?;
    let ran = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(COMMAND_LIMIT, ran).await.with_context(named)?.with_context(named)?;
    if !output.status.success() {
        bail!("{}: {}", named(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_of_all_pods_become_means() {
        let mut sums = Laps::default();
        sums.add(&Laps(vec![("made", 0.010), ("ran", 0.100)]));
        sums.add(&Laps(vec![("made", 0.020), ("ran", 0.300)]));
        let means: Vec<(String, f64)> = sums.means(2).into_iter().map(|s| (s.step, s.mean_ms.round())).collect();
        assert_eq!(means, [("made".to_owned(), 15.0), ("ran".to_owned(), 200.0)]);
    }
}
