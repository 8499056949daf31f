// Scenarios for a broker, driven with MQTT.js.
//
// Usage: node scenarios.js SCENARIO PORT VERSION PREFIX ID...
//
// VERSION is 4 (3.1.1) or 5. PREFIX begins every topic, so that scenarios may run side by side on one broker.
// The IDs are client ids that live on different shards. Every wait has a bound; the exit code is the verdict,
// and the last line of a scenario that succeeds is `ok SCENARIO`.
//
// BROKER_TRANSPORT in the environment is mqtt (default), mqtts, ws or wss; BROKER_CA is the file of the authority that
// the broker's certificate is from, BROKER_CERT and BROKER_KEY are those of a client that shows one.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const mqtt = require('mqtt');

const [scenario, port, version, prefix, ...ids] = process.argv.slice(2);
const protocolVersion = Number(version);
const v5 = protocolVersion === 5;
const BOUND_MS = 10_000;
// The library sends as fast as it is told, whatever Receive Maximum says; every broker takes this many.
const IN_FLIGHT = 15;
const topic = (rest) => `${prefix}/${rest}`;
const peers = [];
const transport = {
  protocol: process.env.BROKER_TRANSPORT ?? 'mqtt',
  path: '/mqtt',
  ...(process.env.BROKER_CA && { ca: fs.readFileSync(process.env.BROKER_CA) }),
  ...(process.env.BROKER_CERT && {
    cert: fs.readFileSync(process.env.BROKER_CERT),
    key: fs.readFileSync(process.env.BROKER_KEY),
  }),
};

