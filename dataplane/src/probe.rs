//! Is io_uring there, and is it new enough? Asked once, before any executor starts, because glommio
//! panics where an operator needs one line: what is missing, and which line mends it.
//! Called by [`crate::run`] on the main thread.
//!
//! Needed: Linux 6.1 (`DEFER_TASKRUN`; multishot receive came with 6.0, provided-buffer rings with 5.19).

use std::fmt;

use io_uring::{IoUring, cqueue, squeue};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Oldest kernel that has everything the ring uses.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// glommio refuses to start an executor below this.
const MEMLOCK_MIN_BYTES: u64 = 512 * 1024;
/// What one executor and its rings pin, measured 384 KB, with some room.
const MEMLOCK_SHARD_BYTES: u64 = 512 * 1024;

/// Why shards cannot run here, and what an operator does about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Unavailable {
    what: String,
    mend: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring is not available: {}\n  to mend it: {}", self.what, self.mend)
    }
}

/// What the system says about itself, as far as it matters here.
struct Facts {
    /// `errno` of the attempt to set up a ring, if it failed.
    errno: Option<i32>,
    /// `/proc/sys/kernel/osrelease`.
    release: String,
    /// `/proc/sys/kernel/io_uring_disabled`, if the kernel has it (6.6).
    disabled: Option<u8>,
    /// A system call filter is active for this process.
    seccomp: bool,
    /// Soft limit of locked memory after it was raised; `None`: unlimited.
    memlock_bytes: Option<u64>,
    /// Locked memory is not counted for this process (`CAP_IPC_LOCK`).
    memlock_exempt: bool,
    shards: u16,
}

/// Checks that `shards` rings of the kind we use can be set up. Raises the soft limit of locked memory to the hard one.
pub fn check(shards: u16) -> Result<(), Unavailable> {
    let memlock_bytes = raise(Resource::Memlock).current;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let facts = Facts {
        errno: try_ring().err().map(|error| error.raw_os_error().unwrap_or(0)),
        release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        disabled: read("/proc/sys/kernel/io_uring_disabled").trim().parse().ok(),
        seccomp: status_field(&status, "Seccomp:").is_some_and(|mode| mode != "0"),
        memlock_bytes,
        memlock_exempt: status_field(&status, "CapEff:").is_some_and(has_ipc_lock),
        shards,
    };
    judge(&facts)
}

/// Raises a soft limit to its hard limit and returns what is in force afterwards.
pub fn raise(resource: Resource) -> Rlimit {
    let found = getrlimit(resource);
    if found.current != found.maximum {
        let wanted = Rlimit { current: found.maximum, maximum: found.maximum };
        // A refusal leaves the old limit, which the caller then sees.
        let _ = setrlimit(resource, wanted);
    }
    getrlimit(resource)
}

