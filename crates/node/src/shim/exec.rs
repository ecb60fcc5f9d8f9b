//! Programs run in a container that runs already: for clients, and as hooks.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::input::Input;
use super::life::{Exit, Process};
use super::protocol::ExecExit;
use super::request;
use super::spec::HttpHook;
use crate::cgroup::Group;
use crate::container::{self, Joined, Program, StartFailure, Stdio, Users};

/// What is wanted of an exec.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) argv: Vec<String>,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) size: Option<(u16, u16)>,
    /// Since boot.
    pub(super) deadline: Option<Duration>,
    /// The connection that gets its output; None for hooks, whose output goes nowhere.
    pub(super) client: Option<u64>,
}

/// A program that was started in a container.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) client: Option<u64>,
    /// Nobody ever listened.
    pub(super) hook: bool,
    pub(super) deadline: Option<Duration>,
    process: Joined,
    /// Non-blocking: stdout (or the terminal) and stderr; None after their end.
    outputs: [Option<OwnedFd>; 2],
    pub(super) input: Input,
    tty: bool,
    timed_out: bool,
}

impl Exec {
    /// Starts a program in the container of that process.
    pub(super) fn start(wanted: Wanted, process: &Process, group: &Group, users: Option<&Users>) -> io::Result<Self> {
        let mut program = Program { argv: wanted.argv, ..process.program.clone() };
        if wanted.tty && !program.env.iter().any(|(name, _)| name == "TERM") {
            program.env.push(("TERM".into(), "xterm".into()));
        }
        let ends = match (wanted.client, wanted.tty) {
            (None, _) => Ends::nowhere()?,
            (Some(_), true) => Ends::terminal(process, wanted.size)?,
            (Some(_), false) => Ends::pipes(wanted.stdin)?,
        };
        let Ends { theirs, outputs, input } = ends;
        let process = container::join(process.pidfd(), &program, group, users, theirs)?;
        Ok(Self {
            client: wanted.client,
            hook: wanted.client.is_none(),
            deadline: wanted.deadline,
            process,
            outputs,
            input: Input::new(input, wanted.tty),
            tty: wanted.tty,
            timed_out: false,
        })
    }

    /// Makes the request of a hook.
    pub(super) fn request(hook: &HttpHook, network: Option<&OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            client: None,
            hook: true,
            deadline: None,
            process: request::start(hook, network)?,
            outputs: [None, None],
            input: Input::new(None, false),
            tty: false,
            timed_out: false,
        })
    }

    /// Readable when it ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// On the machine.
    pub(super) fn pid(&self) -> i32 {
        self.process.pid
    }

    /// An output that has not ended: 0 is stdout, 1 is stderr.
    pub(super) fn output(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.outputs[index].as_ref().map(AsFd::as_fd)
    }

    /// What the program prints next; None when there is nothing now.
    pub(super) fn read(&mut self, index: usize, buffer: &mut [u8]) -> Option<usize> {
        let fd = self.outputs[index].as_ref()?;
        match rustix::io::read(fd, buffer) {
            Ok(n) if n > 0 => Some(n),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            _ => {
                self.outputs[index] = None;
                None
            }
        }
    }

    /// Tells the terminal's size.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        if let (true, Some(terminal)) = (self.tty, &self.outputs[0]) {
            resize(terminal, columns, rows);
        }
    }

    /// SIGKILL for the program and its process group.
    pub(super) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.process.pid) {
            // It is not reaped yet, so the number, as group and as process, is still its own.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Kills it for having taken too long.
    pub(super) fn time_out(&mut self) {
        self.timed_out = true;
        self.deadline = None;
        self.kill();
    }

    /// What to tell of its end.
    pub(super) fn exit(&self, exit: Exit) -> ExecExit {
        let mut told = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = rustix::io::read(&self.process.report, &mut buffer) {
            told.extend_from_slice(&buffer[..n]);
        }
        let failure = StartFailure::from_bytes(&told);
        ExecExit {
            code: failure.as_ref().map_or(exit.code, |f| f.code),
            signal: exit.signal,
            timed_out: self.timed_out,
            message: failure.map(|f| f.message).unwrap_or_default(),
        }
    }
}

/// The two ends of a program's descriptors.
struct Ends {
    theirs: Stdio,
    outputs: [Option<OwnedFd>; 2],
    input: Option<OwnedFd>,
}

impl Ends {
    fn nowhere() -> io::Result<Self> {
        let theirs = Stdio { stdin: null()?, stdout: null()?, stderr: null()?, tty: false };
        Ok(Self { theirs, outputs: [None, None], input: None })
    }

    fn pipes(stdin: bool) -> io::Result<Self> {
        let (stdout, their_stdout) = output_pipe()?;
        let (stderr, their_stderr) = output_pipe()?;
        let (their_stdin, input) = if stdin {
            let (theirs, ours) = input_pipe()?;
            (theirs, Some(ours))
        } else {
            (null()?, None)
        };
        let theirs = Stdio { stdin: their_stdin, stdout: their_stdout, stderr: their_stderr, tty: false };
        Ok(Self { theirs, outputs: [Some(stdout), Some(stderr)], input })
    }

    /// A terminal of the container's own, so that its name is right there.
    fn terminal(process: &Process, first: Option<(u16, u16)>) -> io::Result<Self> {
        let root = rustix::fs::open(
            format!("/proc/{}/root", process.pid),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The container may have put links there: they lead nowhere outside of it.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let master = rustix::fs::openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let (columns, rows) = first.unwrap_or((80, 24));
        let slave = open_slave(&master, columns, rows)?;
        let theirs = Stdio { stdin: slave.try_clone()?, stdout: slave.try_clone()?, stderr: slave, tty: true };
        let input = Some(master.try_clone()?);
        Ok(Self { theirs, outputs: [Some(master), None], input })
    }
}

/// The program's end of a terminal.
pub(super) fn open_slave(master: &OwnedFd, columns: u16, rows: u16) -> io::Result<OwnedFd> {
    rustix::pty::unlockpt(master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::termios::tcsetwinsize(master, size(columns, rows))?;
    Ok(slave)
}

/// Tells a terminal its size. One whose users have left needs none.
pub(super) fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let _ = rustix::termios::tcsetwinsize(terminal, size(columns, rows));
}

/// A pipe whose writing end does not block: (theirs, ours).
pub(super) fn input_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((theirs, ours))
}

/// A pipe whose reading end does not block: (ours, theirs).
pub(super) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Nothing to read, nowhere to write.
pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
