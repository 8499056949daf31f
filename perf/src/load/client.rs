//! One MQTT connection of the load: its socket, its bytes in both directions, and its way from CONNECT to ready. Lives on one thread of the load; called by `worker`. Always true: what is written goes
//! through `out`, so acknowledgements and messages of one turn leave in one write.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Socket, Type};

use super::plan::Plan;
use super::roles::{Role, Turn};
use crate::wire::{self, Ack, Packet};

/// Longest wait for the broker to take a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A publisher whose socket does not take its bytes publishes no more above this.
const OUT_BYTES_HIGH: usize = 256 << 10;
/// Bytes that one read asks for.
const READ_BYTES: usize = 256 << 10;
/// The packet id of every SUBSCRIBE.
const SUBSCRIBE_ID: u16 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connack,
    Suback,
    Ready,
}

/// One connection.
pub struct Client {
    /// What it is for.
    pub role: Role,
    /// Its socket, for the poll set.
    pub socket: Socket,
    /// Whether it waits for its turn to flush.
    pub is_dirty: bool,
    /// Whether the poll set watches it for room to write.
    pub waits_to_write: bool,
    state: State,
    rest: Vec<u8>,
    out: Vec<u8>,
    written: usize,
}

impl Client {
    /// Opens the TCP connection and writes CONNECT. Connecting blocks: on loopback and in a local network that is the
    /// time of one round trip, and the opening phase is not measured.
    pub fn open(plan: &Plan, role: Role) -> Result<Client, String> {
        let name = match &role {
            Role::Publisher(publisher) => format!("perf-{:08x}-p{}", plan.tag, publisher.index),
            Role::Subscriber(subscriber) => format!("perf-{:08x}-s{}", plan.tag, subscriber.index),
        };
        let socket = connect(plan.address).map_err(|error| format!("cannot connect to {}: {error}", plan.address))?;
        let mut out = Vec::new();
        wire::put_connect(&mut out, plan.version, &name);
        Ok(Client {
            role,
            socket,
            is_dirty: false,
            waits_to_write: false,
            state: State::Connack,
            rest: Vec::new(),
            out,
            written: 0,
        })
    }

    /// Whether CONNACK and SUBACK are behind it.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether bytes wait to be written.
    pub fn has_output(&self) -> bool {
        self.written < self.out.len()
    }

    /// Publishes one message stamped with `sent_ns` if this publisher has a packet id, room to write and a claim.
    pub fn publish(&mut self, turn: &mut Turn<'_>, sent_ns: u64) -> bool {
        let Role::Publisher(publisher) = &mut self.role else {
            return false;
        };
        self.out.len() - self.written <= OUT_BYTES_HIGH && publisher.publish(&mut self.out, turn, sent_ns)
    }

