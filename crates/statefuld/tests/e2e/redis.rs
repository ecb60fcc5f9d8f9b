//! Redis from Debian's package: a master, two replicas, and a writer whose acknowledged writes are counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Instance, Writer, eventually, example};

/// Writes numbered keys to the master, over one connection as long as it lasts.
pub fn writer(address: String) -> Writer {
    let mut connection = None;
    Writer::start(Duration::from_millis(5), move |n| {
        if connection.is_none() {
            connection = connect(&address);
        }
        let answer = connection.as_mut().and_then(|c| command(c, &format!("SET key:{n} {n}")));
        let acknowledged = answer.is_some_and(|answer| answer == "+OK");
        if !acknowledged {
            connection = None;
        }
        acknowledged
    })
}

fn connect(address: &str) -> Option<BufReader<TcpStream>> {
    let address = format!("{address}:6379").parse().ok()?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    Some(BufReader::new(stream))
}

/// One inline command; the first line of the answer.
fn command(connection: &mut BufReader<TcpStream>, line: &str) -> Option<String> {
    connection.get_mut().write_all(format!("{line}\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    connection.read_line(&mut answer).ok()?;
    (!answer.is_empty()).then(|| answer.trim_end().to_owned())
}

/// Fails where a write of [`writer`]'s is missing.
pub fn all_there(address: &str, acknowledged: &[u32]) {
    let mut connection = connect(address).expect("the master answers");
    for n in acknowledged {
        let length = command(&mut connection, &format!("EXISTS key:{n}")).expect("an answer");
        assert_eq!(length, ":1", "acknowledged write {n} is lost");
    }
}

#[test]
fn e2e_redis_keeps_names_volumes_and_every_acknowledged_write() {
    let mut instance = Instance::new();
    instance.up(&[example("redis.yaml")]);
    let identities = instance.identities("redis", 3);
    let master = instance.get("pod", "redis-0")["status"]["podIP"].as_str().expect("an address").to_owned();
    let writer = writer(master.clone());

    // One member deleted.
    let uid = instance.get("pod", "redis-1")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    instance.kubectl(&["delete", "pod", "redis-1"]);
    instance.ready("redis-1", Some(&uid));
    // The master's process killed.
    instance.kill_container("redis-0");
    // statefuld itself killed, and started again.
    let uid = instance.get("pod", "redis-0")["metadata"]["uid"].clone();
    instance.kill_daemon();
    instance.up(&[]);
    instance.settled("redis", 3);
    assert_eq!(instance.get("pod", "redis-0")["metadata"]["uid"], uid, "the pod was taken over, not replaced");
    // Down to one and up again, in order.
    instance.kubectl(&["scale", "statefulset", "redis", "--replicas=1"]);
    instance.gone("redis-2");
    instance.gone("redis-1");
    instance.kubectl(&["scale", "statefulset", "redis", "--replicas=3"]);
    instance.settled("redis", 3);

    let acknowledged = writer.finish();
    assert!(acknowledged.len() > 50, "only {} writes were acknowledged", acknowledged.len());
    assert_eq!(instance.identities("redis", 3), identities);
    let address = instance.get("pod", "redis-0")["status"]["podIP"].as_str().expect("an address").to_owned();
    assert_eq!(address, master, "the address sticks while others are free");
    all_there(&address, &acknowledged);
    // The replicas found the master by name and have it all.
    for replica in ["redis-1", "redis-2"] {
        eventually(&format!("{replica} has caught up"), || {
            let size = instance.exec(replica, "redis-cli dbsize").ok()?;
            let ours = instance.exec("redis-0", "redis-cli dbsize").ok()?;
            (size == ours).then_some(())
        });
        let found = instance.exec(replica, "getent hosts redis-0.redis").expect("the name resolves");
        assert!(found.starts_with(&address), "{found}");
    }
}
