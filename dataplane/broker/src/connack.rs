//! What CONNACK says to a client that was let in. Pure text about the configuration, asked on the home shard.

use mqtt::{
    codec::{Connack, ConnackProperties, Connect},
    connection::Connection,
    types::{Qos, Reason, Version},
};

impl crate::Settings {
    /// CONNACK: only what differs from what its absence says. `proof` is the server's last word of an enhanced
    /// authentication.
    pub(crate) fn connack<'a>(
        &self,
        connect: &Connect<'a>,
        protocol: &Connection,
        (assigned, proof): (Option<&'a str>, Option<&'a [u8]>),
        present: bool,
    ) -> Connack<'a> {
        let mqtt = &self.mqtt;
        let mut properties = ConnackProperties::default();
        if connect.version == Version::V5 {
            let asked = connect.properties.session_expiry_s.unwrap_or(0);
            properties = ConnackProperties {
                session_expiry_s: (asked != protocol.session_expiry_s).then_some(protocol.session_expiry_s),
                receive_maximum: (mqtt.receive_max != u16::MAX).then_some(mqtt.receive_max),
                maximum_qos: Qos::from_bits(mqtt.qos_max).filter(|qos| *qos != Qos::ExactlyOnce),
                retain_available: (!mqtt.retain_available).then_some(false),
                maximum_packet_bytes: Some(mqtt.max_packet_bytes),
                //= MQTT-3.2.2-16
                assigned_client_id: assigned,
                topic_alias_maximum: (mqtt.topic_alias_max > 0).then_some(mqtt.topic_alias_max),
                wildcard_available: (!mqtt.wildcard_subscription).then_some(false),
                shared_available: (!mqtt.shared_subscription).then_some(false),
                server_keep_alive_s: protocol.server_keep_alive_s,
                //= MQTT-4.12.0-5
                //= MQTT-4.12.0-6
                authentication_method: connect.properties.authentication_method,
                authentication_data: proof,
                //= MQTT-3.1.2-28
                // Nobody gets response information.
                ..ConnackProperties::default()
            };
        }
        //= MQTT-3.2.2-2
        //= MQTT-3.2.2-3
        Connack { session_present: present, reason: Reason::Success, properties }
    }
}
