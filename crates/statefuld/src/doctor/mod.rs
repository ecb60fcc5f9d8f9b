//! `statefuld doctor`: whether this machine is good for what it is to do; one line per check, with the remedy.
//!
//! Facts are read first ([`facts`]), then judged without I/O ([`judge`]), so that every verdict can be tested. `up` runs the
//! same checks but the measuring one, and says only what is wrong.

mod facts;
mod judge;
mod system;

use std::path::Path;
use std::process::ExitCode;

use ambient::Ambient;
use anyhow::Result;
use serde::Serialize;

use crate::cli::{self, Output};
use crate::place::DataDir;
use crate::say;

pub use facts::Facts;
pub use judge::judge;

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and something is to be known or can be better.
    Warning,
    /// Pods will not run, or data is not safe.
    Bad,
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub check: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty where all is well.
    pub remedy: String,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, found: found.into(), remedy: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn bad(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Bad, found: found.into(), remedy: remedy.into() }
    }
}

/// Runs the command. Exit code 1 if something is bad.
pub async fn run(args: cli::Doctor) -> Result<ExitCode> {
    let data = DataDir::new(&args.instance.data_dir)?;
    let path = data.path().to_owned();
    let facts = tokio::task::spawn_blocking(move || Facts::read(&path, &Ambient::system(), true)).await?;
    let findings = judge(&facts);
    match args.output {
        Output::Json => say::print(serde_json::to_string_pretty(&findings)?),
        Output::Table => print(&findings),
    }
    let bad = findings.iter().any(|f| f.verdict == Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What `up` says before pods are tried: what keeps them from running. Nothing is measured, so this takes no time.
pub fn what_is_bad(data: &Path, ambient: &Ambient) -> Vec<String> {
    let findings = judge(&Facts::read(data, ambient, false));
    let bad = findings.into_iter().filter(|f| f.verdict == Verdict::Bad);
    bad.map(|f| format!("{}: {}; {}", f.check, f.found, f.remedy)).collect()
}

/// What stands in the way of an instance's pods: other firewalls, each with what is to be run.
pub fn in_the_way(data: &Path) -> Vec<String> {
    system::obstacles(data).unwrap_or_default()
}

/// One line per check, and below it the remedy where there is one.
fn print(findings: &[Finding]) {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for finding in findings {
        let word = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD ",
        };
        let remedy = if finding.remedy.is_empty() { String::new() } else { format!("; {}", finding.remedy) };
        say::print(format_args!("{word}  {:width$}  {}{remedy}", finding.check, finding.found));
    }
    let count = |verdict| findings.iter().filter(|f| f.verdict == verdict).count();
    let (warnings, bad) = (count(Verdict::Warning), count(Verdict::Bad));
    say::print(match (bad, warnings) {
        (0, 0) => "\nThis machine is good for pods.".to_owned(),
        (0, n) => format!("\nThis machine is good for pods; {n} to know of."),
        (n, _) => format!("\n{n} to mend before pods run well."),
    });
}
