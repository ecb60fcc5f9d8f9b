//! What the images of the software tests are made of: per piece of software a folder with the files of Debian's packages, and one
//! below them all with what every one of them needs.
//!
//! The packages are unpacked and nothing of theirs is run: users, settings and folders come from the tests themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::install::{apt, once};
use crate::run;

/// What is below all others.
const BASE: (&str, &[&str]) = (
    "base",
    &[
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "findutils",
        "grep",
        "hostname",
        "libc-bin",
        "mawk",
        "netbase",
        "procps",
        "sed",
        "util-linux",
    ],
);

/// The folders, and the packages in each.
const SOFTWARE: &[(&str, &[&str])] = &[
    ("redis", &["redis-server", "redis-tools"]),
    ("postgres", &["postgresql"]),
    ("zookeeper", &["default-jre-headless", "libzookeeper-java"]),
    ("rabbitmq", &["rabbitmq-server", "python3-pika"]),
    ("galera", &["mariadb-server", "galera-4", "rsync"]),
];

/// Packages (`*`: all whose names begin so) that others depend on for what maintainers' scripts, people and machines with a
/// screen do.
const NEEDLESS: &[&str] = &[
    "adduser",
    "debconf",
    "dpkg",
    "fontconfig*",
    "fonts-*",
    "init-system-helpers",
    "libllvm*",
    "libperl*",
    "libz3-*",
    "locales",
    "perl*",
    "usrmerge",
];

/// What nobody reads in a container.
const UNREAD: &[&str] = &["doc", "info", "lintian", "locale", "man"];

/// Installs what is missing below that folder.
pub fn install(folder: &Path) -> Result<()> {
    let (name, packages) = BASE;
    root(&folder.join(name), packages, &[])?;
    for (name, packages) in SOFTWARE {
        root(&folder.join(name), packages, BASE.1)?;
    }
    Ok(())
}

/// One folder: packages with all that they depend on, without what comes with those `below`.
fn root(folder: &Path, packages: &[&str], below: &[&str]) -> Result<()> {
    once(folder, &format!("{packages:?} on {below:?} without {NEEDLESS:?}"), |folder| {
        static UPDATED: OnceLock<()> = OnceLock::new();
        if UPDATED.set(()).is_ok() {
            run(&mut apt(&["update"]))?;
        }
        let there = if below.is_empty() { BTreeSet::new() } else { with_dependencies(below)? };
        let wanted: Vec<String> = with_dependencies(packages)?.difference(&there).cloned().collect();
        let files = folder.join("root");
        let archives = folder.join("archives");
        for path in [&files, &archives] {
            let _ = fs::remove_dir_all(path);
            fs::create_dir_all(path).with_context(|| format!("{} cannot be made", path.display()))?;
        }
        let archives = archives.canonicalize()?;
        run(apt(&["-o", "APT::Sandbox::User=root", "download"]).args(wanted).current_dir(&archives))?;
        // Packages have files below /bin and /lib still, which are links in every system of today.
        let script = "cd \"$1\"; for d in bin sbin lib lib64; do mkdir -p usr/$d; ln -s usr/$d $d; done; \
                      for p in \"$2\"/*.deb; do dpkg-deb --fsys-tarfile \"$p\" | tar -x --keep-directory-symlink; done; \
                      cd usr/share; shift 2; rm -rf \"$@\"";
        run(Command::new("sh").args(["-ec", script, "sh"]).arg(&files).arg(&archives).args(UNREAD))?;
        fs::remove_dir_all(&archives).with_context(|| format!("{} cannot be removed", archives.display()))
    })
}

/// Packages, and what they depend on, by apt's own judgement of a machine that has nothing.
fn with_dependencies(packages: &[&str]) -> Result<BTreeSet<String>> {
    let mut command = apt(&["--simulate", "--no-install-recommends", "-o", "Dir::State::status=/dev/null", "install"]);
    let output = command.args(packages).stderr(Stdio::inherit()).output().context("apt-get cannot be started")?;
    if !output.status.success() {
        bail!("{command:?} failed ({})", output.status);
    }
    let text = String::from_utf8(output.stdout).context("apt-get speaks no UTF-8")?;
    let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    Ok(names.filter(|name| !is_needless(name)).map(str::to_owned).collect())
}

fn is_needless(name: &str) -> bool {
    NEEDLESS.iter().any(|pattern| pattern.strip_suffix('*').map_or(name == *pattern, |start| name.starts_with(start)))
}
