//! Redis from Debian's package: a master, two replicas, and a writer whose acknowledged writes are counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::harness::{Instance, eventually, example};

/// Writes numbered keys to the master, and remembers which were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl Writer {
    fn start(address: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            let mut connection = None;
            let mut n = 0;
            while !stopping.load(Ordering::SeqCst) {
                n += 1;
                if connection.is_none() {
                    connection = connect(&address);
                }
                match connection.as_mut().and_then(|c| command(c, &format!("SET key:{n} {n}"))) {
                    Some(answer) if answer == "+OK" => acknowledged.push(n),
                    _ => connection = None,
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
            acknowledged
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer does not panic")
    }
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

#[test]
fn e2e_redis_keeps_names_volumes_and_every_acknowledged_write() {
    let mut instance = Instance::new();
    instance.up(&[example("redis.yaml")]);
    let identities = instance.identities("redis", 3);
    let master = instance.get("pod", "redis-0")["status"]["podIP"].as_str().expect("an address").to_owned();
    let writer = Writer::start(master.clone());

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
    let mut connection = connect(&address).expect("redis-0 answers");
    for n in &acknowledged {
        let length = command(&mut connection, &format!("EXISTS key:{n}")).expect("an answer");
        assert_eq!(length, ":1", "acknowledged write {n} is lost");
    }
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
