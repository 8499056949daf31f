//! Real sockets against a brain that does what the first byte of a connection says.

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use broker::surface::{Cause, ConnId, DialId, Input, Mailboxes, Output, Parcel, Parked, Turned};
use contract::{ids::ShardId, time::Now};

use super::bench::{BOUND, Bench, Plan};
use crate::{port::Board, shard::Brain, stage::Recipe};

/// Sends back what it gets.
const ECHO: u8 = b'E';
/// Moves to the other shard, and then echoes.
const MOVE: u8 = b'M';
/// Sends [`FLOOD_BYTES`] bytes, more than sockets buffer.
const FLOOD: u8 = b'F';
/// Sends [`GOODBYE_BYTES`] bytes and closes.
const GOODBYE: u8 = b'G';
/// Sends [`FLOOD_BYTES`] bytes and closes.
const LOST: u8 = b'L';
/// Stops reading, until somebody resumes.
const PAUSE: u8 = b'P';
/// Resumes all paused connections of its shard, and echoes.
const RESUME: u8 = b'R';
/// Dials the address that follows, up to a line end, and sends the outcome back.
const DIAL: u8 = b'D';

const FLOOD_BYTES: usize = 8 << 20;
const GOODBYE_BYTES: usize = 1 << 20;
/// Bytes that are not all alike, so that a lost or repeated piece is seen.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Counts what must happen exactly once per connection.
#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    adopted: AtomicU64,
    closed: AtomicU64,
    detached: AtomicU64,
    errors: AtomicU64,
}

#[derive(Default)]
struct Line {
    kind: Option<u8>,
    unread: Vec<u8>,
    output: Vec<u8>,
    paused: bool,
    dialled_by: Option<ConnId>,
}

struct Mirror {
    me: u16,
    shards: u16,
    lines: HashMap<ConnId, Line>,
    /// Asked to move: these are told as detached, or as closed if they died meanwhile.
    moving: HashSet<ConnId>,
    dials: HashMap<DialId, ConnId>,
    leaving: Vec<(ShardId, Parcel)>,
    tally: Arc<Tally>,
}

impl Mirror {
    fn say(&mut self, conn: ConnId, bytes: &[u8], out: &mut impl Output) {
        if let Some(line) = self.lines.get_mut(&conn) {
            line.output.extend_from_slice(bytes);
            out.flush(conn);
        }
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], out: &mut impl Output) {
        let Some(line) = self.lines.get_mut(&conn) else { panic!("bytes for an unknown connection") };
        let (kind, rest) = match line.kind {
            Some(kind) => (kind, bytes),
            None => (bytes[0], &bytes[1..]),
        };
        line.kind = Some(kind);
        match kind {
            MOVE => {
                let peer = SocketAddr::from(([127, 0, 0, 1], 1));
                let parked = Parked { listener: 0, peer, certificate: None, unread: rest.to_vec() };
                out.hand_over(conn, ShardId((self.me + 1) % self.shards), parked);
                self.lines.remove(&conn);
                self.moving.insert(conn);
            }
            FLOOD => self.say(conn, &pattern(FLOOD_BYTES), out),
            GOODBYE | LOST => {
                self.say(conn, &pattern(if kind == GOODBYE { GOODBYE_BYTES } else { FLOOD_BYTES }), out);
                out.close(conn);
            }
            PAUSE if rest.is_empty() => {
                line.paused = true;
                out.read(conn, false);
                self.say(conn, b"p", out);
            }
            RESUME => {
                out.ready(conn);
                for (paused, line) in self.lines.iter_mut().filter(|(_, line)| line.paused) {
                    line.paused = false;
                    out.read(*paused, true);
                }
                self.say(conn, rest, out);
            }
            DIAL => {
                line.unread.extend_from_slice(rest);
                if line.unread.ends_with(b"\n") {
                    let server = String::from_utf8_lossy(&line.unread).trim().to_owned();
                    let dial = DialId(conn.index);
                    self.dials.insert(dial, conn);
                    out.dial(dial, &server);
                }
            }
            _ => {
                if let Some(asker) = line.dialled_by {
                    self.say(asker, bytes, out);
                } else {
                    out.ready(conn);
                    self.say(conn, rest, out);
                }
            }
        }
    }
}

