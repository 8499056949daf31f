//! The links of this node as one shard sees them. On every shard: an outlet per link (a publish crosses from
//! the shard where it arrived) and the exact filters that the remote wants. On the owner shard of a link's
//! name also: the requester, which announces what all shards want, and the table of the remote's actors.
//! What a remote's own connections say to us is handled in [`crate::link_inbound`].

use alloc::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::net::{Ipv4Addr, SocketAddr};

use ahash::RandomState;
use contract::{config::Link, hash};
use hashbrown::HashMap;
use link::{
    error::LinkError,
    etf,
    forwarder::{self, Forwarder},
    inlet::Inlet,
    names,
    outlet::{self, Offered, Outlet, Shed},
    requester::{self, Requester, Standing},
    session::Session as RouteSession,
};
use mqtt::types::Qos;

use crate::{
    Settings, Shard,
    conn::{LinkAccess, Phase},
    counters::Counter,
    deliver::tell,
    event::Event,
    frame::{self, BadFrame, Fields, Frame, Kind, Message, MessageId, put_blob, put_text},
    interest::Dest,
    journal::record::Stream,
    lifecycle::close,
    link_journal::{Orphans, forwarded},
    publish::LINK_PREFIX,
    subscriptions::{Options, Subscription, Subscriptions},
    surface::{ConnId, DialId, LinkStatus, Output},
};

/// The identity of a route connection: its home shard and its place there.
pub(crate) type RouteKey = (u16, ConnId);

/// Everything about links on one shard.
pub(crate) struct Links {
    pub(crate) all: Vec<OneLink>,
    /// Route connections of remotes, for the links that this shard owns (and for clusters without a link).
    pub(crate) routes: HashMap<RouteKey, RouteSession, RandomState>,
    pub(crate) limits: etf::Limits,
    pub(crate) scratch: Vec<u8>,
    dials: Vec<(DialId, u16, Role)>,
    next_dial: u32,
    found: Vec<u32>,
    refresh_us: u64,
    /// Something happened since the counters were refreshed.
    stale: bool,
    pub(crate) orphans: Orphans,
    /// Publishes of an earlier life that the outlets have taken since the start.
    pub(crate) repeated: BTreeSet<(Stream, u64)>,
}

/// One configured link.
pub(crate) struct OneLink {
    pub(crate) config: Link,
    pub(crate) owner: u16,
    pub(crate) inlet: Inlet,
    /// Filters that the remote wants, as its owner shard told: what a message is compared with before it leaves.
    wants: Subscriptions,
    pub(crate) outlet: Outlet,
    /// Places from this one on were given after the running checkpoint began.
    pub(crate) checkpoint_until: u64,
    outlet_conn: Option<ConnId>,
    requester: Option<Requester>,
    requester_conn: Option<ConnId>,
    pub(crate) forwarder: Option<Forwarder>,
    /// Filters of this node's shards with the number of shards that want them.
    local: BTreeMap<String, u32>,
    /// Which of the addresses is tried next.
    server: usize,
    /// Output of a state machine that has no connection: it writes nothing then.
    spare: Vec<u8>,
    up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Outlet,
    Requester,
}

/// What became of a message that was offered to links.
#[derive(Clone, Copy, Default)]
pub(crate) struct LinksTook {
    /// Outlets that took it.
    pub(crate) taken: usize,
    /// Outlets that shed it at once: their remote wanted it and does not get it.
    pub(crate) shed: usize,
    /// The log cannot take what has to be kept for a remote: the publisher has to be told, whoever else got it.
    pub(crate) refused: bool,
}

/// How often the counters of the outlets are brought up to date.
const REFRESH_US: u64 = 100_000;

