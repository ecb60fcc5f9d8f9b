//! How a root goes from the process that built it to the one that runs in it, where these are two.
//!
//! The builder sends a descriptor of its mount namespace, or the words of what went wrong. Between the two nothing is
//! kept: the descriptor is what holds the namespace, so the builder may end at once.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{During, StartFailure};

/// Longest message: a failure's.
const MAX_MESSAGE: usize = 4096;

/// The builder's end, and the runner's.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Hands the caller's mount namespace over.
pub(super) fn give_root(hand: &OwnedFd) -> Result<(), StartFailure> {
    let namespace = File::open("/proc/self/ns/mnt").during("handing the root over")?;
    let descriptors = [namespace.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(StartFailure::step("handing the root over", io::ErrorKind::OutOfMemory.into()));
    }
    sendmsg(hand, &[IoSlice::new(b"root")], &mut control, SendFlags::NOSIGNAL).during("handing the root over")?;
    Ok(())
}

/// Tells why there is none.
pub(super) fn give_failure(hand: &OwnedFd, failure: &StartFailure) {
    // If nobody listens any more, nobody needs to know.
    let _ = send(hand, &failure.to_bytes(), SendFlags::NOSIGNAL);
}

/// Waits for the root, and moves into it.
pub(super) fn take_root(taken: &OwnedFd) -> Result<(), StartFailure> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut words = vec![0; MAX_MESSAGE];
    let mut buffers = [IoSliceMut::new(&mut words)];
    let length = rustix::io::retry_on_intr(|| recvmsg(taken, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC))
        .during("waiting for the root")?
        .bytes;
    let handed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match handed {
        Some(namespace) => {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).during("moving into the root")
        }
        None => {
            let silent = || StartFailure { code: 128, message: "whoever builds its root was killed".to_owned() };
            Err(StartFailure::from_bytes(&words[..length]).unwrap_or_else(silent))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_and_an_end_without_a_word_are_told() {
        let (hand, taken) = pair().expect("a pair");
        let failure = StartFailure { code: 128, message: "volume /x: no".into() };
        give_failure(&hand, &failure);
        assert_eq!(take_root(&taken), Err(failure));
        drop(hand);
        assert_eq!(take_root(&taken).map_err(|f| f.message), Err("whoever builds its root was killed".to_owned()));
    }
}
