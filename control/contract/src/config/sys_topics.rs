//! `sys_topics.*`: what the node says about itself on `$SYS` topics.

use super::{
    knob::{Kind, Preset::*, within},
    section::section,
    units::Clock,
};

section! {
    /// What the node says about itself on `$SYS/broker/...`, with mosquitto's names.
    SysTopics at "sys_topics" {
        /// How often; only what has changed is published again. 0: never.
        interval_ms: u32 = "sys_msg_interval", Kind::Duration(Clock::Ms, within(0, 86_400_000)), Number(10_000), Restart, "\"1m\"";
    }
}