/** A value that comes within the bound, or a failure that says what did not come. */
function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${BOUND_MS} ms`)), BOUND_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A client whose messages wait in a queue, so that a scenario reads like a script. */
class Peer {
  static async connect(clientId, options = {}) {
    const peer = new Peer();
    peers.push(peer);
    peer.waiting = [];
    peer.queued = [];
    // A lost connection is a finding here, never something to repair.
    peer.client = mqtt.connect({
      host: '127.0.0.1', port: Number(port), protocolVersion, clientId, reconnectPeriod: 0, ...transport, ...options,
    });
    peer.closed = new Promise((resolve) => peer.client.once('close', resolve));
    peer.farewell = new Promise((resolve) => peer.client.once('disconnect', resolve));
    peer.client.on('message', (name, payload, packet) => {
      const message = { topic: name, text: payload.toString(), packet };
      const next = peer.waiting.shift();
      if (next) next(message); else peer.queued.push(message);
    });
    const refused = new Promise((_, reject) => peer.client.once('error', reject));
    const accepted = new Promise((resolve) => peer.client.once('connect', resolve));
    peer.connack = await within(Promise.race([accepted, refused]), 'CONNACK');
    peer.client.on('error', () => {});
    return peer;
  }

  async subscribe(filter, qos, options = {}) {
    const granted = await within(this.client.subscribeAsync(filter, { qos, ...options }), 'SUBACK');
    assert.deepEqual(granted.map((grant) => grant.qos), [qos], `${filter} was not granted`);
  }

  publish(name, payload, qos = 1, options = {}) {
    return within(this.client.publishAsync(name, payload, { qos, ...options }), 'acknowledgement');
  }

  message() {
    const ready = this.queued.shift();
    if (ready) return Promise.resolve(ready);
    return within(new Promise((resolve) => this.waiting.push(resolve)), 'message');
  }

  async text() {
    return (await this.message()).text;
  }

  leave(options) {
    return within(this.client.endAsync(false, options), 'end');
  }

  /** Ends the connection without DISCONNECT. */
  vanish() {
    this.client.stream.destroy();
    return within(this.closed, 'end');
  }
}

/** Options of a connection whose session stays. */
const kept = (seconds = 600) => ({
  clean: false, ...(v5 && { properties: { sessionExpiryInterval: seconds } }),
});

const scenarios = {
  async qos() {
    const subscriber = await Peer.connect(ids[0]);
    const publisher = await Peer.connect(ids[1]);
    for (const level of [0, 1, 2]) {
      await subscriber.subscribe(topic(`q${level}`), level);
      for (const sent of [0, 1, 2]) {
        for (let number = 0; number < 60; number += IN_FLIGHT) {
          const publishes = Array.from({ length: IN_FLIGHT }, (_, more) =>
            publisher.publish(topic(`q${level}`), `${sent} ${number + more}`, sent));
          await Promise.all(publishes);
        }
        for (let number = 0; number < 60; number += 1) {
          const { text, packet } = await subscriber.message();
          assert.equal(text, `${sent} ${number}`);
          assert.deepEqual([packet.qos, packet.retain, packet.dup], [Math.min(level, sent), false, false]);
        }
      }
    }
    assert.deepEqual(subscriber.queued, []);
  },

  async retained() {
    const publisher = await Peer.connect(ids[0]);
    const live = await Peer.connect(ids[1]);
    await live.subscribe(topic('#'), 1);
    for (const payload of ['one', 'two']) {
      await publisher.publish(topic('t'), payload, 1, { retain: true });
      const { text, packet } = await live.message();
      assert.deepEqual([text, packet.retain], [payload, false]);
    }
    const late = await Peer.connect(ids[2]);
    await late.subscribe(topic('+'), 1);
    const { text, packet } = await late.message();
    assert.deepEqual([text, packet.retain], ['two', true]);
    await publisher.publish(topic('t'), '', 1, { retain: true });
    assert.equal(await late.text(), '');
    const last = await Peer.connect(`${ids[2]}x`);
    await last.subscribe(topic('#'), 1);
    await publisher.publish(topic('other'), 'marker');
    assert.equal(await last.text(), 'marker');
  },

  async will() {
    const witness = await Peer.connect(ids[0]);
    await witness.subscribe(topic('will'), 2);
    const will = { topic: topic('will'), payload: Buffer.from('gone'), qos: 2, retain: false };
    const doomed = await Peer.connect(ids[1], { will });
    await doomed.vanish();
    const { text, packet } = await witness.message();
    assert.deepEqual([text, packet.qos], ['gone', 2]);
    const polite = await Peer.connect(ids[1], { will });
    await polite.leave();
    const again = await Peer.connect(ids[1]);
    await again.publish(topic('will'), 'marker');
    assert.equal(await witness.text(), 'marker');
  },

  async session() {
    let keeper = await Peer.connect(ids[0], kept());
    assert.equal(keeper.connack.sessionPresent, false);
    await keeper.subscribe(topic('#'), 2);
    await keeper.vanish();
    const publisher = await Peer.connect(ids[1]);
    for (let number = 0; number < 50; number += 1) {
      await publisher.publish(topic('one'), String(number), 1);
      await publisher.publish(topic('two'), String(number), 2);
    }
    keeper = await Peer.connect(ids[0], kept());
    assert.equal(keeper.connack.sessionPresent, true);
    const found = { [topic('one')]: [], [topic('two')]: [] };
    for (let count = 0; count < 100; count += 1) {
      const message = await keeper.message();
      found[message.topic].push(message.text);
    }
    const wanted = Array.from({ length: 50 }, (_, number) => String(number));
    assert.deepEqual(found, { [topic('one')]: wanted, [topic('two')]: wanted });
    await keeper.leave();
    const fresh = await Peer.connect(ids[0]);
    assert.equal(fresh.connack.sessionPresent, false);
  },

  async shared() {
    const members = [];
    for (const id of ids) {
      const member = await Peer.connect(id);
      await member.subscribe(`$share/crew/${topic('work')}`, 1);
      members.push(member);
    }
    const publisher = await Peer.connect(`${ids[0]}-publisher`);
    for (let number = 0; number < 90; number += 1) await publisher.publish(topic('work'), String(number));
    const heard = [];
    const until = Date.now() + BOUND_MS;
    while (heard.length < 90) {
      assert.ok(Date.now() < until, `only ${heard.length} of 90 arrived`);
      for (const member of members) heard.push(...member.queued.splice(0).map((message) => message.text));
      await new Promise((resolve) => { setTimeout(resolve, 5); });
    }
    heard.sort((one, other) => Number(one) - Number(other));
    assert.deepEqual(heard, Array.from({ length: 90 }, (_, number) => String(number)));
  },

  async takeover() {
    const first = await Peer.connect(ids[0]);
    const second = await Peer.connect(ids[0]);
    await within(first.closed, 'end of the first connection');
    // The foreign broker of a check of these tests closes without a word.
    if (v5 && !process.env.RINGMQ_TEST_FOREIGN) assert.equal((await within(first.farewell, 'DISCONNECT')).reasonCode, 0x8e);
    await second.subscribe(topic('t'), 1);
    await second.publish(topic('t'), 'still here');
    assert.equal(await second.text(), 'still here');
  },

  async properties() {
    const subscriber = await Peer.connect(ids[0]);
    const publisher = await Peer.connect(ids[1]);
    await subscriber.subscribe(topic('t'), 2);
    const sent = {
      payloadFormatIndicator: true,
      messageExpiryInterval: 600,
      responseTopic: 'answers/here',
      correlationData: Buffer.from([0, 255, 1]),
      contentType: 'text/plain',
      userProperties: { b: ['1', '3'], a: '2' },
    };
    for (const level of [0, 1, 2]) {
      await publisher.publish(topic('t'), 'grüße', level, { properties: sent });
      const { text, packet } = await subscriber.message();
      assert.equal(text, 'grüße');
      const found = { ...packet.properties, userProperties: { ...packet.properties.userProperties } };
      assert.ok(found.messageExpiryInterval >= 590 && found.messageExpiryInterval <= 600);
      found.messageExpiryInterval = 600;
      assert.deepEqual(found, sent);
    }
  },

  async subscription_ids() {
    const subscriber = await Peer.connect(ids[0]);
    const publisher = await Peer.connect(ids[1]);
    await subscriber.subscribe(topic('a/+'), 1, { properties: { subscriptionIdentifier: 5 } });
    await subscriber.subscribe(topic('a/b'), 1, { properties: { subscriptionIdentifier: 300 } });
    await publisher.publish(topic('a/b'), 'both');
    const found = [];
    while (found.length < 2) {
      const { packet } = await subscriber.message();
      found.push(...[packet.properties.subscriptionIdentifier].flat());
    }
    assert.deepEqual(found.sort((one, other) => one - other), [5, 300]);
  },

  async topic_alias() {
    const subscriber = await Peer.connect(ids[0], { properties: { topicAliasMaximum: 10 } });
    const publisher = await Peer.connect(ids[1], { autoAssignTopicAlias: true });
    assert.ok(publisher.connack.properties.topicAliasMaximum >= 1, 'the broker takes no aliases');
    await subscriber.subscribe(topic('#'), 1);
    for (let number = 0; number < 30; number += 1) {
      await publisher.publish(topic(`name/${number % 3}`), String(number));
    }
    for (let number = 0; number < 30; number += 1) {
      const message = await subscriber.message();
      assert.deepEqual([message.topic, message.text], [topic(`name/${number % 3}`), String(number)]);
    }
  },

  async session_expiry() {
    const keeper = await Peer.connect(ids[0], kept());
    await keeper.leave({ properties: { sessionExpiryInterval: 0 } });
    const again = await Peer.connect(ids[0], kept(1));
    assert.equal(again.connack.sessionPresent, false, 'DISCONNECT can end a session');
    await again.vanish();
    const until = Date.now() + 3 * BOUND_MS;
    for (;;) {
      // Longer than the session lives; asking for one starts its second anew.
      await new Promise((resolve) => { setTimeout(resolve, 1500); });
      const asking = await Peer.connect(ids[0], kept(1));
      if (!asking.connack.sessionPresent) return;
      await asking.vanish();
      assert.ok(Date.now() < until, 'the session does not expire');
    }
  },

  async message_expiry() {
    const will = { topic: topic('gone'), payload: Buffer.from('gone'), qos: 1, retain: false };
    let keeper = await Peer.connect(ids[0], { ...kept(), will });
    await keeper.subscribe(topic('t'), 1);
    const publisher = await Peer.connect(ids[1]);
    await publisher.subscribe(topic('gone'), 1);
    await keeper.vanish();
    // Before its will is out, the broker may still write to the connection, and what is written is delivered.
    assert.equal(await publisher.text(), 'gone');
    await publisher.publish(topic('t'), 'short', 1, { properties: { messageExpiryInterval: 1 } });
    await publisher.publish(topic('t'), 'long', 1, { properties: { messageExpiryInterval: 600 } });
    // A second of the message's own life, which no event announces.
    await new Promise((resolve) => { setTimeout(resolve, 2100); });
    keeper = await Peer.connect(ids[0], kept());
    const { text, packet } = await keeper.message();
    assert.equal(text, 'long');
    assert.ok(packet.properties.messageExpiryInterval < 600, 'the time in the queue counts');
    await keeper.leave();
    await Peer.connect(ids[0]);
  },

  async subscribe_options() {
    const publisher = await Peer.connect(ids[0]);
    const subscriber = await Peer.connect(ids[1]);
    await publisher.publish(topic('t'), 'kept', 1, { retain: true });
    await subscriber.subscribe(topic('t'), 1, { rh: 2 });
    await publisher.publish(topic('t'), 'live');
    assert.equal(await subscriber.text(), 'live', 'handling 2 replays nothing');
    await subscriber.subscribe(topic('t'), 1, { rh: 0 });
    assert.equal(await subscriber.text(), 'kept', 'handling 0 replays');

    const faithful = await Peer.connect(ids[2]);
    await faithful.subscribe(topic('rap'), 1, { rap: true, nl: true });
    await publisher.publish(topic('rap'), 'value', 1, { retain: true });
    assert.equal((await faithful.message()).packet.retain, true, 'retain as published');
    await faithful.publish(topic('rap'), 'mine');
    await publisher.publish(topic('rap'), 'theirs');
    assert.equal(await faithful.text(), 'theirs', 'no local');
    for (const rest of ['t', 'rap']) await publisher.publish(topic(rest), '', 1, { retain: true });
  },
};

(async () => {
  await scenarios[scenario]();
  await Promise.all(peers.map((peer) => peer.client.endAsync(true).catch(() => {})));
  console.log(`ok ${scenario}`);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
