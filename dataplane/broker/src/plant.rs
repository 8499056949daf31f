//! Faults built in on purpose, so that the simulation can prove that its oracle finds them. Present only
//! with the cargo feature `plant`, and even then none is active unless [`crate::Settings::plant`] names it.

/// One planted fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// SUBACK leaves before other shards have the interest.
    SubackBeforeBarrier,
    /// Interest is confirmed before the messages that were staged earlier.
    InterestAckOvertakes,
    /// A retained query is answered without reading the tails of the mailboxes again.
    WrongTails,
    /// PUBACK leaves without waiting for the hop.
    AckBeforeHop,
    /// PUBREL is not sent again to a client that resumes.
    LostPubrel,
    /// A QoS 2 PUBLISH that comes again is routed again.
    ForgottenPacketId,
    /// A group delivery that came back is shed without a counter.
    GroupReturnLost,
    /// Taking a session over leaves its queue behind.
    QueueLostAtTakeover,
    /// A retained value is replayed although a newer one came live.
    StaleReplay,
    /// What came over a link is offered to links again.
    LinkEcho,
    /// The outlet forgets what was unacknowledged when its connection ends.
    OutletForgets,
    /// A staged batch is published before the one staged earlier.
    StagedOutOfOrder,
    /// The will of a connection that said goodbye is published.
    WillAfterGoodbye,
    /// PUBACK and PUBREC leave without waiting for the log of this shard.
    AckBeforeLog,
    /// Another shard reports a message before its log has it.
    DoneBeforeLog,
    /// A destination does not record how far it took a stream.
    WatermarkMissing,
    /// What waits for the log leaves at once: CONNACK, SUBACK, PUBREL, PUBCOMP, and QoS 2 PUBLISH before its packet id is kept.
    PacketIdAfterSend,
}

impl Plant {
    /// Every planted fault, by name.
    pub const ALL: &'static [(&'static str, Plant)] = &[
        ("suback_before_barrier", Plant::SubackBeforeBarrier),
        ("interest_ack_overtakes", Plant::InterestAckOvertakes),
        ("wrong_tails", Plant::WrongTails),
        ("ack_before_hop", Plant::AckBeforeHop),
        ("lost_pubrel", Plant::LostPubrel),
        ("forgotten_packet_id", Plant::ForgottenPacketId),
        ("group_return_lost", Plant::GroupReturnLost),
        ("queue_lost_at_takeover", Plant::QueueLostAtTakeover),
        ("stale_replay", Plant::StaleReplay),
        ("link_echo", Plant::LinkEcho),
        ("outlet_forgets", Plant::OutletForgets),
        ("staged_out_of_order", Plant::StagedOutOfOrder),
        ("will_after_goodbye", Plant::WillAfterGoodbye),
        ("ack_before_log", Plant::AckBeforeLog),
        ("done_before_log", Plant::DoneBeforeLog),
        ("watermark_missing", Plant::WatermarkMissing),
        ("packet_id_after_send", Plant::PacketIdAfterSend),
    ];
}
