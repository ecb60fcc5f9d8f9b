//! What a person does on the first day: a service, a backup, data that is there already.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Instance, eventually, example, statefuld};
use crate::journal::{address, fetch, stopped_from_the_top};

/// Runs a command that has to succeed; what it said.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Runs a command that has to fail; what it said.
fn refused(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(!output.status.success(), "{command:?} should fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command line of a line such as `ExecStart=`, as systemd would run it.
fn command_of(unit: &str, key: &str, program: &Path) -> Command {
    let line = unit.lines().find_map(|line| line.strip_prefix(key)).expect("the unit says what to run");
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("/opt/statefuld"));
    let mut command = Command::new(program);
    command.args(words);
    command
}

/// A service manager's socket and its `systemctl`, as far as a unit sees them.
struct Manager {
    folder: PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    fn new(folder: PathBuf) -> Self {
        fs::create_dir(&folder).expect("a folder");
        let socket = UnixDatagram::bind(folder.join("notify")).expect("a socket");
        Self { folder, socket }
    }

    /// Starts the service, and returns when it has said that it is ready.
    fn start(&self, unit: &str, program: &Path) -> Child {
        let mut command = command_of(unit, "ExecStart=", program);
        command.env("NOTIFY_SOCKET", self.folder.join("notify")).stdin(Stdio::null());
        let child = command.spawn().expect("it starts");
        let mut said = [0; 4096];
        let length = self.socket.recv(&mut said).expect("it says how far it is");
        assert!(said[..length].starts_with(b"READY=1\n"));
        child
    }

    /// Stops it; `state` is what `systemctl is-system-running` says meanwhile.
    fn stop(&self, unit: &str, program: &Path, state: &str, mut child: Child) {
        let systemctl = self.folder.join("systemctl");
        fs::write(&systemctl, format!("#!/bin/sh\necho {state}\n")).expect("a script");
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("a mode");
        let path = format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap_or_default());
        run(command_of(unit, "ExecStop=", program).env("PATH", path));
        assert!(child.wait().expect("it ends").success());
        let mut said = [0; 4096];
        let length = self.socket.recv(&mut said).expect("it says that it stops");
        assert_eq!(&said[..length], b"STOPPING=1\n");
    }
}

