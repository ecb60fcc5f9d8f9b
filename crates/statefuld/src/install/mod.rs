//! `statefuld install` and `uninstall`: the service that starts with the machine.
//!
//! | file | holds |
//! |---|---|
//! | `unit` | the service files, as text |
//! | `notify` | telling systemd how far the service is |

pub mod notify;
mod unit;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cli::{self, Init};
use crate::down;
use crate::place::DataDir;
use crate::{resolver, say};

use unit::Service;

/// Where systemd's units of a machine's administrator lie.
const SYSTEMD_UNIT: &str = "etc/systemd/system/statefuld.service";
/// Where OpenRC's scripts lie.
const OPENRC_SCRIPT: &str = "etc/init.d/statefuld";

/// `statefuld install`.
pub fn install(args: &cli::Install) -> Result<ExitCode> {
    let root = args.target.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let live = args.target.root.is_none();
    if live && !rustix::process::geteuid().is_root() {
        bail!("installing a service needs root; start it with sudo, or write below another folder with --root DIR");
    }
    let init = which(args.target.init, live)?;
    let service_file = root.join(path_of(init));
    refuse_foreign(&service_file)?;
    let data = DataDir::new(&args.instance.data_dir)?;
    let (binary, placed) = place_program(&root, &args.binary)?;
    let arguments = args.start.arguments();
    let service =
        Service { binary: &binary, placed, data: data.path(), arguments: &arguments, stop_timeout: args.stop_timeout };
    let (text, mode) = match init {
        Init::Systemd => (service.systemd(), 0o644),
        Init::Openrc => (service.openrc(), 0o755),
    };
    write(&service_file, text.as_bytes(), mode)?;
    say::note(format_args!("wrote {}", service_file.display()));
    if live && !args.no_start {
        start(init)?;
        say::note(format_args!("statefuld runs, and starts with the machine"));
        say::print(format_args!("export KUBECONFIG={}", data.kubeconfig().display()));
    } else {
        say::note(format_args!("nothing was started; {}", by_hand(init)));
    }
    Ok(ExitCode::SUCCESS)
}

