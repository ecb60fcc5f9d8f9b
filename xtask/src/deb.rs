//! `cargo xtask deb`: a Debian package of the program that is given to people.
//!
//! | path | holds |
//! |---|---|
//! | `/usr/bin/statefuld` | the program, linked statically: it depends on nothing |
//! | `/usr/share/man/man8` | a page for each command |
//! | `/usr/share/{bash-completion,zsh,fish}` | what completes commands at the prompt |
//! | `/usr/share/doc/statefuld` | README, docs, examples, changelog, licence |
//!
//! Nothing is started by the package: `statefuld install` is asked for that. An upgrade restarts the service that is there,
//! which leaves pods running; removal takes the service away, and its data stays.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{cargo, run};

const USAGE: &str = "usage: cargo xtask deb [--binary FILE] [--out FOLDER]";

/// Where a shell looks for completions, and what the program calls that shell.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/statefuld"),
    ("zsh", "usr/share/zsh/vendor-completions/_statefuld"),
    ("fish", "usr/share/fish/vendor_completions.d/statefuld.fish"),
];

/// After unpacking: a service that runs goes on as the new version; nobody's pods notice.
const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ] && [ -n "$2" ]; then
	if [ -d /run/systemd/system ] && systemctl --quiet is-active statefuld.service; then
		systemctl daemon-reload
		systemctl restart statefuld.service
	elif [ -d /run/openrc ] && rc-service --quiet --exists statefuld && rc-service --quiet statefuld status; then
		rc-service statefuld restart
	fi
fi
"#;

/// Before removal: the service goes while its program is still there. An upgrade leaves it alone.
const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ]; then
	/usr/bin/statefuld uninstall
fi
"#;

/// What is asked for.
struct Options {
    /// A program that is built already; without it the `dist` profile is built.
    binary: Option<PathBuf>,
    /// Where the package is put.
    out: PathBuf,
}

/// Makes the package, and says where it is.
pub fn make(arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no folder")?;
    let options = options(arguments, root)?;
    let binary = match options.binary {
        Some(binary) => binary,
        None => built()?,
    };
    let tree = options.out.join("deb");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("{} cannot be emptied", tree.display()))?;
    }
    stage(root, &binary, &tree)?;
    let (version, architecture) = (env!("CARGO_PKG_VERSION"), architecture()?);
    let control = tree.join("DEBIAN");
    put(&control.join("control"), control_file(version, &architecture, size_of(&tree)?).as_bytes(), 0o644)?;
    put(&control.join("postinst"), POSTINST.as_bytes(), 0o755)?;
    put(&control.join("prerm"), PRERM.as_bytes(), 0o755)?;
    let package = options.out.join(format!("statefuld_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    run(build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package))?;
    fs::remove_dir_all(&tree).with_context(|| format!("{} cannot be removed", tree.display()))?;
    println!("{}", package.display());
    Ok(())
}

fn options(mut arguments: impl Iterator<Item = OsString>, root: &Path) -> Result<Options> {
    let mut options = Options { binary: None, out: root.join("target") };
    while let Some(name) = arguments.next() {
        let value = arguments.next().map(PathBuf::from).with_context(|| USAGE.to_owned())?;
        match name.to_str() {
            Some("--binary") => options.binary = Some(value),
            Some("--out") => options.out = value,
            _ => bail!("{}: not an option; {USAGE}", name.display()),
        }
    }
    Ok(options)
}

/// Builds the program as it is given to people, and tells where it is.
fn built() -> Result<PathBuf> {
    let arguments =
        ["build", "--profile", "dist", "--package", "statefuld", "--message-format", "json-render-diagnostics"];
    let output =
        cargo(&arguments).stderr(std::process::Stdio::inherit()).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("the program cannot be built ({})", output.status);
    }
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let program = messages
        .filter_map(Result::ok)
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .last();
    program.context("cargo has built no program")
}

/// Everything below the machine's root.
fn stage(root: &Path, binary: &Path, tree: &Path) -> Result<()> {
    let program = fs::read(binary).with_context(|| format!("{} cannot be read", binary.display()))?;
    let placed = tree.join("usr/bin/statefuld");
    put(&placed, &program, 0o755)?;
    let man = tree.join("usr/share/man/man8");
    run(Command::new(&placed).arg("man").arg(&man))?;
    for page in files_in(&man)? {
        compress(&page)?;
    }
    for (shell, place) in COMPLETIONS {
        let output = Command::new(&placed).args(["completions", shell]).output();
        let output = output.with_context(|| format!("{} cannot be started", placed.display()))?;
        if !output.status.success() {
            bail!("there are no completions for {shell}");
        }
        put(&tree.join(place), &output.stdout, 0o644)?;
    }
    let doc = tree.join("usr/share/doc/statefuld");
    for folder in ["docs", "examples"] {
        for file in files_in(&root.join(folder))? {
            let name = file.file_name().context("a file has a name")?;
            copy(&file, &doc.join(folder).join(name))?;
        }
    }
    copy(&root.join("README.md"), &doc.join("README.md"))?;
    copy(&root.join("CHANGELOG.md"), &doc.join("changelog"))?;
    compress(&doc.join("changelog"))?;
    put(&doc.join("copyright"), copyright().as_bytes(), 0o644)
}

/// The package's description of itself. `size` in KiB.
fn control_file(version: &str, architecture: &str, size: u64) -> String {
    format!(
        "Package: statefuld\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: The statefuld authors <statefuld@localhost>\n\
         Installed-Size: {size}\n\
         Section: admin\n\
         Priority: optional\n\
         Description: Kubernetes StatefulSets without Kubernetes\n \
         Gives one Linux machine what a StatefulSet promises: pods with sticky names,\n \
         DNS names and volumes, started, scaled, updated and stopped in order, and\n \
         never twice at once. kubectl and every other Kubernetes client work with it.\n \
         .\n \
         `statefuld doctor` says whether this machine is good for it, `statefuld install`\n \
         starts it with the machine.\n"
    )
}

fn copyright() -> String {
    "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
     Upstream-Name: statefuld\n\
     \n\
     Files: *\n\
     Copyright: the statefuld authors\n\
     License: Apache-2.0\n \
     On Debian systems, the text of the Apache License, version 2.0, is in\n \
     /usr/share/common-licenses/Apache-2.0.\n"
        .to_owned()
}

fn architecture() -> Result<String> {
    let output = Command::new("dpkg").arg("--print-architecture").output().context("dpkg cannot be started")?;
    Ok(String::from_utf8(output.stdout).context("dpkg names no architecture")?.trim().to_owned())
}

/// KiB of all files.
fn size_of(tree: &Path) -> Result<u64> {
    let mut folders = vec![tree.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))? {
            let entry = entry?;
            match entry.metadata()? {
                meta if meta.is_dir() => folders.push(entry.path()),
                meta => bytes += meta.len(),
            }
        }
    }
    Ok(bytes.div_ceil(1024))
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// Without a time in it, so that the same content is the same package.
fn compress(file: &Path) -> Result<()> {
    run(Command::new("gzip").args(["-9", "-n", "--force"]).arg(file))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    put(to, &fs::read(from).with_context(|| format!("{} cannot be read", from.display()))?, 0o644)
}

fn put(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    fs::create_dir_all(path.parent().with_context(failed)?).with_context(failed)?;
    fs::write(path, content).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(failed)
}
