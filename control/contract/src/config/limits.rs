//! `limits.*` and `retainer.*`: what every queue, buffer and table is bounded by.

use super::{
    knob::{Kind, Preset::*, within, within_or},
    section::section,
    units::Clock,
};

section! {
    /// What queues, buffers and tables of a shard are bounded by.
    Limits at "limits" {
        /// Output that waits for one connection before QoS 0 messages to it are shed.
        output_bytes_max: u32 = "output_bytes_max", Kind::Size(within(4096, 1 << 30)), Number(1 << 20), Live, "\"256KB\"";
        /// Bytes that wait for room in the mailbox to one other shard before publishers are no longer read.
        staged_bytes_max: u64 = "staged_bytes_max", Kind::Size(within(65_536, 1 << 34)), Number(8 << 20), Restart, "\"32MB\"";
        /// Batches in the mailbox between two shards.
        mailbox_slots: u16 = "mailbox_slots", Kind::Count(within(4, 32_768)), Number(256), Restart, "1024";
        /// Bytes of frames in one batch between two shards, one larger frame aside.
        hop_batch_bytes: u32 = "hop_batch_bytes", Kind::Size(within(1024, 16 << 20)), Number(64 << 10), Restart, "\"128KB\"";
        /// Bytes that one connection may have handled in one turn.
        turn_read_bytes: u32 = "turn_read_bytes", Kind::Size(within(4096, 1 << 30)), Number(256 << 10), Restart, "\"64KB\"";
        /// Shapes of wildcard filters (where their wildcards stand) that are looked up by hash; the others are found in a tree.
        interest_shapes_max: u16 = "interest_shapes_max", Kind::Count(within(0, 1024)), Number(64), Restart, "16";
        /// Sessions of one shard.
        sessions_max: u32 = "sessions_max", Kind::Count(within(1, 100_000_000)), Number(1_000_000), Live, "10000";
        /// Connections of one shard.
        connections_max: u32 = "connections_max", Kind::Count(within(1, 10_000_000)), Number(500_000), Restart, "10000";
        /// Memory that the data plane may use. `auto`: what `memory.max` of its cgroup says, and no more than what it has and what the machine has left.
        memory_max: u64 = "memory_max", Kind::Size(within_or(32 << 20, 1 << 50, "auto", 0)), Number(0), Live, "\"4GB\"";
        /// From this share of `memory_max` on nothing that grows is accepted: new sessions, subscriptions, retained messages and what would have to be queued are refused (0x97) until a twentieth less is used. 1.0 turns it off.
        memory_high_watermark_pct: u32 = "memory_high_watermark", Kind::Factor(within(10, 100)), Number(85), Live, "0.7";
        /// Largest payload on a `$LINK` topic.
        dollar_link_payload_max: u32 = "dollar_link_payload_max", Kind::Size(within(1024, 256 << 20)), Number(1 << 20), Restart, "\"4MB\"";
        /// Bytes that wait in one shard for one remote before messages to it are shed.
        link_queue_bytes_max: u64 = "link_queue_bytes_max", Kind::Size(within(65_536, 1 << 40)), Number(64 << 20), Restart, "\"256MB\"";
        /// How long a message may wait for a remote; 0 sets no limit.
        link_queue_age_ms: u32 = "link_queue_age", Kind::Duration(Clock::Ms, within(0, 4_294_967_295)), Number(0), Restart, "\"10m\"";
        /// Connections of one address on the whole node; more are closed at once. Behind PROXY protocol the address is the client's.
        address_connections_max: u32 = "max_connections_per_address", Kind::Count(within_or(1, 10_000_000, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "100";
        /// Connections per second of one address, and how many of them may come at once; more are closed at once.
        address_conn_rate: u32 = "max_conn_rate_per_address", Kind::Count(within_or(1, 1_000_000, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "20";
        /// Connections of one address whose CONNECT was not accepted yet; more are closed at once.
        address_handshakes_max: u32 = "max_handshakes_per_address", Kind::Count(within_or(1, 10_000_000, "infinity", 4_294_967_295)), Number(4_294_967_295), Live, "50";
        /// Addresses of IPv6 that begin with so many equal bits count as one: who has one has all of its network.
        address_prefix_v6: u8 = "address_prefix_v6", Kind::Count(within(1, 128)), Number(64), Live, "56";
        /// Loopback and Unix sockets are not counted by address.
        exempt_loopback: bool = "exempt_loopback", Kind::Switch, Switch(false), Live, "true";
    }
}

section! {
    /// Clients that connect and disconnect all the time are banned for a while. EMQX's words.
    FlappingDetect at "flapping_detect" {
        /// Look for such clients.
        enable: bool = "enable", Kind::Switch, Switch(false), Live, "true";
        /// The time in which disconnections of one client id are counted, those by another connection with the same id included.
        window_ms: u32 = "window_time", Kind::Duration(Clock::Ms, within(1000, 86_400_000)), Number(60_000), Live, "\"30s\"";
        /// So many are allowed in that time; with the next one the client id is banned.
        count_max: u32 = "max_count", Kind::Count(within(1, 1_000_000)), Number(15), Live, "10";
        /// How long it is banned.
        ban_ms: u32 = "ban_time", Kind::Duration(Clock::Ms, within(1000, 4_294_967_295)), Number(300_000), Live, "\"1h\"";
    }
}

section! {
    /// What retained messages are bounded by, on one shard.
    Retainer at "retainer" {
        /// Retained messages; 0 sets no limit. What comes on top is routed, but not kept.
        retained_max: u32 = "max_retained_messages", Kind::Count(within_or(1, 4_294_967_294, "0", 4_294_967_295)), Number(1_000_000), Live, "100000";
        /// Bytes of all retained messages.
        retained_bytes_max: u64 = "max_total_bytes", Kind::Size(within(65_536, 1 << 44)), Number(1 << 30), Live, "\"4GB\"";
        /// Largest payload that is retained; a larger one is routed, but not kept.
        retained_payload_bytes_max: u32 = "max_payload_size", Kind::Size(within(1, 268_435_460)), Number(1 << 20), Live, "\"64KB\"";
    }
}
