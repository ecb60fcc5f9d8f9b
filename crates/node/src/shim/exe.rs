//! A sealed copy of our own program in memory: what shims and container inits run from.
//!
//! The file that the daemon was started from may be replaced by an upgrade, and a container must never get
//! hold of a writable path to what runs outside of it. The copy is shared by everything that runs from it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};

/// A program that nobody can change any more. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SealedExe {
    fd: Arc<OwnedFd>,
    sha256: Arc<OnceLock<String>>,
}

impl SealedExe {
    /// Copies the running program.
    pub fn from_self() -> io::Result<Self> {
        Self::from_path(Path::new("/proc/self/exe"))
    }

    /// Copies the program in that file.
    pub fn from_path(path: &Path) -> io::Result<Self> {
        let mut source = File::open(path)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag, and memfds are executable there anyway.
        let fd = rustix::fs::memfd_create("statefuld", flags | MemfdFlags::EXEC)
            .or_else(|_| rustix::fs::memfd_create("statefuld", flags))?;
        let mut copy = File::from(fd);
        io::copy(&mut source, &mut copy)?;
        rustix::fs::fchmod(&copy, rustix::fs::Mode::from_raw_mode(0o555))?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&copy, seals)?;
        Ok(Self { fd: Arc::new(copy.into()), sha256: Arc::default() })
    }

    /// A path that executes the copy; good in this process and, until it executes something, in its children.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd()).into()
    }

    /// Digest of the program, in hex; computed at the first call.
    pub fn sha256(&self) -> io::Result<&str> {
        if self.sha256.get().is_none() {
            let mut hasher = Sha256::new();
            io::copy(&mut self.reader()?, &mut hasher)?;
            let hex = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
            // Two threads may have computed the same value.
            let _ = self.sha256.set(hex);
        }
        Ok(self.sha256.get().expect("it was set above"))
    }

    /// The bytes of the program from its start, independent of other readers.
    pub fn reader(&self) -> io::Result<File> {
        File::open(self.path())
    }
}

impl AsFd for SealedExe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn the_copy_is_whole_and_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, "abc").unwrap();
        let exe = SealedExe::from_path(&path).unwrap();
        let mut text = String::new();
        exe.reader().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
        assert_eq!(exe.sha256().unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let mut writer = std::fs::OpenOptions::new().write(true).open(exe.path());
        assert!(writer.as_mut().map_or(true, |file| file.write_all(b"x").is_err()));
    }
}
