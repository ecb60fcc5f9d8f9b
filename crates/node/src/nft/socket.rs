//! The connection to the kernel's packet filter: transactions and listings. Blocks for as long as the kernel works.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::wire::{ACK, Attributes, DUMP, Messages, REQUEST, Received, received};

/// Longest transaction; a few thousand services with their endpoints.
const MAX_TRANSACTION: usize = 32 << 20;
/// What is received at a time; the kernel fills at most this much of a listing.
const RECEIVE_BYTES: usize = 64 << 10;
/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A listing during which something changed is asked for again so often.
const LIST_TRIES: usize = 16;

/// Begin and end of a transaction, and whose messages it holds.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
pub(super) const TABLES: u16 = 10;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens one. Needs CAP_NET_ADMIN for everything that follows.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let kind = SocketType::RAW;
            let protocol = Some(netlink::NETFILTER);
            let fd = rustix::net::socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)?;
            rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
            sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
            Ok(fd)
        };
        open().map(|fd| Self { fd }).map_err(|error: Errno| Error::new("speak with the packet filter", error))
    }

    /// Carries out all messages that `fill` writes, or none.
    pub(super) fn transact(&self, doing: &'static str, fill: impl FnOnce(&mut Messages)) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.begin(BATCH_BEGIN, REQUEST, 0, TABLES);
        let empty = messages.last();
        fill(&mut messages);
        let last = messages.last();
        if last == empty {
            return Ok(());
        }
        messages.want_answer();
        messages.begin(BATCH_END, REQUEST, 0, TABLES);
        let bytes = messages.as_bytes();
        if bytes.len() > MAX_TRANSACTION {
            return Err(Error { doing, error: io::Error::from(Errno::MSGSIZE) });
        }
        // Without the right to force it the ordinary limit holds, which is enough for small ones.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, bytes.len().max(RECEIVE_BYTES));
        self.send(bytes).map_err(|e| Error::new(doing, e))?;
        self.answers(doing, last)
    }

    /// One message outside of a transaction, and its answer.
    pub(super) fn ask(&self, doing: &'static str, fill: impl FnOnce(&mut Messages)) -> Result<(), Error> {
        let mut messages = Messages::default();
        fill(&mut messages);
        messages.want_answer();
        self.send(messages.as_bytes()).map_err(|e| Error::new(doing, e))?;
        self.answers(doing, messages.last())
    }

    /// Everything of a kind, each seen by `see`.
    pub(super) fn list(
        &self,
        doing: &'static str,
        kind: u16,
        family: u8,
        mut see: impl FnMut(Attributes<'_>),
    ) -> Result<(), Error> {
        let mut messages = Messages::default();
        messages.begin(kind, (REQUEST | DUMP) & !ACK, family, 0);
        for _ in 0..LIST_TRIES {
            self.send(messages.as_bytes()).map_err(|e| Error::new(doing, e))?;
            if self.read_list(doing, &mut see)? {
                return Ok(());
            }
        }
        Err(Error::new(doing, Errno::INTR))
    }

    /// False where something changed meanwhile: it may be incomplete, and what was seen is seen again.
    fn read_list(&self, doing: &'static str, see: &mut impl FnMut(Attributes<'_>)) -> Result<bool, Error> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut whole = true;
        loop {
            let length = self.receive(&mut buffer, RecvFlags::empty()).map_err(|e| Error::new(doing, e))?;
            for message in received(&buffer[..length]) {
                match message {
                    Received::Object { attributes, interrupted } => {
                        whole &= !interrupted;
                        see(attributes);
                    }
                    Received::Done { interrupted } => return Ok(whole && !interrupted),
                    Received::Answer { error: 0, .. } => {}
                    Received::Answer { error, .. } => return Err(Error::new(doing, Errno::from_raw_os_error(error))),
                }
            }
        }
    }

    /// Reads the answers to what was sent: the first error, or the answer to the last message.
    fn answers(&self, doing: &'static str, last: u32) -> Result<(), Error> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut failed = None;
        let mut answered = false;
        // The kernel has worked when sending returns, so what there is is there.
        loop {
            let flags = if answered || failed.is_some() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
            let length = match self.receive(&mut buffer, flags) {
                Ok(length) => length,
                Err(Errno::AGAIN) if !flags.is_empty() => break,
                Err(error) => return Err(Error::new(doing, error)),
            };
            for message in received(&buffer[..length]) {
                match message {
                    Received::Answer { error: 0, sequence } => answered |= sequence == last,
                    Received::Answer { error, .. } => {
                        failed.get_or_insert(error);
                    }
                    Received::Object { .. } | Received::Done { .. } => {}
                }
            }
        }
        failed.map_or(Ok(()), |error| Err(Error::new(doing, Errno::from_raw_os_error(error))))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        let sent = rustix::io::retry_on_intr(|| rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &kernel))?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    fn receive(&self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut *buffer, flags)).map(|(length, _)| length)
    }
}

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {error}")]
pub struct Error {
    doing: &'static str,
    error: io::Error,
}

impl Error {
    pub(super) fn new(doing: &'static str, error: Errno) -> Self {
        Self { doing, error: error.into() }
    }

    /// Whether the thing that was to be removed or looked at is not there.
    pub fn is_missing(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::NOENT.raw_os_error())
    }

    /// Whether this kernel, or what surrounds this process, does not offer nf_tables at all.
    pub fn is_unsupported(&self) -> bool {
        let missing = [
            Errno::NOENT,
            Errno::OPNOTSUPP,
            Errno::PROTONOSUPPORT,
            Errno::AFNOSUPPORT,
            Errno::INVAL,
            Errno::NOSYS,
            Errno::PERM,
            Errno::ACCESS,
        ];
        missing.iter().any(|errno| self.error.raw_os_error() == Some(errno.raw_os_error()))
    }
}
