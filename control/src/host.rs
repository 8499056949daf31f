//! What the machine says about itself: load, memory, descriptors. Read when somebody asks.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// One look at the machine.
#[derive(Default, Debug)]
pub(crate) struct Host {
    pub(crate) load: [f64; 3],
    pub(crate) memory_total_bytes: u64,
    pub(crate) memory_used_bytes: u64,
    /// Descriptors that a process like ours may have; 0 for no limit.
    pub(crate) descriptors_max: u64,
}

impl Host {
    /// Looks. What cannot be read is zero.
    pub(crate) fn look() -> Host {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = meminfo(&memory, "MemTotal:");
        Host {
            load: loads(&load),
            memory_total_bytes: total,
            memory_used_bytes: total.saturating_sub(meminfo(&memory, "MemAvailable:")),
            descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(0),
        }
    }
}

fn loads(text: &str) -> [f64; 3] {
    let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0.0));
    [0; 3].map(|_| numbers.next().unwrap_or(0.0))
}

/// A line such as `MemTotal:       16384256 kB`, in bytes.
fn meminfo(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_and_nonsense_is_zero() {
        assert_eq!(loads("0.25 1.50 2.00 1/234 5678\n"), [0.25, 1.5, 2.0]);
        assert_eq!(loads(""), [0.0; 3]);
        let memory = "MemTotal:       16 kB\nMemFree:  3 kB\nMemAvailable:  4 kB\n";
        assert_eq!((meminfo(memory, "MemTotal:"), meminfo(memory, "MemAvailable:")), (16_384, 4096));
        assert_eq!(meminfo("MemTotal: lots", "MemTotal:"), 0);
        assert!(Host::look().memory_total_bytes > 0);
    }
}
