//! Clients that send, read, stay silent, vanish and come back, against two shards of `broker`: an input is a script.
//! The oracle: nobody panics, what a client is sent is legal for a server to say, queues stay within their limits, and when
//! everybody has left and time has passed, nothing is left.

mod client;
mod script;
mod shell;
mod world;

use self::{script::Script, world::World};

use broker::journal::Image;

/// Steps of one script: what needs more is the simulation's to find.
const STEPS_MAX: usize = 300;

/// First byte: how the node is made; then steps, see [`Script::step`].
pub fn connection(data: &[u8]) {
    let Some((&head, steps)) = data.split_first() else { return };
    let mut world = World::new(head);
    let mut script = Script::new(steps);
    for _ in 0..STEPS_MAX {
        let Some(step) = script.step() else { break };
        world.take(step);
        world.is_within_bounds();
    }
    world.end();
}

/// What a log held is taken over by a node, which then serves until all of it is over.
pub(crate) fn restored(image: Image, logs: u16) {
    World::restored(image, logs).outlive();
}