impl Brain for Mirror {
    fn input(&mut self, _: Now, input: Input<'_>, out: &mut impl Output) {
        match input {
            Input::Accepted { conn, .. } => {
                self.tally.accepted.fetch_add(1, Ordering::Relaxed);
                assert!(self.lines.insert(conn, Line::default()).is_none(), "an identity is used once");
            }
            Input::Received { conn, bytes } => self.received(conn, bytes, out),
            Input::Closed { conn, cause } => {
                let known = self.lines.remove(&conn).is_some() || self.moving.remove(&conn);
                assert!(known, "closed is told once");
                self.tally.closed.fetch_add(1, Ordering::Relaxed);
                self.tally.errors.fetch_add(u64::from(cause == Cause::Error), Ordering::Relaxed);
            }
            Input::Detached { transport, to, parked } => {
                self.tally.detached.fetch_add(1, Ordering::Relaxed);
                self.leaving.push((to, Parcel { transport, parked }));
            }
            Input::Dialed { dial, conn } => {
                let asker = self.dials[&dial];
                self.lines.insert(conn, Line { kind: Some(ECHO), dialled_by: Some(asker), ..Line::default() });
                self.say(conn, b"hello", out);
            }
            Input::DialFailed { dial, reason } => {
                let asker = self.dials[&dial];
                self.say(asker, reason.as_bytes(), out);
                out.close(asker);
            }
            Input::View(_) | Input::Listeners(_) | Input::Bans(_) | Input::Logged(_) | Input::Replay => {}
            Input::Policy(_) | Input::Authenticated { .. } | Input::Exchanged { .. } => {}
            Input::Permitted { .. } | Input::System { .. } | Input::Memory { .. } | Input::Watch => {}
            Input::Drain => {
                for conn in self.lines.keys() {
                    out.close(*conn);
                }
            }
        }
    }

    fn turn(&mut self, _: Now, mail: &mut impl Mailboxes, out: &mut impl Output) -> Turned {
        let mut waiting = Vec::new();
        for (to, parcel) in self.leaving.drain(..) {
            let mut batch = mail.blank(to);
            batch.parcels.push(parcel);
            if let Err(mut batch) = mail.offer(to, batch, true) {
                waiting.extend(batch.parcels.pop().map(|parcel| (to, parcel)));
            }
        }
        self.leaving = waiting;
        let me = self.me;
        for from in (0..self.shards).filter(|from| *from != me).map(ShardId) {
            while let Some(mut batch) = mail.take(from) {
                for Parcel { transport, parked } in batch.parcels.drain(..) {
                    let conn = out.adopt(transport).expect("there is room");
                    self.tally.adopted.fetch_add(1, Ordering::Relaxed);
                    self.lines.insert(conn, Line { kind: Some(ECHO), ..Line::default() });
                    out.ready(conn);
                    self.say(conn, &parked.unread, out);
                }
                mail.give_back(from, batch);
            }
        }
        Turned { busy: !self.leaving.is_empty(), deadline_us: u64::MAX }
    }

    fn output(&mut self, conn: ConnId) -> Option<&mut Vec<u8>> {
        self.lines.get_mut(&conn).map(|line| &mut line.output)
    }

    fn report(&mut self, _: &Board) {}
}

fn mirrors(plan: &Plan) -> (Bench, Arc<Tally>) {
    let tally = Arc::new(Tally::default());
    let shards = plan.shards;
    let bench = Bench::start(plan, |me| Mirror {
        me,
        shards,
        lines: HashMap::new(),
        moving: HashSet::new(),
        dials: HashMap::new(),
        leaving: Vec::new(),
        tally: tally.clone(),
    });
    (bench, tally)
}