impl Links {
    pub(crate) fn new(settings: &Settings) -> Links {
        let owner_of = |name: &str| {
            let partition = hash::stable(name.as_bytes()) % u64::from(hash::PARTITIONS);
            hash::owner_shard(partition as u16, settings.shards).0
        };
        let inflated_bytes_max = settings.limits.dollar_link_payload_max as usize;
        let limits = etf::Limits { inflated_bytes_max, ..etf::Limits::default() };
        let all = settings.links.iter().map(|config| OneLink::new(settings, config, owner_of(&config.name), limits));
        Links {
            all: all.collect(),
            routes: HashMap::with_hasher(RandomState::with_seeds(settings.seed, 23, 24, 25)),
            limits,
            scratch: Vec::new(),
            dials: Vec::new(),
            next_dial: 0,
            found: Vec::new(),
            refresh_us: 0,
            stale: true,
            orphans: Orphans::default(),
            repeated: BTreeSet::new(),
        }
    }

    /// Which remotes a connecting client may speak for: those whose `accept` it matches, and, from
    /// loopback, any that has no `accept`.
    pub(crate) fn access(
        &self,
        username: Option<&str>,
        client: &str,
        common_name: Option<&str>,
        loopback: bool,
    ) -> LinkAccess {
        let accepting = self.all.iter().enumerate().filter(|(_, link)| link.accepts(username, client, common_name));
        LinkAccess { links: accepting.fold(0, |links, (at, _)| links | 1 << at), loopback }
    }

    /// May a connection with this access speak for `cluster`? From loopback also for a cluster that we have
    /// no link to: it is told so.
    pub(crate) fn allows(&self, access: LinkAccess, cluster: &str) -> bool {
        match self.find(cluster) {
            Some(at) if access.links >> at & 1 == 1 => true,
            Some(at) => access.loopback && self.all[usize::from(at)].config.accept.is_none(),
            None => access.loopback,
        }
    }

    /// The link to `cluster`.
    pub(crate) fn find(&self, cluster: &str) -> Option<u16> {
        self.all.iter().position(|link| link.config.name == cluster).map(|at| at as u16)
    }

    pub(crate) fn status(&self) -> Vec<LinkStatus> {
        self.all.iter().map(OneLink::status).collect()
    }

    fn one(&mut self, link: u16) -> Option<&mut OneLink> {
        self.all.get_mut(usize::from(link))
    }
}

impl OneLink {
    fn new(settings: &Settings, config: &Link, owner: u16, limits: etf::Limits) -> OneLink {
        let base = config.client_id.as_deref().unwrap_or(&settings.cluster);
        let mut outlet = outlet::Settings::new(&settings.cluster, &settings.node, u32::from(settings.shard.0) + 1);
        outlet.login.client_id = names::msg_client_id(base, &settings.node, u32::from(settings.shard.0) + 1);
        outlet.queued_bytes_max = settings.limits.link_queue_bytes_max as usize;
        if settings.limits.link_queue_age_ms > 0 {
            outlet.queued_age_ms = u64::from(settings.limits.link_queue_age_ms);
        } else {
            outlet.queued_age_ms = u64::MAX;
        }
        outlet.max_inflight = config.max_inflight;
        outlet.message_bytes_max = settings.mqtt.max_packet_bytes as usize * 2;
        let mut route = requester::Settings::new(&settings.cluster, &config.name, &settings.node, settings.incarnation);
        route.login.client_id = names::route_client_id(base, &settings.node);
        route.topics = config.topics.clone();
        for login in [&mut outlet.login, &mut route.login] {
            login.username = config.username.clone();
            login.password = config.password.as_ref().map(|password| password.reveal().as_bytes().into());
        }
        let owns = owner == settings.shard.0;
        let shapes_max = usize::from(settings.limits.interest_shapes_max);
        let levels_max = usize::from(settings.mqtt.topic_levels_max);
        let forwarder = forwarder::Settings { levels_max, ..forwarder::Settings::default() };
        OneLink {
            owner,
            inlet: Inlet::new(config.enable, config.topics.clone(), levels_max, limits),
            wants: Subscriptions::new(settings.seed, shapes_max),
            outlet: Outlet::new(outlet),
            checkpoint_until: 0,
            outlet_conn: None,
            requester: (owns && config.enable).then(|| Requester::new(route)),
            requester_conn: None,
            forwarder: owns.then(|| Forwarder::new(forwarder)),
            local: BTreeMap::new(),
            server: 0,
            spare: Vec::new(),
            up: false,
            config: config.clone(),
        }
    }

