//! One connection that publishes on a route topic: which actor it speaks for, and what it is answered.
//!
//! Lives beside the [`Forwarder`] that it feeds, on the owner shard of the link's name, one per connection and cluster
//! in the topic; the connection's own shard sends payloads here and carries the [`Reaction`] back. Always true: a
//! connection speaks for at most one actor, and what it may say is decided here, not by what its payloads claim.

use alloc::string::String;
use alloc::vec::Vec;

use mqtt::types::Reason;

use crate::etf::Limits;
use crate::forwarder::{Forwarder, Interest, Stale};
use crate::wire::{self, RouteMessage, WireError};

/// What this cluster knows about the cluster in a control topic.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// There is no link of that name.
    Unknown,
    /// There is one.
    Known {
        /// Is it enabled?
        enabled: bool,
        /// What that cluster wants.
        forwarder: &'a mut Forwarder,
    },
}

/// Why an `actor_init` is refused. The names are EMQX's and go over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// We have no link to that cluster.
    UnknownCluster,
    /// It means another cluster than us.
    BadRemoteClusterLinkName,
    /// Our link to it is disabled.
    ClusterLinkDisabled,
}

impl Refusal {
    /// The text on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::UnknownCluster => "unknown_cluster",
            Refusal::BadRemoteClusterLinkName => "bad_remote_cluster_link_name",
            Refusal::ClusterLinkDisabled => "cluster_link_disabled",
        }
    }
}

/// May the cluster of a route topic, which believes to talk to `target`, link with us? `enabled` is None when we have
/// no link of its name. A disabled link is named before a wrong name, as EMQX does.
pub fn admit(enabled: Option<bool>, own_cluster: &str, target: &str) -> Result<(), Refusal> {
    match enabled {
        None => Err(Refusal::UnknownCluster),
        Some(false) => Err(Refusal::ClusterLinkDisabled),
        Some(true) if own_cluster != target => Err(Refusal::BadRemoteClusterLinkName),
        Some(true) => Ok(()),
    }
}

/// Why a connection is disconnected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The payload cannot be read.
    Undecodable(WireError),
    /// A second `actor_init` after an accepted one.
    SecondInit,
    /// Routes before `actor_init`.
    RoutesBeforeInit,
    /// Another actor, or another cluster in the topic, than in `actor_init`.
    NotTheActor,
    /// `actor_init` without a Response-Topic: it cannot be answered.
    NoResponseTopic,
    /// An answer, which only we send here.
    UnexpectedAnswer,
    /// The actor may not go on.
    Stale(Stale),
}

impl Fault {
    /// Implementation specific error, as EMQX answers all of these, so that a requester begins anew.
    pub const REASON: Reason = Reason::ImplementationSpecific;

    /// Its name in counters and log lines.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Undecodable(_) => "undecodable",
            Fault::SecondInit => "second_init",
            Fault::RoutesBeforeInit => "routes_before_init",
            Fault::NotTheActor => "not_the_actor",
            Fault::NoResponseTopic => "no_response_topic",
            Fault::UnexpectedAnswer => "unexpected_answer",
            Fault::Stale(Stale::UnknownActor) => "unknown_actor",
            Fault::Stale(Stale::Outdated) => "outdated_actor",
            Fault::Stale(Stale::TooManyActors) => "too_many_actors",
        }
    }
}

/// An ordinary publish with QoS 1: whoever subscribes the topic gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The Response-Topic of the request.
    pub topic: String,
    /// The Correlation-Data of the request, to be echoed.
    pub correlation_data: Option<Vec<u8>>,
    /// The payload.
    pub payload: Vec<u8>,
    /// Why we refused, if we did; for the log.
    pub refusal: Option<Refusal>,
}

/// What a payload brought about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Acknowledge with 0x10 (no matching subscribers), as EMQX does.
    Acknowledge,
    /// Acknowledge likewise, and publish this.
    Answer(Answer),
    /// Disconnect with [`Fault::REASON`], without acknowledging.
    Disconnect(Fault),
}

/// One publish on a route topic, as the connection received it.
#[derive(Clone, Copy, Debug)]
pub struct RoutePublish<'a> {
    /// The cluster in the topic.
    pub cluster: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Response-Topic.
    pub response_topic: Option<&'a str>,
    /// Correlation-Data.
    pub correlation_data: Option<&'a [u8]>,
}

#[derive(Debug)]
struct Speaker {
    cluster: String,
    actor: String,
    incarnation: u64,
}

/// See the module's head. The default has not initialised an actor.
#[derive(Debug, Default)]
pub struct Session {
    speaker: Option<Speaker>,
    scratch: Vec<u8>,
}