fn try_ring() -> std::io::Result<()> {
    IoUring::<squeue::Entry, cqueue::Entry>::builder().setup_single_issuer().setup_defer_taskrun().build(8).map(drop)
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn has_ipc_lock(capabilities: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    u64::from_str_radix(capabilities, 16).is_ok_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn judge(facts: &Facts) -> Result<(), Unavailable> {
    let no = |what: String, mend: &str| Err(Unavailable { what, mend: mend.to_owned() });
    let (major, minor) = KERNEL_MIN;
    if kernel_version(&facts.release).is_some_and(|version| version < KERNEL_MIN) {
        return no(
            format!(
                "this kernel is Linux {}, and Linux {major}.{minor} or newer is needed (DEFER_TASKRUN)",
                facts.release
            ),
            "boot a newer kernel (Debian 12, Ubuntu 24.04, RHEL 10 and later have one)",
        );
    }
    match facts.errno {
        None => {}
        Some(libc::EPERM) if facts.disabled.is_some_and(|mode| mode > 0) => {
            return no(
                format!("sysctl kernel.io_uring_disabled is {}", facts.disabled.unwrap_or_default()),
                "sysctl -w kernel.io_uring_disabled=0, and the same line in /etc/sysctl.d/ for the next boot",
            );
        }
        Some(errno @ (libc::EPERM | libc::ENOSYS | libc::EACCES)) if facts.seccomp => {
            return no(
                format!(
                    "a seccomp filter denies io_uring_setup ({}), as container runtimes do by default",
                    name(errno)
                ),
                "docker run --security-opt seccomp=unconfined ..., or a profile that allows io_uring_setup, \
                 io_uring_enter and io_uring_register; under systemd remove SystemCallFilter=~@io-uring",
            );
        }
        Some(libc::ENOSYS) => {
            return no(
                format!("this kernel (Linux {}) was built without io_uring (ENOSYS)", facts.release),
                "boot a kernel with CONFIG_IO_URING=y",
            );
        }
        Some(libc::ENOMEM) => return memlock(facts),
        Some(libc::EINVAL) => {
            return no(
                format!("this kernel (Linux {}) does not know SINGLE_ISSUER and DEFER_TASKRUN (EINVAL)", facts.release),
                "boot Linux 6.1 or newer",
            );
        }
        Some(errno) => {
            return no(
                format!("io_uring_setup failed with {}", name(errno)),
                "look for a security module (AppArmor, SELinux) that denies it: journalctl -k | grep -i denied",
            );
        }
    }
    let needed = MEMLOCK_MIN_BYTES.max(MEMLOCK_SHARD_BYTES * u64::from(facts.shards));
    let too_low = |limit: u64| limit < MEMLOCK_MIN_BYTES || (!facts.memlock_exempt && limit < needed);
    if facts.memlock_bytes.is_some_and(too_low) { memlock(facts) } else { Ok(()) }
}

fn memlock(facts: &Facts) -> Result<(), Unavailable> {
    let limit = facts.memlock_bytes.map_or("unlimited".to_owned(), |bytes| format!("{} KB", bytes / 1024));
    let needed = MEMLOCK_MIN_BYTES.max(MEMLOCK_SHARD_BYTES * u64::from(facts.shards));
    Err(Unavailable {
        what: format!(
            "the limit of locked memory (RLIMIT_MEMLOCK) is {limit}, and {} shards need {} KB",
            facts.shards,
            needed / 1024
        ),
        mend: "ulimit -l unlimited in the shell, LimitMEMLOCK=infinity under systemd, \
               --ulimit memlock=-1 for docker, or fewer shards (dataplane.shards)"
            .to_owned(),
    })
}

fn name(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(errno: Option<i32>) -> Facts {
        Facts {
            errno,
            release: "6.12.5-amd64".to_owned(),
            disabled: Some(0),
            seccomp: false,
            memlock_bytes: None,
            memlock_exempt: false,
            shards: 2,
        }
    }

    fn says(facts: &Facts, words: &[&str]) {
        let line = judge(facts).expect_err("something is missing").to_string();
        for word in words {
            assert!(line.contains(word), "no {word:?} in {line:?}");
        }
    }

    #[test]
    fn a_working_ring_passes() {
        assert_eq!(judge(&facts(None)), Ok(()));
        assert_eq!(check(1), Ok(()), "the machine that runs these tests has io_uring");
    }

    #[test]
    fn the_sysctl_is_named_with_the_line_that_mends_it() {
        let denied = Facts { disabled: Some(2), seccomp: true, ..facts(Some(libc::EPERM)) };
        says(&denied, &["kernel.io_uring_disabled is 2", "sysctl -w kernel.io_uring_disabled=0"]);
    }

    #[test]
    fn seccomp_is_named_with_the_flag_that_mends_it() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            says(&Facts { seccomp: true, ..facts(Some(errno)) }, &["seccomp", "--security-opt"]);
        }
    }

    #[test]
    fn an_old_kernel_is_named_with_its_version_and_the_one_needed() {
        let old = Facts { release: "5.15.0-91-generic".to_owned(), ..facts(None) };
        says(&old, &["5.15.0-91-generic", "Linux 6.1"]);
        says(&Facts { release: "6.0.19".to_owned(), ..facts(Some(libc::EINVAL)) }, &["6.0.19"]);
        assert_eq!(judge(&Facts { release: "6.1.0".to_owned(), ..facts(None) }), Ok(()));
    }

    #[test]
    fn a_kernel_without_io_uring_is_not_blamed_on_seccomp() {
        says(&facts(Some(libc::ENOSYS)), &["CONFIG_IO_URING"]);
    }

    #[test]
    fn too_little_locked_memory_is_named_with_what_is_needed() {
        says(&facts(Some(libc::ENOMEM)), &["RLIMIT_MEMLOCK", "LimitMEMLOCK=infinity"]);
        let low = Facts { memlock_bytes: Some(64 * 1024), memlock_exempt: true, ..facts(None) };
        says(&low, &["64 KB", "2 shards need 1024 KB"]);
        let many = Facts { memlock_bytes: Some(8 << 20), shards: 64, ..facts(None) };
        says(&many, &["8192 KB", "64 shards"]);
        assert_eq!(judge(&Facts { memlock_exempt: true, ..many }), Ok(()));
    }

    #[test]
    fn an_unknown_refusal_shows_its_error() {
        says(&facts(Some(libc::EACCES)), &["Permission denied", "journalctl"]);
    }
}
