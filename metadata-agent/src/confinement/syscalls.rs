//! Filters of system calls: an allow-list for everything that serving guests takes, and a list of those that no honest
//! process of ours makes, at which it is killed.
//!
//! A call on neither list fails with `EPERM`: a library may try more than it needs, and say so or do without.
use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

/// Reading, writing and closing what it was given, and accepting what comes.
const DESCRIPTORS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Time, randomness, and what a runtime of threads takes.
const RUNTIME: &[i64] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Memory, other than such that could be executed.
const MEMORY: &[i64] = &[libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk];
const MEMORY_WITH_PROTECTION: [i64; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// Options of sockets that are set. What else could be set would outlive this process on the listening sockets, which the next
/// one is given as they are: a filter that is locked (`SO_LOCK_FILTER`), keys of segments (`TCP_MD5SIG`), a device.
const OPTIONS: [(i32, i32); 9] = [
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
];
/// Of `setsockopt`.
const LEVEL: u8 = 1;
const OPTION: u8 = 2;
/// Of `shutdown`: the own side. The other one of a listening socket is its end, for everybody who has it.
const SIDE: u8 = 1;
/// Of `sendto` and `sendmsg`: flags, without the one that connects (`tcp_sendmsg_fastopen` in net/ipv4/tcp.c). A listening
/// socket that was shut down could be connected by it.
const SENDS: [(i64, u8); 2] = [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2)];
/// Of `fcntl`, and the flags of `F_SETFL`. Others could have signals sent to processes of the same user (`F_SETOWN`,
/// `F_SETSIG`), or have whoever accepts with the same socket wait in the kernel.
const REQUEST: u8 = 1;
const FLAGS: u8 = 2;
const REQUESTS: [i32; 3] = [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
/// Of `tgkill`: the own process, which ends itself by that.
const PROCESS: u8 = 0;

/// Other programs and processes, what is theirs, and doors into the kernel.
const HOSTILE: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capset,
];

/// The argument of `mmap` and `mprotect` that says what the memory is for.
const PROTECTION: u8 = 2;

/// Reason for which there is no filter.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("this kind of processor is not known to the filter's compiler")]
    Processor,
    #[error(transparent)]
    Compiler(#[from] seccompiler::BackendError),
    #[error(transparent)]
    Kernel(#[from] seccompiler::Error),
}

/// Sets both filters, for all threads.
pub(super) fn filter() -> Result<(), Error> {
    // The strictest verdict of all filters counts. The allow-list comes last: it does not allow to set another.
    apply_filter_all_threads(&hostile()?)?;
    Ok(apply_filter_all_threads(&allowed()?)?)
}

fn hostile() -> Result<BpfProgram, Error> {
    let rules = HOSTILE.iter().map(|call| (*call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn allowed() -> Result<BpfProgram, Error> {
    let always = [DESCRIPTORS, RUNTIME, MEMORY].into_iter().flatten().map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always.collect();
    let data = when(&[(PROTECTION, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)])?;
    rules.extend(MEMORY_WITH_PROTECTION.map(|call| (call, vec![data.clone()])));
    rules.insert(libc::SYS_tgkill, vec![when(&[(PROCESS, SeccompCmpOp::Eq, std::process::id())])?]);
    rules.insert(libc::SYS_shutdown, vec![when(&[(SIDE, SeccompCmpOp::Eq, libc::SHUT_WR as u32)])?]);
    for (call, flags) in SENDS {
        let connects = SeccompCmpOp::MaskedEq(libc::MSG_FASTOPEN as u64);
        rules.insert(call, vec![when(&[(flags, connects, 0)])?]);
    }
    let options = OPTIONS.map(|(level, option)| {
        when(&[(LEVEL, SeccompCmpOp::Eq, level as u32), (OPTION, SeccompCmpOp::Eq, option as u32)])
    });
    rules.insert(libc::SYS_setsockopt, options.into_iter().collect::<Result<_, _>>()?);
    let dont_wait = libc::O_NONBLOCK as u32;
    let set_flags = when(&[
        (REQUEST, SeccompCmpOp::Eq, libc::F_SETFL as u32),
        (FLAGS, SeccompCmpOp::MaskedEq(dont_wait.into()), dont_wait),
    ]);
    let requests = REQUESTS.map(|request| when(&[(REQUEST, SeccompCmpOp::Eq, request as u32)]));
    rules.insert(libc::SYS_fcntl, requests.into_iter().chain([set_flags]).collect::<Result<_, _>>()?);
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

/// A call with all of these arguments.
fn when(arguments: &[(u8, SeccompCmpOp, u32)]) -> Result<SeccompRule, Error> {
    let condition = |(argument, operator, value): &(u8, SeccompCmpOp, u32)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), (*value).into())
    };
    let conditions: Result<Vec<_>, _> = arguments.iter().map(condition).collect();
    Ok(SeccompRule::new(conditions?)?)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, Error> {
    let processor = std::env::consts::ARCH.try_into().map_err(|_| Error::Processor)?;
    Ok(SeccompFilter::new(rules, otherwise, matching, processor)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_do_not_contradict_each_other() {
        assert!(!hostile().unwrap().is_empty() && !allowed().unwrap().is_empty());
        let allowed: Vec<i64> = [DESCRIPTORS, RUNTIME, MEMORY, &MEMORY_WITH_PROTECTION].concat();
        assert!(HOSTILE.iter().all(|call| !allowed.contains(call)));
        for call in [
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_openat,
            libc::SYS_clone,
            libc::SYS_ioctl,
        ] {
            assert!(!allowed.contains(&call));
        }
    }
}
