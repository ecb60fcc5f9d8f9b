//! What was measured, for people and for programs.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::cli::Output;
use crate::say;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// Sets and their likes from apply to Ready.
    pub(super) starts: Vec<Start>,
    /// A program run through the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exec: Option<Exec>,
    /// A log followed while it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<Log>,
    /// Pods that do nothing.
    pub(super) idle: Vec<Idle>,
    /// What was to be measured and could not be, and why.
    pub(super) not_measured: Vec<String>,
}

/// So many pods, started in one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Start {
    /// Who started them.
    pub(super) by: &'static str,
    /// In which order.
    pub(super) order: &'static str,
    /// How many.
    pub(super) pods: u32,
    /// How often.
    pub(super) rounds: u32,
    /// From the request until all are ready; the median of the rounds.
    pub(super) all_ready_ms: f64,
    /// How long each step of a pod took, on the mean of all pods and rounds.
    pub(super) steps: Vec<Step>,
}

/// A step of a start.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    /// What is done in it.
    pub(super) step: String,
    /// How long it took.
    pub(super) mean_ms: f64,
}

/// `true`, run in a container: from asking until its exit code is there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Exec {
    /// How often.
    pub(super) count: u32,
    /// What half of them took at most.
    pub(super) p50_ms: f64,
    /// What 99 of 100 took at most.
    pub(super) p99_ms: f64,
}

/// A log, from the moment that its container begins to print until the client has the last line.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Log {
    /// Lines that the client got.
    pub(super) lines: u64,
    /// Lines that were printed and that it did not get.
    pub(super) lost: u64,
    /// Bytes that it got.
    pub(super) bytes: u64,
    /// How long it took.
    pub(super) seconds: f64,
    /// Lines a second.
    pub(super) lines_per_second: f64,
    /// Megabytes a second.
    pub(super) megabytes_per_second: f64,
}

/// What so many idle pods take. Memory is proportional: what several processes share counts once among all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Idle {
    /// Who runs them.
    pub(super) by: &'static str,
    /// How many pods.
    pub(super) pods: u32,
    /// For how long processor time was counted.
    pub(super) window_seconds: f64,
    /// The daemon and its name server, in memory.
    pub(super) daemon_megabytes: f64,
    /// The same, resident.
    pub(super) daemon_resident_megabytes: f64,
    /// Processor time of these.
    pub(super) daemon_cpu_seconds_per_minute: f64,
    /// What guards one pod (its shim, and what ends its containers if the shim dies): memory, on the mean.
    pub(super) guard_megabytes: f64,
    /// The largest of them.
    pub(super) guard_megabytes_max: f64,
    /// Processor time of all of them together.
    pub(super) guards_cpu_seconds_per_minute: f64,
}

