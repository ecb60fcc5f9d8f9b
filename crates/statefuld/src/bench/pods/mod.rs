//! `statefuld bench pods`: what it takes to start pods, to run programs in them, to read their logs, and to have them.
//!
//! ```text
//!   one instance, in a process of its own ── starts ── streams ── idle ──▶ report
//!   the same server, in the same numbers ─── runc, containerd ──────────────▲
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `instance` | the instance that is measured, and its end |
//! | `starts`, `split` | sets from apply to Ready; the split by step (pure) |
//! | `streams` | `true` run through the API; a log that is followed while it is written |
//! | `idle` | memory and processor time of pods that do nothing |
//! | `reference` | runc and containerd, driven to do the same |
//! | `report` | all of it as tables and as JSON |
//!
//! Whatever happens, what was made is removed: after a failure, and after SIGINT or SIGTERM, too.

mod idle;
mod instance;
mod reference;
mod report;
mod split;
mod starts;
mod streams;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;
use crate::say;
use instance::Instance;
use report::Report;

/// Runs the command, and prints what it found.
pub(super) async fn run(args: &cli::BenchPods, ambient: &Ambient) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("`bench pods` starts containers and needs root");
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let interrupted = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        say::note("interrupted; cleaning up");
    };
    let mut interrupted = std::pin::pin!(interrupted);
    let mut report = Report::default();

    let scratch = super::scratch(ambient)?;
    let instance = Instance::start(&scratch.0, args)?;
    let measured = tokio::select! {
        measured = measure(args, &instance, &mut report, ambient) => measured,
        () = &mut interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    let stopped = instance.stop().await;
    measured?;
    stopped?;

    for reference in &args.reference {
        let name = match reference {
            cli::Reference::Runc => "runc",
            cli::Reference::Containerd => "containerd",
            cli::Reference::None => continue,
        };
        let mut reference = match reference::Reference::prepare(*reference, ambient).await {
            Ok(reference) => reference,
            Err(error) => {
                report.not_measured.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        let measured = tokio::select! {
            measured = reference.measure(args, &mut report, ambient) => Some(measured),
            () = &mut interrupted => None,
        };
        let cleaned = reference.clean_up().await;
        cleaned.with_context(|| format!("what {name} was given is not all removed"))?;
        match measured {
            Some(Ok(())) => {}
            // What was measured before is worth to be told.
            Some(Err(error)) => report.not_measured.push(format!("{name}: {error:#}")),
            None => bail!("interrupted"),
        }
    }
    report.show(args.output)
}

/// All that is measured of an instance.
async fn measure(args: &cli::BenchPods, instance: &Instance, report: &mut Report, ambient: &Ambient) -> Result<()> {
    let client = instance.ready().await?;
    starts::run(args, &client, report, ambient).await?;
    streams::run(args, &client, report, ambient).await?;
    idle::run(args, instance, &client, report, ambient).await
}