    /// Does this cluster want anything from the remote? `topics = []` is a one-way link.
    fn asks(&self) -> bool {
        !self.config.topics.is_empty() || self.requester_conn.is_some()
    }

    fn accepts(&self, username: Option<&str>, client: &str, common_name: Option<&str>) -> bool {
        let Some(accept) = &self.config.accept else { return false };
        let user = accept.username.as_deref().is_none_or(|wanted| username == Some(wanted));
        let prefix = accept.client_id_prefix.as_deref().is_none_or(|prefix| client.starts_with(prefix));
        let cert = accept.cert.as_deref().is_none_or(|wanted| common_name == Some(wanted));
        user && prefix && cert
    }

    /// The connection of a role is gone, or could not be made.
    fn role_closed(&mut self, role: Role, now_us: u64) {
        match (role, &mut self.requester) {
            (Role::Outlet, _) => self.outlet.closed(now_us),
            (Role::Requester, Some(requester)) => requester.closed(now_us),
            (Role::Requester, None) => {}
        }
    }

    fn status(&self) -> LinkStatus {
        let outlet = self.outlet.status();
        let requester = self.requester.as_ref().map(Requester::status);
        let asks = !self.asks() || requester.as_ref().is_none_or(|status| status.standing == Standing::Online);
        let status = match (self.config.enable, outlet.connected, asks) {
            (false, _, _) => "disabled",
            (true, true, true) => "connected",
            (true, true, false) => "connecting",
            (true, false, _) => "disconnected",
        };
        LinkStatus {
            name: self.config.name.clone(),
            status,
            routes: self.wants.len() as u64,
            announced: requester.map_or(0, |status| status.routes as u64),
            queued: (outlet.queued + outlet.inflight) as u64,
            queued_bytes: outlet.bytes as u64,
        }
    }
}

impl Shard {
    /// Offers a message to the outlets of the links whose remotes may want it.
    pub(crate) fn offer_links(&mut self, mut links: u64, message: &Message<'_>, from: Option<ConnId>) -> LinksTook {
        let mut took = LinksTook::default();
        while links != 0 {
            let at = links.trailing_zeros() as u16;
            links &= links - 1;
            match self.offer_link(at, message, from) {
                Some(true) => took.taken += 1,
                Some(false) => took.shed += 1,
                None => {}
            }
        }
        let kept = message.qos != Qos::AtMostOnce;
        took.refused = took.shed > 0 && kept && !self.journal.grows();
        if took.shed == 0 && self.repeats(message) {
            self.links.repeated.insert((Stream::of(&message.id), message.id.sequence));
        }
        took
    }

    /// True: its outlet took it; false: it was shed under a name; `None`: the remote does not want it.
    fn offer_link(&mut self, at: u16, message: &Message<'_>, from: Option<ConnId>) -> Option<bool> {
        let client = from.and_then(|from| self.conns.open(from)).map(|open| open.session);
        let client = client.and_then(|session| self.sessions.get(session)).map_or("", |s| &s.client);
        let one = self.links.all.get_mut(usize::from(at))?;
        self.links.found.clear();
        one.wants.matching(message.topic, &mut self.links.found);
        if self.links.found.is_empty() || !one.config.enable {
            return None;
        }
        self.links.stale = true;
        self.counters.one(Counter::link_matched);
        let kept = message.qos != Qos::AtMostOnce;
        if kept && !self.journal.grows() {
            self.counters.one(Counter::shed_log_full);
            return Some(false);
        }
        // QoS 0 messages have no place in the stream; the position in time tells them apart well enough for a trace.
        let sequence = if kept { message.id.sequence } else { self.sequence };
        let message = Message { id: MessageId { sequence, ..message.id }, ..*message };
        let forwarded = forwarded(&message, client, self.now.wall_ms);
        let conn = one.outlet_conn.and_then(|id| self.conns.get(id));
        let out = conn.map_or(&mut one.spare, |conn| &mut conn.out);
        let offered = one.outlet.offer(self.now.mono_us, &forwarded, out);
        if let Some(id) = one.outlet_conn {
            self.links_dirty.push(id);
        }
        let Offered::Taken { place, .. } = offered else { return Some(false) };
        if kept {
            self.journal.outlet(&one.config.name, place, client, &message, self.now.wall_ms);
        }
        Some(true)
    }

