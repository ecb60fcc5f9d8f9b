//! PostgreSQL under Patroni: three members that elect their leader through our API, with the tokens of their pods; and a
//! writer whose acknowledged commits are counted while leaders are killed.

use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Instance, Writer, eventually, example, is_ready};

/// One statement over the network; the output without decoration. A commit that waits for a second member waits for
/// ever: the client gives up, and does not count it. (Cancelled at the server it would be acknowledged.)
fn sql(address: &str, statement: &str) -> Option<String> {
    let output = Command::new("timeout")
        .args(["5", "psql", "-h", address, "-U", "postgres", "-d", "postgres", "-X", "-q", "-t", "-A", "-c", statement])
        .env("PGPASSWORD", "change-me")
        .env("PGCONNECT_TIMEOUT", "2")
        .output()
        .expect("psql runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The members as the API knows them.
fn members(instance: &Instance) -> Vec<Value> {
    let text = instance.try_kubectl(&["get", "pods", "-l", "app=patroni", "-o", "json"]).unwrap_or_default();
    let list: Value = serde_json::from_str(&text).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Name and address of the member that is labelled as the leader.
fn leader(instance: &Instance) -> Option<(String, String)> {
    let members = members(instance);
    let leader = members.iter().find(|pod| pod["metadata"]["labels"]["role"] == "master")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some((text(&leader["metadata"]["name"])?, text(&leader["status"]["podIP"])?))
}

/// Waits until three members are Ready, one of them leads, and another is synchronous with it. Gives the leader.
fn whole(instance: &Instance, other_than: &str) -> (String, String) {
    eventually(&format!("another than {other_than:?} leads three members, one of them synchronous"), || {
        let found = leader(instance).filter(|(name, _)| name != other_than)?;
        let members = members(instance);
        let sync = instance.try_kubectl(&["get", "configmap", "patroni-sync", "-o", "json"]).ok()?;
        let sync: Value = serde_json::from_str(&sync).ok()?;
        let sync = &sync["metadata"]["annotations"];
        let synchronous =
            sync["leader"] == found.0.as_str() && sync["sync_standby"].as_str().is_some_and(|s| !s.is_empty());
        (members.len() == 3 && members.iter().all(is_ready) && synchronous).then_some(found)
    })
}

/// The example, with less patience.
fn manifest(instance: &Instance) -> std::path::PathBuf {
    let mut text = std::fs::read_to_string(example("patroni.yaml")).expect("the example");
    for (patient, hasty) in
        [("ttl: 20", "ttl: 10"), ("loop_wait: 5", "loop_wait: 1"), ("retry_timeout: 5", "retry_timeout: 3")]
    {
        assert!(text.contains(patient), "{patient}");
        text = text.replace(patient, hasty);
    }
    let path = instance.scratch().join("patroni.yaml");
    std::fs::write(&path, text).expect("a file");
    path
}

#[test]
fn e2e_patroni_fails_over_and_loses_no_acknowledged_commit() {
    let mut instance = Instance::new();
    instance.up(&[manifest(&instance)]);
    let (first, address) = whole(&instance, "");
    sql(&address, "create table t (n int primary key)").expect("the leader takes writes");
    let target = Arc::new(Mutex::new(address.clone()));
    let at = target.clone();
    let writer = Writer::start(Duration::from_millis(20), move |n| {
        let address = at.lock().expect("nobody panics with it").clone();
        sql(&address, &format!("insert into t values ({n})")).is_some()
    });
    // Leaders are killed while they take writes.
    let write_to = |address: &str| {
        address.clone_into(&mut target.lock().expect("nobody panics with it"));
        let count = || sql(address, "select count(*) from t").and_then(|n| n.parse::<u32>().ok());
        let before = eventually("the leader answers", count);
        eventually("the leader takes writes", || count().filter(|now| *now >= before + 10));
    };
    write_to(&address);

    // The leader's pod is deleted without grace.
    instance.kubectl(&["delete", "pod", &first, "--grace-period=0", "--force"]);
    let (second, address) = whole(&instance, &first);
    write_to(&address);
    // The leader's postgres is killed: another one leads, or it starts again where no other answered in time.
    let process = || instance.exec(&second, "head -n 1 /data/pgdata/postmaster.pid").ok();
    let killed = process().expect("it runs");
    instance.exec(&second, &format!("kill -9 {}", killed.trim())).expect("it can be killed");
    eventually("the leader's postgres is noticed to be gone", || {
        let another_leads = leader(&instance).is_some_and(|(name, _)| name != second);
        let another_runs = process().is_some_and(|now| !now.trim().is_empty() && now != killed);
        (another_leads || another_runs).then_some(())
    });
    let (third, address) = whole(&instance, "");
    write_to(&address);
    // The leader's patroni is killed, and its container with it.
    instance.kill_container(&third);
    let (_, address) = whole(&instance, &third);
    write_to(&address);

    let acknowledged = writer.finish();
    assert!(acknowledged.len() > 30, "only {} commits were acknowledged", acknowledged.len());
    let there = sql(&address, "select n from t").expect("the leader answers");
    let there: std::collections::BTreeSet<u32> = there.lines().map(|n| n.parse().expect("a number")).collect();
    let lost: Vec<&u32> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let found = instance.exec("patroni-0", "getent hosts patroni-primary").expect("the leader has a name");
    assert!(found.starts_with(&address), "{found}");
}
