//! Two clients that fight for one client id, and a client that comes and goes all the time: each take-over is quick, there is one
//! owner at any time, and whoever overdoes it is banned for a while, if that is wanted (E.3 row 18).

use std::time::{Duration, Instant};

use harness::wire::{Connect, V5, kind};
use harness::{Node, Raw, SHORT, Setup, client_on, within};

/// Take-overs of a fight.
const ROUNDS: usize = 20;
/// How long one may take.
const TAKE_OVER: Duration = Duration::from_secs(1);

fn node(shards: u16, detect: bool) -> Node {
    Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(shards)
        .env("RINGMQ_FLAPPING_DETECT__ENABLE", detect.to_string())
        .env("RINGMQ_FLAPPING_DETECT__MAX_COUNT", "5")
        .env("RINGMQ_FLAPPING_DETECT__BAN_TIME", "1h")
        .start()
}

fn reason(node: &Node, id: &str) -> u8 {
    Raw::connack(node.mqtt(), &Connect::new(V5, id)).1.reason()
}

fn a_fight_has_one_owner_at_any_time(shards: u16) {
    let node = node(shards, false);
    let mut owners = Vec::new();
    for shard in 0..shards {
        let id = client_on(shard, shards, "fought-for");
        let session = [0x11, 0, 0, 1, 0];
        let connect = Connect { clean: false, properties: &session, ..Connect::new(V5, &id) };
        let mut owner = Raw::connect(node.mqtt(), &connect);
        for _ in 0..ROUNDS {
            let since = Instant::now();
            let next = Raw::connect(node.mqtt(), &connect);
            let last: Vec<_> = owner.closed(SHORT).iter().map(|packet| (packet.kind, packet.reason())).collect();
            assert_eq!(last, [(kind::DISCONNECT, 0x8e)]);
            assert!(since.elapsed() < TAKE_OVER, "{:?}", since.elapsed());
            owner = next;
        }
        owner.ping();
        owners.push(owner);
    }
    assert_eq!(node.counter("session_taken_over"), (ROUNDS * usize::from(shards)) as u64);
    assert_eq!(node.figure("shard_sessions"), f64::from(shards), "no second session of that name");
    within(SHORT, "one connection per client id", || {
        (node.figure("shard_connections") == f64::from(shards)).then_some(())
    });
}

#[test]
fn a_fight_for_a_client_id_has_one_owner_at_any_time_on_one_shard() {
    a_fight_has_one_owner_at_any_time(1);
}

#[test]
fn a_fight_for_a_client_id_has_one_owner_at_any_time_on_three_shards() {
    a_fight_has_one_owner_at_any_time(3);
}

#[test]
fn both_fighters_are_banned_and_the_ban_can_be_lifted() {
    let node = node(3, true);
    let mut bystander = Raw::connect(node.mqtt(), &Connect::new(V5, "bystander"));
    for shard in 0..3 {
        let id = client_on(shard, 3, "fighter");
        let mut fighters: Vec<Raw> = (0..7)
            .filter_map(|_| {
                let (raw, connack) = Raw::connack(node.mqtt(), &Connect::new(V5, &id));
                (connack.reason() == 0).then_some(raw)
            })
            .collect();
        // The sixth take-over is one too many, and the last winner goes with the others.
        for fighter in &mut fighters {
            fighter.closed(SHORT);
        }
        assert_eq!(reason(&node, &id), 0x8a);
        let line = |said: String| said.lines().find(|line| line.contains(&id)).map(str::to_owned);
        let banned = within(SHORT, "control knows", || line(node.ctl(&["banned"]).said));
        assert!(banned.contains("flapping detector"), "{banned}");
        let lifted = node.ctl(&["unban", "clientid", &id]);
        assert_eq!(lifted.code, Some(0), "{}", lifted.said);
        within(SHORT, "it may connect again", || (reason(&node, &id) == 0).then_some(()));
    }
    bystander.ping();
    assert_eq!(node.counter("flapping_detected"), 3);
    node.says("flapping_detect.max_count");
}

#[test]
fn who_comes_and_goes_all_the_time_is_banned_and_who_does_so_within_reason_is_not() {
    let node = node(2, true);
    let come_and_go = |id: &str| {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, id));
        raw.send(&harness::wire::disconnect());
        assert_eq!(raw.closed(SHORT), []);
    };
    (0..5).for_each(|_| come_and_go("within-reason"));
    (0..6).for_each(|_| come_and_go("restless"));
    assert_eq!(reason(&node, "restless"), 0x8a);
    assert_eq!(reason(&node, "within-reason"), 0);
}
