//! The commands of docs/moving.md, as they stand there: out to a cluster and back home. The cluster is a second instance, of which
//! only what kubectl can do is used.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::harness::{Instance, example};
use crate::journal::{address, fetch};

/// The `sh` fences of the page below a heading; one script.
fn commands(page: &str, heading: &str) -> String {
    let section = page.split_once(&format!("\n## {heading}\n")).expect("the heading").1;
    let section = section.split("\n## ").next().expect("a section");
    let (mut script, mut fence) = (String::new(), None);
    for line in section.lines() {
        let plain = line.trim_start();
        match fence {
            None if plain == "```sh" => fence = Some(line.len() - plain.len()),
            None => {}
            Some(_) if plain == "```" => fence = None,
            Some(indent) => script = script + line.get(indent..).unwrap_or_default() + "\n",
        }
    }
    script
}

/// The page's commands, about the set of the example, with a cluster that has no images but its own.
fn adapted(page: &str, headings: &[&str]) -> String {
    let script: String = headings.iter().map(|heading| commands(page, heading)).collect();
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

    let (before, volumes) = ("Before", "The volumes of a cluster");
    run(&adapted(&page, &[before, volumes, "Out: from here to a cluster"]), &here, &there, &folder);
    // The pod has been started twice: once on each side.
    let journal = fetch(&address(&there, "journal-1"), "/");
    assert_eq!(journal.matches("started host=journal-1").count(), 2, "{journal}");

    here.kubectl(&["delete", "statefulset", "journal"]);
    here.kubectl(&["delete", "pvc", "--all"]);
    run(&adapted(&page, &[volumes, "Back: from a cluster to here"]), &here, &there, &folder);
    let journal = fetch(&address(&here, "journal-1"), "/");
    assert_eq!(journal.matches("started host=journal-1").count(), 3, "{journal}");
}
