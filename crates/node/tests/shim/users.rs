//! Pods with users of their own (`hostUsers: false`).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use ambient::Ambient;
use image::import::import;
use image::{Limits as ImageLimits, Store};
use imagetest::{Image, Layer};
use statefuld_node::shim::protocol::ExecRequest;
use statefuld_node::shim::spec::{
    ContainerSpec, Mount, Propagation, RestartPolicy, Root, Seccomp, Sharing, Source, User, UserRange,
};
use statefuld_node::shim::state::Status;
use statefuld_node::shim::{Shim, launch};

use crate::harness::*;

const SLEEP: &str = "exec sleep 100000";

/// Users that nobody on this machine is; not those that an agent gives out.
fn users(number: u32) -> UserRange {
    UserRange { first: (28_992 + number) * 65_536, count: 65_536 }
}

fn pod_of(containers: Vec<ContainerSpec>, number: u32) -> TestPod {
    let mut pod = TestPod::new(containers);
    pod.spec.users = Some(users(number));
    pod
}

async fn run(pod: &mut TestPod) -> Shim {
    let shim = pod.run().await;
    running(&shim).await;
    shim
}

/// The first container's process, on the machine.
async fn pid_of(shim: &Shim) -> i32 {
    match &shim.state().await.unwrap().containers[0].state {
        Status::Running { pid, .. } => *pid,
        other => panic!("it does not run: {other:?}"),
    }
}

/// The value of a line of a process's status.
fn status_of(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:\t")));
    line.unwrap_or_default().replace('\t', " ")
}

/// A folder that anybody may come to, as volumes' folders are.
fn volume() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

fn owner(path: PathBuf) -> (u32, u32) {
    let meta = fs::symlink_metadata(&path).unwrap();
    (meta.uid(), meta.gid())
}

#[tokio::test]
async fn root_in_the_pod_is_nobody_outside_and_owns_what_is_in_it() {
    let data = volume();
    fs::write(data.path().join("of-root"), "x").unwrap();
    let mut container = script("a", SLEEP);
    container.mounts.push(bind(data.path(), "/data"));
    let mut pod = pod_of(vec![container], 0);
    let shim = run(&mut pod).await;
    let range = users(0);
    let (pid, first) = (pid_of(&shim).await, range.first);
    assert_eq!(status_of(pid, "Uid"), format!("{first} {first} {first} {first}"));
    assert_eq!(status_of(pid, "Gid"), format!("{first} {first} {first} {first}"));
    for map in ["uid_map", "gid_map"] {
        let text = fs::read_to_string(format!("/proc/{pid}/{map}")).unwrap();
        let words: Vec<u32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(words, [0, first, 65_536], "{map}");
    }
    // Everything in it that is anybody's is the pod's.
    let look = "id -u; id -g; stat -c %u:%g / /etc /usr /tmp /run /dev /dev/null /dev/shm /etc/hostname /data/of-root";
    assert_eq!(prints(&shim, "a", look).await.replace('\n', " "), format!("0 0{}", " 0:0".repeat(10)));
    prints(&shim, "a", "echo x > /etc/new; echo y > /root/y; echo z > /dev/shm/z; rm /etc/new").await;
    assert_eq!(prints(&shim, "a", "cat /proc/1/comm; hostname").await, "sleep\nweb-0");
    // On the volume it owns by the numbers that it has inside.
    prints(&shim, "a", "cd /data; echo x > mine; echo x > app; chown 999:998 app; chmod 600 of-root").await;
    assert_eq!(owner(data.path().join("mine")), (0, 0));
    assert_eq!(owner(data.path().join("app")), (999, 998));
    assert_eq!(prints(&shim, "a", "stat -c %u:%g /data/app").await, "999:998");
    // And what is the machine's own it cannot touch.
    for refused in ["mknod /dev/x c 1 3", "echo b > /proc/sysrq-trigger", "echo 1 > /proc/sys/vm/swappiness"] {
        assert_ne!(sh(&shim, "a", refused).await.exit.code, 0, "{refused}");
    }
}

