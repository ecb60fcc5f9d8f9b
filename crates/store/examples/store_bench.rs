//! Durable 1 KB puts per second, with one writer and with 64.
//!
//! `cargo run --release -p statefuld-store --example store_bench [FOLDER]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use statefuld_store::embedded::{Embedded, Options};
use statefuld_store::{Op, Store, Txn};

const RUN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("store_bench.{}", std::process::id()));
    let ambient = Ambient::system();
    for writers in [1, 64] {
        let store = Embedded::open(&path, ambient.clone(), Options::default()).expect("the store opens");
        let begin = ambient.boottime();
        let tasks: Vec<_> = (0..writers)
            .map(|writer| tokio::spawn(write(store.clone(), ambient.clone(), writer, begin + RUN)))
            .collect();
        let mut puts = 0;
        for task in tasks {
            puts += task.await.expect("no panic");
        }
        let seconds = (ambient.boottime() - begin).as_secs_f64();
        println!("{writers:>3} writers: {:>8.0} durable 1 KB puts/s", f64::from(puts) / seconds);
        store.close().await;
    }
    std::fs::remove_file(&path).expect("removed");
}

async fn write(store: Arc<Embedded>, ambient: Ambient, writer: usize, end: Duration) -> u32 {
    let value = Bytes::from(vec![b'x'; 1024]);
    let mut puts = 0;
    while ambient.boottime() < end {
        let key = Bytes::from(format!("/registry/core/pods/default/bench-{writer}-{}", puts % 100));
        let op = Op::Put { key, value: value.clone(), ttl: None };
        store.txn(Txn { compare: Vec::new(), ops: vec![op] }).await.expect("committed");
        puts += 1;
    }
    puts
}
