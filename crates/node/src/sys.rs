//! The system calls that no safe crate offers: the one module of this crate with `unsafe` in it.
//!
//! [`fork_into`] and [`fork_sibling`] copy the calling process. They are for the shim alone, which has one
//! thread: the copy may then go on as any program would, where in a threaded process it could not even
//! allocate memory. [`Alone`] shows that they may.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::container::seccomp::Instruction;

/// Which of the two one is after a fork.
#[derive(Debug)]
pub enum Forked {
    /// The copy.
    Child,
    /// The caller.
    Parent {
        /// Process id of the copy, as the caller sees it.
        pid: i32,
        /// Its descriptor, where asked for.
        pidfd: Option<OwnedFd>,
    },
}

/// Namespaces for [`fork_into`].
pub const NEW_PID_AND_MOUNT: u64 = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;

/// Flag of clone3: `cgroup` is the folder of the group to be born in. (libc has it as a type too small for it.)
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Namespaces for [`fork_into`] where the machine's processes are seen.
pub const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
/// Namespaces for [`fork_into`] of a pod with users of its own: those of users, which owns the others.
pub const NEW_POD_OF_USERS: u64 =
    (libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// Proof that the process has one thread, so that a copy of it can go on as any program would. Copies of the process
/// may use it too: nobody starts threads in them.
#[derive(Debug)]
pub struct Alone(());

impl Alone {
    /// Counts.
    pub fn check() -> io::Result<Self> {
        match fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::other("processes are copied by the single-threaded shim only")),
        }
    }
}

/// Copies the process into new namespaces; the copy is the caller's child.
pub fn fork_into(namespaces: u64) -> io::Result<Forked> {
    clone_with(namespaces, None)
}

/// The same, born in a group of the unified cgroup tree, where its folder is given: a move there afterwards has to wait
/// for all processors, some 10 ms. Answers whether it was born there; where the kernel cannot, it is not.
///
/// Only into a group that was never killed: on kernels since 6.14 whatever is cloned into one that `cgroup.kill` was
/// written to after it was written to for the caller's own is killed at birth.
pub fn fork_into_group(namespaces: u64, folder: Option<&OwnedFd>) -> io::Result<(Forked, bool)> {
    if let Some(Ok(forked)) = folder.map(|folder| clone_with(namespaces, Some(folder))) {
        return Ok((forked, true));
    }
    Ok((clone_with(namespaces, None)?, false))
}

fn clone_with(namespaces: u64, group: Option<&OwnedFd>) -> io::Result<Forked> {
    let alone = Alone::check()?;
    let mut args = CloneArgs { flags: namespaces, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    let mut pidfd: RawFd = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(folder) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(folder.as_raw_fd()).map_err(io::Error::other)?;
    }
    match clone3(&alone, &mut args)? {
        0 => Ok(Forked::Child),
        // SAFETY: the kernel has just put a new descriptor there, and nobody else knows of it.
        pid => Ok(Forked::Parent { pid, pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd) }) }),
    }
}

/// Copies the process; the copy is not the caller's child but its parent's, and in the caller's pid namespace
/// for children (see setns), whose /proc may not show the caller any more: so the proof comes from before.
pub fn fork_sibling(alone: &Alone) -> io::Result<Forked> {
    // The exit signal comes from the parent's own with CLONE_PARENT, and must not be given.
    let mut args = CloneArgs { flags: libc::CLONE_PARENT as u64, ..CloneArgs::default() };
    match clone3(alone, &mut args)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent { pid, pidfd: None }),
    }
}

/// struct clone_args of linux/sched.h, version 2.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone3(_alone: &Alone, args: &mut CloneArgs) -> io::Result<i32> {
    // SAFETY: without CLONE_VM and with no stack given this is fork: the copy has its own memory and goes on
    // where the caller stands. The process has one thread (`Alone` shows it), so no lock is held by a thread that
    // the copy lacks. `args` is a valid clone_args of the size told, and its pointers are valid for writing.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_mut(args), size_of::<CloneArgs>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).expect("process ids are small")),
    }
}

/// Ends the process at once: no destructors, no buffers of the process it was copied from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` up to be closed when a program is executed.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` up. For the start of a program, before it opened any.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. Closing is asked for only where this program has opened nothing itself yet, so
    // no owner of a descriptor is cheated.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Blocks the signals for the process and returns a descriptor from which [`read_signal`] takes them.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is plain memory that sigemptyset initialises before anything reads it; the descriptor
    // returned is new and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) == -1 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// The next signal of a [`signal_fd`]; None where there is none.