#[test]
fn e2e_a_service_that_restarts_keeps_its_pods_and_a_machine_that_stops_takes_them_from_the_top() {
    let mut instance = Instance::new();
    let root = instance.scratch().join("root");
    let install = |arguments: &[&str]| {
        let mut command = statefuld();
        command.args(["install", "--root"]).arg(&root).args(["--binary", "/opt/statefuld", "--listen", "127.0.0.1:0"]);
        command.args(["--data-dir"]).arg(instance.data()).args(arguments);
        command
    };
    assert!(refused(&mut install(&[])).contains("--init"), "nothing is guessed for another machine");
    run(&mut install(&["--init", "systemd"]));
    run(&mut install(&["--init", "openrc"]));
    let file = root.join("etc/systemd/system/statefuld.service");
    let unit = fs::read_to_string(&file).expect("a unit");
    if Path::new("/usr/bin/systemd-analyze").exists() {
        // What it wants and waits for has to be there, too.
        let units = root.join("usr/lib/systemd");
        fs::create_dir_all(&units).expect("a folder");
        run(Command::new("cp").args(["-a", "/usr/lib/systemd/system"]).arg(&units));
        let at_root = format!("--root={}", root.display());
        let said = run(Command::new("systemd-analyze").args(["verify", "--man=no", &at_root, "statefuld.service"]));
        assert!(!said.contains("statefuld.service:"), "{said}");
    }
    let script = root.join("etc/init.d/statefuld");
    run(Command::new("sh").arg("-n").arg(&script));
    assert_eq!(fs::metadata(&script).expect("a script").mode() & 0o777, 0o755);

    let program = root.join("opt/statefuld");
    let manager = Manager::new(instance.scratch().join("manager"));
    instance.mark_started();
    let child = manager.start(&unit, &program);
    instance.up(&[example("journal.yaml")]);
    let before = instance.get("pod", "journal-2");
    let ip = address(&instance, "journal-2");
    manager.stop(&unit, &program, "running", child);
    assert!(fetch(&ip, "/healthz").contains("200"), "pods outlive the service");
    let child = manager.start(&unit, &program);
    instance.settled("journal", 3);
    let after = instance.get("pod", "journal-2");
    let container = "/status/containerStatuses/0/containerID";
    assert_eq!(after.pointer(container), before.pointer(container), "nothing was restarted");
    // What a manager does that has lost patience: the main process alone, by the signal that the unit names.
    assert!(unit.contains("KillMode=process\nKillSignal=SIGQUIT\n"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::QUIT)
        .expect("it runs");
    let mut child = child;
    assert!(child.wait().expect("it ends").success());
    assert!(fetch(&ip, "/healthz").contains("200"), "pods outlive that, too");
    let mut said = [0; 4096];
    manager.socket.recv(&mut said).expect("it says that it stops");
    let child = manager.start(&unit, &program);
    manager.stop(&unit, &program, "stopping", child);
    stopped_from_the_top(&instance);

    fs::create_dir_all(root.join("run/systemd/resolve")).expect("as if it ran");
    run(statefuld().args(["dns", "install", "--root"]).arg(&root).arg("--data-dir").arg(instance.data()));
    let names = root.join("etc/systemd/resolved.conf.d");
    fs::write(names.join("statefuld-00000000.conf"), "# another instance's").expect("written");
    assert_eq!(fs::read_dir(&names).expect("a folder").count(), 2);
    let said = run(statefuld().args(["uninstall", "--root"]).arg(&root));
    assert!(said.contains("all data stays"), "{said}");
    let left: Vec<_> = fs::read_dir(&names).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["statefuld-00000000.conf"], "names that were installed are taken away, another's stay");
    assert!(!file.exists() && !script.exists() && !program.exists());
    assert!(instance.data().join("volumes/default/journal-2-data/journal").exists());
}

#[test]
fn e2e_a_backup_takes_everything_back_and_no_volume_away() {
    let mut instance = Instance::new();
    instance.up(&[example("journal.yaml")]);
    let identities = instance.identities("journal", 3);
    let epoch = |instance: &Instance| {
        let pod = instance.ready("journal-1", None);
        let epoch = pod["metadata"]["annotations"]["statefuld.io/epoch"].as_str().expect("an epoch").to_owned();
        epoch.parse::<u64>().expect("a number")
    };
    let first = epoch(&instance);
    let file = instance.scratch().join("backup");
    let command = |what: &str, data: &Path, more: &[&str]| {
        let mut command = statefuld();
        command.arg(what).arg(&file).arg("--data-dir").arg(data).args(more);
        command
    };
    run(&mut command("backup", &instance.data(), &[]));
    assert_eq!(fs::metadata(&file).expect("a file").mode() & 0o777, 0o600);
    let said = refused(&mut command("restore", &instance.data(), &[]));
    assert!(said.contains("in use by another statefuld"), "{said}");
    // What happens after the backup is not in it: an object, and a member with its data.
    instance.kubectl(&["create", "configmap", "after"]);
    instance.kubectl(&["scale", "statefulset", "journal", "--replicas=4"]);
    instance.ready("journal-3", None);
    instance.down(&["--keep-pods"]);
    let said = refused(&mut command("restore", &instance.data(), &["--replace"]));
    assert!(said.contains("pods of") && said.contains("default/journal-0"), "{said}");
    instance.down(&[]);
    let said = refused(&mut command("restore", &instance.data(), &[]));
    assert!(said.contains("--replace"), "{said}");
    let said = run(&mut command("restore", &instance.data(), &["--replace"]));
    assert!(said.contains("journal-3-data: not known to the backup"), "{said}");
    let aside = instance.data().join("volumes/default/journal-3-data.unknown-2/journal");
    assert!(aside.exists(), "data that the backup does not know is put aside, whole");
    instance.up(&[]);
    instance.settled("journal", 3);
    assert!(instance.try_kubectl(&["get", "configmap", "after"]).is_err());
    assert_eq!(instance.identities("journal", 3), identities, "the same claims and folders");
    assert!(epoch(&instance) > first, "epochs are of a new generation");
    assert!(fetch(&address(&instance, "journal-1"), "/").matches("journal-1").count() >= 2, "its data goes on");
    instance.down(&[]);

    // A new machine: the backup, and volumes copied there. The old one is no more: else the new one would be a copy of
    // a data directory that is in use.
    let gone = instance.scratch().join("gone");
    fs::rename(instance.data(), &gone).expect("moved");
    let mut other = Instance::new();
    run(&mut command("restore", &other.data(), &[]));
    run(Command::new("cp").arg("-a").arg(gone.join("volumes")).arg(other.data()));
    other.up(&[]);
    other.settled("journal", 3);
    let folder = &other.identities("journal", 3)[1].2;
    assert!(Path::new(folder).starts_with(other.data()), "{folder}");
    assert!(fetch(&address(&other, "journal-1"), "/").matches("journal-1").count() >= 3, "its data goes on there");
}

