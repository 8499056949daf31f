//! Watches how much memory the process has, on an ordinary thread, and tells the shards when it is scarce and when it
//! no longer is (`limits.memory_max`, `limits.memory_high_watermark`). What they refuse meanwhile is theirs to know.
//!
//! Always true: shards are told only of changes; between "scarce" and "no longer" a twentieth of the memory was freed.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use contract::config::Limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::port::{Note, Port};

/// Memory is looked at again before more than what is left can have been filled at this many bytes per millisecond.
const GROWTH_BYTES_PER_MS: u64 = 2 << 20;
/// How often it is looked at, at least and at most, in milliseconds.
const LOOK_EVERY_MS: (u64, u64) = (10, 1000);
/// How often free memory is given back to the kernel while it is scarce.
const TRIM_EVERY: Duration = Duration::from_secs(2);
/// "No longer scarce" is so many percent below "scarce".
const SLACK_PCT: u64 = 5;
const CGROUPS: &str = "/sys/fs/cgroup";

/// The limits that hold now; a View may change them.
#[derive(Default)]
pub(crate) struct Bounds {
    /// Bytes; 0: what the cgroup or the machine has.
    memory_max: AtomicU64,
    high_pct: AtomicU32,
}

impl Bounds {
    /// Takes over `limits`.
    pub(crate) fn set(&self, limits: &Limits) {
        self.memory_max.store(limits.memory_max, Ordering::Relaxed);
        self.high_pct.store(limits.memory_high_watermark_pct, Ordering::Relaxed);
    }
}

/// What was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// Memory of this process that no file backs.
    used: u64,
    /// What it may have.
    may: u64,
}

/// The thread's state.
pub(crate) struct Watch {
    bounds: Arc<Bounds>,
    ports: Arc<[Arc<Port>]>,
    scarce: bool,
    trimmed: Instant,
}

impl Watch {
    /// Watches on a thread of its own until what is returned is dropped.
    pub(crate) fn start(bounds: Arc<Bounds>, ports: &Arc<[Arc<Port>]>) -> io::Result<UnixStream> {
        let (stop, stopped) = UnixStream::pair()?;
        let mut watch = Watch { bounds, ports: ports.clone(), scarce: false, trimmed: Instant::now() };
        thread::Builder::new().name("memory".to_owned()).spawn(move || while !ended(&stopped, watch.look()) {})?;
        Ok(stop)
    }

    /// Looks once, tells what has changed, and says how long to wait before the next time.
    fn look(&mut self) -> Duration {
        let (memory_max, high_pct) =
            (self.bounds.memory_max.load(Ordering::Relaxed), u64::from(self.bounds.high_pct.load(Ordering::Relaxed)));
        let Some(seen) = self.see(memory_max) else { return Duration::from_millis(LOOK_EVERY_MS.1) };
        let scarce = is_scarce(self.scarce, seen, high_pct);
        if scarce != self.scarce {
            let Seen { used, may } = seen;
            if scarce {
                tracing::error!(used, may, "memory is scarce: nothing that grows is accepted");
            } else {
                tracing::warn!(used, may, "memory is no longer scarce");
            }
            // A queue of notes that is full keeps the old state; the next look tries again.
            let told = self.ports.iter().all(|port| port.post(Note::Memory { scarce }).is_ok());
            self.scarce = if told { scarce } else { self.scarce };
        }
        if self.scarce && self.trimmed.elapsed() >= TRIM_EVERY {
            self.trimmed = Instant::now();
            trim();
        }
        patience(seen, high_pct)
    }

    fn see(&self, memory_max: u64) -> Option<Seen> {
        let used = bytes_of(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")?;
        if memory_max != 0 {
            return Some(Seen { used, may: memory_max });
        }
        let left = bytes_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
        let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_max(&text, Path::new(CGROUPS)));
        Some(Seen { used, may: (used + left).min(group.unwrap_or(u64::MAX)) })
    }
}

/// Waits. True: it is time to end.
fn ended(stopped: &UnixStream, patience: Duration) -> bool {
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    poll(&mut [PollFd::new(stopped, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}

/// How long memory cannot become scarce.
fn patience(seen: Seen, high_pct: u64) -> Duration {
    let left = (seen.may.saturating_mul(high_pct) / 100).saturating_sub(seen.used);
    Duration::from_millis((left / GROWTH_BYTES_PER_MS).clamp(LOOK_EVERY_MS.0, LOOK_EVERY_MS.1))
}

fn is_scarce(was: bool, seen: Seen, high_pct: u64) -> bool {
    let from_pct = if was { high_pct.saturating_sub(SLACK_PCT) } else { high_pct };
    high_pct < 100 && u128::from(seen.used) * 100 > u128::from(seen.may) * u128::from(from_pct)
}

/// A number of kilobytes by its name in a file of the kernel, as bytes.
pub(crate) fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The smallest `memory.max` of our cgroup (version 2) and those around it.
fn group_max(cgroup: &str, root: &Path) -> Option<u64> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group: PathBuf = root.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(root));
    groups.filter_map(|group| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()).min()
}

/// Gives memory that was freed back to the kernel: else what is used never falls again, and nothing is ever accepted.
fn trim() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "the allocator has no safe door")]
    // SAFETY: malloc_trim takes no pointers, and glibc documents it as safe to call from any thread (MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_what_the_kernel_says() {
        assert_eq!(bytes_of("VmRSS:\t 9 kB\nRssAnon:\t    2048 kB\n", "RssAnon:"), Some(2 << 20));
        assert_eq!(bytes_of("MemTotal: 9 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_narrowest_cgroup_counts() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.path().join("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(group_max("0::/a/b\n", root.path()), Some(1000));
        fs::write(root.path().join("a/b/memory.max"), "700\n").unwrap();
        assert_eq!(group_max("1:name=x:/\n0::/a/b\n", root.path()), Some(700));
        assert_eq!(group_max("0::/\n", root.path()), None);
    }

    #[test]
    fn the_less_is_left_the_sooner_it_is_looked_at() {
        let looks = |used| patience(Seen { used, may: 1 << 30 }, 100).as_millis();
        assert_eq!((looks(0), looks((1 << 30) - (200 << 20)), looks(1 << 30)), (512, 100, 10));
        assert_eq!(patience(Seen { used: 0, may: 1 << 40 }, 85).as_secs(), 1);
    }

    #[test]
    fn scarcity_ends_a_twentieth_lower_than_it_begins() {
        let seen = |used| Seen { used, may: 1000 };
        assert!(!is_scarce(false, seen(850), 85) && is_scarce(false, seen(851), 85));
        assert!(is_scarce(true, seen(801), 85) && !is_scarce(true, seen(800), 85));
        assert!(!is_scarce(false, seen(2000), 100), "switched off");
    }
}