/// `statefuld uninstall`.
pub async fn undo(args: cli::Uninstall) -> Result<ExitCode> {
    let root = args.target.root.clone().unwrap_or_else(|| PathBuf::from("/"));
    let live = args.target.root.is_none();
    let mut found = false;
    for init in [Init::Systemd, Init::Openrc] {
        if args.target.init.is_some_and(|asked| asked != init) {
            continue;
        }
        let service_file = root.join(path_of(init));
        let Ok(text) = fs::read_to_string(&service_file) else { continue };
        let Some(installed) = unit::read(&text) else {
            bail!("{} was not written by `statefuld install`; it is left alone", service_file.display());
        };
        found = true;
        if live {
            stop_for_good(init, installed.data.as_deref()).await?;
        }
        fs::remove_file(&service_file).with_context(|| format!("{} cannot be removed", service_file.display()))?;
        say::note(format_args!("removed {}", service_file.display()));
        if let Some(program) = &installed.program {
            remove_program(&root, Path::new(program))?;
        }
        if live {
            forget(init);
        }
        if let Some(data) = installed.data {
            // The service is gone already: that names stay installed must not look as if it were not.
            if let Err(error) = resolver::forget(&root, &data) {
                say::note(format_args!("statefuld: {error:#}"));
            }
            say::note(format_args!("all data stays in {data}; `statefuld install --data-dir {data}` returns to it"));
        }
    }
    if !found {
        say::note(format_args!("nothing is installed below {}", root.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// `statefuld service-stop`: pods go on unless the machine goes down.
pub async fn stop(args: cli::ServiceStop) -> Result<ExitCode> {
    let keep_pods = !(args.shutdown || machine_goes_down());
    down::run(cli::Down { instance: args.instance, keep_pods }).await
}

/// What systemd says of the machine: `stopping` once a shutdown is on its way.
fn machine_goes_down() -> bool {
    let said = Command::new("systemctl").arg("is-system-running").stdin(Stdio::null()).output();
    said.is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
}

/// The service manager that is asked for, or runs.
fn which(asked: Option<Init>, live: bool) -> Result<Init> {
    if let Some(init) = asked {
        return Ok(init);
    }
    let found = [Init::Systemd, Init::Openrc].into_iter().find(|init| live && runs(*init));
    found.context(
        "neither systemd nor OpenRC runs here; name one with --init to write its file all the same, and --no-start",
    )
}

fn runs(init: Init) -> bool {
    match init {
        Init::Systemd => Path::new("/run/systemd/system").exists(),
        Init::Openrc => Path::new("/run/openrc").exists(),
    }
}

fn path_of(init: Init) -> &'static str {
    match init {
        Init::Systemd => SYSTEMD_UNIT,
        Init::Openrc => OPENRC_SCRIPT,
    }
}

/// What to type where nothing was started.
fn by_hand(init: Init) -> &'static str {
    match init {
        Init::Systemd => "`systemctl enable --now statefuld` does",
        Init::Openrc => "`rc-update add statefuld && rc-service statefuld start` does",
    }
}

/// A file of that name that is not ours is never written over.
fn refuse_foreign(path: &Path) -> Result<()> {
    match fs::read_to_string(path) {
        Ok(text) if unit::read(&text).is_none() => {
            bail!("{} is there already and was not written by `statefuld install`; move it away first", path.display())
        }
        _ => Ok(()),
    }
}

/// Puts this program where the service expects it, unless it comes from a package or is there already. The path, and whether it
/// was put there.
fn place_program(root: &Path, wanted: &Path) -> Result<(PathBuf, bool)> {
    let own = std::env::current_exe().context("this program's own file cannot be found")?;
    if own.starts_with("/usr/bin") || own.starts_with("/usr/sbin") {
        return Ok((own, false));
    }
    let wanted = std::path::absolute(wanted).with_context(|| format!("{}: not a usable path", wanted.display()))?;
    let place = root.join(wanted.strip_prefix("/").unwrap_or(&wanted));
    let same = |a: &Path, b: &Path| match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    if !same(&own, &place) {
        let program = fs::read("/proc/self/exe").context("this program's own file cannot be read")?;
        write(&place, &program, 0o755)?;
        say::note(format_args!("put {}", place.display()));
    }
    Ok((wanted, true))
}

fn remove_program(root: &Path, program: &Path) -> Result<()> {
    let place = root.join(program.strip_prefix("/").unwrap_or(program));
    match fs::remove_file(&place) {
        Ok(()) => say::note(format_args!("removed {}", place.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be removed", place.display())),
    }
    Ok(())
}

/// Whole or not at all: a neighbour, fsync, rename. A program that runs is replaced, not written into.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    let folder = path.parent().with_context(failed)?;
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let mut name = path.file_name().with_context(failed)?.to_owned();
    name.push(".new");
    let neighbour = path.with_file_name(name);
    // One that an earlier try left may have another mode.
    let _ = fs::remove_file(&neighbour);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&neighbour).with_context(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(failed)?;
    fs::rename(&neighbour, path).with_context(failed)?;
    fs::File::open(folder).and_then(|f| f.sync_all()).with_context(failed)
}

fn start(init: Init) -> Result<()> {
    match init {
        Init::Systemd => {
            run("systemctl", &["daemon-reload"])?;
            run("systemctl", &["enable", "statefuld.service"])?;
            // One that ran already takes over its own pods: nothing of theirs restarts.
            run("systemctl", &["restart", "statefuld.service"])
        }
        Init::Openrc => {
            run("rc-update", &["add", "statefuld", "default"])?;
            run("rc-service", &["statefuld", "restart"])
        }
    }
}

/// Takes the service down with its pods, and keeps it from coming back.
async fn stop_for_good(init: Init, data: Option<&str>) -> Result<()> {
    if let Some(data) = data {
        let instance = cli::Instance { data_dir: data.into() };
        down::run(cli::Down { instance, keep_pods: false }).await?;
    }
    match init {
        // The file of a manager that does not run here was never started from.
        _ if !runs(init) => Ok(()),
        Init::Systemd => run("systemctl", &["disable", "--now", "statefuld.service"]),
        Init::Openrc => {
            // It has stopped already; the service manager has to be told.
            let _ = run("rc-service", &["statefuld", "zap"]);
            run("rc-update", &["del", "statefuld"])
        }
    }
}

/// Lets the service manager notice that the file is gone.
fn forget(init: Init) {
    if init == Init::Systemd {
        let _ = run("systemctl", &["daemon-reload"]);
        let _ = run("systemctl", &["reset-failed", "statefuld.service"]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let line = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("`{line}` cannot be run"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
