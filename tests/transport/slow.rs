//! A client that does not read what it subscribed to, through layers: what is made for it stays bounded, what exceeds it
//! is shed and counted, and nobody else notices.

use harness::{
    SHORT, Setup,
    bound::within_or,
    client_on,
    wire::{self, Publish, kind},
};

use crate::{
    papers::Papers,
    secure::{self, Client, Wire},
    tls_listener,
    websocket::Framed,
};

/// `limits.output_bytes_max` of the node.
const OUTPUT_BYTES: usize = 256 * 1024;
const PAYLOAD: [u8; 16 * 1024] = [b'x'; 16 * 1024];

#[test]
fn who_does_not_read_costs_a_bounded_buffer_on_every_transport() {
    let papers = Papers::new();
    let setup = Setup::new(env!("CARGO_BIN_EXE_ringmq"))
        .shards(2)
        .env("RINGMQ_LIMITS__OUTPUT_BYTES_MAX", format!("{OUTPUT_BYTES}B"))
        .env("RINGMQ_LISTENERS__WS__DEFAULT__BIND", "127.0.0.1:0");
    let node = tls_listener(tls_listener(setup, "ssl", "default", &papers), "wss", "default", &papers).start();
    let config = secure::config(&papers, None);
    let wires: [(&str, Box<dyn Wire>); 3] = [
        ("ssl", Box::new(secure::tls(secure::tcp(node.address("ssl", "default")), config.clone()))),
        ("ws", Box::new(Framed::open(secure::tcp(node.address("ws", "default"))))),
        ("wss", Box::new(Framed::open(secure::tls(secure::tcp(node.address("wss", "default")), config)))),
    ];
    let mut publisher = Client::connect(secure::tcp(node.mqtt()), &client_on(1, 2, "slow-publisher"));
    for (name, wire) in wires {
        let topic = format!("slow/{name}");
        let mut deaf = Client::connect(wire, &client_on(0, 2, &format!("slow-{name}")));
        deaf.subscribe(&topic);
        let shed = node.counter("shed_slow_subscriber");
        let packet = Publish::new(&topic, &PAYLOAD).bytes(wire::V5);
        within_or(SHORT, || {
            (0..64).for_each(|_| publisher.send(&packet));
            publisher.send(&wire::pingreq());
            publisher.expect(kind::PINGRESP);
            (node.counter("shed_slow_subscriber") > shed).then_some(())
        })
        .unwrap_or_else(|| panic!("nothing was shed for {name}, so everything was kept"));
        // It reads again, and gets whole packets.
        for _ in 0..10 {
            assert_eq!(deaf.message(), PAYLOAD);
        }
    }
}
