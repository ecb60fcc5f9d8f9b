//! Another version takes over while databases are written to: no container restarts, no write is refused or lost.
//!
//! The version before is the program that `STATEFULD_PREVIOUS` names (`just upgrade-test REV` builds one); without it a
//! copy of this version under another name, which shows the way but not that the formats agree.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Instance, example};
use crate::{postgres, redis};

/// The program of the version before.
fn previous(instance: &Instance) -> PathBuf {
    let place = instance.scratch().join("statefuld-before");
    let program = std::env::var_os("STATEFULD_PREVIOUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_statefuld")), PathBuf::from);
    // By cp: the descriptor of a program that this process had open for writing could be inherited by another test's child.
    let copied = Command::new("cp").arg(&program).arg(&place).status().expect("cp runs");
    assert!(copied.success(), "{} cannot be copied", program.display());
    place
}

/// What must not change: uid, container id, restarts, address.
fn life(instance: &Instance, pod: &str) -> [Value; 4] {
    let pod = instance.get("pod", pod);
    let container = &pod["status"]["containerStatuses"][0];
    [
        pod["metadata"]["uid"].clone(),
        container["containerID"].clone(),
        container["restartCount"].clone(),
        pod["status"]["podIP"].clone(),
    ]
}

#[test]
fn e2e_another_version_takes_over_databases_that_are_written_to() {
    let mut instance = Instance::new();
    let previous = previous(&instance);
    let files = [example("redis.yaml"), example("postgres.yaml")];
    let mut up = Command::new(&previous);
    up.args(instance.up_command(&files).get_args());
    instance.mark_started();
    let output = up.output().expect("the version before runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let pods: Vec<String> =
        ["redis", "postgres"].iter().flat_map(|set| (0..3).map(move |n| format!("{set}-{n}"))).collect();
    let lives: Vec<_> = pods.iter().map(|pod| life(&instance, pod)).collect();
    let identities = ["redis", "postgres"].map(|set| instance.identities(set, 3));
    let address = |pod: &str| instance.get("pod", pod)["status"]["podIP"].as_str().expect("an address").to_owned();
    let (master, primary) = (address("redis-0"), address("postgres-0"));
    postgres::sql(&primary, "create table t (n int primary key)").expect("the primary takes writes");
    let (keys, rows) = (redis::writer(master.clone()), postgres::writer(primary.clone()));

    // As a service manager does: the old program is asked to leave the pods, the new one is started.
    let pid = instance.pid();
    instance.down(&["--keep-pods"]);
    instance.up(&[]);
    assert_ne!(instance.pid(), pid);
    instance.settled("redis", 3);
    instance.settled("postgres", 3);
    // And the way that an upgrade goes wrong: killed while it takes over.
    instance.kill_daemon();
    instance.up(&[]);
    instance.settled("redis", 3);
    instance.settled("postgres", 3);

    let (keys, rows) = (keys.finish(), rows.finish());
    let after: Vec<_> = pods.iter().map(|pod| life(&instance, pod)).collect();
    assert_eq!(after, lives, "nothing restarted");
    assert_eq!(["redis", "postgres"].map(|set| instance.identities(set, 3)), identities);
    assert!(keys.len() > 20 && rows.len() > 2, "{} keys and {} rows were acknowledged", keys.len(), rows.len());
    // Writers count from one and go on after a refusal: a gap would be a write that was refused.
    assert_eq!(keys.last().copied(), u32::try_from(keys.len()).ok(), "a write of redis was refused");
    assert_eq!(rows.last().copied(), u32::try_from(rows.len()).ok(), "a write of postgres was refused");
    redis::all_there(&master, &keys);
    postgres::all_there(&primary, &rows);
    // What the version before made obeys the new one.
    instance.kubectl(&["delete", "pod", "redis-2"]);
    instance.ready("redis-2", lives[2][0].as_str());
    instance.settled("redis", 3);
}
