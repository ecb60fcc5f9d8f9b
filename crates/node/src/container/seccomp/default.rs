//! The profile that containers have by default: what container runtimes agree on allowing.
//!
//! The facts are those of containerd's default profile,
//! <https://github.com/containerd/containerd/blob/main/contrib/seccomp/seccomp_default.go>, which grants some calls
//! along with the capability that they need. One thing is tighter: the x32 ABI of x86 is not there at all.

use super::profile::{Action, Arg, Flag, Op, Profile, Rule};

const ALWAYS: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
    close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32
    getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom
    getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
    getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
    listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
    mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
    _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll
    ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 ptrace pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair
    splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill
    time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
    ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid
    waitpid write writev arch_prctl modify_ldt";

/// What comes along with a capability.
const WITH: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module finit_module init_module query_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Flags of clone(2) that make namespaces. Source: linux/sched.h.
const NAMESPACES: u64 = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000 | 0x0200_0000;

/// Personalities that change nothing of security: Linux, without randomised addresses never, 32-bit, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets that reach beyond the pod's network: AF_VSOCK leads to the machine's host.
const AF_VSOCK: u64 = 40;

const ENOSYS: u16 = 38;

/// The profile for a program with those capabilities, by their names.
pub(super) fn profile(capabilities: &[String]) -> Profile {
    let has = |name: &str| capabilities.iter().any(|have| have == name);
    let allow = |names: &str, args: Vec<Arg>| Rule { args, ..Rule::of(names, Action::Allow) };
    let mut syscalls = vec![allow(ALWAYS, Vec::new())];
    for value in PERSONALITIES {
        syscalls.push(allow("personality", vec![Arg { index: 0, value, value_two: 0, op: Op::Eq }]));
    }
    syscalls.push(allow("socket", vec![Arg { index: 0, value: AF_VSOCK, value_two: 0, op: Op::Ne }]));
    for (_, names) in WITH.iter().filter(|(capability, _)| has(capability)) {
        syscalls.push(allow(names, Vec::new()));
    }
    if !has("CAP_SYS_ADMIN") {
        let plain = Arg { index: 0, value: NAMESPACES, value_two: 0, op: Op::MaskedEq };
        syscalls.push(allow("clone", vec![plain]));
        // Its flags lie in memory, where a filter cannot look; programs then take clone.
        syscalls.push(Rule { errno_ret: Some(ENOSYS), ..Rule::of("clone3", Action::Errno) });
    }
    Profile {
        default_action: Action::Errno,
        default_errno_ret: None,
        architectures: vec!["SCMP_ARCH_X86".to_owned()],
        flags: Vec::<Flag>::new(),
        syscalls,
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::{self, tests::verdict};
    use super::super::profile::errno_verdict;
    use super::super::table::Arch;
    use super::*;

    const ALLOWED: u32 = 0x7fff_0000;

    fn ask(capabilities: &[&str], call: &str, first: u64) -> u32 {
        let capabilities: Vec<String> = capabilities.iter().map(|c| (*c).to_owned()).collect();
        let program = bpf::compile(&profile(&capabilities), Arch::X86_64).expect("a program");
        let number = Arch::X86_64.number(call).expect("a call");
        verdict(&program, Arch::X86_64.audit(), number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn ordinary_calls_are_made_and_those_that_change_the_machine_fail() {
        for call in ["read", "openat", "mmap", "execve", "removexattrat", "setsockopt", "prctl", "futex_waitv"] {
            assert_eq!(ask(&[], call, 0), ALLOWED, "{call}");
        }
        for call in
            ["mount", "reboot", "kexec_load", "bpf", "keyctl", "init_module", "unshare", "setns", "io_uring_setup"]
        {
            assert_eq!(ask(&[], call, 0), errno_verdict(1), "{call}");
        }
    }

    #[test]
    fn a_capability_brings_its_calls() {
        for (capability, call) in
            [("CAP_SYS_ADMIN", "mount"), ("CAP_SYS_TIME", "clock_settime"), ("CAP_SYS_BOOT", "reboot")]
        {
            assert_eq!(ask(&[capability], call, 0), ALLOWED, "{call}");
            assert_eq!(ask(&["CAP_CHOWN"], call, 0), errno_verdict(1), "{call}");
        }
    }

    #[test]
    fn no_namespace_is_made_without_being_an_administrator() {
        for flag in [0x1000_0000, 0x4000_0000, 0x0002_0000] {
            assert_eq!(ask(&[], "clone", flag | 17), errno_verdict(1));
            assert_eq!(ask(&["CAP_SYS_ADMIN"], "clone", flag | 17), ALLOWED);
        }
        assert_eq!(ask(&[], "clone", 17), ALLOWED);
        assert_eq!(ask(&[], "clone3", 0), errno_verdict(ENOSYS));
    }

    #[test]
    fn arguments_decide_about_personalities_and_sockets() {
        assert_eq!((ask(&[], "personality", 8), ask(&[], "personality", 0x0040_0000)), (ALLOWED, errno_verdict(1)));
        assert_eq!((ask(&[], "socket", 2), ask(&[], "socket", AF_VSOCK)), (ALLOWED, errno_verdict(1)));
    }

    #[test]
    fn every_name_is_a_system_call_somewhere() {
        let known =
            |name: &str| [Arch::X86_64, Arch::X86, Arch::Aarch64].iter().any(|arch| arch.number(name).is_some());
        // Calls of architectures that have no table.
        let elsewhere = ["recv", "send"];
        let names = ALWAYS.split_whitespace().chain(WITH.iter().flat_map(|(_, names)| names.split_whitespace()));
        let unknown: Vec<&str> = names.filter(|name| !known(name) && !elsewhere.contains(name)).collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }
}
