//! What a shard counts. Plain numbers, owned by the shard; the shell copies them out for the Report.
//! Every message that is given up on purpose has a `shed_` counter here.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(non_camel_case_types, reason = "the variants are the published names")]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $doc])+ $name,)+ }

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
    /// Clients about whom an authenticator was asked.
    authentication_asked,
    /// Clients that an authenticator let in.
    authentication_allowed,
    /// Clients that were refused because of who they are, or because nobody knows that.
    authentication_denied,
    /// Clients refused because too many waited for authentication (admission.queue_max).
    authentication_overloaded,
    /// Clients refused because who they are was not known in time (mqtt.idle_timeout).
    authentication_timed_out,
    /// Verdicts about connections that had gone.
    authentication_late,
    /// Clients disconnected because they would not be let in any more.
    clients_revoked,
    /// Clients disconnected because what let them in is no longer valid.
    clients_expired,
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
    /// Packets received from clients.
    packets_received,
    /// PUBLISH packets received from clients.
    messages_received,
    /// PUBLISH packets sent to clients.
    messages_sent,
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

/// All counters of one shard.
pub struct Counters {
    values: [u64; Counters::NAMES.len()],
}

impl Default for Counters {
    fn default() -> Counters {
        Counters { values: [0; Counters::NAMES.len()] }
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

    /// Sets a counter that another part of the shard keeps.
    pub(crate) fn set(&mut self, counter: Counter, value: u64) {
        self.values[counter as usize] = value;
    }

    /// The value of one counter.
    pub fn value(&self, counter: Counter) -> u64 {
        self.values[counter as usize]
    }

    /// All values, in the order of [`Counters::NAMES`].
    pub fn values(&self) -> &[u64] {
        &self.values
    }
}
