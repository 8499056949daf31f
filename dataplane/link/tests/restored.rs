//! The forwarder's table over a restart of ours, and how much of it leaves at once.

use std::collections::BTreeSet;

use link::etf::Limits;
use link::forwarder::{Forwarder, Interest, Settings};
use link::session::{Lookup, Reaction, RoutePublish, Session};
use link::wire::{self, RouteBatch, RouteOp};

const SECOND: u64 = 1_000_000;

/// One table, what it has said, and one connection of the remote.
struct Table {
    forwarder: Forwarder,
    wanted: BTreeSet<String>,
    session: Session,
    now: u64,
}

impl Table {
    fn new(settings: Settings) -> Table {
        let session = Session::default();
        Table { forwarder: Forwarder::new(settings), wanted: BTreeSet::new(), session, now: 0 }
    }

    /// Alternation is checked here: an addition of what is there, or a removal of what is not, fails.
    fn note(wanted: &mut BTreeSet<String>, event: Interest<'_>) {
        match event {
            Interest::Add(filter) => assert!(wanted.insert(filter.into()), "{filter} is added twice"),
            Interest::Remove(filter) => assert!(wanted.remove(filter), "{filter} is removed twice"),
        }
    }

    fn restore(&mut self, filters: &[&str]) {
        let wanted = &mut self.wanted;
        self.forwarder.restore(self.now, filters.iter().copied(), &mut |event| Table::note(wanted, event));
    }

    fn say(&mut self, payload: &[u8]) {
        let response_topic = Some("$LINK/cluster/resp/r/n");
        let publish = RoutePublish { cluster: "r", payload, response_topic, correlation_data: None };
        let lookup = Lookup::Known { enabled: true, forwarder: &mut self.forwarder };
        let wanted = &mut self.wanted;
        let limits = Limits::default();
        let mut note = |event: Interest<'_>| Table::note(wanted, event);
        let reaction = self.session.publish(self.now, "us", &publish, lookup, &limits, &mut note);
        assert!(!matches!(reaction, Reaction::Disconnect(_)), "{reaction:?}");
    }

    fn init(&mut self, incarnation: u64) {
        self.session = Session::default();
        let mut payload = Vec::new();
        wire::put_actor_init(&mut payload, "n", incarnation, "us");
        self.say(&payload);
    }

    fn announce(&mut self, filters: &[String]) {
        let mut batch = RouteBatch::new("n", 1);
        filters.iter().for_each(|filter| batch.push(RouteOp::Add { filter, route_id: filter.as_bytes() }));
        self.say(&batch.finish());
    }

    fn heartbeat(&mut self) {
        let mut payload = Vec::new();
        wire::put_heartbeat(&mut payload, "n", 1);
        self.say(&payload);
    }

    /// Ticks when the table asks for it; gives the most that one tick has removed.
    fn pass(&mut self, us: u64) -> usize {
        let (until, mut most) = (self.now + us, 0);
        while let Some(due) = self.forwarder.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            let (before, wanted) = (self.wanted.len(), &mut self.wanted);
            self.forwarder.tick(self.now, &mut |event| Table::note(wanted, event));
            most = most.max(before - self.wanted.len());
        }
        self.now = until;
        most
    }

    fn wanted(&self) -> Vec<&str> {
        let told: Vec<&str> = self.wanted.iter().map(String::as_str).collect();
        assert_eq!(told, self.forwarder.filters().collect::<Vec<_>>());
        told
    }
}

fn filters(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| format!("t/{n:05}")).collect()
}

#[test]
fn what_was_restored_goes_when_nobody_announces_it_within_the_ttl() {
    let mut table = Table::new(Settings::default());
    table.restore(&["a", "b/+", "not/#/valid"]);
    assert_eq!(table.wanted(), ["a", "b/+"]);
    assert_eq!(table.forwarder.filters_after(Some("a")).collect::<Vec<_>>(), ["b/+"]);
    table.pass(30 * SECOND - 1);
    assert_eq!(table.wanted(), ["a", "b/+"]);
    table.pass(1);
    assert!(table.wanted().is_empty());
    assert_eq!(table.forwarder.deadline(), None);
}

#[test]
fn what_a_bootstrap_brings_again_has_no_gap_and_the_rest_goes() {
    let mut table = Table::new(Settings::default());
    table.restore(&["a", "b", "c"]);
    table.pass(28 * SECOND);
    table.init(1);
    table.announce(&["a".into()]);
    // Slow: its batches come when the time of the restored ones is over.
    table.pass(10 * SECOND);
    assert_eq!(table.wanted(), ["a", "b", "c"], "the bootstrap is under way");
    table.announce(&["b".into(), "d".into()]);
    for _ in 0..5 {
        table.pass(10 * SECOND);
        table.heartbeat();
    }
    assert_eq!(table.wanted(), ["a", "b", "d"]);
    table.pass(31 * SECOND);
    assert!(table.wanted().is_empty(), "the actor holds them now, and has fallen silent");
}

#[test]
fn a_remote_that_never_pauses_does_not_keep_what_it_no_longer_wants() {
    let settings = Settings { refill_max_ms: 60_000, ..Settings::default() };
    let mut table = Table::new(settings);
    table.restore(&["restored"]);
    table.init(1);
    table.announce(&["stale".into()]);
    table.init(1);
    for n in 0..59 {
        table.announce(&[format!("new/{n}")]);
        table.pass(SECOND);
    }
    assert!(table.wanted.contains("stale") && table.wanted.contains("restored"));
    table.announce(&["new/59".into()]);
    table.pass(SECOND);
    assert!(!table.wanted.contains("stale") && !table.wanted.contains("restored"));
    assert_eq!(table.wanted().len(), 60);
}

#[test]
fn a_large_table_leaves_in_parts() {
    let settings = Settings { sweep_routes_max: 100, ..Settings::default() };
    let mut table = Table::new(settings);
    let all = filters(0, 1000);
    table.restore(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(table.pass(30 * SECOND), 100, "restored ones");
    assert!(table.wanted().is_empty());

    table.init(1);
    table.announce(&all);
    table.init(1);
    table.announce(&all[500..]);
    for _ in 0..2 {
        table.heartbeat();
        assert!(table.pass(10 * SECOND) <= 100, "stale ones");
    }
    assert_eq!(table.wanted().len(), 500);
    assert_eq!(table.pass(30 * SECOND), 100, "those of a silent actor");
    assert!(table.wanted().is_empty());
    assert_eq!((table.forwarder.status().routes, table.forwarder.status().route_bytes), (0, 0));
}

#[test]
fn what_is_announced_again_while_it_leaves_stays() {
    let settings = Settings { sweep_routes_max: 100, ..Settings::default() };
    let mut table = Table::new(settings);
    let all = filters(0, 1000);
    table.init(1);
    table.announce(&all);
    table.now += 31 * SECOND;
    let wanted = &mut table.wanted;
    table.forwarder.tick(table.now, &mut |event| Table::note(wanted, event));
    assert_eq!(table.wanted().len(), 900, "its actor is gone, the rest of its routes is leaving");
    table.init(2);
    let mut batch = RouteBatch::new("n", 2);
    all[800..].iter().for_each(|filter| batch.push(RouteOp::Add { filter, route_id: filter.as_bytes() }));
    table.say(&batch.finish());
    table.pass(SECOND);
    assert_eq!(table.wanted(), all[800..].iter().map(String::as_str).collect::<Vec<_>>());
}
