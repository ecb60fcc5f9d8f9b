//! From an executed program to a sandbox that is up: what a shim does once, at its start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambient::Ambient;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::UnshareFlags;

use super::file::FileError;
use super::pod::Pod;
use super::protocol::SOCKET_FILE;
use super::serve;
use super::spec::ShimSpec;
use crate::cgroup::{CgroupError, Layout, PodCgroup};
use crate::container::{Keeper, Pause, Users, UsersError};
use crate::fault::{self, Point};
use crate::sys::{self, Forked};
use crate::sysctl;

/// What the launcher reads first when all went well; a process id follows.
pub(super) const UP: &str = "up ";

/// Name of the file that only a living shim holds locked.
pub(super) const LOCK_FILE: &str = "shim.lock";

/// Where complaints of the shim itself go.
const LOG_FILE: &str = "shim.log";

/// The process: detaches a copy of itself, waits until that is up, and tells its parent.
pub(super) fn main(pod_dir: &Path) -> ExitCode {
    match detach(pod_dir) {
        Ok(message) => {
            // If the launcher is gone, a later daemon finds the shim by its folder.
            let _ = io::stdout().write_all(message.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = io::stdout().write_all(format!("the shim cannot be started: {error}").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn detach(pod_dir: &Path) -> Result<String, SetupError> {
    let pod_dir =
        fs::canonicalize(pod_dir).map_err(|source| SetupError::Folder { path: pod_dir.to_owned(), source })?;
    sys::close_from(3)?;
    let ground = Ground::prepare(&pod_dir)?;
    // The session first: the copy must not die with the launcher's terminal.
    rustix::process::setsid().map_err(io::Error::from)?;
    let birthplace = ground.cgroup.shim().birthplace();
    let mut text = copy(&pod_dir, &ground, birthplace.as_ref())?;
    if text.is_empty() && birthplace.is_some() {
        // Killed at birth, where the launcher's own group was killed before.
        text = copy(&pod_dir, &ground, None)?;
    }
    Ok(text)
}

/// Lets a copy of this process become the shim, and gives what it has to say.
fn copy(pod_dir: &Path, ground: &Ground, birthplace: Option<&OwnedFd>) -> Result<String, SetupError> {
    let (answer, told) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let (forked, born) = sys::fork_into_group(0, birthplace)?;
    match forked {
        Forked::Child => {
            drop(answer);
            sys::exit_now(i32::from(run(pod_dir, ground, born, told).is_err()))
        }
        Forked::Parent { .. } => {
            drop(told);
            let mut text = String::new();
            File::from(answer).read_to_string(&mut text)?;
            Ok(text)
        }
    }
}

/// What a shim stands on, prepared before it is there.
#[derive(Debug)]
struct Ground {
    /// Only a living shim holds it.
    lock: File,
    spec: ShimSpec,
    cgroup: PodCgroup,
    warnings: Vec<String>,
}

impl Ground {
    fn prepare(pod_dir: &Path) -> Result<Self, SetupError> {
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(pod_dir.join(LOCK_FILE))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SetupError::Occupied { path: pod_dir.to_owned() }),
            result => result.map_err(io::Error::from)?,
        }
        fault::point(Point::ShimLocked);
        let spec = ShimSpec::read(pod_dir)?;
        let cgroup = PodCgroup::new(&Layout::detect()?, &spec.cgroup)?.look();
        let warnings = cgroup.create(&spec.limits)?;
        cgroup.shim().create()?;
        Ok(Self { lock, spec, cgroup, warnings })
    }
}

/// The shim's whole life.
fn run(pod_dir: &Path, ground: &Ground, born: bool, told: OwnedFd) -> Result<(), ()> {
    let ambient = Ambient::system();
    let mut told = File::from(told);
    let pod = match set_up(pod_dir, ground, born, &ambient) {
        Ok(pod) => pod,
        Err(error) => {
            let _ = told.write_all(error.to_string().as_bytes());
            return Err(());
        }
    };
    let _ = told.write_all(format!("{UP}{}", std::process::id()).as_bytes());
    drop(told);
    serve::run(pod, &ambient).map_err(|error| eprintln!("{}: the shim ends: {error}", ambient.now()))
}

/// A sandbox that is up.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) pod: Pod,
    pub(super) listener: UnixListener,
    pub(super) signals: OwnedFd,
    /// Held as long as the shim lives.
    _lock: File,
}

fn set_up(pod_dir: &Path, ground: &Ground, born: bool, ambient: &Ambient) -> Result<Sandbox, SetupError> {
    redirect_stdio(pod_dir)?;
    // The launcher's copy is closed with it: the lock stays as long as this one is open.
    let lock = ground.lock.try_clone()?;
    let (spec, cgroup, mut warnings) = (ground.spec.clone(), ground.cgroup.clone(), ground.warnings.clone());
    name_process(&spec.name);
    cgroup.shim().enter(born)?;
    fault::point(Point::ShimGrouped);
    if fs::write("/proc/self/oom_score_adj", "-999").is_err() {
        warnings.push("the shim cannot be kept from the OOM killer: CAP_SYS_RESOURCE is missing".into());
    }
    rustix::process::chdir("/").map_err(io::Error::from)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let separated = make_namespaces(&spec, &mut warnings)?;
    fault::point(Point::ShimSeparated);
    // Any process id but 0 says "me".
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(io::Error::from)?;
    let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let keeper = Keeper::start(&cgroup.containers())?;
    let stage = pod_dir.join(STAGE_FOLDER);
    fs::create_dir_all(&stage)?;
    let pause = spec.sharing.pod_pid.then(|| Pause::start(&stage, separated.users.as_ref())).transpose()?;
    let listener = listen(pod_dir)?;
    fault::point(Point::ShimListening);
    let pod = Pod::new(pod_dir.to_owned(), spec, cgroup, (keeper, pause), separated, warnings, ambient)?;
    fault::point(Point::ShimRecorded);
    Ok(Sandbox { pod, listener, signals, _lock: lock })
}

/// Folder that roots are first mounted on, in the containers' own namespaces; it stays empty.
pub(super) const STAGE_FOLDER: &str = "stage";

fn redirect_stdio(pod_dir: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(pod_dir.join(LOG_FILE))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// As tools show it. Without "statefuld", so that a `pkill` of the daemon by name spares the pods.
fn name_process(pod: &str) {
    // The kernel takes 15 bytes and cuts the rest.
    if let Ok(name) = std::ffi::CString::new(format!("shim:{pod}")) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// What there is of a pod that is separated from the machine.
#[derive(Debug)]
pub(super) struct Separated {
    /// The network that was left, where it was.
    pub(super) host_network: Option<OwnedFd>,
    /// The pod's users, where they are not the machine's.
    pub(super) users: Option<Users>,
}

/// Moves into namespaces of the pod's own.
fn make_namespaces(spec: &ShimSpec, warnings: &mut Vec<String>) -> Result<Separated, SetupError> {
    let before = File::open("/proc/self/ns/net")?;
    let Some(range) = spec.users else {
        unshare(spec)?;
        warnings.extend(settle(spec)?);
        return Ok(Separated { host_network: (!spec.host_network).then(|| before.into()), users: None });
    };
    if spec.host_network || spec.sharing.host_pid || spec.sharing.host_ipc {
        return Err(SetupError::Shared);
    }
    let (users, told) = Users::found(range, || settle(spec).map_err(|e| e.to_string()))?;
    users.check(spec)?;
    warnings.extend(told);
    Ok(Separated { host_network: Some(before.into()), users: Some(users) })
}

#[allow(deprecated, reason = "the flags given do not touch the descriptors that the safe call worries about")]
fn unshare(spec: &ShimSpec) -> Result<(), SetupError> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWIPC, !spec.sharing.host_ipc);
    // On the machine's network a pod has the machine's name, too.
    flags.set(UnshareFlags::NEWUTS | UnshareFlags::NEWNET, !spec.host_network);
    rustix::thread::unshare(flags).map_err(|errno| SetupError::Namespaces { source: errno.into() })
}

/// Names, loopback and settings of namespaces that are new; answers warnings.
fn settle(spec: &ShimSpec) -> Result<Vec<String>, SetupError> {
    let mut warnings = Vec::new();
    if !spec.host_network {
        rustix::system::sethostname(spec.hostname.as_bytes()).map_err(io::Error::from)?;
        if let Some(domain) = &spec.domainname {
            rustix::system::setdomainname(domain.as_bytes()).map_err(io::Error::from)?;
        }
        sys::loopback_up()?;
        // As container runtimes do: the namespace is the pod's own, so a low port takes nothing from anybody.
        if let Err(error) = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") {
            warnings.push(format!("low ports need a capability: {error}"));
        }
    }
    set_sysctls(spec)?;
    Ok(warnings)
}

/// Sets what the pod asks of its own namespaces, and refuses what is not theirs, whoever let it through.
fn set_sysctls(spec: &ShimSpec) -> Result<(), SetupError> {
    for (name, value) in &spec.sysctls {
        let failed = |source| SetupError::Sysctl { name: name.clone(), source };
        let own = match sysctl::Namespace::of(name) {
            Some(sysctl::Namespace::Ipc) => !spec.sharing.host_ipc,
            Some(sysctl::Namespace::Network) => !spec.host_network,
            None => false,
        };
        if !own || name.split(['.', '/']).any(str::is_empty) {
            return Err(failed(io::ErrorKind::PermissionDenied.into()));
        }
        fs::write(sysctl::path(name), value).map_err(failed)?;
    }
    Ok(())
}

fn listen(pod_dir: &Path) -> io::Result<UnixListener> {
    let dir = rustix::fs::open(pod_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Through a descriptor, because a socket's path may not be longer than 107 bytes.
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()));
    // The lock is held: a socket that is there belongs to a shim that is not.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The sandbox could not be set up; told to the launcher.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    /// The pod's folder cannot be entered.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another shim runs this pod: connect to it, or clean up first.
    #[error("a shim runs already in {}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The specification or state file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pod's cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No right to make namespaces, or the kernel lacks them.
    #[error("the pod's namespaces cannot be made (this needs root): {source}")]
    Namespaces {
        /// What the system said.
        source: io::Error,
    },
    /// The pod's own users cannot be made.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The specification wants both users of the pod's own and a namespace of the machine's.
    #[error("hostUsers: false cannot be had with hostNetwork, hostPID or hostIPC")]
    Shared,
    /// The kernel does not have a setting, or does not take the value.
    #[error("setting sysctl {name}: {source}")]
    Sysctl {
        /// The setting.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else of the system's.
    #[error("setting up the sandbox: {0}")]
    Io(#[from] io::Error),
}