    /// A filter of this node begins or ends to interest one of its shards: the links that this shard owns ask for it.
    pub(crate) fn links_interest(&mut self, dest: Dest, filter: &str, add: bool) {
        if self.links.all.is_empty() || !matches!(dest, Dest::Shard(_)) || filter.starts_with(LINK_PREFIX) {
            return;
        }
        for one in &mut self.links.all {
            let Some(requester) = &mut one.requester else { continue };
            if add {
                let count = one.local.entry(filter.into()).or_insert(0);
                *count += 1;
                if *count == 1 {
                    // A refusal is counted in the requester's status and shown there.
                    let _ = requester.want(filter, filter.as_bytes());
                }
            } else if let Some(count) = one.local.get_mut(filter) {
                *count -= 1;
                if *count == 0 {
                    one.local.remove(filter);
                    requester.unwant(filter, filter.as_bytes());
                }
            }
        }
    }

    /// A shared group of this node begins or ends: announced by its real filter under a route id of its own.
    pub(crate) fn links_group(&mut self, name: &str, filter: &str, add: bool) {
        let owners: Vec<u16> = self.links.all.iter().map(|one| one.owner).collect();
        for (at, owner) in owners.into_iter().enumerate() {
            if owner == self.settings.shard.0 {
                self.link_group(at as u16, name, filter, add);
                continue;
            }
            let bytes = self.hops.answer(owner);
            let start = frame::begin(bytes, Kind::InterestTold, 0);
            bytes.extend_from_slice(&(at as u32).to_le_bytes());
            bytes.push(u8::from(add));
            put_text(bytes, name);
            put_text(bytes, filter);
            frame::finish(bytes, start);
        }
    }

    fn link_group(&mut self, at: u16, name: &str, filter: &str, add: bool) {
        let Some(requester) = self.links.one(at).and_then(|one| one.requester.as_mut()) else { return };
        let id = alloc::format!("$s/{name}/{filter}");
        if add {
            let _ = requester.want(filter, id.as_bytes());
        } else {
            requester.unwant(filter, id.as_bytes());
        }
    }

    /// The owner shard of a link says what its remote wants.
    pub(crate) fn link_wants(&mut self, link: u16, filter: &str, add: bool) {
        let Some(one) = self.links.one(link) else { return };
        if add {
            one.wants.insert(filter, Subscription { session: 0, id: 0, options: Options::default() });
        } else {
            one.wants.remove(filter, 0);
        }
    }

    /// Dials what is due, lets time pass for the state machines, and tells the shell what they wrote.
    pub(crate) fn links_turn(&mut self, out: &mut impl Output) {
        if self.links.all.is_empty() && self.links.routes.is_empty() {
            return;
        }
        let now_us = self.now.mono_us;
        for at in 0..self.links.all.len() as u16 {
            for role in [Role::Outlet, Role::Requester] {
                self.link_role_turn(at, role, out);
            }
            self.forwarder_turn(at);
        }
        self.tell_links(out);
        if self.links.stale && now_us >= self.links.refresh_us {
            self.links.refresh_us = now_us + REFRESH_US;
            self.links.stale = false;
            self.count_links(out);
        }
    }

