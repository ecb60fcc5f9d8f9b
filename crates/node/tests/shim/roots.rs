//! What containers see: roots, volumes, devices, credentials.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use statefuld_node::shim::Shim;
use statefuld_node::shim::spec::{Capabilities, ContainerSpec, Mount, Propagation, Root, Source, User};

use crate::harness::*;

async fn idle(container: ContainerSpec) -> (TestPod, Shim) {
    let mut pod = TestPod::new(vec![container]);
    let shim = pod.run().await;
    running(&shim).await;
    (pod, shim)
}

#[tokio::test]
async fn the_machines_programs_are_there_and_cannot_be_changed() {
    let (_pod, shim) = idle(script("a", "exec sleep 100000")).await;
    for path in ["/usr/x", "/bin/x", "/lib/x", "/usr/lib/x", "/sys/x", "/proc/sys/kernel/hostname"] {
        let ran = sh(&shim, "a", &format!("echo x > {path}")).await;
        assert_ne!(ran.exit.code, 0, "{path}: {}", String::from_utf8_lossy(&ran.output));
    }
}

#[tokio::test]
async fn writes_to_the_machines_folders_stay_in_the_pod() {
    let (pod, shim) = idle(script("a", "exec sleep 100000")).await;
    let mark = format!("by-{}", pod.folder.path().file_name().unwrap().to_str().unwrap());
    for folder in
        ["/etc", "/var", "/var/lib", "/srv", "/tmp", "/run", "/root", "/home", "/dev/shm", "/var/log", "/var/tmp"]
    {
        prints(&shim, "a", &format!("echo x > {folder}/{mark} && cat {folder}/{mark}")).await;
        assert!(!Path::new(folder).join(&mark).exists(), "{folder}");
    }
    // A file of the machine's, changed and removed.
    prints(&shim, "a", "echo x >> /etc/passwd && rm /etc/group && ! test -e /etc/group").await;
    assert!(fs::metadata("/etc/group").is_ok());
    assert!(!fs::read_to_string("/etc/passwd").unwrap().ends_with("x\n"));
}

#[tokio::test]
async fn secrets_of_the_machine_are_hidden() {
    let secret = tempfile::Builder::new().prefix("statefuld-masked-").tempdir_in("/var/lib").unwrap();
    fs::write(secret.path().join("key"), "secret").unwrap();
    let other = tempfile::Builder::new().prefix("masked-by-config-").tempdir_in("/srv").unwrap();
    fs::write(other.path().join("key"), "secret").unwrap();
    let mut pod = TestPod::new(vec![script("a", "exec sleep 100000")]);
    pod.spec.host_root.masked.push(other.path().to_owned());
    let shim = pod.run().await;
    running(&shim).await;
    assert_eq!(prints(&shim, "a", "cat /etc/shadow | wc -c").await, "0");
    for folder in
        ["/root", "/home", "/tmp", "/var/lib/systemd", secret.path().to_str().unwrap(), other.path().to_str().unwrap()]
    {
        assert_eq!(prints(&shim, "a", &format!("ls -A {folder}")).await, "", "{folder}");
    }
    let data = pod.folder.path().display();
    assert_eq!(prints(&shim, "a", &format!("ls -A {data} 2>/dev/null; true")).await, "");
    assert!(!prints(&shim, "a", "ls /").await.contains("boot"));
}

#[tokio::test]
async fn a_data_directory_below_var_lib_is_hidden_and_overlays_still_work() {
    let mut pod = TestPod::below(Path::new("/var/lib"), vec![script("a", "exec sleep 100000")]);
    let shim = pod.run().await;
    running(&shim).await;
    let data = pod.folder.path().display();
    assert_eq!(prints(&shim, "a", &format!("ls -A {data}")).await, "");
    prints(&shim, "a", "echo x > /var/lib/written && cat /var/lib/written && test -d /var/lib/dpkg").await;
    assert!(!Path::new("/var/lib/written").exists());
    assert_eq!(prints(&shim, "a", "ls -A / | grep spare || true").await, "");
}

#[tokio::test]
async fn a_restarted_container_starts_with_a_fresh_root_and_the_same_volume() {
    let data = tempfile::tempdir().unwrap();
    let text = "test -e /etc/mark && echo stale; touch /etc/mark; echo $STATEFULD_INCARNATION >>/data/x; sleep 100000";
    let mut pod = TestPod::new(vec![ContainerSpec { mounts: vec![bind(data.path(), "/data")], ..script("a", text) }]);
    pod.spec.restart_policy = statefuld_node::shim::spec::RestartPolicy::Always;
    let shim = pod.run().await;
    let journal = data.path().join("x");
    eventually("the first start writes", || fs::read_to_string(&journal).is_ok_and(|t| t == "40\n")).await;
    shim.restart_container("a", std::time::Duration::ZERO, "").await.unwrap();
    eventually("the second start writes", || fs::read_to_string(&journal).is_ok_and(|t| t == "40\n41\n")).await;
    assert!(pod.printed("a", 1).is_empty(), "{:?}", pod.printed("a", 1));
}

