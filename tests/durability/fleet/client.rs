//! One client with a persistent session: what it sends, and what it remembers across connections as the
//! protocol wants it to. Owned by [`super::Fleet`].
//!
//! Always true: a QoS 2 delivery is recognised by its packet id alone, an unfinished publish is sent again
//! with the same packet id in the same order, and what the client was told is written down as it was told.

use super::record::{Heard, Number, Publication};
use crate::keep;
use harness::Rng;
use harness::wire::{self, Packet, Publish, kind};
use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Publishes that one publisher has on their way at most.
const WINDOW: usize = 8;
/// Bytes that one read takes at most.
const READ_BYTES: usize = 64 << 10;
/// Acknowledgements that a slow subscriber sends in one turn of the fleet at most.
const SLOW_ACKS: u64 = 2;
/// Reason code of a session that another connection took over.
const TAKEN_OVER: u8 = 0x8e;
/// The packet id of a SUBSCRIBE: the only one that a subscriber uses itself.
const SUBSCRIBE_ID: u16 = 1;

/// A client.
pub struct Client {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub role: Role,
    /// What should not have happened to it.
    pub complaints: Vec<String>,
    version: u8,
    link: Option<Link>,
    /// A CONNACK has come once: from then on the session must be there.
    has_session: bool,
}

/// One connection.
struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    accepted: bool,
}

/// What a client is for.
pub enum Role {
    /// It hears.
    Subscriber(Subscriber),
    /// It says.
    Publisher(Publisher),
}

/// What a subscriber remembers.
pub struct Subscriber {
    /// Its one filter.
    pub filter: String,
    /// QoS of the subscription.
    pub qos: u8,
    /// It acknowledges late.
    slow: bool,
    /// The turn in which it read the SUBACK.
    pub granted_at: Option<u64>,
    /// All messages in the order in which they came.
    pub heard: Vec<Heard>,
    /// QoS 2 packet ids between PUBREC and PUBREL.
    held: HashSet<u16>,
    owed: VecDeque<Vec<u8>>,
}

/// What a publisher remembers.
pub struct Publisher {
    /// Its place among the publishers.
    pub index: u16,
    /// QoS of everything that it publishes.
    pub qos: u8,
    /// Everything that it has published; the index is the number in the payload.
    pub said: Vec<Publication>,
    flights: VecDeque<Flight>,
    last_packet_id: u16,
}

/// A publish without its last acknowledgement.
struct Flight {
    packet_id: u16,
    number: Number,
    released: bool,
}

impl Client {
    /// A client that has never connected.
    pub fn new(id: String, version: u8, role: Role) -> Self {
        Self { id, role, complaints: Vec::new(), version, link: None, has_session: false }
    }

    /// What it remembers as a subscriber.
    pub fn subscriber(&self) -> Option<&Subscriber> {
        match &self.role {
            Role::Subscriber(subscriber) => Some(subscriber),
            Role::Publisher(_) => None,
        }
    }

    /// What it remembers as a publisher.
    pub fn publisher(&self) -> Option<&Publisher> {
        match &self.role {
            Role::Subscriber(_) => None,
            Role::Publisher(publisher) => Some(publisher),
        }
    }

    /// Its socket and whether it has bytes to write.
    pub fn socket(&self) -> Option<(&TcpStream, bool)> {
        self.link.as_ref().map(|link| (&link.stream, !link.output.is_empty()))
    }

    /// It has a connection, accepted or not.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Everything that it published is acknowledged to the end.
    pub fn is_quiet(&self) -> bool {
        self.publisher().is_none_or(|publisher| publisher.flights.is_empty())
    }

    /// Opens a connection and sends CONNECT; nothing happens where nobody listens.
    pub fn connect(&mut self, broker: SocketAddr) {
        let Ok(stream) = TcpStream::connect(broker) else {
            return;
        };
        stream.set_nodelay(true).expect("TCP has no-delay");
        stream.set_nonblocking(true).expect("a socket can be asked not to block");
        let output = keep(self.version, &self.id).bytes();
        self.link = Some(Link { stream, input: Vec::new(), output, accepted: false });
    }

