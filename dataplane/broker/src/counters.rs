//! What a shard counts. Plain numbers, owned by the shard; the shell copies them out for the Report.
//! Every message that is given up on purpose has a `shed_` counter here.

use mqtt::{codec::AckKind, types::Qos};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(non_camel_case_types, reason = "the variants are the published names")]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

        const ALL: &[Counter] = &[$(Counter::$name,)+];

        impl Counters {
            /// Published names, in the order of [`Counters::values`].
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+];
            /// One sentence for the operator per counter.
            pub const DOCS: &'static [&'static str] = &[$(concat!($($doc),+),)+];
        }
    };
}

counters! {
    /// Connections accepted by the listeners.
    connections_accepted,
    /// Connections that moved to their home shard.
    connections_handed_over,
    /// CONNECT packets that were answered with success.
    client_connected,
    /// Connections that ended after a successful CONNECT.
    client_disconnected,
    /// CONNECT packets that were refused.
    connect_refused,
    /// Connections closed because what came first was no PROXY header (listeners.*.proxy_protocol).
    proxy_refused,
    /// Connections closed because the handshake of TLS failed.
    tls_refused,
    /// Connections closed because TLS failed after its handshake.
    tls_broken,
    /// WebSocket handshakes refused.
    websocket_refused,
    /// Connections closed because of a WebSocket frame that is not allowed.
    websocket_violated,
    /// Connections closed because PROXY header or TLS handshake took too long.
    handshake_timeout,
    /// Connections closed at once because their listener had no place left (listeners.*.max_connections).
    listener_full,
    /// Connections that waited because more came than listeners.*.max_conn_rate lets in.
    listener_rate_waited,
    /// Connections closed at once because they would have waited for too long (listeners.*.max_conn_rate).
    listener_rate_refused,
    /// Clients disconnected because they may not stay: listener_closed + banned_disconnected.
    clients_dismissed,
    /// Clients disconnected, or refused on their way, because their listener was closed.
    listener_closed,
    /// Connections closed at once because their address has too many (limits.max_connections_per_address).
    address_connections_refused,
    /// Connections closed at once because too many come from their address (limits.max_conn_rate_per_address).
    address_rate_refused,
    /// Connections closed at once because their address has too many without CONNECT (limits.max_handshakes_per_address).
    address_handshakes_refused,
    /// Connections that were not counted by their address, because there are too many addresses.
    address_uncounted,
    /// Clients refused because they are banned.
    banned_refused,
    /// Clients disconnected because they were banned.
    banned_disconnected,
    /// Client ids banned because they connect and disconnect all the time (flapping_detect.max_count).
    flapping_detected,
    /// Disconnections that were not counted, because too many client ids disconnect.
    flapping_uncounted,
    /// Clients about whom an authenticator was asked.
    authentication_asked,
    /// Clients that an authenticator let in.
    authentication_allowed,
    /// Clients that were refused because of who they are, or because nobody knows that.
    authentication_denied,
    /// Clients refused because too many waited for authentication (admission.queue_max, admission.hook_queue_max).
    authentication_overloaded,
    /// Clients refused because who they are was not known in time (mqtt.idle_timeout).
    authentication_timed_out,
    /// Verdicts about connections that had gone.
    authentication_late,
    /// Connected clients that proved again who they are (AUTH).
    authentication_repeated,
    /// Clients disconnected because they would not be let in any more.
    clients_revoked,
    /// Clients disconnected because what let them in is no longer valid.
    clients_expired,
    /// Questions to the server that knows what clients may do (authorization.sources, type "http").
    access_asked,
    /// Publishes and filters about which the server's answer was remembered (authorization.cache).
    access_remembered,
    /// Questions that the server did not answer, not in time or not in words that are understood; it was passed over.
    access_silent,
    /// Publishes and filters about which the server was passed over because too many questions waited (admission.hook_queue_max).
    access_overloaded,
    /// Publishes and filters about which the server was passed over because it was silent about the same packet, the packet had too many of them, or its client had gone.
    access_unasked,
    /// Answers of the server that came too late.
    access_late,
    /// Filters refused because the client may not subscribe to them.
    subscriptions_denied,
    /// Subscriptions that deliver nothing any more, because the right to them was taken.
    subscriptions_revoked,
    /// Connections closed because no CONNECT came in time.
    connect_timeout,
    /// Connections closed because the client was silent for too long.
    keep_alive_timeout,
    /// Connections closed because a second one came with the same client id.
    session_taken_over,
    /// Sessions created.
    session_created,
    /// Sessions that a new connection resumed.
    session_resumed,
    /// Sessions discarded by Clean Start.
    session_discarded,
    /// Sessions that ended because their expiry had passed.
    session_expired,
    /// Connections closed because of malformed bytes.
    packets_malformed,
    /// Connections closed because of a protocol error.
    protocol_errors,
    /// Connections closed because what they asked for cannot be kept, or because they take too much.
    quota_exceeded,
    /// Connections closed because of what they may not do (authorization.*).
    connections_not_authorized,
    /// Connections that ended with a DISCONNECT of their client.
    disconnected_normal,
    /// Connections of clients that closed without a DISCONNECT.
    disconnected_closed,
    /// Connections of clients that broke: reset, or no answer of the network.
    disconnected_broken,
    /// Connections of clients that ended because this node stopped.
    disconnected_shutdown,
    /// Packets received from clients.
    packets_received,
    /// Packets sent to clients.
    packets_sent,
    /// CONNECT packets received.
    packets_connect_received,
    /// PUBLISH packets received, refused ones included.
    packets_publish_received,
    /// PUBACK packets received.
    packets_puback_received,
    /// PUBREC packets received.
    packets_pubrec_received,
    /// PUBREL packets received.
    packets_pubrel_received,
    /// PUBCOMP packets received.
    packets_pubcomp_received,
    /// SUBSCRIBE packets received.
    packets_subscribe_received,
    /// UNSUBSCRIBE packets received.
    packets_unsubscribe_received,
    /// PINGREQ packets received.
    packets_pingreq_received,
    /// DISCONNECT packets received.
    packets_disconnect_received,
    /// AUTH packets received.
    packets_auth_received,
    /// CONNACK packets sent.
    packets_connack_sent,
    /// PUBLISH packets sent.
    packets_publish_sent,
    /// PUBACK packets sent.
    packets_puback_sent,
    /// PUBREC packets sent.
    packets_pubrec_sent,
    /// PUBREL packets sent.
    packets_pubrel_sent,
    /// PUBCOMP packets sent.
    packets_pubcomp_sent,
    /// SUBACK packets sent.
    packets_suback_sent,
    /// UNSUBACK packets sent.
    packets_unsuback_sent,
    /// PINGRESP packets sent.
    packets_pingresp_sent,
    /// DISCONNECT packets sent.
    packets_disconnect_sent,
    /// AUTH packets sent.
    packets_auth_sent,
    /// PUBLISH packets received from clients.
    messages_received,
    /// PUBLISH packets sent to clients.
    messages_sent,
    /// Messages of QoS 0 received from clients.
    messages_qos0_received,
    /// Messages of QoS 1 received from clients.
    messages_qos1_received,
    /// Messages of QoS 2 received from clients.
    messages_qos2_received,
    /// Messages sent to clients with QoS 0.
    messages_qos0_sent,
    /// Messages sent to clients with QoS 1.
    messages_qos1_sent,
    /// Messages sent to clients with QoS 2.
    messages_qos2_sent,
    /// Bytes of payload in PUBLISH packets received.
    publish_bytes_received,
    /// Bytes of payload in PUBLISH packets sent.
    publish_bytes_sent,
    /// Messages sent with QoS 1 or 2 that their clients have acknowledged.
    messages_acked,
    /// Bytes received from clients.
    bytes_received,
    /// Bytes sent to clients.
    bytes_sent,
    /// Publishes refused with a reason code.
    publishes_refused,
    /// Publishes on topics that nobody wanted.
    messages_without_subscribers,
    /// Messages that left this shard for another one.
    hops_sent,
    /// Messages that arrived from another shard.
    hops_received,
    /// Frames of another shard that could not be read: a fault of ours, never of a client.
    frames_bad,
    /// Connections that were not read because a mailbox was full.
    reads_paused,
    /// Times that a client was not read for a while, because it published faster than it may (mqtt.messages_rate, mqtt.bytes_rate).
    publishers_paced,
    /// Message batches that had to wait because a mailbox was full.
    batches_staged,
    /// QoS 0 messages shed because a subscriber reads too slowly (limits.output_bytes_max).
    shed_slow_subscriber,
    /// Messages shed because a session's queue was full (mqtt.max_mqueue_len, mqtt.max_mqueue_bytes).
    shed_queue_full,
    /// QoS 0 messages shed because the session has no connection.
    shed_offline_qos0,
    /// Messages shed because their expiry passed while they waited.
    shed_expired,
    /// Messages shed because they exceed the client's Maximum Packet Size.
    shed_too_large,
    /// Messages shed because their session ended before they were delivered.
    shed_session_ended,
    /// Group messages shed because no member could take them.
    shed_no_member,
    /// QoS 0 group messages shed because the way to the member's shard was full.
    shed_hop_full,
    /// Retained values shed because the store is full (retainer.max_retained_messages, retainer.max_total_bytes).
    shed_retained_full,
    /// Retained values shed because the payload is too large (retainer.max_payload_size).
    shed_retained_payload,
    /// Live values shed from the memory of an open retained replay; an older value may follow.
    shed_replay_memory,
    /// Messages shed because their publisher may not publish them (authorization.*).
    shed_publish_denied,
    /// Messages shed because the subscriber may not receive them (authorization.*).
    shed_delivery_denied,
    /// Wills shed because their client may not publish them (authorization.*).
    shed_will_denied,
    /// Events about clients shed because a shard had more than 1000 to say in a second, or because a client id made their topic
    /// too long or gave it more than 128 levels (sys_topics.sys_event_messages.*).
    shed_system_event,
    /// Obligations that were not met in time (mqtt.obligation_timeout).
    obligations_timed_out,
    /// Publishes refused because another part of the node refused them.
    obligations_refused,
    /// Retained values stored.
    retained_stored,
    /// Retained values deleted.
    retained_deleted,
    /// Retained values sent to new subscriptions.
    retained_replayed,
    /// Retained values not replayed because a newer one had already arrived live.
    retained_skipped,
    /// Retained queries answered for subscriptions of any shard.
    retained_queries,
    /// Wills published.
    wills_published,
    /// Wills that a new connection made void within their delay.
    wills_cancelled,
    /// QoS 2 publishes that came again and were not routed twice.
    duplicates_suppressed,
    /// Messages given to a member of a shared group.
    group_deliveries,
    /// Group messages that came back because the member was away.
    group_returned,
    /// Acknowledgements held back until another shard had answered.
    acks_waited,
    /// SUBACKs held back until every shard had the new interest.
    subacks_waited,
    /// Sessions found in the log at the start.
    session_restored,
    /// Publishes repeated after a crash, because not every destination was known to have them.
    publishes_repeated,
    /// Checkpoints begun: the log is compacted, or written anew.
    log_checkpoints,
    /// Answers refused because what they depend on cannot be kept.
    log_waits_refused,
    /// Connections closed because what their answers depend on was not kept in time (mqtt.obligation_timeout).
    log_waits_timed_out,
    /// Messages for persistent sessions or retained values refused because the log cannot take them (durability.*).
    shed_log_full,
    /// Messages for persistent sessions or retained values refused, and others shed that would have had to wait, because memory is scarce (limits.memory_high_watermark).
    shed_memory_scarce,
    /// New sessions and subscriptions refused because memory is scarce (limits.memory_high_watermark).
    memory_scarce_refused,
    /// Connections closed because their client reads too slowly (mqtt.slow_subscriber).
    slow_subscribers_disconnected,
    /// Messages offered to the outlet of a link.
    link_matched,
    /// Messages sent to a remote.
    link_sent,
    /// Messages that a remote acknowledged.
    link_acked,
    /// Messages that arrived from a remote and were routed here.
    link_received,
    /// Messages from a remote outside our own topics.
    shed_link_outside_topics,
    /// Messages from a remote that we have no enabled link to.
    shed_link_unknown,
    /// Payloads on $LINK topics that could not be understood.
    shed_link_malformed,
    /// Messages for a remote shed because the outlet's queue was full.
    shed_link_queue_full,
    /// Messages for a remote shed because they waited too long.
    shed_link_expired,
    /// Messages for a remote shed because they exceed its Maximum Packet Size.
    shed_link_too_large,
    /// Messages for a remote that it refused with a reason code.
    shed_link_refused,
    /// Messages for a remote shed because the link was stopped.
    shed_link_stopped,
    /// Ordinary clients that tried to use $LINK topics.
    link_clients_refused,
    /// Route connections refused: unknown or disabled link, wrong name, or too many of them.
    link_inits_refused,
    /// Routes that a remote announced and that were refused because of link limits.
    link_routes_refused,
}

