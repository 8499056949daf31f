//! The topics of cluster links are closed to ordinary clients: refused, counted, without effect on others.

use crate::setup;
use harness::SHORT;
use harness::raw::Raw;
use harness::wire::{self, Connect, Publish, V5, V311, kind};

#[test]
fn an_ordinary_client_may_not_use_link_topics() {
    harness::needs_own_broker!();
    // A link with an accept that no client of this test meets.
    let link = r##"[{name="b",server="127.0.0.1:1",topics=["#"],accept={username="only-the-link"}}]"##;
    let node = setup().shards(2).env("RINGMQ_CLUSTER__NAME", "a").env("RINGMQ_CLUSTER__LINKS", link).start();
    let mut witness = Raw::connect(node.mqtt(), &Connect::new(V5, "witness"));
    witness.subscribe("#", 1);
    let mut refused = 0;

    for filter in ["$LINK/#", "$LINK/cluster/resp/b/x", "$LINK/cluster/+/b", "$share/g/$LINK/#"] {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
        raw.send(&wire::subscribe(V5, 1, filter, 1));
        assert_eq!(raw.expect(kind::SUBACK).reason(), 0x87, "`{filter}`");
        raw.ping();
        refused += 1;
    }
    let mut old = Raw::connect(node.mqtt(), &Connect::new(V311, ""));
    old.send(&wire::subscribe(V311, 1, "$LINK/#", 1));
    assert_eq!(old.expect(kind::SUBACK).reason(), 0x80);
    refused += 1;

    for topic in ["$LINK/cluster/msg/b", "$LINK/cluster/route/b", "$LINK/x"] {
        let mut raw = Raw::connect(node.mqtt(), &Connect::new(V5, ""));
        raw.send(&Publish::new(topic, &[131, 106]).acked(1, 8).bytes(V5));
        let answer = raw.next(SHORT).expect("a refusal is said");
        let expected = [kind::PUBACK, kind::DISCONNECT].contains(&answer.kind) && answer.reason() == 0x87;
        assert!(expected, "`{topic}`: {answer:?}");
        refused += 1;
    }
    node.counter_reaches("link_clients_refused", refused);

    witness.send(&Publish::new("t", b"still served").acked(1, 9).bytes(V5));
    let mut kinds = [witness.next(SHORT), witness.next(SHORT)].map(|packet| packet.expect("it stays open").kind);
    kinds.sort_unstable();
    assert_eq!(kinds, [kind::PUBLISH, kind::PUBACK]);
}
