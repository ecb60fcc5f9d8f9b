//! The HTTP request of a hook, made by a copy of the shim that may wait for it.
//!
//! It is made from the machine's network, as a kubelet's is: the pod's own loopback and routes are not its.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::pki_types::ServerName;

use super::spec::HttpHook;
use crate::container::{Joined, StartFailure};
use crate::probe::tls;
use crate::sys::{self, Forked};

/// A server that neither takes the connection nor says anything for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// As much of an answer is read as holds its first line.
const MAX_ANSWER: usize = 16 * 1024;

/// Begins the request. The result's process ends with 0 where there was an answer.
pub(super) fn start(hook: &HttpHook, network: Option<&OwnedFd>) -> io::Result<Joined> {
    let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork_into(0)? {
        Forked::Child => {
            drop(report);
            let failure = match run(hook, network, told) {
                Ok(()) => sys::exit_now(0),
                Err(error) => StartFailure { code: 1, message: error.to_string() },
            };
            let _ = io::stdout().write_all(&failure.to_bytes());
            let _ = io::stdout().flush();
            sys::exit_now(1)
        }
        Forked::Parent { pid, pidfd } => {
            drop(told);
            rustix::io::ioctl_fionbio(&report, true)?;
            Ok(Joined { pid, pidfd: pidfd.expect("fork_into always asks for it"), report })
        }
    }
}

fn run(hook: &HttpHook, network: Option<&OwnedFd>, told: OwnedFd) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::stdio::dup2_stdout(&told)?;
    if let Some(network) = network {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    // Everything else that it was copied with is the shim's, the lock of the pod's folder among it.
    std::mem::forget(told);
    sys::close_from(3)?;
    rustix::process::setsid()?;
    ask(hook)
}

/// Any answer that is HTTP will do.
fn ask(hook: &HttpHook) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&hook.address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = head(hook);
    if !hook.tls {
        return exchange(&mut stream, &head);
    }
    let name = ServerName::IpAddress(hook.address.ip().into());
    let session = rustls::ClientConnection::new(tls::any_certificate(), name).map_err(io::Error::other)?;
    exchange(&mut rustls::StreamOwned::new(session, stream), &head)
}

fn exchange(stream: &mut (impl Read + Write), head: &str) -> io::Result<()> {
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < MAX_ANSWER {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    if answer.starts_with(b"HTTP/") {
        return Ok(());
    }
    Err(io::Error::other("malformed HTTP response"))
}

/// The request as it is sent.
fn head(hook: &HttpHook) -> String {
    let given = |name: &str| hook.headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
    let mut head = format!("GET {} HTTP/1.1\r\n", hook.path);
    if !given("Host") {
        head.push_str(&format!("Host: {}\r\n", hook.address));
    }
    for (name, value) in [("User-Agent", "kube-lifecycle/1.37"), ("Accept", "*/*"), ("Connection", "close")] {
        if !given(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in &hook.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_are_given_replace_ours() {
        let headers = vec![("host".to_owned(), "db.example".to_owned()), ("X-A".to_owned(), "b".to_owned())];
        let address = "10.0.0.2:8080".parse().expect("an address");
        let hook = HttpHook { address, tls: false, path: "/stop?now=1".into(), headers };
        let head = head(&hook);
        assert!(head.starts_with("GET /stop?now=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: db.example\r\n") && !head.contains("Host: "), "{head}");
        assert!(head.contains("X-A: b\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn an_answer_is_a_success_whatever_it_says_and_silence_is_none() {
        struct Played(io::Cursor<Vec<u8>>);
        impl Read for Played {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Write for Played {
            fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
                Ok(buffer.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let played = |text: &str| Played(io::Cursor::new(text.as_bytes().to_vec()));
        assert!(exchange(&mut played("HTTP/1.1 500 No\r\n\r\n"), "").is_ok());
        assert!(exchange(&mut played(""), "").is_err());
        assert!(exchange(&mut played("SSH-2.0-x\r\n"), "").is_err());
    }
}
