//! The disk is full: what cannot be kept is refused, everything else goes on, and the node recovers alone.

use crate::{crash, durable, keep};
use harness::disk::SmallDisk;
use harness::node::Node;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};
use harness::{LONG, SHORT, Setup, skip, within};

/// Size of the disk.
const DISK_MIB: u32 = 64;
/// Payload of what fills it.
const PAYLOAD_BYTES: usize = 4096;
/// More publishes than the disk holds.
const PUBLISHES_MAX: u64 = 2 * (DISK_MIB as u64) * 1024 * 1024 / PAYLOAD_BYTES as u64;
/// Publishes whose answers are awaited together.
const BURST: u64 = 16;
/// Reason code: quota exceeded.
const REFUSED: u8 = 0x97;

/// The disk, unless this machine has none to give.
fn disk() -> Option<SmallDisk> {
    match SmallDisk::new(DISK_MIB) {
        Ok(disk) => Some(disk),
        Err(why) => {
            skip::skip(&format!("no disk of a limited size: {why}"));
            None
        }
    }
}

fn on(disk: &SmallDisk, mode: &str) -> Setup {
    durable(mode)
        .data_directory(&disk.path().join("data"))
        .env("RINGMQ_DURABILITY__SEGMENT_BYTES", "1MB")
        .env("RINGMQ_DURABILITY__COMPACT_MIN_BYTES", "4MB")
        .env("RINGMQ_MQTT__MAX_MQUEUE_LEN", "1000000")
        .env("RINGMQ_MQTT__MAX_MQUEUE_BYTES", "1GB")
}

/// Clients of a node whose disk fills up.
struct Clients {
    /// Says everything.
    publisher: Raw,
    /// Connected, wants QoS 0 of everything, keeps nothing.
    listener: Raw,
    /// Publishes so far.
    said: u64,
    /// Those that were acknowledged.
    acked: Vec<u64>,
}

impl Clients {
    #[track_caller]
    fn start(node: &Node) -> Self {
        Raw::connect(node.mqtt(), &keep(V5, "absent")).subscribe("kept/#", 1);
        let (publisher, listener) = Self::light(node);
        Self { publisher, listener, said: 0, acked: Vec::new() }
    }

    /// Connects again those that keep nothing.
    #[track_caller]
    fn light(node: &Node) -> (Raw, Raw) {
        let mut listener = Raw::connect(node.mqtt(), &Connect::new(V5, "listener"));
        listener.subscribe("light/#", 0);
        (Raw::connect(node.mqtt(), &Connect::new(V5, "publisher")), listener)
    }

    /// Publishes for the absent session until one is refused.
    #[track_caller]
    fn until_refused(&mut self) {
        while self.said < PUBLISHES_MAX {
            if !self.burst().is_empty() {
                return;
            }
        }
        panic!("{PUBLISHES_MAX} publishes of {PAYLOAD_BYTES} bytes were accepted; the disk has {DISK_MIB} MiB");
    }

    /// A few publishes for the absent session; gives the reasons with which some were refused.
    #[track_caller]
    fn burst(&mut self) -> Vec<u8> {
        let numbers = self.said..self.said + BURST;
        let packet = |number: u64| {
            let mut payload = vec![b'x'; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&number.to_be_bytes());
            Publish::new("kept/t", &payload).acked(1, (number % BURST + 1) as u16).bytes(V5)
        };
        self.publisher.send(&numbers.clone().flat_map(packet).collect::<Vec<_>>());
        self.said = numbers.end;
        let mut refused = Vec::new();
        for number in numbers {
            let puback = self.publisher.expect(kind::PUBACK);
            assert_eq!(u64::from(puback.packet_id()), number % BURST + 1, "answers come in order");
            match puback.reason() {
                0 => self.acked.push(number),
                reason => refused.push(reason),
            }
        }
        assert!(refused.iter().all(|reason| *reason == REFUSED), "refused with {refused:02x?}");
        refused
    }

    /// What needs no disk goes on.
    #[track_caller]
    fn light_goes_on(&mut self) {
        self.publisher.send(&Publish::new("light/t", b"0").bytes(V5));
        assert_eq!(self.listener.message().payload, b"0", "QoS 0 goes on");
        // No session that is kept wants it, so nothing has to be written for it.
        self.publisher.publish_acked("light/t", b"1", 1);
        assert_eq!(self.listener.message().payload, b"1", "QoS 1 to a clean session goes on");
    }