#[tokio::test]
async fn pods_have_different_users_and_a_volume_is_the_same_to_all() {
    let data = volume();
    let with = |text: &str| {
        let mut container = script("a", text);
        container.mounts.push(bind(data.path(), "/data"));
        container.user = User { uid: 999, gid: 998, groups: vec![5000] };
        vec![container]
    };
    let write = |name: &str| format!("umask 077; echo {name} > /data/{name}; {SLEEP}");
    let mut pods =
        [pod_of(with(&write("one")), 1), pod_of(with(&write("two")), 2), TestPod::new(with(&write("three")))];
    let mut shims = Vec::new();
    for pod in &mut pods {
        shims.push(run(pod).await);
    }
    let mut uids = Vec::new();
    for shim in &shims {
        let names = ["one", "two", "three"];
        eventually("all have written", || {
            names.iter().all(|name| fs::read(data.path().join(name)).is_ok_and(|text| !text.is_empty()))
        })
        .await;
        assert_eq!(prints(shim, "a", "cat /data/one /data/two /data/three").await, "one\ntwo\nthree");
        assert_eq!(prints(shim, "a", "stat -c %u:%g /data/*; id -G").await, "999:998\n999:998\n999:998\n998 5000");
        uids.push(status_of(pid_of(shim).await, "Uid").split(' ').next().unwrap().parse::<u32>().unwrap());
    }
    assert_eq!(uids, [users(1).first + 999, users(2).first + 999, 999]);
    for name in ["one", "two", "three"] {
        assert_eq!(owner(data.path().join(name)), (999, 998), "{name}");
    }
}

#[tokio::test]
async fn its_namespaces_are_its_own_and_a_privileged_container_rules_them_alone() {
    let container = ContainerSpec { privileged: true, seccomp: Seccomp::Unconfined, ..script("a", SLEEP) };
    let mut pod = pod_of(vec![container], 3);
    let shim = run(&mut pod).await;
    let pid = pid_of(&shim).await;
    for kind in ["user", "net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
    }
    // Each of these takes power over the namespace that it is about.
    for allowed in [
        "mkdir /tmp/m && mount -t tmpfs x /tmp/m",
        "mkdir /tmp/p && mount -t proc x /tmp/p",
        "mkdir /tmp/q && mount -t mqueue x /tmp/q",
        "mkdir /tmp/s && mount -t sysfs x /tmp/s",
        "hostname other && test $(hostname) = other",
        "echo 20000 30000 > /proc/sys/net/ipv4/ip_local_port_range",
        "echo 4321 > /proc/sys/kernel/msgmax",
        "unshare --net true",
    ] {
        let ran = sh(&shim, "a", allowed).await;
        assert_eq!(ran.exit.code, 0, "{allowed}: {}", String::from_utf8_lossy(&ran.output));
    }
    for refused in [
        "echo 1 > /proc/sys/vm/swappiness",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/x b 8 0",
        "umount /dev",
        "mkdir /tmp/d && mount -t devtmpfs x /tmp/d",
    ] {
        assert_ne!(sh(&shim, "a", refused).await.exit.code, 0, "{refused}");
    }
    let all = status_of(pid, "CapEff");
    assert_eq!(u64::from_str_radix(&all, 16).unwrap().count_ones(), 41, "all of them, in its own namespace: {all}");
}

#[tokio::test]
async fn programs_are_run_in_it_also_with_a_terminal_and_as_another_user() {
    let user = User { uid: 1234, gid: 2345, groups: vec![77] };
    let mut pod = pod_of(vec![ContainerSpec { user, ..script("a", "echo out > /dev/stdout; exec sleep 100000") }], 4);
    let shim = run(&mut pod).await;
    eventually("its output can be opened by name", || pod.printed("a", 0) == ["out"]).await;
    assert_eq!(prints(&shim, "a", "id -u; id -g; id -G; echo x > /dev/stdout").await, "1234\n2345\n2345 77\nx");
    assert_eq!(prints(&shim, "a", "grep CapEff /proc/self/status | cut -f2").await, "0000000000000000");
    let argv = ["/bin/sh", "-c", "tty; stat -c %u:%g $(tty); echo x > /dev/tty; tty < /dev/ptmx; true"];
    let request = ExecRequest {
        container: "a".into(),
        argv: argv.map(String::from).to_vec(),
        tty: true,
        ..ExecRequest::default()
    };
    let ran = within(shim.run(request, 1 << 20)).await.unwrap();
    let text = String::from_utf8_lossy(&ran.output).replace('\r', "");
    assert!(text.starts_with("/dev/pts/0\n1234:5\nx\n"), "{text}");
}

