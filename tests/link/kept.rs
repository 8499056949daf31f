//! What was acknowledged while the remote was away reaches it, whatever died meanwhile.

use crate::clusters::{SHARDS, client, cluster, until_linked};
use harness::node::{Node, Role};
use harness::rumq::v5;
use harness::{LONG, client_on, ports, within};
use rustix::process::Signal;
use std::collections::BTreeMap;

/// Publishers, on both shards.
const PUBLISHERS: u16 = 4;
/// Messages of each publisher between two deaths.
const MESSAGES: u32 = 60;

/// What shows that messages cross.
const PROBE: &str = "kept/probe";

/// Cluster `b`, and `a`, from which it wants everything that its clients ask for. Both keep what they acknowledge.
fn clusters() -> (Node, Node) {
    let (at_a, at_b) = (ports::free(), ports::free());
    let start = |name, at, remote, remote_at, wanted| {
        cluster(name, at, remote, remote_at, wanted).env("RINGMQ_DURABILITY__MODE", "os").start()
    };
    (start("a", at_a, "b", at_b, "[]"), start("b", at_b, "a", at_a, r##"["#"]"##))
}

/// A client of `b` whose session outlives its connections and its node.
fn hearer(b: &Node) -> v5::Client {
    let mut options = v5::options(b.mqtt(), &client_on(0, SHARDS, "hearer"));
    options.set_clean_start(false);
    options.set_session_expiry_interval(Some(3600));
    v5::Client::with(options)
}

/// What each publisher has said: the numbers below `next`.
#[derive(Default)]
struct Said {
    next: u32,
}

impl Said {
    /// Every publisher says so many numbers with QoS 1 and 2 in turn, and one thing that nobody wants.
    fn say(&mut self, a: &Node) {
        for number in 0..PUBLISHERS {
            let publisher = client(a, number, &format!("pub{number}"));
            for n in self.next..self.next + MESSAGES {
                publisher.publish(&format!("kept/{number}"), 1 + (n % 2) as u8, false, n.to_string().as_bytes());
            }
            publisher.publish("unwanted/t", 1, false, b"stays");
            publisher.acked(MESSAGES as usize + 1);
        }
        self.next += MESSAGES;
    }

    /// All of it is heard: in order, perhaps with repetitions, and nothing else.
    fn heard(&self, hearer: &v5::Client) -> usize {
        let mut highest: BTreeMap<String, u32> = (0..PUBLISHERS).map(|n| (format!("kept/{n}"), 0)).collect();
        let mut repeated = 0;
        while highest.values().any(|next| *next < self.next) {
            let message = hearer.message();
            if message.topic == PROBE {
                // It crossed at least once, and its acknowledgement died with somebody.
                continue;
            }
            let number: u32 = message.text().parse().unwrap_or_else(|_| panic!("{message:?}"));
            let next = highest.get_mut(&message.topic).unwrap_or_else(|| panic!("nobody wanted {message:?}"));
            assert!(number <= *next, "{} is heard before {next} of `{}`", number, message.topic);
            repeated += usize::from(number < *next);
            *next = (*next).max(number + 1);
        }
        repeated
    }
}

fn kill_data_plane(node: &Node) {
    let killed = node.signal(Role::Dataplane, Signal::KILL);
    within(LONG, "a new data plane is ready", || node.ready_now().filter(|ready| ready.pids[2] != killed));
}

/// Waits until `kept/` crosses, and hears what that took.
fn link(a: &Node, hearer: &v5::Client) {
    hearer.subscribe("kept/#", 2);
    until_linked(&client(a, 0, "probe"), PROBE, hearer);
}

/// The same, linked, with `b` dead and the first messages waiting for it at `a`.
fn waiting() -> (Node, Node, Said) {
    let (a, mut b) = clusters();
    link(&a, &hearer(&b));
    b.kill();
    let mut said = Said::default();
    said.say(&a);
    (a, b, said)
}

#[test]
fn what_waits_for_a_remote_survives_kill_9() {
    let (mut a, mut b, mut said) = waiting();
    kill_data_plane(&a);
    // What the remote wants is known at once.
    said.say(&a);
    kill_data_plane(&a);
    a.kill();
    a.start_again();
    said.say(&a);
    b.start_again();
    let hears = hearer(&b);
    assert!(hears.session_present);
    let repeated = said.heard(&hears);
    eprintln!("{} messages of each publisher, {repeated} repetitions", said.next);
    assert_eq!(b.counter("shed_link_outside_topics"), 0);
    within(LONG, "nothing waits any more", || (a.figure("link_queued") == 0.0).then_some(()));
    // And nothing of it comes back.
    kill_data_plane(&a);
    until_linked(&client(&a, 1, "probe-again"), PROBE, &hears);
}

#[test]
fn what_waits_for_a_remote_survives_a_stop_and_a_start() {
    let (mut a, mut b, mut said) = waiting();
    a.terminate(LONG);
    a.start_again();
    said.say(&a);
    b.start_again();
    said.heard(&hearer(&b));
}

#[test]
fn messages_under_way_when_the_sending_side_dies_arrive() {
    let (a, b) = clusters();
    let hears = hearer(&b);
    link(&a, &hears);
    let mut said = Said::default();
    for _ in 0..3 {
        said.say(&a);
        kill_data_plane(&a);
    }
    said.say(&a);
    let repeated = said.heard(&hears);
    eprintln!("{repeated} repetitions");
}