impl Report {
    /// Prints it.
    pub(super) fn show(&self, output: Output) -> Result<()> {
        if output == Output::Json {
            say::print(serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let tables = self.starts_tables().into_iter().chain(self.other_table()).chain(self.idle_table());
        for (n, table) in tables.enumerate() {
            if n > 0 {
                say::print("");
            }
            say::print(table);
        }
        for missing in &self.not_measured {
            say::print(format_args!("\nnot measured: {missing}"));
        }
        Ok(())
    }

    /// One table for each who started pods: a column for each number and order.
    fn starts_tables(&self) -> Vec<Table> {
        let mut by: Vec<&str> = self.starts.iter().map(|start| start.by).collect();
        by.dedup();
        by.into_iter()
            .map(|by| {
                let starts: Vec<&Start> = self.starts.iter().filter(|start| start.by == by).collect();
                let mut table = table(starts.len());
                let columns = starts.iter().map(|start| format!("{} {}", start.pods, start.order));
                table.set_header(std::iter::once(format!("{} (ms)", by.to_uppercase())).chain(columns));
                let whole = starts.iter().map(|start| digits(start.all_ready_ms));
                table.add_row(std::iter::once("all ready, median".to_owned()).chain(whole));
                for step in step_names(&starts) {
                    let of = |start: &&Start| start.steps.iter().find(|s| s.step == step).map(|s| s.mean_ms);
                    let cells = starts.iter().map(|start| of(start).map(digits).unwrap_or_default());
                    table.add_row(std::iter::once(format!("  a pod: {step}")).chain(cells));
                }
                table
            })
            .collect()
    }

    fn other_table(&self) -> Option<Table> {
        let mut table = table(1);
        table.set_header(["EXEC AND LOGS", "MEASURED"]);
        if let Some(exec) = &self.exec {
            table.add_row([format!("`true` through the API, p50 of {}", exec.count), format!("{:.1} ms", exec.p50_ms)]);
            table.add_row(["  p99".to_owned(), format!("{:.1} ms", exec.p99_ms)]);
        }
        if let Some(log) = &self.log {
            table.add_row([
                format!("log followed, {} lines", log.lines),
                format!("{:.1} MB/s", log.megabytes_per_second),
            ]);
            table.add_row(["  lines".to_owned(), format!("{:.0} /s", log.lines_per_second)]);
            table.add_row(["  lines lost".to_owned(), log.lost.to_string()]);
        }
        (self.exec.is_some() || self.log.is_some()).then_some(table)
    }

    fn idle_table(&self) -> Option<Table> {
        let mut table = table(self.idle.len());
        let columns = self.idle.iter().map(|idle| format!("{} {}", idle.pods, idle.by));
        table.set_header(std::iter::once("IDLE PODS".to_owned()).chain(columns));
        let rows: [(&str, Cell); 6] = [
            ("daemon, memory", |i| format!("{:.1} MB", i.daemon_megabytes)),
            ("  resident", |i| format!("{:.1} MB", i.daemon_resident_megabytes)),
            ("  processor time a minute", |i| format!("{:.2} s", i.daemon_cpu_seconds_per_minute)),
            ("each pod's shim, memory", |i| format!("{:.2} MB", i.guard_megabytes)),
            ("  the largest", |i| format!("{:.2} MB", i.guard_megabytes_max)),
            ("  processor time of all a minute", |i| format!("{:.2} s", i.guards_cpu_seconds_per_minute)),
        ];
        for (what, cell) in rows {
            table.add_row(std::iter::once(what.to_owned()).chain(self.idle.iter().map(cell)));
        }
        (!self.idle.is_empty()).then_some(table)
    }
}

/// What a row shows of a column.
type Cell = fn(&Idle) -> String;

/// Steps in the order in which the starts have them.
fn step_names(starts: &[&Start]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    // What only some have belongs behind what comes before it there.
    for start in starts {
        let mut at = 0;
        for step in &start.steps {
            match names.iter().position(|name| *name == step.step) {
                Some(found) => at = found + 1,
                None => {
                    names.insert(at, step.step.clone());
                    at += 1;
                }
            }
        }
    }
    names
}

fn table(columns: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(vec![""; columns + 1]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn digits(ms: f64) -> String {
    if ms.abs() < 99.95 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(order: &'static str, pods: u32, steps: &[(&str, f64)]) -> Start {
        let steps = steps.iter().map(|(step, ms)| Step { step: (*step).to_owned(), mean_ms: *ms }).collect();
        Start { by: "statefuld", order, pods, rounds: 1, all_ready_ms: 123.4, steps }
    }

    #[test]
    fn every_start_is_a_column_and_every_step_a_row() {
        let starts = vec![
            start("OrderedReady", 1, &[("made", 1.0), ("ran", 12.34)]),
            start("Parallel", 50, &[("made", 2.0), ("waited", 3.0), ("ran", 250.0)]),
        ];
        let report = Report { starts, ..Report::default() };
        let tables = report.starts_tables();
        assert_eq!(tables.len(), 1);
        let text = tables[0].to_string();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["STATEFULD", "(ms)", "1", "OrderedReady", "50", "Parallel"]);
        assert_eq!(rows[1], ["all", "ready,", "median", "123", "123"]);
        assert_eq!(rows[3], ["a", "pod:", "waited", "3.0"]);
        assert_eq!(rows[4], ["a", "pod:", "ran", "12.3", "250"]);
    }

    #[test]
    fn nothing_measured_is_no_table() {
        let report = Report::default();
        assert!(report.other_table().is_none() && report.idle_table().is_none() && report.starts_tables().is_empty());
    }
}