/// Type of a packet: the upper half of its first byte.
const TYPES: usize = 16;

/// Packets of one direction, counted where they pass: one addition for each of them, in one place of memory.
#[derive(Clone, Copy, Default)]
struct Passed {
    /// PUBLISH by QoS.
    messages: [u64; 3],
    /// Bytes of their payload.
    payload_bytes: u64,
    /// All others by type; of received ones PUBLISH, too.
    packets: [u64; TYPES],
}

/// All counters of one shard.
pub struct Counters {
    values: [u64; Counters::NAMES.len()],
    received: Passed,
    sent: Passed,
    /// Messages that their receivers have acknowledged.
    acked: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters { values: [0; Counters::NAMES.len()], received: Passed::default(), sent: Passed::default(), acked: 0 }
    }
}

impl Counters {
    /// Adds one.
    #[inline]
    pub fn one(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.values[counter as usize] += n;
    }

    /// A packet with this first byte came.
    #[inline]
    pub(crate) fn packet_received(&mut self, first: u8) {
        self.received.packets[usize::from(first >> 4)] += 1;
    }

    /// It waits, and will be read again: it is counted then.
    pub(crate) fn packet_held(&mut self, first: u8) {
        let packets = &mut self.received.packets[usize::from(first >> 4)];
        *packets = packets.saturating_sub(1);
    }