    /// Tells the shell about outlets that have new output.
    pub(crate) fn tell_links(&mut self, out: &mut impl Output) {
        for id in self.links_dirty.drain(..) {
            if let Some(conn) = self.conns.get(id) {
                tell(conn, out);
            }
        }
        self.links_kept(out);
    }

    fn link_role_turn(&mut self, at: u16, role: Role, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let Some(one) = self.links.all.get_mut(usize::from(at)) else { return };
        let idle = match role {
            Role::Outlet => one.outlet_conn.is_none(),
            Role::Requester if !one.asks() => return,
            Role::Requester => one.requester_conn.is_none(),
        };
        if !one.config.enable && role == Role::Outlet {
            // It may have been enabled in an earlier life.
            one.outlet.expire(now_us);
        }
        if !one.config.enable || self.draining && idle {
            return;
        }
        let (dial, deadline, id) = match (role, &mut one.requester) {
            (Role::Outlet, _) => (one.outlet.poll_dial(now_us), one.outlet.deadline(), one.outlet_conn),
            (Role::Requester, Some(r)) => (r.poll_dial(now_us), r.deadline(), one.requester_conn),
            (Role::Requester, None) => return,
        };
        if dial {
            self.links.next_dial += 1;
            let dial = DialId(self.links.next_dial);
            self.links.dials.push((dial, at, role));
            let server = one.config.servers.get(one.server % one.config.servers.len().max(1));
            return out.dial(dial, server.map_or("", |server| server.as_str()));
        }
        let conn = id.and_then(|id| self.conns.get(id));
        // After a flush there is room for what waits in the outlet.
        let flushed = conn.as_ref().is_some_and(|conn| !conn.told);
        let waits = flushed && role == Role::Outlet && one.outlet.waiting();
        if deadline.is_none_or(|due| due > now_us) && !waits {
            return;
        }
        self.links.stale = true;
        let bytes = conn.map_or(&mut one.spare, |conn| &mut conn.out);
        let result = match (role, &mut one.requester) {
            (Role::Outlet, _) => one.outlet.tick(now_us, bytes),
            (Role::Requester, Some(requester)) => requester.tick(now_us, bytes),
            (Role::Requester, None) => Ok(()),
        };
        match (id, result) {
            (Some(id), result) => self.link_result(at, id, result, out),
            // No connection: a dial that ends later finds nobody who waits for it, and is closed.
            (None, Err(_)) => {
                self.links.dials.retain(|(_, link, dialing)| (*link, *dialing) != (at, role));
                if let Some(one) = self.links.one(at) {
                    one.role_closed(role, now_us);
                }
            }
            (None, Ok(())) => {}
        }
    }

    /// When the links have something to do next.
    pub(crate) fn links_deadline_us(&self) -> u64 {
        let stale = self.links.stale && !self.links.all.is_empty();
        let mut earliest = if stale { self.links.refresh_us } else { u64::MAX };
        for one in &self.links.all {
            let requester = one.requester.as_ref().filter(|_| one.asks()).and_then(Requester::deadline);
            let forwarder = one.forwarder.as_ref().and_then(Forwarder::deadline);
            let outlet = if one.config.enable { one.outlet.deadline() } else { one.outlet.expires() };
            for due in [requester, forwarder, outlet].into_iter().flatten() {
                earliest = earliest.min(due);
            }
        }
        earliest
    }

    /// Control has a new View of the links. What changes live is `topics`: announced by difference, so
    /// that what stays wanted has no gap. Everything else about a link takes a restart.
    pub(crate) fn links_view(&mut self, links: &[Link]) {
        let levels_max = usize::from(self.settings.mqtt.topic_levels_max);
        for new in links {
            let limits = self.links.limits;
            let Some(one) = self.links.all.iter_mut().find(|one| one.config.name == new.name) else { continue };
            if one.config.topics == new.topics {
                continue;
            }
            one.config.topics = new.topics.clone();
            one.inlet = Inlet::new(one.config.enable, new.topics.clone(), levels_max, limits);
            if let Some(requester) = &mut one.requester {
                requester.set_topics(new.topics.clone());
            }
        }
    }

