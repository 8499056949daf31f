//! `sys_topics.*`: what the node says about itself on `$SYS` topics, and about its clients.

use super::{
    knob::{Kind, Preset::*, within},
    section::section,
    units::Clock,
};

section! {
    /// What the node says about itself on `$SYS/broker/...`, with mosquitto's names.
    SysTopics at "sys_topics" {
        /// How often; only what has changed is published again. 0: never.
        interval_ms: u32 = "sys_msg_interval", Kind::Duration(Clock::Ms, within(0, 86_400_000)), Number(10_000), Live, "\"1m\"";
    }
}

section! {
    /// What the node says about its clients on `$SYS/brokers/<node>/clients/<clientid>/...`, with EMQX's names.
    SysEvents at "sys_topics.sys_event_messages" {
        /// Say `connected` for each client that is let in.
        client_connected: bool = "client_connected", Kind::Switch, Switch(false), Live, "true";
        /// Say `disconnected` for each connection of a client that ends, and why it did.
        client_disconnected: bool = "client_disconnected", Kind::Switch, Switch(false), Live, "true";
        /// Say `subscribed` for each subscription.
        client_subscribed: bool = "client_subscribed", Kind::Switch, Switch(false), Live, "true";
        /// Say `unsubscribed` for each subscription that a client ends.
        client_unsubscribed: bool = "client_unsubscribed", Kind::Switch, Switch(false), Live, "true";
    }
}