    /// A packet of this type, which is not PUBLISH, was written.
    #[inline]
    pub(crate) fn packet_sent(&mut self, kind: PacketType) {
        self.sent.packets[kind as usize] += 1;
    }

    /// A PUBLISH came; its packet is counted by [`Counters::packet_received`].
    #[inline]
    pub(crate) fn publish_received(&mut self, qos: Qos, payload_bytes: usize) {
        self.received.messages[qos as usize] += 1;
        self.received.payload_bytes += payload_bytes as u64;
    }

    /// It waits, and will be read again: it is counted then.
    pub(crate) fn publish_held(&mut self, qos: Qos, payload_bytes: usize) {
        let messages = &mut self.received.messages[qos as usize];
        *messages = messages.saturating_sub(1);
        self.received.payload_bytes = self.received.payload_bytes.saturating_sub(payload_bytes as u64);
    }

    /// A PUBLISH was written.
    #[inline]
    pub(crate) fn publish_sent(&mut self, qos: Qos, payload_bytes: usize) {
        self.sent.messages[qos as usize] += 1;
        self.sent.payload_bytes += payload_bytes as u64;
    }

    /// A client has acknowledged what was sent with QoS 1 or 2.
    #[inline]
    pub(crate) fn message_acked(&mut self) {
        self.acked += 1;
    }