fn client(bench: &Bench, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(bench.address).expect("the listener accepts");
    stream.set_read_timeout(Some(BOUND)).expect("an option");
    stream.set_nodelay(true).expect("an option");
    stream.write_all(first).expect("a write");
    stream
}

fn read_exactly(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut read = vec![0; bytes];
    stream.read_exact(&mut read).expect("all bytes arrive");
    read
}

/// Writes from a thread of its own, so that the echo can be read meanwhile.
fn write_meanwhile(stream: &TcpStream, bytes: Vec<u8>, step: usize) -> std::thread::JoinHandle<()> {
    let mut stream = stream.try_clone().expect("a second handle");
    std::thread::spawn(move || bytes.chunks(step).for_each(|piece| stream.write_all(piece).expect("a write")))
}

#[test]
fn many_connections_on_all_shards_get_their_own_bytes_back() {
    let (bench, tally) = mirrors(&Plan { shards: 3, ..Plan::default() });
    let mut clients: Vec<TcpStream> = (0..300).map(|_| client(&bench, &[ECHO])).collect();
    for round in 0..20_u32 {
        for (n, stream) in clients.iter_mut().enumerate() {
            stream.write_all(format!("{round:06}-{n:06}").as_bytes()).expect("a write");
        }
        for (n, stream) in clients.iter_mut().enumerate() {
            assert_eq!(read_exactly(stream, 13), format!("{round:06}-{n:06}").as_bytes());
        }
    }
    drop(clients);
    bench.wait_for_connections(0);
    // The end of the last one is told in the turn after it was counted.
    let end = Instant::now() + BOUND;
    while tally.closed.load(Ordering::Relaxed) < 300 {
        assert!(Instant::now() < end, "every end is told");
        std::thread::yield_now();
    }
    bench.stop();
}

#[test]
fn a_megabyte_in_one_write_survives_the_hand_over_in_order() {
    let (bench, tally) = mirrors(&Plan::default());
    let sent = pattern(1 << 20);
    for _ in 0..20 {
        let mut stream = client(&bench, &[]);
        let writer = write_meanwhile(&stream, [&[MOVE], sent.as_slice()].concat(), 1 << 21);
        assert!(read_exactly(&mut stream, sent.len()) == sent);
        writer.join().expect("the writer ends");
    }
    assert_eq!(tally.adopted.load(Ordering::Relaxed), 20);
    bench.stop();
}

#[test]
fn one_byte_writes_survive_the_hand_over_in_order() {
    let (bench, _) = mirrors(&Plan::default());
    let sent = pattern(20_000);
    let mut stream = client(&bench, &[]);
    let writer = write_meanwhile(&stream, [&[MOVE], sent.as_slice()].concat(), 1);
    assert!(read_exactly(&mut stream, sent.len()) == sent);
    writer.join().expect("the writer ends");
    bench.stop();
}

#[test]
fn a_reader_slower_than_its_sender_gets_every_byte() {
    let (bench, _) = mirrors(&Plan::default());
    let mut streams: Vec<TcpStream> = (0..3).map(|_| client(&bench, &[FLOOD])).collect();
    for stream in &mut streams {
        assert!(read_exactly(stream, FLOOD_BYTES) == pattern(FLOOD_BYTES));
    }
    drop(streams);
    bench.wait_for_connections(0);
    bench.stop();
}

#[test]
fn everything_that_was_said_before_a_close_arrives_before_the_end() {
    let (bench, _) = mirrors(&Plan::default());
    let mut stream = client(&bench, &[GOODBYE]);
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("an orderly end");
    assert!(read == pattern(GOODBYE_BYTES));
    drop(stream);
    bench.wait_for_connections(0);
    bench.stop();
}

