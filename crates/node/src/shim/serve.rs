//! The shim's loop: one thread that waits for processes, outputs, connections and time.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ambient::Ambient;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::connection::{Connection, Role};
use super::life::{Exit, reap};
use super::pod::Pod;
use super::process::Sandbox;
use super::protocol::{ExecExit, Kind, MAX_CHUNK, Reply, Request};
use super::state::Phase;
use crate::fault::{self, Point};
use crate::sys;

/// Most connections at the same time; more are closed at once. With those of the execs, the descriptors stay well
/// below the usual limit of 1024.
const MAX_CONNECTIONS: usize = 128;

/// Output of an exec is not read while this much waits for its client.
const MAX_WAITING: usize = 256 * 1024;

/// A client that is attached to a container and takes nothing for so long is let go: until then it holds up the
/// container's output, as a terminal would.
const STALLED: Duration = Duration::from_secs(5);

/// What a descriptor is waited for.
#[derive(Clone, Copy, Debug)]
enum Token {
    Listener,
    Signals,
    Timer,
    Connection(u64),
    Report(usize),
    Ended(usize),
    Output(usize, usize),
    Input(usize),
    ExecEnded(u64),
    ExecOutput(u64, usize),
    ExecInput(u64),
}

struct Server<'a> {
    sandbox: Sandbox,
    ambient: &'a Ambient,
    timer: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// SIGTERM: nobody will acknowledge, the machine goes down.
    terminated: bool,
    acknowledged: bool,
}

/// Runs the pod until it is finished and acknowledged.
pub(super) fn run(sandbox: Sandbox, ambient: &Ambient) -> io::Result<()> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let mut server = Server {
        sandbox,
        ambient,
        timer: timerfd_create(TimerfdClockId::Boottime, flags)?,
        connections: BTreeMap::new(),
        next_connection: 0,
        terminated: false,
        acknowledged: false,
    };
    while !server.finished() {
        server.turn()?;
    }
    Ok(())
}

