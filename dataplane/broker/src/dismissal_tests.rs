//! Who may not come in, or not stay, told as short scripts.

use alloc::vec;

use contract::bans::Ban;
use mqtt::codec::Connect;

use crate::{
    admission::Policy,
    counters::Counter,
    rig::{Client, Rig},
    surface::Terms,
};

fn ban(kind: &str, who: &str, until_ms: u64) -> Ban {
    Ban::parse(kind, who, until_ms).expect(who)
}

fn persistent(connect: &mut Connect<'_>) {
    connect.properties.session_expiry_s = Some(1000);
}

/// Flapping is looked for; three disconnections are allowed.
fn detecting(shards: u16) -> Rig {
    Rig::with(shards, |settings| {
        settings.flapping_detect.enable = true;
        settings.flapping_detect.count_max = 3;
        settings.flapping_detect.window_ms = 10_000;
        settings.flapping_detect.ban_ms = 60_000;
    })
}

fn last_word(rig: &mut Rig, client: Client) -> alloc::string::String {
    rig.heard(client).pop().unwrap_or_default()
}

#[test]
fn who_is_banned_goes_and_others_do_not_notice() {
    let mut rig = Rig::new(3);
    let ids = [0, 1, 2].map(|shard| rig.id_on(shard, "banned"));
    let banned = [0, 1, 2].map(|at| rig.connect_with(&ids[at], persistent));
    let by_name = rig.connect_with("by-name", |connect| connect.username = Some("bad"));
    let other = rig.connect_with("other", |connect| connect.username = Some("good"));
    let mut bans: alloc::vec::Vec<Ban> = ids.iter().map(|id| ban("clientid", id, u64::MAX)).collect();
    bans.push(ban("username", "bad", u64::MAX));
    rig.bans(&bans);
    for client in [banned[0], banned[1], banned[2], by_name] {
        assert_eq!(last_word(&mut rig, client), "disconnect AdministrativeAction");
        assert!(rig.closed(client));
    }
    assert!(!rig.closed(other));
    assert_eq!(rig.count(Counter::banned_disconnected), 4);
    let again = rig.connect(&ids[2]);
    assert!(rig.closed(again) && last_word(&mut rig, again).contains("Banned"));
    rig.bans(&[]);
    let back = rig.connect(&ids[2]);
    assert!(!rig.closed(back));
}

#[test]
fn nobody_is_asked_about_a_banned_client() {
    let mut rig = Rig::new(2);
    rig.policy(Policy { number: 1, asks: true, ..Policy::default() });
    rig.bans(&[ban("username", "bad", u64::MAX)]);
    let banned = rig.connect_with("banned", |connect| connect.username = Some("bad"));
    assert!(rig.closed(banned) && rig.asked().is_empty());
    rig.connect_with("other", |connect| connect.username = Some("good"));
    assert_eq!(rig.asked(), ["good"]);
}

#[test]
fn a_ban_ends_when_its_time_is_over() {
    let mut rig = Rig::new(1);
    let until_ms = rig.now.wall_ms + 5000;
    rig.bans(&[ban("clientid", "a", until_ms), ban("peerhost", "198.51.100.0/24", until_ms)]);
    let early = rig.connect("a");
    assert!(rig.closed(early));
    rig.pass(5000);
    let late = rig.connect("a");
    assert!(!rig.closed(late));
}

#[test]
fn clients_of_a_closed_listener_go_wherever_they_are_at_home() {
    let mut rig = Rig::new(3);
    rig.listener = 1;
    let ids = [0, 1, 2].map(|shard| rig.id_on(shard, "closed"));
    let gone = [0, 1, 2].map(|at| rig.connect(&ids[at]));
    let silent = rig.accept();
    rig.listener = 0;
    let stays = rig.connect("stays");
    rig.listeners(vec![Terms::default(), Terms { closed: true, ..Terms::default() }]);
    for client in gone {
        assert_eq!(last_word(&mut rig, client), "disconnect AdministrativeAction");
    }
    assert!(rig.closed(silent) && !rig.closed(stays));
    // One that was still on its way.
    rig.listener = 1;
    let late = rig.connect(&ids[2]);
    assert!(rig.closed(late) && last_word(&mut rig, late).contains("ServerUnavailable"));
}

#[test]
fn a_fight_for_a_client_id_ends_with_both_banned_until_the_view_decides() {
    let mut rig = detecting(2);
    let id = rig.id_on(1, "fought-for");
    let fighters = [0; 5].map(|_| rig.connect(&id));
    assert!(fighters.iter().all(|fighter| rig.closed(*fighter)), "the fourth take-over is one too many");
    let refused = rig.connect(&id);
    assert!(rig.closed(refused));
    let found = rig.shards[1].flapping();
    assert_eq!((found.len(), found[0].who.as_str()), (1, id.as_str()));
    assert_eq!(found[0].until_ms, rig.now.wall_ms + 60_000);
    // Control has it now, and an operator lifts it.
    rig.bans(&found);
    assert!(rig.shards[1].flapping().is_empty());
    rig.bans(&[]);
    let back = rig.connect(&id);
    assert!(!rig.closed(back));
}

#[test]
fn disconnections_count_for_the_time_of_a_window_only() {
    let mut rig = detecting(1);
    for _ in 0..6 {
        let client = rig.connect("slow");
        rig.end(client);
        rig.pass(6000);
    }
    assert_eq!(rig.count(Counter::flapping_detected), 0);
    for _ in 0..4 {
        let client = rig.connect("quick");
        rig.end(client);
    }
    assert_eq!(rig.count(Counter::flapping_detected), 1);
    let refused = rig.connect("quick");
    assert!(rig.closed(refused));
    rig.pass(60_000);
    let back = rig.connect("quick");
    assert!(!rig.closed(back), "a ban ends by itself, with or without control");
}
