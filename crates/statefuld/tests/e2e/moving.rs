//! The commands of docs/moving.md, as they stand there: out to a cluster and back home. The cluster is a second instance, of which
//! only what kubectl can do is used.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::harness::{Instance, example};
use crate::journal::{address, fetch};

/// The `sh` fences of the page below a heading, or before the first one; one script.
fn commands(page: &str, heading: Option<&str>) -> String {
    let section = match heading {
        Some(heading) => page.split_once(&format!("\n## {heading}\n")).expect("the heading").1,
        None => page,
    };
    let section = section.split("\n## ").next().expect("a section");
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().expect("its end"));
    let lines = blocks.flat_map(str::lines).map(|line| line.strip_prefix("   ").unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The page's commands, about the set of the example, with a cluster that has no images but its own.
fn adapted(page: &str, parts: &[Option<&str>]) -> String {
    let script: String = parts.iter().map(|heading| commands(page, *heading)).collect();
    let script = script.replace("postgres", "journal").replace(
        "  terminationGracePeriodSeconds: 0\n",
        "  terminationGracePeriodSeconds: 0\n  runtimeClassName: host\n",
    );
    script.replace("image: busybox", "image: host")
}

fn run(script: &str, here: &Instance, there: &Instance, folder: &Path) {
    let mut command = here.with_kubeconfig(Command::new("bash"));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", path);
    command.env("CLUSTER", there.data().join("kubeconfig")).env("STATEFULD_DATA_DIR", here.data());
    let output = command.output().expect("bash runs");
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{}{}", said[0], said[1]);
}

#[test]
fn e2e_a_set_moves_to_a_cluster_and_back_with_its_data() {
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/moving.md")).expect("the page");
    let (mut here, mut there) = (Instance::new(), Instance::new());
    here.up(&[example("journal.yaml")]);
    there.up(&[]);
    let folder = here.scratch().join("work");
    fs::create_dir(&folder).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_statefuld"), folder.join("statefuld")).expect("a link");
    fs::copy(example("journal.yaml"), folder.join("journal.yaml")).expect("copied");

    let begin = [Some("Before"), Some("The volumes of a cluster")];
    let mut parts = begin.to_vec();
    parts.push(Some("Out: from here to a cluster"));
    run(&adapted(&page, &parts), &here, &there, &folder);
    // The pod has been started twice: once on each side.
    let journal = fetch(&address(&there, "journal-1"), "/");
    assert_eq!(journal.matches("journal-1").count(), 2, "{journal}");

    here.kubectl(&["delete", "statefulset", "journal"]);
    here.kubectl(&["delete", "pvc", "--all"]);
    let mut parts = begin[1..].to_vec();
    parts.push(Some("Back: from a cluster to here"));
    run(&adapted(&page, &parts), &here, &there, &folder);
    let journal = fetch(&address(&here, "journal-1"), "/");
    assert_eq!(journal.matches("journal-1").count(), 3, "{journal}");
}
