//! The threads that shards run on: one glommio executor per shard, placed on a core or not. Used by
//! [`crate::run`] on the main thread.

use std::{cell::Cell, io, time::Duration};

use glommio::{LocalExecutorBuilder, Placement};

use crate::shard::{Brain, Shard};

/// glommio never preempts a shard's main task: it gives way by itself at the end of each turn.
const PREEMPT: Duration = Duration::from_secs(24 * 3600);

thread_local! {
    static SHARD: Cell<Option<u16>> = const { Cell::new(None) };
}

/// The shard that the calling thread runs, if it runs one.
pub(crate) fn current_shard() -> Option<u16> {
    SHARD.get()
}

/// The CPUs that this process may use.
pub(crate) fn usable_cpus() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Which core each shard is pinned to.
pub(crate) enum Pin {
    /// To one core each, if there are as many shards as usable cores; otherwise to none.
    Auto,
    /// To none.
    Off,
    /// Shard n to the n-th of these.
    List(Vec<usize>),
}

/// The core of each shard, `None` for those that the kernel places.
pub(crate) fn placement(pin: &Pin, shards: u16, usable: &[usize]) -> Result<Vec<Option<usize>>, String> {
    let shards = usize::from(shards);
    match pin {
        Pin::Auto if shards == usable.len() => Ok(usable.iter().copied().map(Some).collect()),
        Pin::Auto | Pin::Off => Ok(vec![None; shards]),
        Pin::List(list) if list.len() != shards => {
            Err(format!("dataplane.pin must name one CPU per shard; got {} for {shards} shards", list.len()))
        }
        Pin::List(list) => match list.iter().find(|cpu| !usable.contains(cpu)) {
            Some(cpu) => Err(format!("dataplane.pin names CPU {cpu}; this process may use {usable:?}")),
            None => Ok(list.iter().copied().map(Some).collect()),
        },
    }
}

/// How a shard ended. Told once per shard, also when it panics (where panics unwind).
pub(crate) struct Ended {
    pub(crate) shard: u16,
    pub(crate) result: Result<(), String>,
}

/// Tells [`Ended`] when the shard's task is gone.
struct Farewell<F: FnMut(Ended)> {
    shard: u16,
    result: Result<(), String>,
    tell: F,
}

impl<F: FnMut(Ended)> Drop for Farewell<F> {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        (self.tell)(Ended { shard: self.shard, result });
    }
}

/// Starts shard `me` on its own thread. `make` runs there; how it ends is told to `ended`.
pub(crate) fn start<B: Brain + 'static>(
    me: u16,
    core: Option<usize>,
    ended: impl FnMut(Ended) + Send + 'static,
    make: impl FnOnce() -> io::Result<Shard<B>> + Send + 'static,
) -> Result<(), String> {
    let placement = core.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement).name("shard").io_memory(0).preempt_timer(PREEMPT);
    let started = executor.spawn(move || async move {
        SHARD.set(Some(me));
        // Only a name in `top` and `perf`: no reason to fail.
        let _ = std::ffi::CString::new(format!("shard-{me}")).map(|name| rustix::thread::set_name(&name));
        let mut farewell = Farewell { shard: me, result: Err("it panicked".to_owned()), tell: ended };
        farewell.result = match make() {
            Ok(shard) => shard.serve().await,
            Err(error) => Err(error),
        }
        .map_err(|error| error.to_string());
    });
    // The thread is not joined: `Ended` tells all there is to know, and the process ends right after.
    started.map(drop).map_err(|error| format!("shard {me} cannot start: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_pins_exactly_when_shards_equal_the_usable_cores() {
        assert_eq!(placement(&Pin::Auto, 2, &[1, 3]), Ok(vec![Some(1), Some(3)]));
        assert_eq!(placement(&Pin::Auto, 1, &[1, 3]), Ok(vec![None]));
        assert_eq!(placement(&Pin::Auto, 3, &[1, 3]), Ok(vec![None; 3]));
        assert_eq!(placement(&Pin::Off, 2, &[1, 3]), Ok(vec![None; 2]));
    }

    #[test]
    fn a_list_is_checked_against_the_shards_and_the_usable_cores() {
        assert_eq!(placement(&Pin::List(vec![3, 1]), 2, &[1, 3]), Ok(vec![Some(3), Some(1)]));
        let short = placement(&Pin::List(vec![3]), 2, &[1, 3]).expect_err("too short");
        assert!(short.contains("one CPU per shard; got 1 for 2 shards"));
        let foreign = placement(&Pin::List(vec![1, 2]), 2, &[1, 3]).expect_err("not ours");
        assert!(foreign.contains("CPU 2") && foreign.contains("[1, 3]"));
    }

    #[test]
    fn the_cores_of_this_process_are_known() {
        assert!(!usable_cpus().expect("an affinity mask").is_empty());
    }
}