    /// Sets a counter that another part of the shard keeps.
    pub(crate) fn set(&mut self, counter: Counter, value: u64) {
        self.values[counter as usize] = value;
    }

    /// The value of one counter.
    pub fn value(&self, counter: Counter) -> u64 {
        self.passed(counter).unwrap_or(self.values[counter as usize])
    }

    /// All values, in the order of [`Counters::NAMES`].
    pub fn values(&self) -> impl Iterator<Item = u64> + '_ {
        ALL.iter().map(|counter| self.value(*counter))
    }

    /// What is counted by type and QoS.
    fn passed(&self, counter: Counter) -> Option<u64> {
        let (received, sent) = (&self.received, &self.sent);
        let messages = |passed: &Passed| passed.messages.iter().sum::<u64>();
        let packets = |passed: &Passed| passed.packets.iter().sum::<u64>();
        let came = |kind: PacketType| received.packets[kind as usize];
        let went = |kind: PacketType| sent.packets[kind as usize];
        Some(match counter {
            Counter::packets_received => packets(received),
            Counter::packets_sent => packets(sent) + messages(sent),
            Counter::packets_connect_received => came(PacketType::Connect),
            Counter::packets_publish_received => came(PacketType::Publish),
            Counter::packets_puback_received => came(PacketType::Puback),
            Counter::packets_pubrec_received => came(PacketType::Pubrec),
            Counter::packets_pubrel_received => came(PacketType::Pubrel),
            Counter::packets_pubcomp_received => came(PacketType::Pubcomp),
            Counter::packets_subscribe_received => came(PacketType::Subscribe),
            Counter::packets_unsubscribe_received => came(PacketType::Unsubscribe),
            Counter::packets_pingreq_received => came(PacketType::Pingreq),
            Counter::packets_disconnect_received => came(PacketType::Disconnect),
            Counter::packets_auth_received => came(PacketType::Auth),
            Counter::packets_connack_sent => went(PacketType::Connack),
            Counter::packets_publish_sent => messages(sent),
            Counter::packets_puback_sent => went(PacketType::Puback),
            Counter::packets_pubrec_sent => went(PacketType::Pubrec),
            Counter::packets_pubrel_sent => went(PacketType::Pubrel),
            Counter::packets_pubcomp_sent => went(PacketType::Pubcomp),
            Counter::packets_suback_sent => went(PacketType::Suback),
            Counter::packets_unsuback_sent => went(PacketType::Unsuback),
            Counter::packets_pingresp_sent => went(PacketType::Pingresp),
            Counter::packets_disconnect_sent => went(PacketType::Disconnect),
            Counter::packets_auth_sent => went(PacketType::Auth),
            Counter::messages_received => messages(received),
            Counter::messages_sent => messages(sent),
            Counter::messages_qos0_received => received.messages[0],
            Counter::messages_qos1_received => received.messages[1],
            Counter::messages_qos2_received => received.messages[2],
            Counter::messages_qos0_sent => sent.messages[0],
            Counter::messages_qos1_sent => sent.messages[1],
            Counter::messages_qos2_sent => sent.messages[2],
            Counter::publish_bytes_received => received.payload_bytes,
            Counter::publish_bytes_sent => sent.payload_bytes,
            Counter::messages_acked => self.acked,
            _ => return None,
        })
    }
}