    /// Reads once and handles every whole packet. `buffer` belongs to the thread and is lent for the call; `now` reads
    /// the clock after the bytes are there.
    pub fn receive(&mut self, buffer: &mut Vec<u8>, now: impl Fn() -> u64, turn: &mut Turn<'_>) -> Result<(), String> {
        let held = self.rest.len();
        if buffer.len() < held + READ_BYTES {
            buffer.resize(held + READ_BYTES, 0);
        }
        let read = match recv(&self.socket, &mut buffer[held..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err("the broker closed the connection".into()),
            Ok((_, read)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(format!("receive failed: {error}")),
        };
        turn.now_ns = now();
        buffer[..held].copy_from_slice(&self.rest);
        self.rest.clear();
        let mut bytes = &buffer[..held + read];
        while let Some((total, body)) = wire::frame(bytes).map_err(|error| error.to_string())? {
            let packet = wire::decode(turn.plan.version, &bytes[..total], body).map_err(|error| error.to_string())?;
            self.packet(packet, turn)?;
            bytes = &bytes[total..];
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn packet(&mut self, packet: Packet<'_>, turn: &mut Turn<'_>) -> Result<(), String> {
        match (packet, &mut self.role, self.state) {
            (Packet::Publish(publish), Role::Subscriber(subscriber), State::Suback | State::Ready) => {
                if publish.qos != turn.plan.qos {
                    return Err(format!("delivered at QoS {}, published at QoS {}", publish.qos, turn.plan.qos));
                }
                subscriber.deliver(&publish, turn);
                match publish.qos {
                    1 => wire::put_ack(&mut self.out, Ack::Puback, publish.id),
                    2 => wire::put_ack(&mut self.out, Ack::Pubrec, publish.id),
                    _ => {}
                }
                Ok(())
            }
            (Packet::Ack { kind: Ack::Pubrel, id, .. }, Role::Subscriber(_), State::Ready) => {
                wire::put_ack(&mut self.out, Ack::Pubcomp, id);
                Ok(())
            }
            (Packet::Ack { kind, id, code }, Role::Publisher(publisher), State::Ready) => {
                if publisher.acknowledged(kind, id, code, &mut self.out)? {
                    turn.unacknowledged -= 1;
                }
                Ok(())
            }
            (Packet::Pingresp, ..) => Ok(()),
            (Packet::Disconnect { code }, ..) => {
                Err(format!("the broker sent DISCONNECT with reason code 0x{code:02x}"))
            }
            (packet, _, State::Connack | State::Suback) => self.opening(packet, turn),
            (packet, ..) => Err(format!("unexpected packet: {packet:?}")),
        }
    }

    fn opening(&mut self, packet: Packet<'_>, turn: &mut Turn<'_>) -> Result<(), String> {
        let plan = turn.plan;
        match (packet, self.state) {
            (Packet::Connack { code: 0, receive_max, qos_max }, State::Connack) => {
                if plan.qos > qos_max {
                    return Err(format!("the broker allows QoS {qos_max} at most, the run needs {}", plan.qos));
                }
                match &mut self.role {
                    Role::Publisher(publisher) => {
                        publisher.limit(receive_max);
                        self.state = State::Ready;
                    }
                    Role::Subscriber(subscriber) => {
                        let topics = &turn.topics[plan.topics_of_subscriber(subscriber.index)];
                        let filters: Vec<&str> = topics.iter().map(String::as_str).collect();
                        wire::put_subscribe(&mut self.out, plan.version, SUBSCRIBE_ID, &filters, plan.qos);
                        self.state = State::Suback;
                    }
                }
                Ok(())
            }
            (Packet::Connack { code, .. }, State::Connack) => {
                let meaning = wire::refusal(plan.version, code);
                Err(format!("the broker refused CONNECT with code 0x{code:02x} ({meaning})"))
            }
            (Packet::Suback { id: SUBSCRIBE_ID, codes }, State::Suback) => {
                if let Some(code) = codes.iter().find(|&&code| code != plan.qos) {
                    return Err(format!("the broker answered SUBSCRIBE for QoS {} with code 0x{code:02x}", plan.qos));
                }
                self.state = State::Ready;
                Ok(())
            }
            (packet, _) => Err(format!("unexpected packet while connecting: {packet:?}")),
        }
    }

    /// Writes what waits; returns whether all of it is gone.
    pub fn flush(&mut self) -> Result<bool, String> {
        while self.written < self.out.len() {
            match send(&self.socket, &self.out[self.written..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(written) => self.written += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(format!("send failed: {error}")),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
    }

    /// Says goodbye; failures no longer matter.
    pub fn close(&mut self) {
        wire::put_disconnect(&mut self.out);
        let _ = self.flush();
    }

    /// Who this is, for messages to the person who runs the load.
    pub fn title(&self) -> String {
        match &self.role {
            Role::Publisher(publisher) => format!("publisher {}", publisher.index),
            Role::Subscriber(subscriber) => format!("subscriber {}", subscriber.index),
        }
    }
}

fn connect(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.connect_timeout(&address.into(), CONNECT_TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
