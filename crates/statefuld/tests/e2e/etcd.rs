//! etcd from Debian's package: three members that find each other through SRV records.

use crate::harness::{Instance, eventually, example};

fn put(instance: &Instance, pod: &str, key: &str) {
    eventually(&format!("{key} is acknowledged by {pod}"), || {
        instance.exec(pod, &format!("ETCDCTL_API=3 etcdctl put {key} value-of-{key}")).ok()
    });
}

fn check(instance: &Instance, pod: &str, keys: &[&str]) {
    for key in keys {
        eventually(&format!("{pod} answers"), || {
            let found = instance.exec(pod, &format!("ETCDCTL_API=3 etcdctl get --print-value-only {key}")).ok()?;
            assert_eq!(found.trim(), format!("value-of-{key}"), "acknowledged write of {key} is lost on {pod}");
            Some(())
        });
    }
}

#[test]
fn e2e_etcd_members_find_each_other_by_srv_and_keep_their_data() {
    let mut instance = Instance::new();
    instance.up(&[example("etcd.yaml")]);
    let identities = instance.identities("etcd", 3);
    let members = instance.exec("etcd-0", "ETCDCTL_API=3 etcdctl member list").expect("a list");
    for n in 0..3 {
        assert!(members.contains(&format!("https://etcd-{n}.etcd.default.svc.cluster.local:2380")), "{members}");
    }
    put(&instance, "etcd-0", "first");

    // One member deleted.
    let uid = instance.get("pod", "etcd-2")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    instance.kubectl(&["delete", "pod", "etcd-2"]);
    put(&instance, "etcd-0", "second");
    instance.ready("etcd-2", Some(&uid));
    check(&instance, "etcd-2", &["first", "second"]);
    // Another's process killed.
    instance.kill_container("etcd-1");
    put(&instance, "etcd-1", "third");
    // statefuld itself killed, and started again: the members did not notice.
    instance.kill_daemon();
    instance.up(&[]);
    instance.settled("etcd", 3);
    check(&instance, "etcd-0", &["first", "second", "third"]);
    // Down to one: the last has no quorum and is expected unready. Then up again.
    instance.kubectl(&["scale", "statefulset", "etcd", "--replicas=1"]);
    instance.gone("etcd-2");
    instance.gone("etcd-1");
    instance.kubectl(&["scale", "statefulset", "etcd", "--replicas=3"]);
    instance.settled("etcd", 3);
    check(&instance, "etcd-1", &["first", "second", "third"]);
    assert_eq!(instance.identities("etcd", 3), identities);
}
