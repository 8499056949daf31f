//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK.
//! Decoded on the home shard, and by a link for the answers it gets. The entries stay in the packet and are
//! walked again. Always true: a walk was checked once to its end, so it yields exactly `len` entries.
//! Whether a filter is well formed is not asked here: SUBACK answers that filter by filter.

use super::{
    Raw,
    ack::reason_list,
    properties::{List, Set, UserProperties, id},
    read::{Reader, utf8},
};
use crate::{
    topic::SHARE_PREFIX,
    types::{Malformed, PacketId, Qos, Reason, RetainHandling, Version},
};

/// One SUBSCRIBE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subscribe<'a> {
    /// What SUBACK answers.
    pub packet_id: PacketId,
    /// Number that comes with every message of these subscriptions; never 0.
    pub subscription_id: Option<u32>,
    /// User properties.
    pub user: UserProperties<'a>,
    /// The subscriptions; at least one.
    pub entries: SubscribeEntries<'a>,
}

/// One filter of a SUBSCRIBE with its options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscribeEntry<'a> {
    /// The filter as it was sent, possibly with `$share/`.
    pub filter: &'a str,
    /// Largest QoS that the client wants.
    pub qos: Qos,
    /// The client's own messages are not for it.
    pub no_local: bool,
    /// RETAIN shall stay as its publisher set it.
    pub retain_as_published: bool,
    /// Which retained messages are sent now.
    pub retain_handling: RetainHandling,
}

/// The entries of a SUBSCRIBE, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscribeEntries<'a> {
    rest: &'a [u8],
    left: usize,
    version: Version,
}

/// One UNSUBSCRIBE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unsubscribe<'a> {
    /// What UNSUBACK answers.
    pub packet_id: PacketId,
    /// User properties.
    pub user: UserProperties<'a>,
    /// The filters; at least one.
    pub filters: Filters<'a>,
}

/// The filters of an UNSUBSCRIBE, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filters<'a> {
    rest: &'a [u8],
    left: usize,
}

/// One SUBACK or UNSUBACK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suback<'a> {
    /// What it answers.
    pub packet_id: PacketId,
    /// One reason for each filter; none in an UNSUBACK before version 5.
    pub reasons: Reasons<'a>,
    /// Words for a human.
    pub reason_string: Option<&'a str>,
    /// User properties.
    pub user: UserProperties<'a>,
}

/// The reasons of a SUBACK or UNSUBACK, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reasons<'a> {
    codes: &'a [u8],
}

impl<'a> Iterator for SubscribeEntries<'a> {
    type Item = SubscribeEntry<'a>;

    fn next(&mut self) -> Option<SubscribeEntry<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut read = Reader::new(self.rest);
        let filter = read.binary().and_then(utf8).ok()?;
        let options = read.u8().ok()?;
        self.rest = read.rest;
        entry(self.version, filter, options).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for SubscribeEntries<'_> {}

impl<'a> Iterator for Filters<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let mut read = Reader::new(self.rest);
        let filter = read.binary().and_then(utf8).ok()?;
        self.rest = read.rest;
        Some(filter)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Filters<'_> {}

impl Iterator for Reasons<'_> {
    type Item = Reason;

    fn next(&mut self) -> Option<Reason> {
        let (code, rest) = self.codes.split_first()?;
        self.codes = rest;
        Reason::from_u8(*code)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.codes.len(), Some(self.codes.len()))
    }
}

impl ExactSizeIterator for Reasons<'_> {}

/// SUBSCRIBE and UNSUBSCRIBE: 0b0010, and in MQTT 3.1 possibly DUP.
//= MQTT-3.8.1-1
//= MQTT-3.10.1-1
fn check_flags(version: Version, first: u8) -> Result<(), Malformed> {
    let ignored = if version == Version::V31 { 0x08 } else { 0 };
    if first & 0x0F & !ignored == 0x02 { Ok(()) } else { Err(Malformed::FixedFlags) }
}

pub(super) fn decode<'a>(version: Version, raw: Raw<'a>) -> Result<Subscribe<'a>, Malformed> {
    check_flags(version, raw.first)?;
    let mut read = Reader::new(raw.body);
    let packet_id = read.packet_id()?;
    let (mut subscription_id, mut user) = (None, UserProperties::default());
    if version == Version::V5 {
        let mut list = List::take(&mut read, Set::of(&[id::SUBSCRIPTION_ID, id::USER_PROPERTY]))?;
        while let Some((property, value)) = list.next()? {
            if property == id::SUBSCRIPTION_ID {
                subscription_id = Some(value.non_zero(property)?);
            }
        }
        user = list.user();
    }
    let (rest, mut left) = (read.rest, 0);
    while !read.is_empty() {
        //= MQTT-3.8.3-1
        let filter = read.string()?;
        entry(version, filter, read.u8()?)?;
        left += 1;
    }
    //= MQTT-3.8.3-2
    if left == 0 {
        return Err(Malformed::NoFilter);
    }
    Ok(Subscribe { packet_id, subscription_id, user, entries: SubscribeEntries { rest, left, version } })
}