    /// A dial succeeded.
    pub(crate) fn link_dialed(&mut self, dial: DialId, id: ConnId, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        self.links.stale = true;
        let Some(at) = self.links.dials.iter().position(|(d, ..)| *d == dial) else { return out.close(id) };
        let (_, link, role) = self.links.dials.swap_remove(at);
        let peer = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let phase = if role == Role::Outlet { Phase::Outlet(link) } else { Phase::Requester(link) };
        self.conns.insert(id, u16::MAX, peer, now_us, phase);
        let (Some(one), Some(conn)) = (self.links.all.get_mut(usize::from(link)), self.conns.get(id)) else {
            return;
        };
        match (role, &mut one.requester) {
            (Role::Outlet, _) => {
                one.outlet_conn = Some(id);
                one.outlet.opened(now_us, &mut conn.out);
            }
            (Role::Requester, Some(requester)) => {
                one.requester_conn = Some(id);
                requester.opened(now_us, &mut conn.out);
            }
            (Role::Requester, None) => {}
        }
        tell(conn, out);
        out.ready(id);
    }

    /// A dial failed: the next address, after the back-off of the state machine.
    pub(crate) fn link_dial_failed(&mut self, dial: DialId, reason: &str, out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let Some(at) = self.links.dials.iter().position(|(d, ..)| *d == dial) else { return };
        let (_, link, role) = self.links.dials.swap_remove(at);
        let Some(one) = self.links.one(link) else { return };
        one.server = one.server.wrapping_add(1);
        one.role_closed(role, now_us);
        let (link, detail) = (&one.config.name, Cow::Borrowed(reason));
        out.event(Event::Link { link, what: "cannot connect", detail });
    }

    /// Bytes of a remote on a connection that we dialled.
    pub(crate) fn link_received(&mut self, id: ConnId, link: u16, bytes: &[u8], out: &mut impl Output) {
        let now_us = self.now.mono_us;
        let (Some(one), Some(conn)) = (self.links.all.get_mut(usize::from(link)), self.conns.get(id)) else {
            return;
        };
        let result = match (&conn.phase, &mut one.requester) {
            (Phase::Outlet(_), _) => one.outlet.received(now_us, bytes, &mut conn.out),
            (Phase::Requester(_), Some(requester)) => requester.received(now_us, bytes, &mut conn.out),
            _ => Ok(()),
        };
        self.link_result(link, id, result, out);
    }

    fn link_result(&mut self, link: u16, id: ConnId, result: Result<(), LinkError>, out: &mut impl Output) {
        self.links.stale = true;
        let Some(conn) = self.conns.get(id) else { return };
        tell(conn, out);
        let Err(error) = result else { return };
        if matches!(conn.phase, Phase::Closing) {
            return;
        }
        close(conn, out);
        if let Some(one) = self.links.one(link) {
            // An address that accepts connections and then fails is left for the next one, too.
            one.server = one.server.wrapping_add(1);
            let detail = Cow::Owned(alloc::format!("{error}"));
            out.event(Event::Link { link: &one.config.name, what: "connection ended", detail });
        }
    }

    /// A connection that we dialled is gone.
    pub(crate) fn link_closed(&mut self, id: ConnId, _: &mut impl Output) {
        self.links.stale = true;
        let now_us = self.now.mono_us;
        #[cfg(feature = "plant")]
        let forgets = self.planted(crate::plant::Plant::OutletForgets);
        for one in &mut self.links.all {
            if one.outlet_conn == Some(id) {
                one.outlet_conn = None;
                #[cfg(feature = "plant")]
                if forgets {
                    one.outlet.forget_unacknowledged();
                }
                one.outlet.closed(now_us);
            }
            if one.requester_conn == Some(id) {
                one.requester_conn = None;
                if let Some(requester) = &mut one.requester {
                    requester.closed(now_us);
                }
            }
        }
    }