#[test]
fn a_client_that_never_reads_is_given_up_within_its_bounds() {
    let (bench, tally) = mirrors(&Plan::default());
    let started = Instant::now();
    let stream = client(&bench, &[LOST]);
    while tally.accepted.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    while tally.closed.load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < BOUND);
        std::thread::yield_now();
    }
    bench.wait_for_connections(0);
    drop(stream);
    bench.stop();
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    let (bench, _) = mirrors(&Plan::default());
    let mut stream = client(&bench, b"Elast words");
    stream.shutdown(Shutdown::Write).expect("a shutdown");
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("a read");
    assert_eq!(read, b"last words");
    bench.stop();
}

#[test]
fn a_paused_connection_is_not_read_and_loses_nothing() {
    let (bench, _) = mirrors(&Plan { shards: 1, ..Plan::default() });
    let mut paused = client(&bench, &[PAUSE]);
    assert_eq!(read_exactly(&mut paused, 1), b"p");
    let sent = pattern(200_000);
    let writer = write_meanwhile(&paused, sent.clone(), 1000);
    let mut other = client(&bench, b"Eping");
    assert_eq!(read_exactly(&mut other, 4), b"ping");
    paused.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
    assert!(paused.read(&mut [0; 1]).is_err(), "nothing is echoed while paused");
    let mut resumer = client(&bench, b"Rgo");
    assert_eq!(read_exactly(&mut resumer, 2), b"go");
    paused.set_read_timeout(Some(BOUND)).expect("an option");
    assert!(read_exactly(&mut paused, sent.len()) == sent);
    writer.join().expect("the writer ends");
    bench.stop();
}

#[test]
fn connections_that_end_at_any_moment_leave_an_empty_table() {
    let (bench, tally) = mirrors(&Plan { shards: 2, ..Plan::default() });
    let kinds = [ECHO, MOVE, FLOOD, GOODBYE, PAUSE, RESUME];
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let address = bench.address;
            scope.spawn(move || {
                for n in 0..100 {
                    let first = kinds[(n + thread) % kinds.len()];
                    let mut stream = TcpStream::connect(address).expect("the listener accepts");
                    let _ = stream.write_all(&[first]);
                    let _ = stream.write_all(&[7; 3000]);
                    match n % 4 {
                        0 => drop(stream),
                        1 => {
                            // Closing with unread input resets the connection.
                            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                        }
                        2 => {
                            let _ = stream.shutdown(Shutdown::Both);
                        }
                        _ => {
                            stream.set_read_timeout(Some(BOUND)).expect("an option");
                            let _ = stream.read(&mut [0; 100]);
                        }
                    }
                }
            });
        }
    });
    // Paused ones do not see the end of their peer; somebody resumes them.
    let end = Instant::now() + BOUND;
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    while read(&tally.accepted) + read(&tally.adopted) != read(&tally.closed) + read(&tally.detached) {
        assert!(Instant::now() < end, "every connection is told as closed or moved once");
        // One at a time, each until it is gone: otherwise there would be more and more of them.
        let mut resumer = client(&bench, &[RESUME]);
        resumer.shutdown(Shutdown::Write).expect("a shutdown");
        assert!(matches!(resumer.read(&mut [0; 1]), Ok(0)));
        for _ in 0..10_000 {
            std::thread::yield_now();
        }
    }
    bench.wait_for_connections(0);
    bench.stop();
}

#[test]
fn a_full_listener_closes_what_comes_and_recovers() {
    let (bench, _) = mirrors(&Plan { max_connections: 2, ..Plan::default() });
    let mut first = client(&bench, b"E1");
    let mut second = client(&bench, b"E2");
    assert_eq!((read_exactly(&mut first, 1), read_exactly(&mut second, 1)), (vec![b'1'], vec![b'2']));
    let mut third = client(&bench, &[]);
    assert!(matches!(third.read(&mut [0; 1]), Ok(0) | Err(_)), "there is no third seat");
    drop(first);
    let end = Instant::now() + BOUND;
    loop {
        let mut fourth = client(&bench, &[]);
        let _ = fourth.write_all(b"E4");
        let mut answer = [0; 1];
        if matches!(fourth.read(&mut answer), Ok(1)) {
            assert_eq!(answer, *b"4");
            break;
        }
        assert!(Instant::now() < end, "the seat comes back");
    }
    bench.stop();
}

