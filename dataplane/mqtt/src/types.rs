//! The small words of the protocol: version, quality of service, packet id, reason, and what can be wrong
//! with bytes. Plain values that live anywhere and are used by every crate of the data plane.
//! Always true: a value of these types is legal, because the only way to make one is to check it.

use core::{fmt, num::NonZeroU16};

/// Protocol version of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`, level 3).
    V31,
    /// MQTT 3.1.1 (`MQTT`, level 4).
    V311,
    /// MQTT 5.0 (`MQTT`, level 5).
    V5,
}

impl Version {
    /// The protocol level in CONNECT.
    #[inline]
    pub fn level(self) -> u8 {
        match self {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        }
    }
}

/// Quality of service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// The level that two bits name; 3 names none.
    #[inline]
    pub fn from_bits(bits: u8) -> Option<Qos> {
        match bits {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// What a new subscription wants to have of the retained messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// Always send them.
    #[default]
    Send = 0,
    /// Send them if the subscription did not exist.
    SendIfNew = 1,
    /// Never send them.
    DoNotSend = 2,
}

impl RetainHandling {
    /// The option that two bits name; 3 names none.
    #[inline]
    pub fn from_bits(bits: u8) -> Option<RetainHandling> {
        match bits {
            0 => Some(RetainHandling::Send),
            1 => Some(RetainHandling::SendIfNew),
            2 => Some(RetainHandling::DoNotSend),
            _ => None,
        }
    }
}

/// A packet identifier; zero is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// `None` for zero.
    #[inline]
    pub fn new(id: u16) -> Option<PacketId> {
        NonZeroU16::new(id).map(PacketId)
    }

    /// The number on the wire.
    #[inline]
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// Defines [`Reason`] and both directions of its code from one list.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// A reason code of MQTT 5 (table 2-6).
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name = $code,)* }

        impl Reason {
            /// The reason that a byte names.
            #[inline]
            pub fn from_u8(code: u8) -> Option<Reason> {
                match code {
                    $($code => Some(Reason::$name),)*
                    _ => None,
                }
            }

            /// Every reason, in the order of the codes.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];
        }
    };
}

