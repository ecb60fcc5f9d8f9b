//! PostgreSQL: a primary and two streaming replicas by ordinal; what the primary acknowledged is in its write-ahead log.

use std::collections::BTreeSet;

use imagetest::Layer;

use super::images;
use super::trial::{Software, beside, numbers};
use crate::harness::Instance;

/// All rows.
fn kept(instance: &Instance, pod: &str) -> Option<BTreeSet<u32>> {
    let rows = instance.exec(pod, "psql -X -q -t -A -c 'select n from t'").ok()?;
    Some(numbers(&rows))
}

/// Debian's own programs of that name look for clusters of Debian's; the server's are found first.
fn programs(own: Layer) -> Layer {
    let versions = images::unpacked("postgres").join("usr/lib/postgresql");
    let version = std::fs::read_dir(&versions).expect("a folder").flatten().next().expect("one version");
    let bin = version.path().join("bin");
    std::fs::read_dir(&bin).expect("programs").flatten().fold(own, |own, program| {
        let name = program.file_name().into_string().expect("UTF-8");
        let inside = format!("/usr/lib/postgresql/{}/bin/{name}", version.file_name().to_str().expect("UTF-8"));
        own.symlink(&format!("usr/local/bin/{name}"), &inside)
    })
}

#[test]
fn e2e_postgres_in_containers_survives_all_and_loses_nothing_acknowledged() {
    let software = Software {
        name: "postgres",
        manifest: beside("postgres", "postgres.yaml"),
        image: images::of("postgres", "postgres", programs),
        client: "client.sh",
        disk: 256 << 20,
        hurries: false,
        kept,
    };
    software.survives();
}
