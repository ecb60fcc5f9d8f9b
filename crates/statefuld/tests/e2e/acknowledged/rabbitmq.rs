//! RabbitMQ: members that find each other through our API with the pod's service account; what a quorum queue has confirmed is
//! in the logs of two members at least.

use std::collections::BTreeSet;

use super::images;
use super::trial::{Software, numbers};
use crate::harness::{Instance, example};

/// All messages in the queue, seen from this member.
fn kept(instance: &Instance, pod: &str) -> Option<BTreeSet<u32>> {
    let script = include_str!("rabbitmq/read.py");
    Some(numbers(&instance.exec(pod, &format!("timeout 60 python3 - <<'END'\n{script}\nEND")).ok()?))
}

#[test]
fn e2e_rabbitmq_in_containers_survives_all_and_loses_nothing_acknowledged() {
    let software = Software {
        name: "rabbitmq",
        manifest: example("rabbitmq.yaml"),
        image: images::of("rabbitmq", "rabbitmq", |own| {
            // Debian's own wrapper changes the user, which is done already.
            let server = "#!/bin/sh\nexec /usr/lib/rabbitmq/bin/rabbitmq-server \"$@\"\n";
            own.file("usr/local/bin/rabbitmq-server", 0o755, server)
        }),
        client: "client.py",
        disk: 96 << 20,
        hurries: true,
        kept,
    };
    software.survives();
}
