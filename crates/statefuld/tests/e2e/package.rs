//! As a person does it on a machine with nothing installed: the Debian package, and what the README says, typed in there.
//! The machine is a folder that debootstrap made, entered with namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::harness::{PATIENCE, statefuld};

/// A Debian of its own: files, processes, network, host name. Removed when dropped.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let plain = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/debian/root");
        assert!(plain.is_dir(), "`cargo xtask install` makes {}", plain.display());
        let folder = tempfile::Builder::new().prefix("statefuld-e2e-").tempdir().expect("a temporary directory");
        let copied =
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(plain).arg(folder.path().join("root")).status();
        assert!(copied.expect("cp runs").success());
        Self { folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Types these lines in, as root, one after the other until one fails. The machine lives as long.
    fn type_in(&self, lines: &str) -> Output {
        let enter = format!(
            "set -eu\nroot={root}\n\
             ip link set lo up\nhostname box\n\
             mount --bind $root $root\n\
             mount -t proc proc $root/proc\nmount --rbind /sys $root/sys\nmount --rbind /dev $root/dev\n\
             mount -t tmpfs tmpfs $root/run\nmount -t tmpfs tmpfs $root/tmp\n\
             cd $root && pivot_root . mnt && umount -l /mnt\n\
             exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
             DEBIAN_FRONTEND=noninteractive timeout {patience} bash -euo pipefail -c \"$LINES_TYPED\"",
            root = self.root().display(),
            patience = PATIENCE.as_secs(),
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "sh", "-c", &enter]);
        command.env("LINES_TYPED", lines).output().expect("unshare runs")
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The package of the binary under test, without what only a debugger reads. Not compressed: that takes longer than the test.
fn package(out: &Path) -> PathBuf {
    let binary = out.join("statefuld");
    let stripped = Command::new("strip").arg("-o").arg(&binary).arg(statefuld().get_program()).status();
    assert!(stripped.expect("strip runs").success());
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["xtask", "deb", "--binary"]).arg(binary).arg("--out").arg(out);
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "{}", text(&output));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).lines().last().expect("its path"))
}

#[test]
fn e2e_on_a_machine_with_nothing_installed_the_package_is_enough() {
    let machine = Machine::new();
    let out = tempfile::tempdir().expect("a folder");
    let package = package(out.path());
    fs::copy(&package, machine.root().join("root/statefuld.deb")).expect("copied");
    let output = machine.type_in(
        "dpkg --install /root/statefuld.deb
         statefuld --version
         zcat /usr/share/man/man8/statefuld-up.8.gz | head -n 1
         grep -q _statefuld /usr/share/bash-completion/completions/statefuld
         cd /usr/share/doc/statefuld
         statefuld doctor || test $? = 1
         statefuld up examples/journal.yaml --detach --timeout 2m
         statefuld why
         test -s /var/lib/statefuld/volumes/default/journal-2-data/journal
         statefuld volume list
         statefuld backup /srv/statefuld.backup
         statefuld down
         statefuld install --init systemd --no-start --root /
         grep -q '^ExecStart=\"\\?/usr/bin/statefuld' /etc/systemd/system/statefuld.service
         dpkg --remove statefuld
         ! test -e /usr/bin/statefuld
         ! test -e /etc/systemd/system/statefuld.service
         test -s /var/lib/statefuld/volumes/default/journal-0-data/journal
         echo all of it",
    );
    let said = text(&output);
    assert!(output.status.success() && said.contains("all of it"), "{said}");
    for expected in ["journal-2.journal.default.svc.cluster.local", "data-journal-1", "export KUBECONFIG="] {
        assert!(said.contains(expected), "{expected} is missing: {said}");
    }
}