    /// The absent session returns and takes everything: all that was acknowledged, in order.
    #[track_caller]
    fn drain(&self, node: &Node) {
        let (mut raw, connack) = Raw::connack(node.mqtt(), &keep(V5, "absent"));
        assert!(connack.session_present(), "{connack:?}");
        let mut due = self.acked.iter().copied().peekable();
        let mut last = None;
        while due.peek().is_some() {
            let message = raw.expect(kind::PUBLISH).publish(V5);
            let number = u64::from_be_bytes(message.payload[..8].try_into().expect("eight bytes"));
            raw.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
            // What was refused may have been kept all the same; what was acknowledged must have been.
            if due.peek() == Some(&number) {
                due.next();
            } else {
                assert!(due.peek().is_some_and(|next| number < *next), "{:?} is lost, {number} came", due.peek());
            }
        }
        within(SHORT, "the rest is only what was refused", || {
            raw.send(&wire::pingreq());
            match raw.next(SHORT) {
                Some(packet) if packet.kind == kind::PUBLISH => {
                    let message = packet.publish(V5);
                    raw.send(&wire::ack(kind::PUBACK, message.packet_id.expect("QoS 1 has one")));
                    None
                }
                Some(packet) if packet.kind == kind::PINGRESP => Some(()),
                other => panic!("neither a message nor an answer: {other:?}"),
            }
        });
    }

    /// Publishes are accepted again, all by itself.
    #[track_caller]
    fn accepted_again(&mut self) {
        within(LONG, "the node keeps messages again", || self.burst().is_empty().then_some(()));
    }
}

#[test]
fn a_disk_filled_from_outside_fails_closed_and_the_node_recovers_alone() {
    for mode in crate::MODES {
        let Some(disk) = disk() else {
            return;
        };
        let node = on(&disk, mode).start();
        let supervised = node.ready_now().expect("it is ready").pids;
        let mut clients = Clients::start(&node);
        assert!(clients.burst().is_empty(), "there is room");
        assert!(disk.fill() > 0);
        clients.until_refused();
        clients.light_goes_on();
        alarm(&node, true);
        disk.free();
        clients.accepted_again();
        clients.light_goes_on();
        alarm(&node, false);
        assert_eq!(node.ready_now().expect("it is ready").pids, supervised, "no process was started again");
        crash(&node);
        clients.drain(&node);
    }
}

//= MQTT311-4.8.0-2
#[test]
fn a_publisher_of_3_1_1_is_closed_where_one_of_5_0_is_refused() {
    let Some(disk) = disk() else {
        return;
    };
    let node = on(&disk, crate::MODES[0]).start();
    let mut clients = Clients::start(&node);
    assert!(disk.fill() > 0);
    clients.until_refused();
    let payload = vec![b'x'; PAYLOAD_BYTES];
    within(SHORT, "3.1.1 cannot be told, so it is closed", || {
        let mut old = Raw::connect(node.mqtt(), &Connect::new(V311, "old"));
        old.send(&Publish::new("kept/t", &payload).acked(1, 1).bytes(V311));
        match old.next(SHORT) {
            None => Some(()),
            Some(packet) => {
                assert_eq!(packet.kind, kind::PUBACK, "there was room for one more: {packet:?}");
                None
            }
        }
    });
    clients.light_goes_on();
}

#[test]
fn a_disk_filled_by_queues_fails_closed_and_a_subscriber_that_returns_makes_room() {
    filled_by_queues(0);
}

#[test]
fn a_node_that_dies_again_and_again_while_its_disk_is_full_can_be_drained_nevertheless() {
    filled_by_queues(5);
}

#[track_caller]
fn filled_by_queues(deaths: u32) {
    let Some(disk) = disk() else {
        return;
    };
    let node = on(&disk, "os").start();
    let supervised = node.ready_now().expect("it is ready").pids;
    let mut clients = Clients::start(&node);
    clients.until_refused();
    clients.light_goes_on();
    alarm(&node, true);
    for _ in 0..deaths {
        crash(&node);
        (clients.publisher, clients.listener) = Clients::light(&node);
        clients.light_goes_on();
        assert!(!clients.burst().is_empty(), "the disk is still full");
    }
    clients.drain(&node);
    clients.acked.clear();
    clients.accepted_again();
    alarm(&node, false);
    let now = node.ready_now().expect("it is ready").pids;
    assert_eq!(now[..2], supervised[..2], "supervisor and control are the old ones");
    crash(&node);
    clients.drain(&node);
}

#[test]
fn a_read_only_disk_keeps_a_node_from_starting_and_harms_nothing() {
    let Some(disk) = disk() else {
        return;
    };
    let setup = on(&disk, "os");
    let mut node = setup.start();
    let mut clients = Clients::start(&node);
    assert!(clients.burst().is_empty(), "there is room");
    node.kill();
    // The kernel closes what a killed process had in its ring after the process is gone.
    within(SHORT, "nobody has a file open", || disk.read_only(true).ok());
    let ended = setup.refused(SHORT);
    assert_ne!(ended.code, Some(0));
    let directory = disk.path().display().to_string();
    assert!(ended.said.contains(&directory) && !ended.said.contains("panicked"), "{}", ended.said);
    disk.read_only(false).expect("it was writable before");
    node.start_again();
    clients.drain(&node);
}

/// The node says that its log cannot take what it should, or that it can again.
#[track_caller]
fn alarm(node: &Node, is_on: bool) {
    within(LONG, if is_on { "an alarm of the log is on" } else { "no alarm of the log is on" }, || {
        let alarms = node.get("/api/v5/alarms").ok()?.body;
        let says = ["log_full", "log_detached"].iter().any(|alarm| alarms.contains(alarm));
        (says == is_on).then_some(())
    });
}