#[tokio::test]
async fn containers_with_terminals_and_last_words_start_again_as_before() {
    let mut container = script("a", "tty; id -u; echo bye > /dev/termination-log; exit 3");
    container.tty = true;
    container.last_words = Some(serde_json::from_value(serde_json::json!({"path": "/dev/termination-log"})).unwrap());
    let mut pod = pod_of(vec![container], 5);
    pod.spec.restart_policy = RestartPolicy::OnFailure;
    let shim = pod.run().await;
    let again = wait_for(&shim, |s| s.containers[0].restart_count == 1 && s.containers[0].last_termination.is_some());
    let last = again.await.containers[0].last_termination.clone().unwrap();
    assert_eq!((last.exit_code, last.message.trim()), (3, "bye"));
    eventually("it printed", || pod.printed("a", 0).len() == 2).await;
    assert_eq!(pod.printed("a", 0)[1].trim(), "0");
}

#[tokio::test]
async fn containers_may_share_processes_and_a_debugger_sees_them() {
    let mut pod = pod_of(vec![script("a", SLEEP), script("b", "setsid sleep 4321 & exec sleep 100000")], 6);
    pod.spec.sharing = Sharing { pod_pid: true, ..Sharing::default() };
    let shim = run(&mut pod).await;
    let seen = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p; echo; done 2>/dev/null";
    let polling = async {
        while !prints(&shim, "a", seen).await.contains("sleep 4321") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(polling).await;
    let first = "grep -E '^(Uid|CapBnd)' /proc/1/status | cut -f2; id -u";
    assert_eq!(prints(&shim, "a", first).await, "65535\n0000000000000000\n0");
    let mut debugger = script("d", SLEEP);
    debugger.role = statefuld_node::shim::spec::Role::Ephemeral;
    debugger.target = Some("a".into());
    shim.add(debugger).await.unwrap();
    wait_for(&shim, |s| s.container("d").is_some_and(|c| c.state.is_running())).await;
    prints(&shim, "d", "grep -q sleep /proc/1/comm /proc/*/comm; touch /etc/x; test $(stat -c %u /etc/x) = 0").await;
    let uid_map = "tr -s ' ' < /proc/self/uid_map";
    assert_eq!(prints(&shim, "d", uid_map).await, prints(&shim, "a", uid_map).await);
    // To a container all its fellows are of the same users.
    let same = "readlink /proc/self/ns/user";
    assert_eq!(prints(&shim, "a", same).await, prints(&shim, "b", same).await);
}

#[tokio::test]
async fn an_image_is_its_own_and_so_is_one_that_is_a_volume() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let store = Store::open(&folder.path().join("images"), Ambient::system()).unwrap();
    let names =
        ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/sleep", "/usr/bin/stat", "/bin/rm", "/bin/mkdir", "/usr/bin/id"];
    let programs = names.iter().fold(Layer::new().folder("tmp", 0o1777), |layer, name| layer.program(name));
    let own = Layer::new().folder_of("data", 0o700, 7, 8).file("etc/motd", 0o600, "hello").file("etc/gone", 0o644, "");
    let layers = [programs, own, Layer::new().whiteout("etc/gone")];
    let layout = folder.path().join("layout");
    Image::new(layers).built().write_layout(&layout, "test/it:1");
    let image = import(&store, &layout, None, ImageLimits::default(), &|_| {}).unwrap().remove(0);
    let layers: Vec<PathBuf> = image.layers.iter().map(|chain| store.layer_folder(chain)).collect();
    let root = Root::Image { layers: layers.clone(), volumes: vec!["/data".into()] };
    let mut container = ContainerSpec { root, ..script("a", SLEEP) };
    for (target, sub) in [("/whole", None), ("/part", Some("etc".into()))] {
        container.mounts.push(Mount {
            target: target.into(),
            read_only: true,
            recursive_read_only: false,
            propagation: Propagation::None,
            source: Source::Layers { layers: layers.clone(), sub },
        });
    }
    let mut pod = pod_of(vec![container], 7);
    pod.spec.restart_policy = RestartPolicy::Always;
    let shim = run(&mut pod).await;
    assert_eq!(
        prints(&shim, "a", "stat -c '%u:%g:%a' / /data /etc/motd; cat /etc/motd; ls /etc").await,
        "0:0:755\n7:8:700\n0:0:600\nhellohostname\nmotd"
    );
    assert_eq!(prints(&shim, "a", "cat /whole/etc/motd /part/motd; stat -c %u:%g /whole/data").await, "hellohello7:8");
    assert_ne!(sh(&shim, "a", "echo x > /part/motd").await.exit.code, 0);
    prints(&shim, "a", "echo y >> /etc/motd; rm /bin/ls; mkdir /new; echo x > /data/x").await;
    shim.restart_container("a", Duration::ZERO, "").await.unwrap();
    wait_for(&shim, |s| s.containers[0].restart_count == 1 && s.containers[0].state.is_running()).await;
    assert_eq!(prints(&shim, "a", "cat /etc/motd; ls /data; id -u").await, "hello0");
    // The layers themselves are whose they were.
    assert_eq!(owner(layers[1].join("data")), (7, 8));
}