impl Session {
    /// Handles one publish on a route topic. `own_cluster` is our `cluster.name`.
    pub fn publish(
        &mut self,
        now: u64,
        own_cluster: &str,
        publish: &RoutePublish<'_>,
        lookup: Lookup<'_>,
        limits: &Limits,
        events: &mut dyn FnMut(Interest<'_>),
    ) -> Reaction {
        let mut scratch = core::mem::take(&mut self.scratch);
        let reaction = match wire::decode_route(publish.payload, &mut scratch, limits) {
            Ok(message) => self.message(now, own_cluster, publish, message, lookup, events),
            Err(error) => Err(Fault::Undecodable(error)),
        };
        // A large batch is inflated once per bootstrap: keeping its buffer would cost every idle session that much.
        if scratch.capacity() <= SCRATCH_BYTES_KEPT {
            self.scratch = scratch;
        }
        reaction.unwrap_or_else(Reaction::Disconnect)
    }

    fn message(
        &mut self,
        now: u64,
        own_cluster: &str,
        publish: &RoutePublish<'_>,
        message: RouteMessage<'_>,
        lookup: Lookup<'_>,
        events: &mut dyn FnMut(Interest<'_>),
    ) -> Result<Reaction, Fault> {
        match message {
            RouteMessage::ActorInit { actor, incarnation, target, .. } => {
                self.init(now, own_cluster, publish, Claim { actor, incarnation, target }, lookup)
            }
            RouteMessage::Heartbeat { actor, .. } => {
                // Before the handshake it means nothing and does no harm.
                if self.speaker.is_some() {
                    let (speaker, forwarder) = self.speaks(publish.cluster, actor, lookup)?;
                    forwarder.heartbeat(now, &speaker.actor, speaker.incarnation).map_err(Fault::Stale)?;
                }
                Ok(Reaction::Acknowledge)
            }
            RouteMessage::Route { actor, ops, .. } => {
                let (speaker, forwarder) = self.speaks(publish.cluster, actor, lookup)?;
                forwarder.routes(now, &speaker.actor, speaker.incarnation, ops, events).map_err(Fault::Stale)?;
                Ok(Reaction::Acknowledge)
            }
            RouteMessage::ActorInitAck { .. } => Err(Fault::UnexpectedAnswer),
        }
    }

    fn init(
        &mut self,
        now: u64,
        own_cluster: &str,
        publish: &RoutePublish<'_>,
        claim: Claim<'_>,
        lookup: Lookup<'_>,
    ) -> Result<Reaction, Fault> {
        if self.speaker.is_some() {
            return Err(Fault::SecondInit);
        }
        let topic = publish.response_topic.ok_or(Fault::NoResponseTopic)?;
        let enabled = match &lookup {
            Lookup::Unknown => None,
            Lookup::Known { enabled, .. } => Some(*enabled),
        };
        let admitted = admit(enabled, own_cluster, claim.target);
        if let (Ok(()), Lookup::Known { forwarder, .. }) = (admitted, lookup) {
            forwarder.init(now, claim.actor, claim.incarnation).map_err(Fault::Stale)?;
            self.speaker = Some(Speaker {
                cluster: publish.cluster.into(),
                actor: claim.actor.into(),
                incarnation: claim.incarnation,
            });
        }
        let mut payload = Vec::new();
        wire::put_actor_init_ack(&mut payload, claim.actor, admitted.map(|()| true).map_err(Refusal::as_str));
        Ok(Reaction::Answer(Answer {
            topic: topic.into(),
            correlation_data: publish.correlation_data.map(Vec::from),
            payload,
            refusal: admitted.err(),
        }))
    }

    /// The incarnation of the handshake counts, whatever the payload says; the actor and the cluster must be the same.
    fn speaks<'l>(
        &self,
        cluster: &str,
        actor: &str,
        lookup: Lookup<'l>,
    ) -> Result<(&Speaker, &'l mut Forwarder), Fault> {
        let speaker = self.speaker.as_ref().ok_or(Fault::RoutesBeforeInit)?;
        if speaker.cluster != cluster || speaker.actor != actor {
            return Err(Fault::NotTheActor);
        }
        match lookup {
            // A link that was disabled after the handshake keeps its routes, so that enabling it works at once.
            Lookup::Known { forwarder, .. } => Ok((speaker, forwarder)),
            Lookup::Unknown => Err(Fault::Stale(Stale::UnknownActor)),
        }
    }
}

struct Claim<'a> {
    actor: &'a str,
    incarnation: u64,
    target: &'a str,
}

const SCRATCH_BYTES_KEPT: usize = 64 << 10;
