//! MariaDB with Galera: every member takes writes, and what is acknowledged is with all members of the cluster.

use std::collections::BTreeSet;

use super::images;
use super::trial::{Software, numbers};
use crate::harness::{Instance, example};

/// All rows, once this member has all that the cluster has.
fn kept(instance: &Instance, pod: &str) -> Option<BTreeSet<u32>> {
    let rows = "set session wsrep_sync_wait = 1; select n from app.t";
    Some(numbers(&instance.exec(pod, &format!("mariadb --socket=/tmp/mysqld.sock --user=root -N -e '{rows}'")).ok()?))
}

#[test]
fn e2e_galera_in_containers_survives_all_and_loses_nothing_acknowledged() {
    let software = Software {
        name: "galera",
        manifest: example("galera.yaml"),
        image: images::of("galera", "mysql", |own| own),
        client: "client.sh",
        disk: 320 << 20,
        hurries: true,
        kept,
    };
    software.survives();
}
