//! Starting a container of the pod: its environment, outputs, limits, and first process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ambient::Ambient;

use super::exec::{input_pipe, null, open_slave, output_pipe};
use super::input::Input;
use super::last_words;
use super::life::{Container, Life, Output, PostStart, Process};
use super::pod::Pod;
use super::process::STAGE_FOLDER;
use super::spec::{ContainerSpec, Root, Seccomp, ShimSpec};
use super::state::Termination;
use crate::container::credentials::Granted;
use crate::container::seccomp::Filter;
use crate::container::{self, Keeper, Pause, Program, Start, Stdio};
use crate::fault::{self, Point};
use crate::log::{self, LineCutter, LogFile, Stream};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Pod {
    /// Starts a container, for the first time or again. A failure is a termination like any other.
    pub(super) fn start_container(&mut self, index: usize, ambient: &Ambient) {
        if self.containers[index].last_termination.is_some() {
            // Its incarnation is above that of the specification, which is on disk.
            self.will_last();
        }
        let container = &mut self.containers[index];
        if container.last_termination.is_some() {
            container.restart_count = container.restart_count.saturating_add(1);
        }
        let restarts = container.restart_count - container.spec.restart_count_base;
        container.incarnation = self.spec.incarnation_base.saturating_add(restarts.into());
        container.id = new_id(ambient);
        container.told = false;
        self.touch();
        let now = (ambient.now(), ambient.boottime());
        match self.spawn(index, ambient) {
            Ok(process) => {
                fault::point(Point::ContainerMade);
                self.containers[index].life = Life::Starting(process);
            }
            Err(message) => {
                let termination = Termination {
                    exit_code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message,
                    started_at: now.0,
                    finished_at: ambient.now(),
                    id: self.containers[index].id.clone(),
                };
                self.settle(index, termination, ambient.boottime().saturating_sub(now.1), ambient);
            }
        }
    }

    fn spawn(&mut self, index: usize, ambient: &Ambient) -> Result<Process, String> {
        let (program, warnings) = self.program(index)?;
        warnings.into_iter().for_each(|w| self.warn(w));
        let container = &self.containers[index];
        let group = container.group.clone();
        let limits = container.spec.limits.clone();
        let mut warnings = group.create().map_err(|e| e.to_string())?;
        warnings.extend(group.limit(&limits));
        warnings.into_iter().for_each(|w| self.warn(w));
        let (last_words, spec) = self.with_last_words(index)?;
        let container = &self.containers[index];
        let ends = Ends::new(&container.spec).map_err(|e| format!("making its outputs: {e}"))?;
        let oom_kills_before = group.oom_kills();
        let stage = self.dir.join(STAGE_FOLDER);
        if !self.keeper.alive() {
            // Somebody killed it; nothing is started without one.
            self.keeper = Keeper::start(&self.cgroup.containers()).map_err(|e| format!("making its keeper: {e}"))?;
        }
        if self.pause.as_ref().is_some_and(|pause| !pause.alive()) {
            self.pause =
                Some(Pause::start(&stage, self.users.as_ref()).map_err(|e| format!("making its pid namespace: {e}"))?);
        }
        let container = &self.containers[index];
        let target = container.spec.target.as_deref().map(|name| self.running_named(name)).transpose()?;
        let start = Start {
            pod: &self.spec,
            container: &spec,
            program: &program,
            users: self.users.as_ref(),
            group: &group,
            stage: &stage,
            start: container.restart_count,
            first: container.last_termination.is_none(),
        };
        let started = match target {
            Some(target) => container::start_beside(&start, ends.theirs, target.pidfd()),
            None => match &self.pause {
                Some(pause) => container::start_beside(&start, ends.theirs, pause.pidfd()),
                None => container::start(&start, ends.theirs),
            },
        };
        let started = started.map_err(|e| format!("making its process: {e}"))?;
        Ok(Process {
            pid: started.pid,
            pidfd: started.pidfd,
            report: Some(started.report),
            failure: Vec::new(),
            outputs: ends.outputs,
            log: self.log_file(container),
            tty: container.spec.tty,
            input: Input::new(ends.stdin, container.spec.tty),
            started_at: ambient.now(),
            started: ambient.boottime(),
            oom_kills_before,
            program,
            post_start: container.spec.post_start.as_ref().map(|_| PostStart::Due),
            last_words,
            ending: None,
        })
    }

    /// The container with the file of its last words mounted, made anew, and where that is.
    fn with_last_words(&self, index: usize) -> Result<(Option<PathBuf>, ContainerSpec), String> {
        let mut spec = self.containers[index].spec.clone();
        let Some(words) = spec.last_words.clone() else { return Ok((None, spec)) };
        let made = last_words::prepare(&self.dir, &spec.name, &words);
        let (path, mount) = made.map_err(|e| format!("making the file of its last words: {e}"))?;
        spec.mounts.push(mount);
        Ok((Some(path), spec))
    }

    fn log_file(&self, container: &Container) -> LogFile {
        let path = log::path(&self.spec.log.dir, &container.spec.name, container.restart_count);
        LogFile::open(path, self.spec.log.max_bytes, self.spec.log.max_files)
    }

    fn program(&self, index: usize) -> Result<(Program, Vec<String>), String> {
        let container = &self.containers[index];
        let spec = &container.spec;
        let bounding = match self.users {
            // Whatever the machine's root lacks: this is power over the pod's own namespaces alone.
            Some(_) => caps::all(),
            None => caps::read(None, caps::CapSet::Bounding).map_err(|e| e.to_string())?,
        };
        let bounding: Vec<caps::Capability> = bounding.into_iter().collect();
        let (mut capabilities, mut warnings) = Granted::new(&spec.capabilities, spec.privileged, &bounding)?;
        if !spec.privileged {
            container.group.create().map_err(|e| e.to_string())?;
            if !container.group.restrict_devices() {
                capabilities = capabilities.without_device_nodes();
            }
        }
        let filter = match &spec.seccomp {
            Seccomp::Unconfined => None,
            Seccomp::Profile { profile } => Some(Filter::new(profile).map_err(|e| format!("seccomp profile: {e}"))?),
            Seccomp::Default if filters_are_known() => Some(Filter::default_for(&capabilities.names())?),
            Seccomp::Default => {
                warnings.push("system calls are not filtered: this machine's kernel cannot".into());
                None
            }
        };
        let program = Program {
            argv: spec.argv.clone(),
            env: environment(&self.spec, container),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            capabilities,
            no_new_privileges: spec.no_new_privileges,
            filter,
        };
        Ok((program, warnings))
    }
}

