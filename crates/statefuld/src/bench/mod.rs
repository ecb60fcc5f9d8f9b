//! `statefuld bench`: what this machine does with this binary.
//!
//! | module | measures |
//! |---|---|
//! | `start` | the budgets: exec to ready, pods, memory |
//! | `api` | writes, lists, watches, memory and start-up, as they grow |
//! | `sets` | StatefulSets from create to Ready, updates, deletes, against any server |
//! | `nodes` | simulated nodes, as `sets` needs them |
//! | `pods` | pods with real containers: starts step by step, exec, logs, idle ones; beside runc and containerd |
//! | `etcd` | the same writes and watches against etcd |
//! | `grpc` | the little of gRPC and protobuf that `etcd` and `pods` need |
//! | `load` | writers and watchers, whatever is behind them |
//! | `process` | a server in a process of its own, and what it takes |
//!
//! All of it is for people to run by hand and to compare on one machine; no test looks at a figure.

mod api;
mod etcd;
mod grpc;
mod load;
mod nodes;
mod pods;
mod process;
mod sets;
mod start;

use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::{self, Output};
use crate::say;

/// Runs the command.
pub async fn run(args: cli::Bench) -> Result<ExitCode> {
    let ambient = Ambient::system();
    if let cli::BenchWhat::Pods(args) = &args.what {
        pods::run(args, &ambient).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let (figures, output) = match args.what {
        cli::BenchWhat::Start(args) => (start::run(&args, &ambient).await?, args.output),
        cli::BenchWhat::Api(args) => (api::run(&args, &ambient).await?, args.load.output),
        cli::BenchWhat::Sets(args) => (sets::run(&args, &ambient).await?, args.output),
        cli::BenchWhat::Etcd(args) => (etcd::run(&args, &ambient).await?, args.load.output),
        cli::BenchWhat::Pods(_) => unreachable!("it has a report of its own"),
    };
    show(&figures, output)?;
    Ok(ExitCode::SUCCESS)
}

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    what: String,
    measured: f64,
    unit: &'static str,
    /// What it should not pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
}

impl Figure {
    fn new(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self { what: what.into(), measured, unit, budget: None }
    }

    fn within(self, budget: f64) -> Self {
        Self { budget: Some(budget), ..self }
    }
}

fn show(figures: &[Figure], output: Output) -> Result<()> {
    if output == Output::Json {
        say::print(serde_json::to_string_pretty(figures)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let budgets = figures.iter().any(|figure| figure.budget.is_some());
    table.set_header(if budgets { vec!["WHAT", "MEASURED", "BUDGET"] } else { vec!["WHAT", "MEASURED"] });
    for figure in figures {
        let digits = match figure.measured.abs() {
            small if small < 10.0 => 2,
            middling if middling < 100.0 => 1,
            _ => 0,
        };
        let mut row = vec![figure.what.clone(), format!("{:.digits$} {}", figure.measured, figure.unit)];
        row.extend(figure.budget.map(|budget| format!("{budget:.0} {}", figure.unit)));
        table.add_row(row);
    }
    say::print(table);
    Ok(())
}

/// A directory that is removed when dropped.
struct Scratch(std::path::PathBuf);

fn scratch(ambient: &Ambient) -> Result<Scratch> {
    let path = std::env::temp_dir().join(format!("statefuld-bench-{}", ambient.suffix(10)));
    std::fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    Ok(Scratch(path))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