#[tokio::test]
async fn settings_are_the_pods_own_and_others_are_refused() {
    let mut pod = pod_of(vec![script("a", SLEEP)], 8);
    let wanted = [("net.ipv4.ip_local_port_range", "20000 30000"), ("kernel.msgmax", "4321")];
    pod.spec.sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let shim = run(&mut pod).await;
    let read = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax | tr '\\t' ' '";
    assert_eq!(prints(&shim, "a", read).await, "20000 30000\n4321");
    let mut pod = pod_of(vec![script("a", SLEEP)], 9);
    pod.spec.sysctls = vec![("vm.swappiness".to_owned(), "1".to_owned())];
    pod.spec.write(&pod.pod_dir()).unwrap();
    let error = launch(&pod.pod_dir(), exe()).await.unwrap_err().to_string();
    assert!(error.contains("setting sysctl vm.swappiness"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_done_for_it_is_told_exactly() {
    // A file system that maps no users of mounts.
    let mut container = script("a", SLEEP);
    container.mounts.push(bind("/proc/sys".as_ref(), "/x"));
    let pod = pod_of(vec![container], 10);
    pod.spec.write(&pod.pod_dir()).unwrap();
    let error = launch(&pod.pod_dir(), exe()).await.unwrap_err().to_string();
    assert!(error.starts_with("hostUsers: false: /proc/sys cannot be shown to the pod's users"), "{error}");
    // What goes wrong while its root is built comes through, too.
    let mut container = script("a", SLEEP);
    container.mounts.push(bind("/no/such/folder".as_ref(), "/x"));
    let mut pod = pod_of(vec![container], 11);
    let state = pod.run_to_end().await;
    let end = ended(&state.containers[0]);
    assert_eq!(end.reason, "StartError");
    assert!(end.message.starts_with("volume /no/such/folder: No such file"), "{}", end.message);
    let mut pod = pod_of(vec![ContainerSpec { argv: vec!["/no/such".into()], ..script("a", "") }], 12);
    let state = pod.run_to_end().await;
    assert!(ended(&state.containers[0]).message.contains("executing \"/no/such\""));
    let user = User { uid: 65_536, ..User::default() };
    let mut pod = pod_of(vec![ContainerSpec { user, ..script("a", SLEEP) }], 13);
    let state = pod.run_to_end().await;
    assert!(ended(&state.containers[0]).message.contains("there is no user 65536"), "{state:?}");
}

#[tokio::test]
async fn nothing_runs_on_without_its_shim_and_no_mount_is_left() {
    let data = volume();
    chown(data.path(), Some(999), Some(999)).unwrap();
    let mut container = script("a", "setsid sleep 4321 & exec sleep 100000");
    container.mounts.push(bind(data.path(), "/data"));
    let mut pod = pod_of(vec![container], 14);
    let shim = run(&mut pod).await;
    let pid = rustix::process::Pid::from_raw(pod.shim_pid).unwrap();
    drop(shim);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let left = pod.cgroup().containers();
    eventually("all of it is gone", || left.processes().unwrap().is_empty()).await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = pod.folder.path().display().to_string();
    assert!(!mounts.contains(&folder), "{mounts}");
    assert_eq!(owner(data.path().to_owned()), (999, 999));
}
