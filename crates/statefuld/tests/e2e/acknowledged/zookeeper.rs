//! ZooKeeper: an ensemble of three, of which any may lead; what was acknowledged is in the logs of two at least.

use std::collections::BTreeSet;

use super::images;
use super::trial::{Software, beside};
use crate::harness::Instance;

/// Names of all nodes below /written, after this member has caught up with the leader.
fn kept(instance: &Instance, pod: &str) -> Option<BTreeSet<u32>> {
    let said = instance.exec(pod, "printf 'sync /written\\nls /written\\n' | zk-cli 127.0.0.1:2181").ok()?;
    let list = said.lines().rev().find_map(|line| line.strip_prefix('[')?.strip_suffix(']'))?;
    Some(list.split(", ").filter_map(|name| name.parse().ok()).collect())
}

#[test]
fn e2e_zookeeper_in_containers_survives_all_and_loses_nothing_acknowledged() {
    // The smallest and most hurried of Java's ways: three servers and a client share two processors.
    let java = "exec /usr/lib/jvm/default-java/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss256k -Xshare:auto";
    let path = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
                -cp /usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar:/usr/share/java/*";
    let server = format!(
        "#!/bin/bash\n{java} -Xmx96m $JVMFLAGS {path} org.apache.zookeeper.server.quorum.QuorumPeerMain \"$1\"\n"
    );
    let client = format!("#!/bin/bash\n{java} -Xmx48m {path} org.apache.zookeeper.ZooKeeperMain -server \"$1\"\n");
    let software = Software {
        name: "zookeeper",
        manifest: beside("zookeeper", "zookeeper.yaml"),
        image: images::of("zookeeper", "zookeeper", |own| {
            own.file("usr/bin/zk-server", 0o755, server).file("usr/bin/zk-cli", 0o755, client)
        }),
        client: "client.sh",
        disk: 64 << 20,
        hurries: false,
        kept,
    };
    software.survives();
}
