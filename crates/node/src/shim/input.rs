//! A program's standard input: what its clients sent, and it has not taken yet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The writing end of a program's input. It never blocks; what the program does not take waits here.
#[derive(Debug)]
pub(super) struct Input {
    /// Non-blocking; None where there is no input, or no more.
    fd: Option<OwnedFd>,
    pending: Vec<u8>,
    ended: bool,
    tty: bool,
}

impl Input {
    /// Into that descriptor, or nowhere.
    pub(super) fn new(fd: Option<OwnedFd>, tty: bool) -> Self {
        Self { fd, pending: Vec::new(), ended: false, tty }
    }

    /// The descriptor, where bytes wait to be taken.
    pub(super) fn blocked(&self) -> Option<BorrowedFd<'_>> {
        if self.pending.is_empty() { None } else { self.fd.as_ref().map(AsFd::as_fd) }
    }

    /// Takes bytes for the program.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.fd.is_some() && !self.ended {
            self.pending.extend_from_slice(bytes);
        }
        self.push();
    }

    /// Nothing more will come. A terminal has no end of input; its user types it.
    pub(super) fn end(&mut self) {
        self.ended = !self.tty;
        self.push();
    }

    /// Gives the program what it takes.
    pub(super) fn push(&mut self) {
        while let (Some(fd), false) = (&self.fd, self.pending.is_empty()) {
            match rustix::io::write(fd, &self.pending) {
                Ok(n) => {
                    self.pending.drain(..n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // Nobody reads it any more.
                Err(_) => {
                    self.pending.clear();
                    self.fd = None;
                }
            }
        }
        if self.ended && self.pending.is_empty() {
            self.fd = None;
        }
    }
}
