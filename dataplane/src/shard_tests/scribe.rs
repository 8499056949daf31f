//! Does an answer wait for the log? A brain that writes down whatever it is told, and answers when that is kept.

use std::{
    collections::{HashMap, VecDeque},
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use broker::{
    journal::JournalBatch,
    surface::{ConnId, Input, Mailboxes, Output, Turned},
};
use contract::{ids::ShardId, time::Now};
use log::{Boot, Event, Mark, Settings, Status};

use super::bench::{BOUND, Bench, Plan};
use crate::{
    log_dir::{Layout, LogDir},
    port::Board,
    recovery,
    shard::Brain,
};

#[derive(Default)]
struct Scribe {
    shards: u16,
    me: u16,
    /// What is to be answered, per connection.
    lines: HashMap<ConnId, Vec<u8>>,
    /// Answers that wait for a batch.
    waiting: VecDeque<(u64, ConnId, Vec<u8>)>,
    record: Vec<u8>,
    batch: u64,
    spent: Option<Vec<u8>>,
}

impl Brain for Scribe {
    fn input(&mut self, _: Now, input: Input<'_>, out: &mut impl Output) {
        match input {
            Input::Accepted { conn, .. } => drop(self.lines.insert(conn, Vec::new())),
            Input::Received { conn, bytes } => {
                self.record.extend_from_slice(bytes);
                self.waiting.push_back((self.batch + 1, conn, bytes.to_ascii_uppercase()));
            }
            Input::Logged(Status { durable, .. }) => {
                while self.waiting.front().is_some_and(|(batch, ..)| *batch <= durable) {
                    let Some((_, conn, answer)) = self.waiting.pop_front() else { return };
                    if let Some(output) = self.lines.get_mut(&conn) {
                        output.extend_from_slice(&answer);
                        out.flush(conn);
                    }
                }
            }
            Input::Closed { conn, .. } => drop(self.lines.remove(&conn)),
            Input::Drain => self.lines.keys().for_each(|conn| out.close(*conn)),
            _ => {}
        }
    }

    fn turn(&mut self, _: Now, mail: &mut impl Mailboxes, _: &mut impl Output) -> Turned {
        for from in (0..self.shards).filter(|from| *from != self.me).map(ShardId) {
            while let Some(batch) = mail.take(from) {
                mail.give_back(from, batch);
            }
        }
        Turned { busy: false, deadline_us: u64::MAX }
    }

    fn output(&mut self, conn: ConnId) -> Option<&mut Vec<u8>> {
        self.lines.get_mut(&conn)
    }

    fn report(&mut self, _: &Board) {}

    fn journal(&mut self) -> Option<JournalBatch> {
        if self.record.is_empty() {
            return None;
        }
        self.batch += 1;
        let bytes = std::mem::replace(&mut self.record, self.spent.take().unwrap_or_default());
        Some(JournalBatch { number: self.batch, bytes, mark: Mark::None })
    }

    fn journal_spent(&mut self, bytes: Vec<u8>) {
        assert!(bytes.is_empty(), "a spent buffer is empty");
        self.spent = Some(bytes);
    }
}

fn scribes(shards: u16) -> Bench {
    // A shard that wakes up to write its numbers would find what nobody woke it for.
    let plan = Plan { shards, report_every_us: u64::MAX, ..Plan::default() };
    Bench::start(&plan, |me| Scribe { me, shards, ..Scribe::default() })
}

fn settings(shards: u16, sync: bool) -> impl Fn(u16) -> Settings {
    move |shard| Settings {
        shard,
        shards,
        sync,
        segment_bytes: 64 << 10,
        bytes_max: 0,
        write_bytes_max: 1 << 20,
        sync_interval_us: 1_000_000,
        boot: Boot([1; 16]),
        seed: u64::from(shard),
        plant: None,
    }
}

#[test]
fn an_answer_waits_for_the_log_and_leaves_when_it_has_come() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let logs = LogDir::of(data.path());
    let bench = scribes(1);
    let mut stream = TcpStream::connect(bench.address).expect("the listener accepts");
    stream.write_all(b"hello").expect("a write");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
    assert!(stream.read(&mut [0; 1]).is_err(), "there is no log yet, so nothing is kept");
    bench.start_logs(&logs, settings(1, true));
    stream.set_read_timeout(Some(BOUND)).expect("an option");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("the answer comes");
    assert_eq!(&answer, b"HELLO");
    // The thread still runs: what was answered is on the disk before the log is closed.
    let mut entries = Vec::new();
    let log = logs.shard(Layout { number: 1, shards: 1 }, 0);
    let scanned = recovery::scan(&log, 0, 1, Boot([2; 16]), &mut |_, event| {
        if let Event::Entry(entry) = event {
            entries.push(entry.to_vec());
        }
    });
    assert!(scanned.is_ok());
    assert_eq!(entries, [b"hello"]);
    bench.ports.iter().for_each(|port| port.log.close());
    bench.stop();
}

#[test]
fn no_answer_is_forgotten_although_shard_and_thread_sleep_in_between() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let bench = scribes(2);
    bench.start_logs(&LogDir::of(data.path()), settings(2, false));
    std::thread::scope(|scope| {
        for client in 0..4_u32 {
            let address = bench.address;
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).expect("the listener accepts");
                stream.set_nodelay(true).expect("an option");
                stream.set_read_timeout(Some(BOUND)).expect("an option");
                for round in 0..3000_u32 {
                    let said = format!("a{client:02}-{round:06}");
                    stream.write_all(said.as_bytes()).expect("a write");
                    let mut answer = [0; 10];
                    stream.read_exact(&mut answer).expect("the answer comes");
                    assert_eq!(answer, *said.to_ascii_uppercase().as_bytes());
                }
            });
        }
    });
    bench.ports.iter().for_each(|port| port.log.close());
    bench.stop();
}
