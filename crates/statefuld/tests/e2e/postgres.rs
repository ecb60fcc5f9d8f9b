//! PostgreSQL from Debian's package: a primary, two streaming replicas, and a writer whose acknowledged commits are counted.

use std::process::Command;
use std::time::Duration;

use crate::harness::{Instance, Writer, eventually, example};

/// One statement over the network; the output without decoration.
pub fn sql(address: &str, statement: &str) -> Option<String> {
    let output = Command::new("psql")
        .args(["-h", address, "-U", "postgres", "-d", "postgres", "-X", "-q", "-t", "-A", "-c", statement])
        .env("PGPASSWORD", "change-me")
        .env("PGCONNECT_TIMEOUT", "2")
        .output()
        .expect("psql runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Commits numbered rows.
pub fn writer(address: String) -> Writer {
    Writer::start(Duration::from_millis(20), move |n| sql(&address, &format!("insert into t values ({n})")).is_some())
}

/// Asks how many of these commits are not there.
fn missing(acknowledged: &[u32]) -> String {
    let wanted = acknowledged.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    format!("select count(*) from unnest(array[{wanted}]) as wanted(n) where n not in (select n from t)")
}

/// Fails where a commit of [`writer`]'s is missing.
pub fn all_there(address: &str, acknowledged: &[u32]) {
    assert_eq!(sql(address, &missing(acknowledged)).as_deref(), Some("0"), "acknowledged commits are lost");
}

fn address(instance: &Instance, pod: &str) -> String {
    instance.get("pod", pod)["status"]["podIP"].as_str().expect("an address").to_owned()
}

#[test]
fn e2e_postgres_keeps_names_volumes_and_every_acknowledged_commit() {
    let mut instance = Instance::new();
    instance.up(&[example("postgres.yaml")]);
    let identities = instance.identities("postgres", 3);
    let primary = address(&instance, "postgres-0");
    sql(&primary, "create table t (n int primary key)").expect("the primary takes writes");
    let writer = writer(primary.clone());

    // A replica deleted.
    let uid = instance.get("pod", "postgres-2")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    instance.kubectl(&["delete", "pod", "postgres-2"]);
    instance.ready("postgres-2", Some(&uid));
    // The other's process killed.
    instance.kill_container("postgres-1");
    // statefuld itself killed, and started again.
    instance.kill_daemon();
    instance.up(&[]);
    instance.settled("postgres", 3);
    // Down to one and up again.
    instance.kubectl(&["scale", "statefulset", "postgres", "--replicas=1"]);
    instance.gone("postgres-2");
    instance.gone("postgres-1");
    instance.kubectl(&["scale", "statefulset", "postgres", "--replicas=3"]);
    instance.settled("postgres", 3);

    // The primary itself is stopped under load, within its grace period, and needs no recovery.
    instance.kubectl(&["scale", "statefulset", "postgres", "--replicas=0"]);
    instance.gone("postgres-0");
    let acknowledged = writer.finish();
    instance.kubectl(&["scale", "statefulset", "postgres", "--replicas=3"]);
    instance.settled("postgres", 3);
    for n in 0..3 {
        let log = instance.kubectl(&["logs", &format!("postgres-{n}")]);
        assert!(log.contains("database system was shut down"), "{log}");
        assert!(!log.contains("not properly shut down"), "crash recovery on postgres-{n}: {log}");
    }

    assert!(acknowledged.len() > 20, "only {} commits were acknowledged", acknowledged.len());
    assert_eq!(instance.identities("postgres", 3), identities);
    all_there(&address(&instance, "postgres-0"), &acknowledged);
    // Both replicas found the primary by name and stream from it.
    let primary = address(&instance, "postgres-0");
    eventually("both replicas stream", || {
        sql(&primary, "select count(*) from pg_stat_replication where state = 'streaming'").filter(|n| n == "2")
    });
    for replica in ["postgres-1", "postgres-2"] {
        let replica = address(&instance, replica);
        eventually("the replica has caught up", || sql(&replica, &missing(&acknowledged)).filter(|n| n == "0"));
    }
}
