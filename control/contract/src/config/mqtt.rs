//! `mqtt.*`: what clients may do. EMQX's words where a thing is the same.

use alloc::string::String;

use super::{
    knob::{Kind, Preset::*, within, within_or},
    section::{choice, section},
    units::Clock,
};

section! {
    /// What clients may do.
    Mqtt at "mqtt" {
        /// Largest packet that is read from a client, and announced to it.
        max_packet_bytes: u32 = "max_packet_size", Kind::Size(within(1024, 268_435_460)), Number(1 << 20), Live, "\"4MB\"";
        /// What a connection may send before its CONNECT is complete.
        connect_bytes_max: u32 = "max_connect_size", Kind::Size(within(256, 1 << 20)), Number(8 << 10), Live, "\"16KB\"";
        /// Longest client id.
        client_id_bytes_max: u16 = "max_clientid_len", Kind::Count(within(23, 65_535)), Number(65_535), Live, "128";
        /// Most levels of a topic or a filter.
        topic_levels_max: u16 = "max_topic_levels", Kind::Count(within(1, 65_535)), Number(128), Live, "32";
        /// Topic aliases of one connection, in each direction. 0 turns them off.
        topic_alias_max: u16 = "max_topic_alias", Kind::Count(within(0, 65_535)), Number(256), Live, "0";
        /// Messages of QoS 1 and 2 that may be on their way to one client, unacknowledged.
        inflight_max: u16 = "max_inflight", Kind::Count(within(1, 65_535)), Number(32), Live, "128";
        /// Messages of QoS 1 and 2 that one client may have on their way to us: Receive Maximum, announced in CONNACK.
        receive_max: u16 = "receive_maximum", Kind::Count(within(1, 65_535)), Number(1024), Live, "64";
        /// Messages that wait for one session, in flight ones not counted; what comes on top is shed.
        queued_max: u32 = "max_mqueue_len", Kind::Count(within(1, 10_000_000)), Number(10_000), Live, "1000";
        /// Bytes that wait for one session; what comes on top is shed.
        queued_bytes_max: u64 = "max_mqueue_bytes", Kind::Size(within(1024, 1 << 40)), Number(64 << 20), Live, "\"16MB\"";
        /// What happens to a client for which something was shed because it reads too slowly: QoS 0 messages beyond limits.output_bytes_max, or others beyond max_mqueue_len or max_mqueue_bytes.
        slow_subscriber: SlowSubscriber = "slow_subscriber", Kind::Choice(SlowSubscriber::WORDS), Number(0), Live, "\"disconnect\"";
        /// Subscriptions of one session.
        subscriptions_max: u32 = "max_subscriptions", Kind::Count(within(1, 10_000_000)), Number(100_000), Live, "1000";
        /// How long a session of MQTT 3.1 or 3.1.1 with clean session 0 outlives its connection.
        session_expiry_s: u32 = "session_expiry_interval", Kind::Duration(Clock::S, within_or(0, 4_294_967_294, "infinity", 4_294_967_295)), Number(7200), Live, "\"1d\"";
        /// Longest session expiry that an MQTT 5 client is granted.
        session_expiry_max_s: u32 = "max_session_expiry_interval", Kind::Duration(Clock::S, within_or(0, 4_294_967_294, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "\"30d\"";
        /// Keep-alive that is imposed on MQTT 5 clients; `disabled` leaves it to the client.
        server_keep_alive_s: u16 = "server_keepalive", Kind::Duration(Clock::S, within_or(0, 65_535, "disabled", 0)), Number(0), Live, "\"60s\"";
        /// Longest keep-alive. MQTT 5 clients that ask for a longer one, or for none, are given this one; others are refused (0x02), as they cannot be told.
        keep_alive_max_s: u16 = "max_keepalive", Kind::Duration(Clock::S, within_or(1, 65_535, "disabled", 0)), Number(0), Live, "\"10m\"";
        /// A client is given up when it was silent for its keep-alive times this.
        keep_alive_multiplier_pct: u32 = "keepalive_multiplier", Kind::Factor(within(100, 1000)), Number(150), Live, "2.0";
        /// How long a connection may take to send its CONNECT and to prove who it is, and a connected client to prove it again.
        connect_timeout_ms: u32 = "idle_timeout", Kind::Duration(Clock::Ms, within(100, 600_000)), Number(15_000), Live, "\"5s\"";
        /// Highest QoS for publishes; subscriptions are granted no more.
        qos_max: u8 = "max_qos_allowed", Kind::Count(within(0, 2)), Number(2), Live, "1";
        /// Clients may publish retained messages.
        retain_available: bool = "retain_available", Kind::Switch, Switch(true), Live, "false";
        /// Clients may subscribe with `+` and `#`.
        wildcard_subscription: bool = "wildcard_subscription", Kind::Switch, Switch(true), Live, "false";
        /// Clients may subscribe with `$share/group/`.
        shared_subscription: bool = "shared_subscription", Kind::Switch, Switch(true), Live, "false";
        /// Messages that one client may publish per second. Who is faster is not read for a while; a second's worth may come at once.
        messages_rate: u32 = "messages_rate", Kind::Count(within_or(1, 1_000_000_000, "infinity", 0)), Number(0), Live, "1000";
        /// Bytes of PUBLISH packets that one client may send per second, in the same way.
        bytes_rate: u64 = "bytes_rate", Kind::Size(within_or(1024, 1 << 40, "infinity", 0)), Number(0), Live, "\"1MB\"";
        /// How long an acknowledgement may wait for another shard before the publish is refused.
        obligation_timeout_ms: u32 = "obligation_timeout", Kind::Duration(Clock::Ms, within(100, 600_000)), Number(10_000), Live, "\"5s\"";
        /// Longest delay of a will; a longer one is cut.
        will_delay_max_s: u32 = "max_will_delay_interval", Kind::Duration(Clock::S, within_or(0, 4_294_967_294, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "\"1h\"";
        /// Where MQTT 5 clients are sent when this node stops: Server Reference of their DISCONNECT (0x9C).
        server_reference: Option<String> = "server_reference", Kind::Text(1024), Unset, Live, "\"other.example:1883\"";
    }
}

choice! {
    /// What happens to clients that read too slowly.
    SlowSubscriber {
        /// They go on without what was shed.
        Keep = "keep",
        /// They are disconnected (0x97); a session that outlives its connection keeps its queue.
        Disconnect = "disconnect",
    }
}
