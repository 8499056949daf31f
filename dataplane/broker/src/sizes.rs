//! Packets that are never larger than their reader takes (Maximum Packet Size), PUBLISH left aside: that is decided where
//! it is delivered. Called on the shard of the connection. Always true: what does not fit is not written at all.

use alloc::vec::Vec;

use mqtt::{
    codec::{
        Connack, ConnackProperties, Connect,
        encode::{self, DisconnectProps},
    },
    connection::{Connection, Misbehaved},
    types::{Reason, Version},
};

use crate::conn::{Conn, Phase};

/// A client that takes packets of this size takes every CONNACK.
const CONNACK_BYTES_MAX: u32 = 1024;

/// Appends a packet, unless it is larger than its reader takes. False: nothing was written.
//= MQTT-3.1.2-24
pub(crate) fn write_within(bytes: &mut Vec<u8>, bytes_max: u32, write: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = bytes.len();
    write(bytes);
    let fits = bytes.len() - start <= bytes_max as usize;
    if !fits {
        bytes.truncate(start);
    }
    fits
}

/// CONNACK with a reason, in words too where they are wanted and fit.
pub(crate) fn refusal(bytes: &mut Vec<u8>, connect: &Connect<'_>, reason: Reason, why: &str) {
    let words = connect.properties.request_problem_information.then_some(why);
    let bytes_max = connect.properties.maximum_packet_bytes.unwrap_or(u32::MAX);
    //= MQTT-3.2.2-19
    //= MQTT-3.2.2-20
    for reason_string in [words, None] {
        let properties = ConnackProperties { reason_string, ..ConnackProperties::default() };
        //= MQTT-3.2.2-6
        let connack = Connack { session_present: false, reason, properties };
        if write_within(bytes, bytes_max, |out| encode::connack(out, connect.version, &connack)) {
            break;
        }
    }
}

/// DISCONNECT with a reason, in words too where they are wanted and fit.
//= MQTT-3.14.2-3
//= MQTT-3.14.2-4
pub(crate) fn last_words(conn: &mut Conn, misbehaved: Misbehaved) {
    let wanted = matches!(&conn.phase, Phase::Open(open) if open.protocol.problem_information);
    let (words, bytes_max) = (wanted.then_some(misbehaved.why), conn.wire.packet_bytes_max);
    for reason_string in [words, None] {
        //= MQTT-3.14.2-2
        let with = DisconnectProps { reason_string, ..DisconnectProps::default() };
        let write = |out: &mut Vec<u8>| encode::disconnect(out, Version::V5, misbehaved.reason, &with);
        if write_within(conn.farewell(), bytes_max, write) {
            break;
        }
    }
}

/// DISCONNECT of a node that stops, with the server to use instead where one is configured and its name fits.
pub(crate) fn sent_away(conn: &mut Conn, elsewhere: Option<&str>) {
    let bytes_max = conn.wire.packet_bytes_max;
    let bytes = conn.farewell();
    let with = DisconnectProps { server_reference: elsewhere, ..DisconnectProps::default() };
    let write = |out: &mut Vec<u8>| encode::disconnect(out, Version::V5, Reason::UseAnotherServer, &with);
    if elsewhere.is_none() || !write_within(bytes, bytes_max, write) {
        encode::disconnect(bytes, Version::V5, Reason::ServerShuttingDown, &DisconnectProps::default());
    }
}

impl crate::Settings {
    /// Is a successful CONNACK more than this client takes?
    pub(crate) fn connack_too_large(
        &self,
        connect: &Connect<'_>,
        protocol: &Connection,
        assigned: Option<&str>,
        proof: Option<&[u8]>,
    ) -> bool {
        if protocol.packet_bytes_max >= CONNACK_BYTES_MAX {
            return false;
        }
        let mut bytes = Vec::new();
        encode::connack(&mut bytes, connect.version, &self.connack(connect, protocol, (assigned, proof), false));
        bytes.len() > protocol.packet_bytes_max as usize
    }
}
