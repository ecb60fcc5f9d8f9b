//! The overview once, for pipes and files.

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;

use super::words;
use crate::overview::{Overview, Row, Set};

/// A table of pods, and below it what waits.
pub fn table(overview: &Overview, now: Timestamp) -> String {
    if overview.rows().next().is_none() && overview.waiting.is_empty() {
        return format!("there are no StatefulSets and no pods in namespace {}", overview.namespace);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["OF", "POD", "STATE", "VOLUME", "NODE", "REVISION", "CPU", "MEMORY", "RESTARTS", "AGE"]);
    for (set, row) in overview.rows() {
        table.add_row(cells(set, row, now));
    }
    let mut text = table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    let of_sets = overview.sets.iter().flat_map(|set| &set.waiting);
    let of_rows = overview.rows().filter_map(|(_, row)| row.waiting.as_ref());
    for waits in of_sets.chain(of_rows).chain(&overview.waiting) {
        text.push_str(&format!("\n{}", waits.sentence));
    }
    text
}

fn cells(set: Option<&Set>, row: &Row, now: Timestamp) -> [String; 10] {
    let owner = set.map(|set| format!("sts/{}", set.name)).or_else(|| row.owner.clone()).unwrap_or_default();
    let volume = words::fullest(row).map(words::room).unwrap_or_default();
    [
        owner,
        row.pod.clone(),
        row.state.word().to_owned(),
        volume,
        row.node.clone(),
        row.revision.clone(),
        words::processors(row),
        words::memory(row),
        words::restarts(row),
        words::age(row, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::model::tests::overview;

    #[test]
    fn a_snapshot_has_a_line_for_each_pod_and_each_sentence() {
        let text = table(&overview(), Timestamp::from_second(60).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[1].contains("sts/web") && lines[1].contains("web-0") && lines[1].contains("1m0s"), "{text}");
        assert!(lines[5].starts_with("web-1 is not Ready"), "{text}");
    }
}