fn entry<'a>(version: Version, filter: &'a str, options: u8) -> Result<SubscribeEntry<'a>, Malformed> {
    //= MQTT-3.8.3-5
    let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
    if options & reserved != 0 {
        return Err(Malformed::SubscriptionOptions);
    }
    let qos = Qos::from_bits(options & 0x03).ok_or(Malformed::SubscriptionQos)?;
    let no_local = options & 0x04 != 0;
    //= MQTT-3.8.3-4
    if no_local && filter.starts_with(SHARE_PREFIX) {
        return Err(Malformed::NoLocalShared);
    }
    let retain_as_published = options & 0x08 != 0;
    let retain_handling = RetainHandling::from_bits(options >> 4 & 0x03).ok_or(Malformed::RetainHandling)?;
    Ok(SubscribeEntry { filter, qos, no_local, retain_as_published, retain_handling })
}

pub(super) fn decode_unsubscribe<'a>(version: Version, raw: Raw<'a>) -> Result<Unsubscribe<'a>, Malformed> {
    check_flags(version, raw.first)?;
    let mut read = Reader::new(raw.body);
    let packet_id = read.packet_id()?;
    let mut user = UserProperties::default();
    if version == Version::V5 {
        let mut list = List::take(&mut read, Set::of(&[id::USER_PROPERTY]))?;
        while list.next()?.is_some() {}
        user = list.user();
    }
    let (rest, mut left) = (read.rest, 0);
    while !read.is_empty() {
        //= MQTT-3.10.3-1
        read.string()?;
        left += 1;
    }
    //= MQTT-3.10.3-2
    if left == 0 {
        return Err(Malformed::NoFilter);
    }
    Ok(Unsubscribe { packet_id, user, filters: Filters { rest, left } })
}

/// May SUBACK carry this reason?
//= MQTT-3.9.3-2
pub(super) fn suback_allows(reason: Reason) -> bool {
    use Reason::*;
    matches!(
        reason,
        Success
            | GrantedQos1
            | GrantedQos2
            | UnspecifiedError
            | ImplementationSpecific
            | NotAuthorized
            | TopicFilterInvalid
            | PacketIdInUse
            | QuotaExceeded
            | SharedSubscriptionsNotSupported
            | SubscriptionIdsNotSupported
            | WildcardSubscriptionsNotSupported
    )
}

/// May UNSUBACK carry this reason?
//= MQTT-3.11.3-2
pub(super) fn unsuback_allows(reason: Reason) -> bool {
    use Reason::*;
    matches!(
        reason,
        Success
            | NoSubscriptionExisted
            | UnspecifiedError
            | ImplementationSpecific
            | NotAuthorized
            | TopicFilterInvalid
            | PacketIdInUse
    )
}

/// The reason that a SUBACK of 3.x may carry: what was granted, or that nothing was.
pub(super) fn suback_311(reason: Reason) -> Reason {
    if reason.is_failure() { Reason::UnspecifiedError } else { reason }
}

pub(super) fn decode_suback<'a>(version: Version, raw: Raw<'a>) -> Result<Suback<'a>, Malformed> {
    if raw.first != 0x90 {
        return Err(Malformed::FixedFlags);
    }
    answer(version, raw, |reason| suback_allows(reason) && (version == Version::V5 || suback_311(reason) == reason))
}

pub(super) fn decode_unsuback<'a>(version: Version, raw: Raw<'a>) -> Result<Suback<'a>, Malformed> {
    if raw.first != 0xB0 {
        return Err(Malformed::FixedFlags);
    }
    if version == Version::V5 {
        return answer(version, raw, unsuback_allows);
    }
    let mut read = Reader::new(raw.body);
    let packet_id = read.packet_id()?;
    read.end()?;
    let user = UserProperties::default();
    Ok(Suback { packet_id, reasons: Reasons { codes: &[] }, reason_string: None, user })
}

fn answer<'a>(version: Version, raw: Raw<'a>, allows: impl Fn(Reason) -> bool) -> Result<Suback<'a>, Malformed> {
    let mut read = Reader::new(raw.body);
    let packet_id = read.packet_id()?;
    let (reason_string, user) = match version {
        Version::V5 => reason_list(&mut read)?,
        _ => (None, UserProperties::default()),
    };
    if read.is_empty() {
        return Err(Malformed::Truncated);
    }
    for code in read.rest {
        Reason::from_u8(*code).filter(|reason| allows(*reason)).ok_or(Malformed::ReasonCode(*code))?;
    }
    Ok(Suback { packet_id, reasons: Reasons { codes: read.rest }, reason_string, user })
}