#[tokio::test]
async fn volumes_are_mounted_where_asked_also_through_links_and_into_one_another() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(one.path().join("here"), "one").unwrap();
    fs::write(two.path().join("here"), "two").unwrap();
    let file = one.path().join("here");
    let mounts = vec![
        // Listed before the one that it lies in.
        bind(two.path(), "/data/inner"),
        bind(one.path(), "/data"),
        // /var/run is a link to /run.
        bind(two.path(), "/var/run/two"),
        bind(&file, "/etc/one.conf"),
        Mount { read_only: true, ..bind(one.path(), "/frozen") },
        Mount {
            target: "/scratch".into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::None,
            source: Source::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o750) },
        },
    ];
    let (_pod, shim) = idle(ContainerSpec { mounts, ..script("a", "sleep 100000") }).await;
    assert_eq!(prints(&shim, "a", "cat /data/here /data/inner/here /run/two/here /etc/one.conf").await, "onetwotwoone");
    assert_ne!(sh(&shim, "a", "echo x > /frozen/y").await.exit.code, 0);
    assert_eq!(prints(&shim, "a", "stat -c %a /scratch").await, "750");
    assert_ne!(sh(&shim, "a", "head -c 2000000 /dev/zero > /scratch/big").await.exit.code, 0);
    prints(&shim, "a", "echo written > /data/new").await;
    assert_eq!(fs::read_to_string(one.path().join("new")).unwrap(), "written\n");
    assert!(one.path().join("inner").is_dir(), "the mount point is made in the outer volume");
}

#[tokio::test]
async fn a_missing_volume_is_told_by_name() {
    let mounts = vec![bind(Path::new("/no/such/volume"), "/data")];
    let mut pod = TestPod::new(vec![ContainerSpec { mounts, ..script("a", "true") }]);
    let state = pod.run_to_end().await;
    let end = ended(&state.containers[0]);
    assert_eq!(end.reason, "StartError");
    assert!(end.message.contains("/no/such/volume"), "{}", end.message);
}