    /// Leaves, politely or by just closing.
    pub fn leave(&mut self, politely: bool) {
        // Behind half a packet a DISCONNECT would be the other half.
        if let Some(mut link) = self.link.take().filter(|link| politely && link.output.is_empty()) {
            // A broker that is being killed does not hear it.
            let _ = link.stream.write_all(&wire::disconnect());
        }
        self.lost();
    }

    /// Says one thing, if it may: `filler` bytes behind what identifies it. `Some(false)` deletes what is
    /// retained.
    pub fn publish(&mut self, turn: u64, topic: &str, filler: usize, retain: Option<bool>) -> bool {
        let Some(link) = self.link.as_mut().filter(|link| link.accepted) else {
            return false;
        };
        let Role::Publisher(publisher) = &mut self.role else {
            return false;
        };
        if publisher.flights.len() >= WINDOW {
            return false;
        }
        let number = publisher.said.len() as Number;
        let payload = super::record::payload(publisher.index, number, filler, retain);
        publisher.said.push(Publication {
            topic: topic.to_owned(),
            payload,
            retain: retain.is_some(),
            said_at: turn,
            acked: false,
        });
        publisher.last_packet_id = publisher.last_packet_id % u16::MAX + 1;
        let flight = Flight { packet_id: publisher.last_packet_id, number, released: false };
        link.output.extend(publisher.packet(&flight, false, self.version));
        publisher.flights.push_back(flight);
        true
    }

    /// Reads what is there and handles every whole packet.
    pub fn receive(&mut self, turn: u64) {
        let mut chunk = [0; READ_BYTES];
        while let Some(link) = &mut self.link {
            match link.stream.read(&mut chunk) {
                Ok(0) => return self.lost(),
                Ok(count) => link.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.lost(),
            }
            while let Some(packet) = self.link.as_mut().and_then(|link| wire::take(&mut link.input)) {
                self.packet(&packet, turn);
            }
        }
    }