impl Server<'_> {
    fn finished(&self) -> bool {
        let told = self.connections.values().all(|c| !c.closing() || c.flushed());
        self.sandbox.pod.phase == Phase::Finished && (self.terminated || (self.acknowledged && told))
    }

    fn pod(&mut self) -> &mut Pod {
        &mut self.sandbox.pod
    }

    /// One round: wait, handle, do what is due, record, tell.
    fn turn(&mut self) -> io::Result<()> {
        self.set_timer()?;
        for (token, events) in self.wait()? {
            self.handle(token, events)?;
        }
        self.reap_strays()?;
        let ambient = self.ambient;
        let answered = self.connections.values().any(|c| matches!(c.role, Role::Subscriber { answers: true, .. }));
        self.pod().answered = answered;
        self.pod().advance(ambient);
        self.pod().record();
        self.tell_subscribers();
        let now = ambient.boottime();
        let over = |connection: &mut Connection| connection.flush(now) || stalled(connection).is_some_and(|t| t <= now);
        let gone: Vec<u64> = self.connections.iter_mut().filter_map(|(id, c)| over(c).then_some(*id)).collect();
        gone.into_iter().for_each(|id| self.close(id));
        Ok(())
    }

    /// The clock of the timer counts through suspend, as deadlines do.
    fn set_timer(&self) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A deadline of nothing switches the timer off; one that has passed rings at once.
        let stalled = self.connections.values().filter_map(stalled).min();
        let at = self.sandbox.pod.next_deadline().into_iter().chain(stalled).min().map_or(zero, |deadline| Timespec {
            tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(deadline.subsec_nanos().max(1)),
        });
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: zero, it_value: at })?;
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let (tokens, mut fds): (Vec<Token>, Vec<PollFd<'_>>) =
            self.sources().into_iter().map(|(token, fd, flags)| (token, PollFd::from_borrowed_fd(fd, flags))).unzip();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let events = fds.iter().map(PollFd::revents);
        Ok(tokens.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    /// Everything that may wake the loop.
    fn sources(&self) -> Vec<(Token, BorrowedFd<'_>, PollFlags)> {
        let mut all = vec![
            (Token::Listener, self.sandbox.listener.as_fd(), PollFlags::IN),
            (Token::Signals, self.sandbox.signals.as_fd(), PollFlags::IN),
            (Token::Timer, self.timer.as_fd(), PollFlags::IN),
        ];
        for (index, container) in self.sandbox.pod.containers.iter().enumerate() {
            let Some(process) = container.process() else { continue };
            all.push((Token::Ended(index), process.pidfd(), PollFlags::IN));
            if let Some(report) = &process.report {
                all.push((Token::Report(index), report.as_fd(), PollFlags::IN));
            }
            if let Some(fd) = process.input.blocked() {
                all.push((Token::Input(index), fd, PollFlags::OUT));
            }
            let held_up = self.attached(index).any(|c| c.waiting() >= MAX_WAITING);
            for (number, output) in process.outputs.iter().enumerate().filter(|_| !held_up) {
                if let Some(fd) = &output.fd {
                    all.push((Token::Output(index, number), fd.as_fd(), PollFlags::IN));
                }
            }
        }
        for (id, exec) in &self.sandbox.pod.execs {
            all.push((Token::ExecEnded(*id), exec.pidfd(), PollFlags::IN));
            let client = exec.client.and_then(|client| self.connections.get(&client));
            if client.is_some_and(|c| c.waiting() < MAX_WAITING) {
                for number in 0..2 {
                    if let Some(fd) = exec.output(number) {
                        all.push((Token::ExecOutput(*id, number), fd, PollFlags::IN));
                    }
                }
            }
            if let Some(fd) = exec.input.blocked() {
                all.push((Token::ExecInput(*id), fd, PollFlags::OUT));
            }
        }
        for (id, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            // A client whose program does not take its input is not read from; that it hangs up is seen all the same.
            flags.set(PollFlags::IN, !connection.said_all() && !self.input_is_blocked(connection));
            flags.set(PollFlags::OUT, !connection.flushed());
            all.push((Token::Connection(*id), connection.as_fd(), flags));
        }
        all
    }

    fn input_is_blocked(&self, connection: &Connection) -> bool {
        let pod = &self.sandbox.pod;
        match connection.role {
            Role::Exec(id) => pod.execs.get(&id).is_some_and(|exec| exec.input.blocked().is_some()),
            Role::Attached { container, stdin: true } => {
                pod.containers[container].process().is_some_and(|process| process.input.blocked().is_some())
            }
            _ => false,
        }
    }

    /// The clients that take part in a container's streams.
    fn attached(&self, index: usize) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(move |c| is_attached(c, index))
    }

    /// Gives a container's output to those that are attached to it.
    fn tell_attached(&mut self, index: usize, number: usize, bytes: &[u8]) {
        let kind = if number == 0 { Kind::Stdout } else { Kind::Stderr };
        for connection in self.connections.values_mut().filter(|c| is_attached(c, index)) {
            for chunk in bytes.chunks(MAX_CHUNK) {
                connection.send_bytes(kind, chunk);
            }
        }
    }

    fn handle(&mut self, token: Token, events: PollFlags) -> io::Result<()> {
        let ambient = self.ambient;
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.take_signals()?,
            // Read only so that it stops ringing; what is due is done every turn.
            Token::Timer => drop(rustix::io::read(&self.timer, &mut [0u8; 8])),
            Token::Connection(id) => self.take_from_client(id, events.intersects(PollFlags::HUP | PollFlags::ERR)),
            Token::Report(index) => self.pod().container_reported(index, ambient),
            Token::Output(index, number) => {
                if let Some(process) = self.pod().containers[index].process_mut() {
                    let printed = process.copy_output(number, ambient);
                    self.tell_attached(index, number, &printed);
                }
            }
            Token::Input(index) => {
                if let Some(process) = self.pod().containers[index].process_mut() {
                    process.input.push();
                }
            }
            Token::Ended(index) => {
                let exit = self.pod().containers[index].process().map(|p| reap(p.pidfd())).transpose()?.flatten();
                if let Some(exit) = exit {
                    self.end_container(index, exit);
                }
            }
            Token::ExecOutput(id, number) => self.copy_exec_output(id, number),
            Token::ExecInput(id) => {
                if let Some(exec) = self.pod().execs.get_mut(&id) {
                    exec.input.push();
                }
            }
            Token::ExecEnded(id) => self.end_exec(id)?,
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.sandbox.listener.accept() {
            if self.connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_connection += 1;
            self.connections.insert(self.next_connection, Connection::new(stream));
        }
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = sys::read_signal(self.sandbox.signals.as_fd())? {
            if signal == libc::SIGTERM {
                self.terminated = true;
                let grace = Duration::from_millis(self.sandbox.pod.spec.grace_ms);
                let ambient = self.ambient;
                self.pod().stop(grace, ambient);
            }
        }
        Ok(())
    }

    /// Orphans come to this process; those of a container go to its first process.
    fn reap_strays(&mut self) -> io::Result<()> {
        while let Some(pid) = sys::peek_ended_child()? {
            // Ours ring their own bell.
            let Some(stray) = Pid::from_raw(pid).filter(|_| !self.sandbox.pod.owns(pid)) else { return Ok(()) };
            waitid(WaitId::Pid(stray), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
        }
        Ok(())
    }

    /// A container's process has ended: those that are attached hear its last words and are let go.
    fn end_container(&mut self, index: usize, exit: Exit) {
        let ambient = self.ambient;
        for (number, bytes) in self.pod().container_ended(index, exit, ambient) {
            self.tell_attached(index, number, &bytes);
        }
        for connection in self.connections.values_mut().filter(|c| is_attached(c, index)) {
            let exit = ExecExit { code: exit.code, signal: exit.signal, timed_out: false, message: String::new() };
            connection.send(&Reply::Exit(exit));
            connection.role = Role::Asked;
            connection.close_when_flushed();
        }
    }

    fn copy_exec_output(&mut self, id: u64, number: usize) {
        let pod = &mut self.sandbox.pod;
        let Some(exec) = pod.execs.get_mut(&id) else { return };
        let Some(connection) = exec.client.and_then(|client| self.connections.get_mut(&client)) else { return };
        let mut buffer = vec![0; MAX_CHUNK];
        if let Some(n) = exec.read(number, &mut buffer) {
            connection.send_bytes(if number == 0 { Kind::Stdout } else { Kind::Stderr }, &buffer[..n]);
        }
    }

    fn end_exec(&mut self, id: u64) -> io::Result<()> {
        let Some(exec) = self.sandbox.pod.execs.get(&id) else { return Ok(()) };
        let Some(exit) = reap(exec.pidfd())? else { return Ok(()) };
        // What it printed before its end is in the pipes, which hold little; what its children print later is not
        // waited for.
        for number in 0..2 {
            self.drain_exec_output(id, number);
        }
        let ambient = self.ambient;
        if let Some((client, exit)) = self.pod().exec_ended(id, exit, ambient)
            && let Some(connection) = self.connections.get_mut(&client)
        {
            connection.send(&Reply::Exit(exit));
            connection.close_when_flushed();
        }
        Ok(())
    }

    fn drain_exec_output(&mut self, id: u64, number: usize) {
        // A pipe holds 64 KiB unless it was widened; a background child could refill it for ever.
        for _ in 0..(1 << 20) / MAX_CHUNK {
            let before = self.sandbox.pod.execs.get(&id).and_then(|e| e.client).and_then(|c| self.connections.get(&c));
            let Some(before) = before.map(Connection::waiting) else { return };
            self.copy_exec_output(id, number);
            let exec = &self.sandbox.pod.execs[&id];
            let after = exec.client.and_then(|c| self.connections.get(&c)).map_or(before, Connection::waiting);
            if after == before {
                return;
            }
        }
    }

    /// `gone`: the client closed both directions. One that closed only its own is still listening.
    fn take_from_client(&mut self, id: u64, gone: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let said_all = connection.said_all() || !connection.receive();
        let role = connection.role;
        if gone && (said_all || matches!(role, Role::Exec(_) | Role::Attached { .. })) {
            return self.close(id);
        }
        if said_all {
            self.end_input(role);
        }
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            match connection.next() {
                Ok(None) => return,
                Ok(Some(message)) => self.answer(id, message),
                Err(error) => {
                    connection.send(&Reply::Error { message: error.to_string() });
                    connection.close_when_flushed();
                    return;
                }
            }
        }
    }

    /// The client is gone: what it started ends with it.
    fn close(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.end_input(connection.role);
        if let Role::Exec(exec) = connection.role
            && let Some(exec) = self.pod().execs.get_mut(&exec)
        {
            exec.client = None;
            exec.kill();
        }
    }

    /// A client will send no more input. A container's input outlives its clients, unless it is for one alone.
    fn end_input(&mut self, role: Role) {
        match role {
            Role::Exec(exec) => {
                if let Some(exec) = self.pod().execs.get_mut(&exec) {
                    exec.input.end();
                }
            }
            Role::Attached { container, stdin: true } => {
                let container = &mut self.pod().containers[container];
                if container.spec.stdin_once
                    && let Some(process) = container.process_mut()
                {
                    process.input.end();
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self, id: u64, message: super::connection::Message) {
        use super::connection::Message;
        let pod = &mut self.sandbox.pod;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match (message, &connection.role) {
            (Message::Request(request), _) => self.answer_request(id, request),
            (Message::Input(bytes), role) if bytes.is_empty() => {
                let role = *role;
                self.end_input(role);
            }
            (Message::Input(bytes), Role::Exec(exec)) => {
                if let Some(exec) = pod.execs.get_mut(exec) {
                    exec.input.feed(&bytes);
                }
            }
            (Message::Input(bytes), Role::Attached { container, stdin: true }) => {
                if let Some(process) = pod.containers[*container].process_mut() {
                    process.input.feed(&bytes);
                }
            }
            (Message::Resize { columns, rows }, Role::Attached { container, .. }) => {
                if let Some(process) = pod.containers[*container].process() {
                    process.resize(columns, rows);
                }
            }
            (Message::Resize { columns, rows }, Role::Exec(exec)) => {
                if let Some(exec) = pod.execs.get(exec) {
                    exec.resize(columns, rows);
                }
            }
            (Message::Input(_) | Message::Resize { .. }, _) => connection.close_when_flushed(),
        }
    }

    fn answer_request(&mut self, id: u64, request: Request) {
        let ambient = self.ambient;
        let pod = &mut self.sandbox.pod;
        let reply = match request {
            Request::State => Reply::State { state: Box::new(pod.state()) },
            Request::Subscribe { answers } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    // Nothing was sent yet: the end of this turn sends the first state.
                    connection.role = Role::Subscriber { sent: 0, answers };
                }
                return;
            }
            Request::Start => {
                pod.start();
                Reply::Ok
            }
            Request::Stop { grace_ms } => {
                pod.stop(Duration::from_millis(grace_ms), ambient);
                Reply::Ok
            }
            Request::Kill => {
                pod.kill(ambient);
                Reply::Ok
            }
            Request::Restart { container, grace_ms, message } => {
                answer_of(pod.restart(&container, Duration::from_millis(grace_ms), message, ambient))
            }
            Request::Started { container } => answer_of(pod.startup_succeeded(&container)),
            Request::Respecify { container } => answer_of(pod.respecify(*container)),
            Request::Acknowledge if pod.phase == Phase::Finished => {
                self.acknowledged = true;
                fault::point(Point::ShimAcknowledged);
                Reply::Ok
            }
            Request::Acknowledge => Reply::Error { message: "the pod is not finished: stop it first".into() },
            Request::Add { container } => answer_of(pod.add(*container)),
            Request::Resize { container, limits, pod: whole } => answer_of(pod.resize(&container, limits, whole)),
            Request::Attach { container, stdin } => match pod.attach(&container) {
                Ok(container) => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.role = Role::Attached { container, stdin };
                        connection.send(&Reply::Started);
                    }
                    return;
                }
                Err(message) => Reply::Error { message },
            },
            Request::Exec(wanted) => match pod.exec(wanted, id, ambient) {
                Ok(exec) => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.role = Role::Exec(exec);
                        connection.send(&Reply::Started);
                    }
                    return;
                }
                Err(message) => Reply::Error { message },
            },
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.send(&reply);
            connection.close_when_flushed();
        }
    }

    /// Subscribers that have read everything get the newest state, if it is new to them.
    fn tell_subscribers(&mut self) {
        let sequence = self.sandbox.pod.sequence();
        let mut state = None;
        for connection in self.connections.values_mut().filter(|c| c.flushed()) {
            let Role::Subscriber { sent, .. } = &mut connection.role else { continue };
            if *sent < sequence {
                *sent = sequence;
                let state = state.get_or_insert_with(|| Box::new(self.sandbox.pod.state()));
                connection.send(&Reply::State { state: state.clone() });
            }
        }
    }
}

/// Whether a client takes part in that container's streams.
fn is_attached(connection: &Connection, index: usize) -> bool {
    matches!(connection.role, Role::Attached { container, .. } if container == index)
}

/// When a client that holds up a container is let go.
fn stalled(connection: &Connection) -> Option<Duration> {
    let holds_up = matches!(connection.role, Role::Attached { .. }) && connection.waiting() >= MAX_WAITING;
    connection.stalled_since().filter(|_| holds_up).map(|since| since.saturating_add(STALLED))
}

fn answer_of(result: Result<(), String>) -> Reply {
    result.map_or_else(|message| Reply::Error { message }, |()| Reply::Ok)
}
