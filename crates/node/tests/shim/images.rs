//! Containers that run from images.

use std::fs;
use std::path::PathBuf;

use ambient::Ambient;
use image::import::import;
use image::{Limits, Store};
use imagetest::{Entry, Image, Layer};
use statefuld_node::shim::Shim;
use statefuld_node::shim::spec::{ContainerSpec, RestartPolicy, Root};

use crate::harness::*;

/// A shell and a few programs, with what they are linked with.
fn programs() -> Layer {
    let names = ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/sleep", "/usr/bin/stat", "/bin/rm", "/bin/mkdir"];
    names.iter().fold(Layer::new().folder("tmp", 0o1777), |layer, name| layer.program(name))
}

/// A pod of one container that runs from these layers; the folder holds their store.
fn pod_of(layers: impl IntoIterator<Item = Layer>, volumes: &[&str], text: &str) -> (tempfile::TempDir, TestPod) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("images"), Ambient::system()).unwrap();
    let layout = folder.path().join("layout");
    Image::new(layers).built().write_layout(&layout, "test/it:1");
    let image = import(&store, &layout, None, Limits::default(), &|_| {}).unwrap().remove(0);
    let layers = image.layers.iter().map(|chain| store.layer_folder(chain)).collect();
    let root = Root::Image { layers, volumes: volumes.iter().map(PathBuf::from).collect() };
    (folder, TestPod::new(vec![ContainerSpec { root, ..script("a", text) }]))
}

async fn run(pod: &mut TestPod) -> Shim {
    let shim = pod.run().await;
    running(&shim).await;
    shim
}

#[tokio::test]
async fn a_container_sees_its_image_writes_to_its_own_and_starts_afresh() {
    let own = Layer::new()
        .folder_of("data", 0o750, 7, 8)
        .file("etc/motd", 0o640, "hello")
        .file("etc/gone", 0o644, "")
        .entry(&Entry::new(b'6', "etc/hostname"))
        // What kernel file systems are mounted on leads elsewhere.
        .symlink("proc", "etc");
    let (folder, mut pod) = pod_of(
        [programs(), own, Layer::new().whiteout("etc/gone")],
        &[],
        "test -e /etc/mark && echo stale; echo x > /etc/mark; exec sleep 100000",
    );
    let hosts = folder.path().join("hosts");
    fs::write(&hosts, "10.0.0.9 web-0\n").unwrap();
    pod.spec.hosts_file = Some(hosts);
    pod.spec.restart_policy = RestartPolicy::Always;
    let shim = run(&mut pod).await;
    assert_eq!(prints(&shim, "a", "cat /etc/motd /etc/hostname /etc/hosts").await, "helloweb-0\n10.0.0.9 web-0");
    assert_eq!(
        prints(&shim, "a", "stat -c '%u %g %a' /data /tmp; ls /etc").await,
        "7 8 750\n0 0 1777\nhostname\nhosts\nmark\nmotd"
    );
    assert_eq!(
        prints(&shim, "a", "cat /proc/1/comm; test -e /usr/share || echo nothing of the machine").await,
        "sleep\nnothing of the machine"
    );
    assert_eq!(prints(&shim, "a", "stat -c %F /proc /dev/null").await, "directory\ncharacter special file");
    prints(&shim, "a", "echo y >> /etc/motd; rm /bin/ls; mkdir /new").await;
    shim.restart_container("a", std::time::Duration::ZERO, "").await.unwrap();
    wait_for(&shim, |s| s.containers[0].restart_count == 1 && s.containers[0].state.is_running()).await;
    assert_eq!(prints(&shim, "a", "cat /etc/motd; test -e /new || ls -d /bin/ls").await, "hello/bin/ls");
    assert!(pod.printed("a", 1).is_empty(), "{:?}", pod.printed("a", 1));
    let uppers = fs::read_dir(pod.spec.host_root.upper_dir.join("a")).unwrap();
    assert_eq!(uppers.count(), 1, "what the first start wrote is gone");
}

#[tokio::test]
async fn a_read_only_root_keeps_the_images_volumes_writable() {
    let own = Layer::new().folder_of("data", 0o777, 5, 5).file("data/seed", 0o644, "seed");
    let (_folder, mut pod) = pod_of([programs(), own], &["/data", "/made"], "exec sleep 100000");
    pod.spec.containers[0].read_only_root = true;
    let shim = run(&mut pod).await;
    for path in ["/x", "/etc/x", "/tmp/x"] {
        assert_ne!(sh(&shim, "a", &format!("echo x > {path}")).await.exit.code, 0, "{path}");
    }
    assert_eq!(
        prints(&shim, "a", "echo x > /data/x && echo y > /made/y && cat /data/seed /data/x /made/y").await,
        "seedx\ny"
    );
}