    /// It acknowledges at once from now on.
    pub fn hurry(&mut self) {
        if let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.slow = false;
        }
    }

    /// Writes what the socket takes.
    pub fn send(&mut self, rng: &mut Rng) {
        let Some(link) = &mut self.link else {
            return;
        };
        if let Role::Subscriber(subscriber) = &mut self.role {
            let most = if subscriber.slow { rng.below(SLOW_ACKS + 1) as usize } else { usize::MAX };
            let most = most.min(subscriber.owed.len());
            link.output.extend(subscriber.owed.drain(..most).flatten());
        }
        if link.output.is_empty() {
            return;
        }
        match link.stream.write(&link.output) {
            Ok(count) => drop(link.output.drain(..count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.lost(),
        }
    }

    /// The connection is gone; what the protocol remembers stays.
    fn lost(&mut self) {
        self.link = None;
        if let Role::Subscriber(subscriber) = &mut self.role {
            subscriber.owed.clear();
        }
    }

    fn packet(&mut self, packet: &Packet, turn: u64) {
        match (packet.kind, &mut self.role) {
            (kind::CONNACK, _) => self.accepted(packet),
            (kind::PINGRESP, _) => {}
            // An earlier CONNECT of this client, on a connection that it has left, may come in later.
            (kind::DISCONNECT, _) if packet.reason() == TAKEN_OVER => self.lost(),
            (kind::DISCONNECT, _) => {
                self.complaints.push(format!("DISCONNECT with reason {:#04x}", packet.reason()));
                self.lost();
            }
            (kind::SUBACK, Role::Subscriber(subscriber)) => {
                if packet.reason() == subscriber.qos {
                    subscriber.granted_at.get_or_insert(turn);
                } else {
                    self.complaints.push(format!("SUBACK with reason {:#04x}", packet.reason()));
                }
            }
            (kind::PUBLISH, Role::Subscriber(subscriber)) => {
                if let Err(why) = subscriber.delivery(packet, self.version) {
                    self.complaints.push(why);
                }
            }
            (kind::PUBREL, Role::Subscriber(subscriber)) => {
                subscriber.held.remove(&packet.packet_id());
                subscriber.owed.push_back(wire::ack(kind::PUBCOMP, packet.packet_id()));
            }
            (kind::PUBACK | kind::PUBREC | kind::PUBCOMP, Role::Publisher(publisher)) => {
                match publisher.answer(packet) {
                    Ok(Some(release)) => self.link.as_mut().expect("it was just read").output.extend(release),
                    Ok(None) => {}
                    Err(why) => self.complaints.push(why),
                }
            }
            _ => self.complaints.push(format!("unexpected {packet:?}")),
        }
    }

    fn accepted(&mut self, connack: &Packet) {
        if connack.reason() != 0 {
            self.complaints.push(format!("CONNECT was refused: {connack:?}"));
            return self.lost();
        }
        if self.has_session && !connack.session_present() {
            self.complaints.push("the session is gone".to_owned());
        }
        self.has_session = true;
        let version = self.version;
        let link = self.link.as_mut().expect("it was just read");
        link.accepted = true;
        match &mut self.role {
            Role::Subscriber(subscriber) if subscriber.granted_at.is_none() => {
                link.output.extend(wire::subscribe(version, SUBSCRIBE_ID, &subscriber.filter, subscriber.qos));
            }
            Role::Subscriber(_) => {}
            Role::Publisher(publisher) => {
                link.output.extend(publisher.flights.iter().flat_map(|flight| publisher.packet(flight, true, version)));
            }
        }
    }
}

impl Subscriber {
    /// One that has heard nothing.
    pub fn new(filter: String, qos: u8, slow: bool) -> Self {
        Self { filter, qos, slow, granted_at: None, heard: Vec::new(), held: HashSet::new(), owed: VecDeque::new() }
    }

    fn delivery(&mut self, packet: &Packet, version: u8) -> Result<(), String> {
        let message = packet.publish(version);
        let id = message.packet_id.unwrap_or(0);
        let is_new = match message.qos {
            1 => {
                self.owed.push_back(wire::ack(kind::PUBACK, id));
                true
            }
            2 => {
                self.owed.push_back(wire::ack(kind::PUBREC, id));
                self.held.insert(id)
            }
            _ => return Err(format!("delivered at QoS {}: {}", message.qos, message.topic)),
        };
        if is_new {
            self.heard.push(super::record::heard(&message)?);
        } else if !message.dup {
            return Err(format!("packet id {id} is used again before it was released"));
        }
        Ok(())
    }
}

impl Publisher {
    /// One that has said nothing.
    pub fn new(index: u16, qos: u8) -> Self {
        Self { index, qos, said: Vec::new(), flights: VecDeque::new(), last_packet_id: 0 }
    }

    /// Publishes that are not yet promised; the broker may have them or not.
    pub fn unanswered(&self) -> usize {
        self.said.iter().filter(|publication| !publication.acked).count()
    }

    fn packet(&self, flight: &Flight, again: bool, version: u8) -> Vec<u8> {
        if flight.released {
            return wire::ack(kind::PUBREL, flight.packet_id);
        }
        let said = &self.said[flight.number as usize];
        let publish = Publish::new(&said.topic, &said.payload).acked(self.qos, flight.packet_id);
        Publish { retain: said.retain, dup: again, ..publish }.bytes(version)
    }

    /// Takes an acknowledgement; gives what has to be sent then.
    fn answer(&mut self, packet: &Packet) -> Result<Option<Vec<u8>>, String> {
        let id = packet.packet_id();
        let Some(at) = self.flights.iter().position(|flight| flight.packet_id == id) else {
            return Err(format!("acknowledged, but not on its way: {packet:?}"));
        };
        let flight = &mut self.flights[at];
        let said = &mut self.said[flight.number as usize];
        match packet.kind {
            kind::PUBCOMP if flight.released => drop(self.flights.remove(at)),
            kind::PUBACK | kind::PUBREC if packet.reason() >= 0x80 => {
                let why = format!("publish {} was refused with {:#04x}", flight.number, packet.reason());
                self.flights.remove(at);
                return Err(why);
            }
            kind::PUBACK if self.qos == 1 => {
                said.acked = true;
                self.flights.remove(at);
            }
            kind::PUBREC if self.qos == 2 => {
                said.acked = true;
                flight.released = true;
                return Ok(Some(wire::ack(kind::PUBREL, id)));
            }
            _ => return Err(format!("the wrong acknowledgement for QoS {}: {packet:?}", self.qos)),
        }
        Ok(None)
    }
}