pub fn read_signal(fd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        // The signal's number is the first field.
        Ok(_) => Ok(Some(i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives every signal its default action and unblocks all: what a program expects to start with.
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: all zeroes are the kernel's struct sigaction for SIG_DFL, in a buffer longer than that struct is on any
    // machine; it replaces handlers by none, so no function of ours is called later. SIGKILL and SIGSTOP cannot be
    // set and are refused without effect. The set is initialised by sigemptyset.
    unsafe {
        // Not through libc, which keeps two signals to itself; a parent may have left those ignored.
        let default = [0u64; 16];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Lets the kernel take away children that end, as if each were waited for at once.
pub fn forget_children() -> io::Result<()> {
    // SAFETY: no handler is installed, so no function of ours is called later.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal by its number. rustix has names only for some.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means the same as kill(2).
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The oldest child that ended and was not waited for yet; None where there is none. It stays so.
pub fn peek_ended_child() -> io::Result<Option<i32>> {
    // SAFETY: the structure is plain memory that the kernel fills; si_pid is valid where waitid succeeded, and 0
    // where no child has ended.
    let pid = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        if libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == -1 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
        }
        info.si_pid()
    };
    Ok((pid != 0).then_some(pid))
}

/// Makes a mount, with everything below it, private: later mounts are seen on neither side.
pub fn privatise_mount_tree(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    set_mount(mount, c"", (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32, &attr)
}

/// Makes a mount read-only, with everything below it where asked for.
pub fn freeze_mount(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let depth = if recursive { libc::AT_RECURSIVE } else { 0 };
    set_mount(mount, c"", (libc::AT_EMPTY_PATH | depth) as u32, &attr)
}

/// Shows a mount that is not attached yet to the users of another namespace: what belongs to somebody on its file system
/// belongs to the user of the same number there. With everything mounted below it where asked for.
pub fn map_mount(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let userns_fd = u64::try_from(users.as_raw_fd()).map_err(io::Error::other)?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    let depth = if recursive { libc::AT_RECURSIVE } else { 0 };
    set_mount(mount, c"", (libc::AT_EMPTY_PATH | depth) as u32, &attr)
}

/// Makes what is mounted at a path read-only, nothing below it.
pub fn read_only_mount(path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_mount(rustix::fs::CWD.as_fd(), &path, 0, &attr)
}

fn set_mount(dir: BorrowedFd<'_>, path: &std::ffi::CStr, flags: u32, attr: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: path and attributes are valid for the call and of the sizes told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One instruction of a filter of devices, as struct bpf_insn of linux/bpf.h.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DeviceInstruction {
    pub(crate) code: u8,
    /// Destination below, source above.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) value: i32,
}

// Commands and types of bpf(2). Source: linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of union bpf_attr for BPF_PROG_LOAD; the kernel takes the rest for zeroes.
#[repr(C, align(8))]
struct LoadProgram {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// The beginning of union bpf_attr for BPF_PROG_ATTACH.
#[repr(C, align(8))]
struct AttachProgram {
    group: i32,
    program: i32,
    kind: u32,
    flags: u32,
}

/// The beginning of union bpf_attr for BPF_PROG_QUERY.
#[repr(C, align(8))]
#[derive(Default)]
struct QueryPrograms {
    group: i32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _rest: u32,
}

/// How many filters of devices a cgroup has of its own.
pub fn device_filters(group: BorrowedFd<'_>) -> io::Result<u32> {
    let mut query = QueryPrograms { group: group.as_raw_fd(), kind: BPF_CGROUP_DEVICE, ..QueryPrograms::default() };
    // SAFETY: the kernel reads and writes within the structure of the size told; no room for ids is offered.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, std::ptr::from_mut(&mut query), size_of_val(&query)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(query.count) }
}

/// Puts the processes of a cgroup under a filter of devices; it goes with the group.
pub fn attach_device_filter(group: BorrowedFd<'_>, program: &[DeviceInstruction]) -> io::Result<()> {
    let load = LoadProgram {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the structure points to instructions of the number told and to a text that ends; the kernel only reads
    // them, and checks the program. The descriptor that it returns is new and nobody else's.
    let loaded = unsafe {
        match libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, std::ptr::from_ref(&load), size_of_val(&load)) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(RawFd::try_from(fd).expect("descriptors are small")),
        }
    };
    let attach = AttachProgram {
        group: group.as_raw_fd(),
        program: loaded.as_raw_fd(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure is of the size told and holds no pointers.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, std::ptr::from_ref(&attach), size_of_val(&attach)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts the calling thread under a filter of system calls, for good.
pub fn install_filter(program: &[Instruction], flags: u32) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    // An instruction of ours has the layout of the kernel's, which the kernel only reads.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program is valid for the call, of the length told, and is checked and copied by the kernel.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program)) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Switches the loopback interface of the caller's network namespace on.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the request is plain memory, initialised as a whole, and outlives both calls.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) == -1 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_laid_out_as_the_kernels() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(align_of::<Instruction>(), align_of::<libc::sock_filter>());
        assert_eq!(std::mem::offset_of!(Instruction, k), std::mem::offset_of!(libc::sock_filter, k));
        assert_eq!(std::mem::offset_of!(Instruction, jf), std::mem::offset_of!(libc::sock_filter, jf));
    }

    #[test]
    fn a_threaded_process_is_not_copied() {
        // The test runner has at least this thread and its own.
        assert!(fork_into(0).is_err());
    }
}
