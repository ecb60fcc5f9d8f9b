//! Redis: a master and two replicas by ordinal; what the master acknowledged is in its append-only file.

use std::collections::BTreeSet;

use super::images;
use super::trial::{Software, beside, numbers};
use crate::harness::Instance;

/// Names of all keys, without what they begin with.
fn kept(instance: &Instance, pod: &str) -> Option<BTreeSet<u32>> {
    let keys = instance.exec(pod, "redis-cli --scan --pattern 'key:*' | sed s/key://").ok()?;
    Some(numbers(&keys))
}

#[test]
fn e2e_redis_in_containers_survives_all_and_loses_nothing_acknowledged() {
    let software = Software {
        name: "redis",
        manifest: beside("redis", "redis.yaml"),
        image: images::of("redis", "redis", |own| own),
        client: "client.sh",
        disk: 64 << 20,
        hurries: false,
        kept,
    };
    software.survives();
}