#[tokio::test]
async fn the_pod_has_its_own_name_network_and_processes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("hosts"), "10.0.0.9 web-0\n").unwrap();
    fs::write(dir.path().join("resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
    let mut pod = TestPod::new(vec![script("a", "exec sleep 100000")]);
    pod.spec.hosts_file = Some(dir.path().join("hosts"));
    pod.spec.resolv_conf = Some(dir.path().join("resolv.conf"));
    let shim = pod.run().await;
    running(&shim).await;
    assert_eq!(prints(&shim, "a", "hostname; cat /etc/hostname").await, "web-0\nweb-0");
    assert_eq!(prints(&shim, "a", "cat /etc/hosts /etc/resolv.conf").await, "10.0.0.9 web-0\nnameserver 10.0.0.1");
    assert_eq!(prints(&shim, "a", "ls /sys/class/net; cat /sys/class/net/lo/flags").await, "lo\n0x9");
    assert_eq!(prints(&shim, "a", "cat /proc/1/comm").await, "sleep");
    assert_eq!(prints(&shim, "a", "cat /proc/1/cgroup | grep -c statefuld; true").await, "0");
    // The agent puts the interface there.
    let ours = fs::read_link(format!("/proc/{}/ns/net", pod.shim_pid)).unwrap();
    assert_eq!(prints(&shim, "a", "readlink /proc/1/ns/net").await, ours.to_str().unwrap());
    assert_ne!(ours, fs::read_link("/proc/self/ns/net").unwrap());
}

#[tokio::test]
async fn no_descriptor_leaks_into_a_container() {
    let (_pod, shim) = idle(script("a", "exec sleep 100000")).await;
    assert_eq!(prints(&shim, "a", "ls /proc/1/fd | tr '\\n' ' '").await, "0 1 2");
    // ls itself opens the folder it lists as the fourth.
    assert_eq!(prints(&shim, "a", "ls /proc/self/fd | tr '\\n' ' '").await, "0 1 2 3");
}

#[tokio::test]
async fn signals_are_as_a_program_expects_them() {
    let (_pod, shim) = idle(script("a", "exec sleep 100000")).await;
    let text = prints(&shim, "a", "grep -E 'SigBlk|SigIgn' /proc/1/status /proc/self/status").await;
    assert!(text.lines().all(|line| line.ends_with("0000000000000000")), "{text}");
}

#[tokio::test]
async fn a_user_is_whom_it_was_asked_to_be_and_can_do_little() {
    let user = User { uid: 1234, gid: 2345, groups: vec![3456] };
    let container = ContainerSpec { user, no_new_privileges: true, ..script("a", "sleep 100000") };
    let (_pod, shim) = idle(container).await;
    assert_eq!(prints(&shim, "a", "id -u; id -g; id -G").await, "1234\n2345\n2345 3456");
    let status = prints(&shim, "a", "cat /proc/1/status").await;
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(prints(&shim, "a", "echo x > /dev/stdout").await, "x");
}

#[tokio::test]
async fn root_in_a_container_has_the_usual_capabilities_and_no_more() {
    let (_pod, shim) = idle(script("a", "exec sleep 100000")).await;
    let status = prints(&shim, "a", "grep Cap /proc/self/status").await;
    assert!(status.contains("CapEff:\t00000000a80425fb") && status.contains("CapBnd:\t00000000a80425fb"), "{status}");
    assert_ne!(sh(&shim, "a", "mount -t tmpfs x /mnt").await.exit.code, 0);
    // Nodes of real devices may be made, not opened.
    assert_ne!(sh(&shim, "a", "mknod /dev/x b 254 0 && head -c 1 /dev/x").await.exit.code, 0);
    prints(&shim, "a", "head -c 1 /dev/urandom | wc -c; echo x > /dev/null; chown 1 /tmp; kill -0 1").await;
}

#[tokio::test]
async fn capabilities_can_all_be_dropped() {
    let capabilities = Capabilities { drop: vec!["ALL".into()], add: vec![] };
    let (_pod, shim) = idle(ContainerSpec { capabilities, ..script("a", "sleep 100000") }).await;
    assert!(prints(&shim, "a", "grep CapEff /proc/self/status").await.ends_with("0000000000000000"));
}

#[tokio::test]
async fn a_read_only_root_takes_writes_in_volumes_only() {
    let data = tempfile::tempdir().unwrap();
    let mounts = vec![bind(data.path(), "/data")];
    let (_pod, shim) = idle(ContainerSpec { mounts, read_only_root: true, ..script("a", "sleep 100000") }).await;
    for path in ["/x", "/etc/x", "/var/x", "/tmp/x", "/run/x", "/var/tmp/x", "/root/x"] {
        assert_ne!(sh(&shim, "a", &format!("echo x > {path}")).await.exit.code, 0, "{path}");
    }
    prints(&shim, "a", "echo x > /data/x && echo x > /dev/shm/x").await;
}

#[tokio::test]
async fn the_built_in_image_serves_its_journal_and_has_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    let argv = ["/statefuld", "sample", "--listen", "127.0.0.1:8080"].map(String::from).to_vec();
    let root = Root::Sample;
    let mounts = vec![bind(data.path(), "/data")];
    let mut pod = TestPod::new(vec![ContainerSpec { argv, root, mounts, ..script("a", "") }]);
    let shim = pod.run().await;
    eventually("the journal listens", || pod.printed("a", 0).iter().any(|l| l.starts_with("listening"))).await;
    let answer = ask_in_network_of(pod.shim_pid, "GET / HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("started host=web-0 incarnation=40 epoch=7"),
        "{answer}"
    );
    let root = format!("/proc/{}/root", pid_of(&shim).await);
    let refused = fs::write(format!("{root}/x"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["data", "dev", "etc", "proc", "root", "run", "statefuld", "sys", "tmp", "var"]);
    shim.stop(std::time::Duration::from_secs(3600)).await.unwrap();
    let state = wait_for(&shim, |s| s.phase == statefuld_node::shim::state::Phase::Finished).await;
    assert_eq!(ended(&state.containers[0]).exit_code, 0);
    let journal = fs::read_to_string(data.path().join("journal/journal")).unwrap();
    assert_eq!(journal.lines().count(), 2);
    assert!(journal.lines().last().unwrap().contains(" stopped "), "{journal}");
}

async fn pid_of(shim: &Shim) -> i32 {
    match shim.state().await.unwrap().containers[0].state {
        statefuld_node::shim::state::Status::Running { pid, .. } => pid,
        ref other => panic!("{other:?}"),
    }
}

/// Speaks HTTP in another network namespace, from a thread of its own, which is then thrown away.
fn ask_in_network_of(pid: i32, request: &str) -> String {
    let (namespace, request) = (fs::File::open(format!("/proc/{pid}/ns/net")).unwrap(), request.to_owned());
    let asking = std::thread::spawn(move || {
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind)).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 8080)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    asking.join().unwrap()
}