#[test]
fn dialling_by_name_reaches_the_server_and_a_refusal_names_the_address() {
    let (bench, _) = mirrors(&Plan::default());
    let server = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    // Bound and not listening: it refuses, and nobody else can get its port.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let deaf_address = deaf.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    let port = server.local_addr().expect("an address").port();
    let asked = format!("Dlocalhost:{port}\n");
    let mut asker = client(&bench, asked.as_bytes());
    let (mut dialled, _) = server.accept().expect("the dial arrives");
    assert_eq!(read_exactly(&mut dialled, 5), b"hello");
    dialled.write_all(b"welcome").expect("a write");
    assert_eq!(read_exactly(&mut asker, 7), b"welcome");

    for (asked, words) in [
        (format!("D{deaf_address}\n"), format!("{deaf_address}: Connection refused")),
        ("Dno-such-host.invalid:1\n".to_owned(), "no-such-host.invalid:1 cannot be resolved".to_owned()),
    ] {
        let mut asker = client(&bench, asked.as_bytes());
        let mut answer = String::new();
        asker.read_to_string(&mut answer).expect("an answer and the end");
        assert!(answer.contains(&words), "{answer:?} does not say {words:?}");
    }
    bench.stop();
}

#[test]
fn a_drain_says_goodbye_to_every_client_and_ends_the_shards() {
    let (bench, _) = mirrors(&Plan { shards: 3, ..Plan::default() });
    let mut clients: Vec<TcpStream> = (0..50).map(|_| client(&bench, b"E!")).collect();
    for stream in &mut clients {
        assert_eq!(read_exactly(stream, 1), b"!");
    }
    let started = Instant::now();
    let address = bench.address;
    let reader = std::thread::spawn(move || {
        for mut stream in clients {
            assert!(matches!(stream.read(&mut [0; 1]), Ok(0)), "an orderly end");
        }
    });
    bench.stop();
    assert!(started.elapsed() < Duration::from_secs(5));
    reader.join().expect("all clients saw the end");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}

/// What a load balancer sends first.
const PROXY: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 1883\r\n";

fn proxied() -> Plan {
    Plan { recipe: Recipe { proxy_us: Some(60_000_000), ..Recipe::default() }, ..Plan::default() }
}

#[test]
fn a_connection_is_told_when_it_is_known_and_not_at_all_if_it_ends_before() {
    let (bench, tally) = mirrors(&proxied());
    let half = client(&bench, &PROXY[..20]);
    let mut whole = client(&bench, &[PROXY, b"Ehello"].concat());
    assert_eq!(read_exactly(&mut whole, 5), b"hello");
    bench.wait_for_connections(2);
    assert_eq!(tally.accepted.load(Ordering::Relaxed), 1);
    drop(half);
    bench.wait_for_connections(1);
    assert_eq!(tally.closed.load(Ordering::Relaxed), 0);
    drop(whole);
    bench.wait_for_connections(0);
    assert_eq!(tally.closed.load(Ordering::Relaxed), 1);
    bench.stop();
}

#[test]
fn a_drain_ends_connections_that_are_not_known_yet() {
    let (bench, _) = mirrors(&proxied());
    let mut half = client(&bench, &PROXY[..20]);
    bench.wait_for_connections(1);
    // A shard that waits for clients that do not go gives up after three seconds.
    let started = Instant::now();
    let reader = std::thread::spawn(move || assert!(matches!(half.read(&mut [0; 1]), Ok(0)), "an orderly end"));
    bench.stop();
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    reader.join().expect("the client saw the end");
}
