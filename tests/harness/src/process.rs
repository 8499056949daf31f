//! Processes of others: who descends from whom, signals, and the promise that none outlives the tests.
//!
//! Always true: a process group that was entered with [`keep`] is killed when this test process ends, also
//! when it is killed itself, because a shell waits for the end of a pipe that only this process holds.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::collections::HashMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// What the watching shell does: it keeps the groups it was told, and kills and removes what is left when
/// the pipe ends.
const WATCH: &str = r#"
trap '' INT TERM HUP
groups=" "; directories=" "
while read -r what value; do
  case "$what" in
    group) groups="$groups$value " ;;
    ended) groups="${groups%%" $value "*} ${groups#*" $value "}" ;;
    directory) directories="$directories$value " ;;
  esac
done
for group in $groups; do kill -9 "-$group" 2>/dev/null; done
for directory in $directories; do rm -rf -- "$directory"; done
"#;

#[expect(clippy::zombie_processes, reason = "the shell outlives this process: that is what it is for")]
fn tell(line: &str) {
    static WATCHER: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let watcher = WATCHER.get_or_init(|| {
        let mut child = Command::new("sh")
            .args(["-c", WATCH])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell starts");
        Mutex::new(child.stdin.take().expect("the pipe was asked for"))
    });
    let mut pipe = watcher.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    pipe.write_all(format!("{line}\n").as_bytes()).expect("the watching shell lives as long as this process");
}

/// Has the process group killed when this test process ends.
pub fn keep(group: u32) {
    tell(&format!("group {group}"));
}

/// The process group has ended; its number may be given to others.
pub fn release(group: u32) {
    tell(&format!("ended {group}"));
}

/// Has a directory removed when this test process ends: statics are never dropped.
pub fn remove_at_end(directory: &Path) {
    tell(&format!("directory {}", directory.display()));
}

/// One process as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// State letter: `R`, `S`, `T` (stopped), `Z` (ended, not waited for).
    pub state: char,
    /// Arguments, the program first.
    pub arguments: Vec<String>,
}

/// Looks one process up.
pub fn look(pid: u32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses itself.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = line
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect();
    Some(Seen { pid, parent, state, arguments })
}

/// Every descendant of `pid` that has not ended, without `pid` itself.
pub fn descendants(pid: u32) -> Vec<Seen> {
    let mut children: HashMap<u32, Vec<Seen>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let seen = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(look);
        if let Some(seen) = seen.filter(|seen| seen.state != 'Z') {
            children.entry(seen.parent).or_default().push(seen);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(next) = open.pop() {
        for child in children.remove(&next).unwrap_or_default() {
            open.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Sends a signal to one process; one that has ended already is no failure.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills a process, its group and every descendant that left the group.
pub fn kill_tree(pid: u32) {
    let tree = descendants(pid);
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    signal(pid, Signal::KILL);
    for seen in tree {
        signal(seen.pid, Signal::KILL);
    }
}
