//! `statefuld dns install` and `uninstall`: this machine's own programs find pods and services by name.
//!
//! systemd-resolved is told by a file of ours which names the node's name server knows; all others go where they went.
//! Where there is no systemd-resolved nothing is changed, and the line that a person can add is printed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cli::{Dns, DnsCommand, Resolver};
use crate::place::DataDir;
use crate::say;

/// Where systemd-resolved reads further settings.
const DROP_INS: &str = "etc/systemd/resolved.conf.d";
/// There while it runs.
const RUNNING: &str = "run/systemd/resolve";
/// What our files there begin with.
const PREFIX: &str = "statefuld-";

/// Runs the command.
pub fn run(args: &Dns) -> Result<ExitCode> {
    let (DnsCommand::Install(resolver) | DnsCommand::Uninstall(resolver)) = &args.command;
    let data = DataDir::new(&resolver.instance.data_dir)?;
    let Some(config) = node::Config::load(data.path())? else {
        bail!("nothing was ever started in {}: run `statefuld up` first", data.path().display());
    };
    match args.command {
        DnsCommand::Install(_) => install(resolver, &config),
        DnsCommand::Uninstall(_) => uninstall(resolver, &config),
    }
}

fn install(resolver: &Resolver, config: &node::Config) -> Result<ExitCode> {
    let node::Config { gateway, cluster_domain, .. } = config;
    if !resolver.root.join(RUNNING).exists() {
        say::note(format_args!(
            "systemd-resolved does not run here, so nothing was changed. To find pods and services by name, put this line \
             before other name servers in /etc/resolv.conf (names of other places are passed on to those):"
        ));
        say::print(format_args!("nameserver {gateway}"));
        return Ok(ExitCode::SUCCESS);
    }
    let folder = resolver.root.join(DROP_INS);
    let path = file(&folder, config);
    if let Some(other) = another(&folder, &path)? {
        bail!(
            "{} names another instance for {cluster_domain}: run `statefuld dns uninstall` for that one first",
            other.display()
        );
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    fs::write(&path, content(config)).with_context(|| format!("{} cannot be written", path.display()))?;
    reload(&resolver.root)?;
    say::note(format_args!("names below {cluster_domain} are asked of {gateway} ({})", path.display()));
    Ok(ExitCode::SUCCESS)
}

fn uninstall(resolver: &Resolver, config: &node::Config) -> Result<ExitCode> {
    let path = file(&resolver.root.join(DROP_INS), config);
    match fs::remove_file(&path) {
        Ok(()) => {
            reload(&resolver.root)?;
            say::note(format_args!("removed {}", path.display()));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            say::note(format_args!(
                "nothing was installed; a line that you added to /etc/resolv.conf is yours to remove"
            ));
        }
        Err(error) => return Err(error).with_context(|| format!("{} cannot be removed", path.display())),
    }
    Ok(ExitCode::SUCCESS)
}

/// What `uninstall` of the service undoes with it: the file of an instance, found by the data directory that it names.
pub fn forget(root: &Path, data: &str) -> Result<()> {
    let folder = root.join(DROP_INS);
    let of_instance = format!("--data-dir {data}`");
    let files = ours(&folder)?.into_iter();
    let own = files.filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(&of_instance)));
    for path in own {
        fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        say::note(format_args!("removed {}", path.display()));
        reload(root)?;
    }
    Ok(())
}

fn file(folder: &Path, config: &node::Config) -> PathBuf {
    folder.join(format!("{PREFIX}{}.conf", config.tag()))
}

/// The file of another instance: two servers for the same names would be asked by turns.
fn another(folder: &Path, own: &Path) -> Result<Option<PathBuf>> {
    Ok(ours(folder)?.into_iter().find(|path| path != own))
}

/// All files of ours.
fn ours(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", folder.display())),
    };
    let ours = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
    Ok(entries.flatten().filter(ours).map(|entry| entry.path()).collect())
}

/// What systemd-resolved is told: `~` marks names that are asked of these servers and of no others.
fn content(config: &node::Config) -> String {
    let node::Config { gateway, cluster_domain, pod_cidr, data_dir, .. } = config;
    let [a, b, c, _] = pod_cidr.base.octets();
    format!(
        "# Written by `statefuld dns install --data-dir {0}`; `statefuld dns uninstall --data-dir {0}` removes it.\n\
         [Resolve]\nDNS={gateway}\nDomains=~{cluster_domain} ~{c}.{b}.{a}.in-addr.arpa\n",
        data_dir.display()
    )
}

fn reload(root: &Path) -> Result<()> {
    const RESTART: [&str; 3] = ["systemctl", "try-restart", "systemd-resolved"];
    if root != Path::new("/") {
        return Ok(());
    }
    let restarted = Command::new(RESTART[0]).args(&RESTART[1..]).status();
    if !restarted.is_ok_and(|status| status.success()) {
        bail!("the file is in its place, but systemd-resolved was not restarted: run `{}`", RESTART.join(" "));
    }
    Ok(())
}