/// Whether the kernel has filters of system calls.
fn filters_are_known() -> bool {
    fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap_or(false)
}

/// The container's environment: what was asked for, what every program expects, and the fencing tokens.
fn environment(pod: &ShimSpec, container: &Container) -> Vec<(String, String)> {
    let spec = &container.spec;
    let mut env: Vec<(String, String)> =
        spec.env.iter().filter(|(name, _)| !name.starts_with("STATEFULD_")).cloned().collect();
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|(have, _)| have == name) {
            env.push((name.into(), value.into()));
        }
    };
    default("PATH", PATH);
    default("HOSTNAME", &pod.hostname);
    default("HOME", &home(&spec.root, spec.user.uid));
    if spec.tty {
        default("TERM", "xterm");
    }
    default("STATEFULD_EPOCH", &pod.epoch.to_string());
    default("STATEFULD_INCARNATION", &container.incarnation.to_string());
    env
}

/// The user's home as the root's passwd file has it.
fn home(root: &Root, uid: u32) -> String {
    let passwd = match root {
        Root::Host => fs::read_to_string("/etc/passwd").unwrap_or_default(),
        _ => String::new(),
    };
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid));
    match entry.and_then(|fields| fields.get(5).map(|home| (*home).to_owned())) {
        Some(home) => home,
        None if uid == 0 => "/root".into(),
        None => "/".into(),
    }
}

fn new_id(ambient: &Ambient) -> String {
    let mut bytes = [0; 32];
    ambient.fill(&mut bytes);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Both ends of a container's descriptors.
struct Ends {
    theirs: Stdio,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
}

impl Ends {
    fn new(spec: &ContainerSpec) -> io::Result<Self> {
        if spec.tty {
            return Self::terminal(spec.stdin);
        }
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let (their_stdin, stdin) = match spec.stdin {
            true => input_pipe().map(|(theirs, ours)| (theirs, Some(ours)))?,
            false => (null()?, None),
        };
        let output = |fd, stream| Output { fd: Some(fd), cutter: LineCutter::new(stream) };
        Ok(Self {
            theirs: Stdio { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr, tty: false },
            outputs: vec![output(stdout, Stream::Stdout), output(stderr, Stream::Stderr)],
            stdin,
        })
    }

    fn terminal(stdin: bool) -> io::Result<Self> {
        use rustix::pty::OpenptFlags;
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let slave = open_slave(&master, 80, 24)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let theirs = Stdio { stdin: slave.try_clone()?, stdout: slave.try_clone()?, stderr: slave, tty: true };
        let stdin = stdin.then(|| master.try_clone()).transpose()?;
        let outputs = vec![Output { fd: Some(master), cutter: LineCutter::new(Stream::Stdout) }];
        Ok(Self { theirs, outputs, stdin })
    }
}