/// Types of packets, as the first byte has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are those of the specification")]
#[repr(u8)]
pub(crate) enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl From<AckKind> for PacketType {
    fn from(kind: AckKind) -> PacketType {
        match kind {
            AckKind::Puback => PacketType::Puback,
            AckKind::Pubrec => PacketType::Pubrec,
            AckKind::Pubrel => PacketType::Pubrel,
            AckKind::Pubcomp => PacketType::Pubcomp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_counted_by_type_and_qos_and_in_sum() {
        let mut counters = Counters::default();
        counters.packet_received(0x10);
        counters.packet_received(0x32);
        counters.publish_received(Qos::AtLeastOnce, 5);
        counters.packet_sent(PacketType::Connack);
        counters.publish_sent(Qos::AtMostOnce, 7);
        counters.publish_sent(Qos::ExactlyOnce, 2);
        counters.one(Counter::frames_bad);
        for (counter, value) in [
            (Counter::packets_received, 2),
            (Counter::packets_connect_received, 1),
            (Counter::packets_publish_received, 1),
            (Counter::messages_received, 1),
            (Counter::messages_qos1_received, 1),
            (Counter::publish_bytes_received, 5),
            (Counter::packets_sent, 3),
            (Counter::packets_publish_sent, 2),
            (Counter::messages_sent, 2),
            (Counter::messages_qos2_sent, 1),
            (Counter::publish_bytes_sent, 9),
            (Counter::frames_bad, 1),
        ] {
            assert_eq!(counters.value(counter), value, "{counter:?}");
            assert_eq!(counters.values().nth(counter as usize), Some(value), "{counter:?}");
        }
    }
}