#[test]
fn e2e_a_folder_that_is_there_becomes_the_data_of_a_set() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let old = instance.scratch().join("old");
    fs::create_dir(&old).expect("a folder");
    fs::write(old.join("journal"), "from before\n").expect("data");
    chown(old.join("journal"), Some(1234), Some(2345)).expect("an owner");
    let data = instance.data();
    let volume = |arguments: &[&str]| {
        let mut command = statefuld();
        command.arg("volume").args(arguments).arg("--data-dir").arg(&data);
        command
    };
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    let import = ["import", &path(&old), "--as", "default/data-journal-0"];
    let holder = fs::File::open(old.join("journal")).expect("open");
    let said = refused(&mut volume(&import));
    assert!(said.contains("is in use") && said.contains(&std::process::id().to_string()), "{said}");
    drop(holder);
    run(&mut volume(&import));
    let said = refused(&mut volume(&import));
    assert!(said.contains("there already"), "{said}");
    let folder = instance.data().join("volumes/default/journal-0-data");
    let copied = fs::metadata(folder.join("journal")).expect("copied");
    assert_eq!((copied.uid(), copied.gid()), (1234, 2345));

    instance.up(&[example("journal.yaml")]);
    let journal = fetch(&address(&instance, "journal-0"), "/");
    assert!(journal.starts_with("HTTP/1.1 200") && journal.contains("from before"), "{journal}");
    let said = run(&mut volume(&["inspect", "default/data-journal-0"]));
    assert!(said.contains("journal-0-data") && said.contains("in use   "), "{said}");
    let listed: serde_json::Value =
        serde_json::from_str(&run(&mut volume(&["list", "-o", "json"]))).expect("a document");
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    let out = instance.scratch().join("out");
    let export = ["export", "default/data-journal-0", &path(&out)];
    assert!(refused(&mut volume(&export)).contains("is used by journal-0"));
    instance.kubectl(&["scale", "statefulset", "journal", "--replicas=0"]);
    eventually("the set has no pods", || {
        instance.try_kubectl(&["get", "pods", "-o", "name"]).ok().filter(|names| names.trim().is_empty())
    });
    run(&mut volume(&export));
    assert!(fs::read_to_string(out.join("journal")).expect("copied").starts_with("from before\n"));

    // A claim that is deleted leaves its data, and another of its name has other data.
    instance.kubectl(&["delete", "pvc", "data-journal-0"]);
    fs::write(old.join("journal"), "from before again\n").expect("data");
    run(&mut volume(&import));
    instance.kubectl(&["scale", "statefulset", "journal", "--replicas=1"]);
    instance.settled("journal", 1);
    let journal = fetch(&address(&instance, "journal-0"), "/");
    assert!(journal.contains("from before again"), "{journal}");
    assert!(fs::read_to_string(folder.join("journal")).expect("kept").starts_with("from before\n"));
}
