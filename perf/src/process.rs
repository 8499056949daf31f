//! What a broker costs: CPU time and memory of processes and all their descendants, from the kernel's own books.
//! Called by `load` and `connect` at the edges of a measured phase. Always true: a process that ended between two
//! samples is an error and never a silent decrease.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// CPU time and memory of a process tree at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// CPU time in nanoseconds, user and system, per process; ended threads are included.
    pub cpu_ns: BTreeMap<u32, u64>,
    /// User part, in clock ticks (10 ms): only good for a share.
    pub user_ticks: u64,
    /// System part, in clock ticks.
    pub system_ticks: u64,
    /// Anonymous and shared memory that is resident; code and files are left out.
    pub resident_bytes: u64,
}

impl Sample {
    /// Reads the trees below `roots`. No roots give an empty sample.
    pub fn take(roots: &[u32]) -> Result<Sample, String> {
        let mut sample = Sample::default();
        if roots.is_empty() {
            return Ok(sample);
        }
        for pid in tree(roots)? {
            let gone = |error| format!("process {pid} cannot be read: {error}");
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
            let stat = Stat::parse(&stat).ok_or_else(|| format!("/proc/{pid}/stat is not understood"))?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(gone)?;
            sample.cpu_ns.insert(pid, cpu_ns(pid).map_err(gone)?);
            sample.user_ticks += stat.user_ticks;
            sample.system_ticks += stat.system_ticks;
            sample.resident_bytes += resident_bytes(&status);
        }
        Ok(sample)
    }

    /// CPU nanoseconds spent since `earlier`; a process that is new counts whole, one that is missing is an error.
    pub fn cpu_ns_since(&self, earlier: &Sample) -> Result<u64, String> {
        if let Some(pid) = earlier.cpu_ns.keys().find(|pid| !self.cpu_ns.contains_key(pid)) {
            return Err(format!("process {pid} ended during the measurement"));
        }
        let before: u64 = earlier.cpu_ns.values().sum();
        Ok(self.cpu_ns.values().sum::<u64>().saturating_sub(before))
    }

    /// Share of user time since `earlier` in percent, if the phase was long enough to tell (10 ticks).
    pub fn user_percent_since(&self, earlier: &Sample) -> Option<u64> {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks);
        let all = user + self.system_ticks.saturating_sub(earlier.system_ticks);
        (all >= 10).then(|| user * 100 / all)
    }
}

/// The part of `/proc/<pid>/stat` that is read here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    user_ticks: u64,
    system_ticks: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Stat> {
        // The name is in parentheses and may itself hold spaces and parentheses.
        let (_, fields) = line.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        Some(Stat {
            parent: fields.get(1)?.parse().ok()?,
            user_ticks: fields.get(11)?.parse().ok()?,
            system_ticks: fields.get(12)?.parse().ok()?,
        })
    }
}

/// `roots` and every process below them.
fn tree(roots: &[u32]) -> Result<Vec<u32>, String> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let entries = fs::read_dir("/proc").map_err(|error| format!("/proc cannot be read: {error}"))?;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look; it is then nobody's child.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let Some(stat) = Stat::parse(&stat) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found: Vec<u32> = Vec::new();
    let mut open = roots.to_vec();
    while let Some(pid) = open.pop() {
        if !found.contains(&pid) {
            found.push(pid);
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    Ok(found)
}

/// CPU time of a whole process in nanoseconds. `/proc/<pid>/stat` has only ticks of 10 ms and `schedstat` forgets ended
/// threads; the process CPU clock has neither fault.
fn cpu_ns(pid: u32) -> std::io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(std::io::Error::other)?;
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write only to the out-pointers, which are valid for the calls. No safe wrapper exists: rustix
    // has no CPU clocks of other processes.
    unsafe {
        match libc::clock_getcpuclockid(pid, &mut clock) {
            0 => {}
            error => return Err(std::io::Error::from_raw_os_error(error)),
        }
        if libc::clock_gettime(clock, &mut time) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn resident_bytes(status: &str) -> u64 {
    let kib = |line: &str| line.split_ascii_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let counted = |line: &&str| line.starts_with("RssAnon:") || line.starts_with("RssShmem:");
    status.lines().filter(counted).filter_map(kib).sum::<u64>() * 1024
}

/// A number that differs between runs, also between two that begin in the same moment.
pub fn run_tag() -> u32 {
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mixed = since_epoch.as_nanos() as u64 ^ u64::from(std::process::id()) << 40;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// Raises the soft descriptor limit to the hard one and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // A refusal leaves the old limit, and that is what the caller gets to see.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Pins the calling thread, and all that it starts from now on, to these CPUs.
pub fn pin(cpus: &[usize]) -> Result<(), String> {
    if cpus.is_empty() {
        return Ok(());
    }
    sched_setaffinity(None, &cpu_set(cpus)?).map_err(|error| format!("cannot run on CPUs {cpus:?}: {error}"))
}

/// A kernel CPU set.
pub fn cpu_set(cpus: &[usize]) -> Result<CpuSet, String> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            return Err(format!("CPU {cpu} is not in 0..{}", CpuSet::MAX_CPU));
        }
        set.set(cpu);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) b (c)) S 3 7 7 0 -1 4194560 1 2 3 4 55 66 0 0 20 0 1 0 9 0 0";
        assert_eq!(Stat::parse(line), Some(Stat { parent: 3, user_ticks: 55, system_ticks: 66 }));
        assert_eq!(Stat::parse("7 (cut"), None);
    }

    #[test]
    fn a_tree_holds_the_children_and_its_cpu_time_grows() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "while :; do :; done & wait"]);
        let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap();
        let begin = std::time::Instant::now();
        let bound = std::time::Duration::from_secs(10);
        while tree(&[child.id()]).unwrap().len() < 2 && begin.elapsed() < bound {
            std::thread::yield_now();
        }
        let before = Sample::take(&[child.id()]).unwrap();
        assert_eq!(before.cpu_ns.len(), 2, "the shell and its loop");
        let grown = || Sample::take(&[child.id()]).unwrap().cpu_ns_since(&before).unwrap();
        while grown() < 1_000_000 && begin.elapsed() < bound {
            std::thread::yield_now();
        }
        assert!(grown() >= 1_000_000);
        let group = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
        let gone = Sample::take(&[child.id()]).unwrap_err();
        assert!(gone.contains("cannot be read"), "{gone}");
    }

    #[test]
    fn a_process_that_ended_between_two_samples_is_an_error_and_a_new_one_counts_whole() {
        let sample =
            |processes: &[(u32, u64)]| Sample { cpu_ns: processes.iter().copied().collect(), ..Sample::default() };
        let before = sample(&[(1, 10), (2, 20)]);
        assert_eq!(sample(&[(1, 11), (2, 22), (3, 5)]).cpu_ns_since(&before), Ok(8));
        let error = sample(&[(1, 99)]).cpu_ns_since(&before).unwrap_err();
        assert_eq!(error, "process 2 ended during the measurement");
    }

    #[test]
    fn only_anonymous_and_shared_memory_counts() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t 700 kB\nRssShmem:\t 28 kB\n";
        assert_eq!(resident_bytes(status), 128 * 1024);
    }
}