    /// This node stops: a DISCONNECT, because a bare close makes EMQX lose what is unacknowledged.
    pub(crate) fn link_goodbye(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let kept = self.journal.on() && self.journal.writable();
        for one in &mut self.links.all {
            if one.outlet_conn == Some(id) {
                one.outlet.stop(kept, &mut conn.out);
            }
            if one.requester_conn == Some(id)
                && let Some(requester) = &mut one.requester
            {
                requester.stop(&mut conn.out);
            }
        }
    }

    /// Brings the shard's counters up to what the outlets have counted, and says when a link changed.
    fn count_links(&mut self, out: &mut impl Output) {
        let (mut sent, mut acked, mut shed) = (0, 0, [0u64; Shed::ALL.len()]);
        let mut refused = 0;
        for one in &mut self.links.all {
            let status = one.outlet.status();
            sent += status.sent;
            acked += status.delivered;
            shed.iter_mut().zip(status.shed).for_each(|(total, n)| *total += n);
            if let Some(forwarder) = &one.forwarder {
                let status = forwarder.status();
                refused += status.refused_by_limit + status.refused_filters;
            }
            if status.connected != one.up {
                one.up = status.connected;
                let what = if one.up { "outlet connected" } else { "outlet disconnected" };
                out.event(Event::Link { link: &one.config.name, what, detail: Cow::Borrowed("") });
            }
        }
        let of = |kinds: &[Shed]| kinds.iter().map(|kind| shed[*kind as usize]).sum::<u64>();
        let counters = &mut self.counters;
        counters.set(Counter::link_sent, sent);
        counters.set(Counter::link_acked, acked);
        counters.set(Counter::link_routes_refused, refused);
        counters.set(Counter::shed_link_queue_full, of(&[Shed::QueueFull, Shed::Displaced]));
        counters.set(Counter::shed_link_expired, of(&[Shed::TooOld, Shed::Expired]));
        counters.set(Counter::shed_link_too_large, of(&[Shed::TooLarge, Shed::TooLargeForRemote]));
        counters.set(Counter::shed_link_refused, of(&[Shed::RefusedByRemote, Shed::BadProperties]));
        counters.set(Counter::shed_link_stopped, of(&[Shed::Stopped]) + self.links.orphans.shed);
    }

    /// A frame about links from another shard.
    pub(crate) fn link_frame(&mut self, from: u16, frame: &Frame<'_>, out: &mut impl Output) -> Result<(), BadFrame> {
        let mut fields = Fields(frame.body);
        match frame.kind {
            Kind::LinkRoute => return self.frame_route(from, &mut fields, out),
            Kind::LinkGone => {
                let id = ConnId { index: fields.u32()?, generation: fields.u32()? };
                self.links.routes.remove(&(from, id));
            }
            Kind::InterestTold => {
                let (at, add) = (fields.u32()? as u16, fields.u8()? != 0);
                let (name, filter) = (fields.text()?, fields.text()?);
                self.link_group(at, name, filter, add);
            }
            _ => return Err(BadFrame::Field("kind")),
        }
        Ok(())
    }

    /// Sends a route payload of a connection here to the owner shard of its link.
    pub(crate) fn send_route(&mut self, owner: u16, id: ConnId, token: u64, publish: &link::session::RoutePublish<'_>) {
        let bytes = self.hops.message(owner);
        let start = frame::begin(bytes, Kind::LinkRoute, 0);
        bytes.extend_from_slice(&id.index.to_le_bytes());
        bytes.extend_from_slice(&id.generation.to_le_bytes());
        bytes.extend_from_slice(&token.to_le_bytes());
        put_text(bytes, publish.cluster);
        put_blob(bytes, publish.payload);
        bytes.push(u8::from(publish.response_topic.is_some()));
        put_text(bytes, publish.response_topic.unwrap_or(""));
        bytes.push(u8::from(publish.correlation_data.is_some()));
        put_blob(bytes, publish.correlation_data.unwrap_or(&[]));
        frame::finish(bytes, start);
    }
}