reasons! {
    /// It worked; also a normal disconnection and a granted QoS 0.
    Success = 0x00,
    /// Subscribed with at most QoS 1.
    GrantedQos1 = 0x01,
    /// Subscribed with at most QoS 2.
    GrantedQos2 = 0x02,
    /// The client leaves and wants its will published.
    DisconnectWithWill = 0x04,
    /// Accepted, and nobody subscribes.
    NoMatchingSubscribers = 0x10,
    /// There was no such subscription.
    NoSubscriptionExisted = 0x11,
    /// One more step of the authentication.
    ContinueAuthentication = 0x18,
    /// The client starts to authenticate again.
    ReAuthenticate = 0x19,
    /// A failure without a better code.
    UnspecifiedError = 0x80,
    /// Bytes that are no packet.
    MalformedPacket = 0x81,
    /// A packet that is not legal here or now.
    ProtocolError = 0x82,
    /// Legal, and not done here.
    ImplementationSpecific = 0x83,
    /// We do not speak this version.
    UnsupportedProtocolVersion = 0x84,
    /// The client id is legal and not allowed.
    ClientIdNotValid = 0x85,
    /// Wrong user name or password.
    BadUserNameOrPassword = 0x86,
    /// Not allowed to do this.
    NotAuthorized = 0x87,
    /// The server is not available.
    ServerUnavailable = 0x88,
    /// The server is busy.
    ServerBusy = 0x89,
    /// The client is banned.
    Banned = 0x8A,
    /// The server goes down.
    ServerShuttingDown = 0x8B,
    /// Unknown authentication method, or not the one agreed on.
    BadAuthenticationMethod = 0x8C,
    /// Silence for one and a half times the keep alive.
    KeepAliveTimeout = 0x8D,
    /// Another connection uses the client id.
    SessionTakenOver = 0x8E,
    /// The filter is well formed and not accepted.
    TopicFilterInvalid = 0x8F,
    /// The topic is well formed and not accepted.
    TopicNameInvalid = 0x90,
    /// The packet id is in use.
    PacketIdInUse = 0x91,
    /// The packet id is not known.
    PacketIdNotFound = 0x92,
    /// More unacknowledged publishes than the Receive Maximum.
    ReceiveMaximumExceeded = 0x93,
    /// Topic alias zero or above the maximum.
    TopicAliasInvalid = 0x94,
    /// Larger than the Maximum Packet Size.
    PacketTooLarge = 0x95,
    /// Too many messages in a time.
    MessageRateTooHigh = 0x96,
    /// A limit of an implementation or of an administrator.
    QuotaExceeded = 0x97,
    /// An administrator closed the connection.
    AdministrativeAction = 0x98,
    /// The payload is not what its format indicator says.
    PayloadFormatInvalid = 0x99,
    /// No retained messages here.
    RetainNotSupported = 0x9A,
    /// Not this QoS here.
    QosNotSupported = 0x9B,
    /// Use another server for now.
    UseAnotherServer = 0x9C,
    /// Use another server from now on.
    ServerMoved = 0x9D,
    /// No shared subscriptions here.
    SharedSubscriptionsNotSupported = 0x9E,
    /// Too many connections in a time.
    ConnectionRateExceeded = 0x9F,
    /// Connected for as long as is allowed.
    MaximumConnectTime = 0xA0,
    /// No subscription identifiers here.
    SubscriptionIdsNotSupported = 0xA1,
    /// No wildcard subscriptions here.
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl Reason {
    /// What `Success` is called in DISCONNECT.
    pub const NORMAL_DISCONNECTION: Reason = Reason::Success;
    /// What `Success` is called in SUBACK.
    pub const GRANTED_QOS_0: Reason = Reason::Success;

    /// The byte on the wire.
    #[inline]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// True from 0x80 on.
    #[inline]
    pub fn is_failure(self) -> bool {
        self.code() >= 0x80
    }

    /// What SUBACK says of a granted subscription.
    #[inline]
    pub fn granted(qos: Qos) -> Reason {
        match qos {
            Qos::AtMostOnce => Reason::GRANTED_QOS_0,
            Qos::AtLeastOnce => Reason::GrantedQos1,
            Qos::ExactlyOnce => Reason::GrantedQos2,
        }
    }

    /// The return code of a 3.x CONNACK that says this; `None` where 3.x has no words and closes in silence.
    pub fn connack_311(self) -> Option<u8> {
        use Reason::*;
        match self {
            Success
            | GrantedQos1
            | GrantedQos2
            | DisconnectWithWill
            | NoMatchingSubscribers
            | NoSubscriptionExisted
            | ContinueAuthentication
            | ReAuthenticate => Some(0),
            UnsupportedProtocolVersion => Some(1),
            ClientIdNotValid => Some(2),
            // "Server unavailable" blames neither the client's packet, nor its name, nor its rights.
            UnspecifiedError
            | ImplementationSpecific
            | ServerUnavailable
            | ServerBusy
            | ServerShuttingDown
            | QuotaExceeded
            | UseAnotherServer
            | ServerMoved
            | ConnectionRateExceeded => Some(3),
            BadUserNameOrPassword | BadAuthenticationMethod => Some(4),
            NotAuthorized | Banned => Some(5),
            //= MQTT311-3.2.2-6
            MalformedPacket
            | ProtocolError
            | KeepAliveTimeout
            | SessionTakenOver
            | TopicFilterInvalid
            | TopicNameInvalid
            | PacketIdInUse
            | PacketIdNotFound
            | ReceiveMaximumExceeded
            | TopicAliasInvalid
            | PacketTooLarge
            | MessageRateTooHigh
            | AdministrativeAction
            | PayloadFormatInvalid
            | RetainNotSupported
            | QosNotSupported
            | SharedSubscriptionsNotSupported
            | MaximumConnectTime
            | SubscriptionIdsNotSupported
            | WildcardSubscriptionsNotSupported => None,
        }
    }

    /// The reason that a 3.x CONNACK return code stands for.
    pub fn from_connack_311(code: u8) -> Option<Reason> {
        Some(match code {
            0 => Reason::Success,
            1 => Reason::UnsupportedProtocolVersion,
            2 => Reason::ClientIdNotValid,
            3 => Reason::ServerUnavailable,
            4 => Reason::BadUserNameOrPassword,
            5 => Reason::NotAuthorized,
            _ => return None,
        })
    }
}

/// Defines [`Malformed`]: each variant with its reason code and its sentence, in one exhaustive table.
macro_rules! malformed {
    ($($(#[$doc:meta])* $name:ident $(($arg:ident: $ty:ty))? => $reason:ident, $($text:expr),+;)*) => {
        /// Who is guilty: bytes. Each variant says what is wrong with them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Malformed { $($(#[$doc])* $name $(($ty))?,)* }

        impl Malformed {
            /// The reason code that tells the sender.
            pub fn reason(self) -> Reason {
                match self { $(Malformed::$name $(($arg))? => { $(let _ = $arg;)? Reason::$reason })* }
            }
        }

        impl fmt::Display for Malformed {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self { $(Malformed::$name $(($arg))? => write!(f, $($text),+),)* }
            }
        }
    };
}

malformed! {
    /// A remaining length above the limit of the caller.
    PacketTooLarge => PacketTooLarge, "the packet is larger than allowed here";
    /// A variable byte integer of more than four bytes.
    LengthTooLong => MalformedPacket, "a variable byte integer has more than four bytes";
    /// Packet type 0, or AUTH before version 5.
    PacketType(kind: u8) => MalformedPacket, "packet type {kind} does not exist in this version";
    /// Flags of the fixed header other than those that the type requires.
    FixedFlags => MalformedPacket, "reserved flags of the fixed header are wrong";
    /// A field that runs past the end of its packet or property list.
    Truncated => MalformedPacket, "a field runs past the end of the packet";
    /// Bytes after the last field.
    TrailingBytes => MalformedPacket, "bytes follow the last field";
    /// A string that is not UTF-8.
    NotUtf8 => MalformedPacket, "a string is not valid UTF-8";
    /// A string with U+0000.
    Nul => MalformedPacket, "a string contains U+0000";
    /// QoS 3 in PUBLISH or of a will.
    QosThree => MalformedPacket, "QoS 3 does not exist";
    /// A duplicate of a QoS 0 message, of which there is none.
    DupWithoutQos => MalformedPacket, "DUP is set on a QoS 0 message";
    /// Packet id 0.
    PacketIdZero => ProtocolError, "the packet id is zero";
    /// A topic with wildcards, or an empty one before version 5.
    TopicName => TopicNameInvalid, "the topic is empty or contains a wildcard";
    /// Neither a topic nor an alias.
    NoTopic => ProtocolError, "an empty topic without a topic alias";
    /// Topic alias 0.
    TopicAliasZero => TopicAliasInvalid, "topic alias 0 does not exist";
    /// A response topic with wildcards, or an empty one.
    ResponseTopic => ProtocolError, "the response topic is empty or contains a wildcard";
    /// A property identifier that does not exist.
    PropertyUnknown(id: u8) => MalformedPacket, "property {id:#04x} does not exist";
    /// A property of another packet type.
    PropertyMisplaced(id: u8) => MalformedPacket, "property {id:#04x} does not belong to this packet";
    /// A property that may come once came again.
    PropertyTwice(id: u8) => ProtocolError, "property {id:#04x} comes twice";
    /// A property value out of its range.
    PropertyValue(id: u8) => ProtocolError, "the value of property {id:#04x} is out of range";
    /// Authentication data without a method.
    AuthenticationMethodMissing => ProtocolError, "authentication data without an authentication method";
    /// Neither `MQTT` nor `MQIsdp`.
    ProtocolName => UnsupportedProtocolVersion, "the protocol name is not MQTT";
    /// A protocol level that does not exist.
    UnsupportedVersion(level: u8) => UnsupportedProtocolVersion, "protocol level {level} is not supported";
    /// The reserved bit of the connect flags.
    ConnectFlags => MalformedPacket, "the reserved connect flag is set";
    /// Will QoS or will retain without a will.
    WillFlags => MalformedPacket, "will QoS or will retain is set without a will";
    /// A password without a user name, before version 5.
    PasswordWithoutUsername => MalformedPacket, "a password without a user name";
    /// An empty client id where the client must bring one.
    ClientIdMissing => ClientIdNotValid, "an empty client id needs a clean session, and version 3.1.1 or later";
    /// CONNACK flags other than session present, or session present in a refusal.
    ConnackFlags => ProtocolError, "the flags of CONNACK are wrong";
    /// A reason or return code that this packet may not carry.
    ReasonCode(code: u8) => ProtocolError, "reason code {code:#04x} does not belong to this packet";
    /// SUBSCRIBE or UNSUBSCRIBE without a filter.
    NoFilter => ProtocolError, "no topic filter";
    /// Reserved bits of the subscription options.
    SubscriptionOptions => MalformedPacket, "reserved bits of the subscription options are set";
    /// A subscription with QoS 3.
    SubscriptionQos => ProtocolError, "a subscription with QoS 3";
    /// Retain handling 3.
    RetainHandling => ProtocolError, "retain handling 3 does not exist";
    /// No Local on a shared subscription.
    NoLocalShared => ProtocolError, "No Local on a shared subscription";
}

impl core::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_reason_survives_its_code() {
        for code in 0..=u8::MAX {
            if let Some(reason) = Reason::from_u8(code) {
                assert_eq!(reason.code(), code);
                assert_eq!(reason.is_failure(), code >= 0x80);
            }
        }
        assert_eq!((0..=u8::MAX).filter_map(Reason::from_u8).count(), 43);
        assert_eq!(Reason::ALL.len(), 43);
    }

    #[test]
    fn connack_codes_of_3x_map_back_and_forth() {
        for code in 0..=5 {
            assert_eq!(Reason::from_connack_311(code).and_then(Reason::connack_311), Some(code));
        }
        assert_eq!(Reason::from_connack_311(6), None);
        for reason in Reason::ALL {
            assert_eq!(reason.connack_311() != Some(0), reason.is_failure(), "{reason:?}");
        }
    }

    #[test]
    fn quality_and_retain_handling_have_three_values() {
        for bits in 0..=u8::MAX {
            assert_eq!(Qos::from_bits(bits).map(|qos| qos as u8), (bits < 3).then_some(bits));
            assert_eq!(RetainHandling::from_bits(bits).map(|handling| handling as u8), (bits < 3).then_some(bits));
        }
        assert_eq!(PacketId::new(0), None);
        assert_eq!(PacketId::new(9).map(PacketId::get), Some(9));
    }

    #[test]
    fn malformed_names_the_property_in_its_sentence() {
        assert_eq!(Malformed::PropertyTwice(0x21).to_string(), "property 0x21 comes twice");
        assert_eq!(Malformed::UnsupportedVersion(6).reason(), Reason::UnsupportedProtocolVersion);
    }
}
