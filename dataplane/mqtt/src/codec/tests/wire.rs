//! A second writer of packets, slow and plain, that shares nothing with the encoder; and packets at random.

use alloc::{string::String, vec, vec::Vec};

use crate::types::Version;

/// A string or binary data with its length.
pub fn s(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&[(text.len() / 256) as u8, (text.len() % 256) as u8], text].concat()
}

/// A variable byte integer, as section 1.5.5 computes it.
pub fn v(mut number: usize) -> Vec<u8> {
    let mut out = vec![];
    loop {
        let mut byte = (number % 128) as u8;
        number /= 128;
        if number > 0 {
            byte += 128;
        }
        out.push(byte);
        if number == 0 {
            return out;
        }
    }
}

/// A packet of `parts`, with its fixed header.
pub fn p(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [vec![first], v(body.len()), body].concat()
}

/// A property list with its length.
pub fn l(properties: &[&[u8]]) -> Vec<u8> {
    let list = properties.concat();
    [v(list.len()), list].concat()
}

/// Xorshift: the same seed, the same packets, on every machine.
pub struct Random(u64);

impl Random {
    pub fn seeded(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn version(&mut self) -> Version {
        self.pick(&super::ALL)
    }

    fn u16(&mut self) -> [u8; 2] {
        (self.next() as u16).to_be_bytes()
    }

    fn id(&mut self) -> [u8; 2] {
        (1 + self.below(65535) as u16).to_be_bytes()
    }

    fn u32(&mut self) -> [u8; 4] {
        (self.next() as u32).to_be_bytes()
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = if self.below(50) == 0 { self.below(3000) } else { self.below(24) };
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self, letters: &str, len_min: usize) -> Vec<u8> {
        let letters: Vec<char> = letters.chars().collect();
        let len = len_min + if self.below(50) == 0 { self.below(400) } else { self.below(20) };
        s((0..len).map(|_| self.pick(&letters)).collect::<String>())
    }

    fn topic(&mut self) -> Vec<u8> {
        self.text("abc/$d\u{e4}\u{20ac}\u{1f980}\u{feff}", 1)
    }

    fn words(&mut self) -> Vec<u8> {
        self.text("abcdefgh +#/\u{1}\u{e4}\u{20ac}\u{1f980}\u{feff}", 0)
    }

    fn value(&mut self, property: u8) -> Vec<u8> {
        match property {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => vec![self.below(2) as u8],
            0x13 | 0x22 => self.u16().into(),
            0x21 | 0x23 => self.id().into(),
            0x02 | 0x11 | 0x18 => self.u32().into(),
            0x27 => [[0, 0], self.id()].concat(),
            0x0B => {
                let bits = self.below(28);
                v((1 << bits) + self.below(1 << bits))
            }
            0x08 => self.topic(),
            0x09 | 0x16 => s(self.bytes()),
            0x26 => [self.words(), self.words()].concat(),
            _ => self.words(),
        }
    }

    /// A random choice of `once`, and of properties that may repeat, in random order.
    fn list(&mut self, once: &[u8], many: &[u8]) -> Vec<u8> {
        let mut chosen: Vec<u8> = once.iter().copied().filter(|_| self.below(3) == 0).collect();
        for _ in 0..self.below(4) {
            chosen.push(self.pick(many));
        }
        for at in (1..chosen.len()).rev() {
            let other = self.below(at + 1);
            chosen.swap(at, other);
        }
        let parts: Vec<Vec<u8>> =
            chosen.iter().map(|property| [vec![*property], self.value(*property)].concat()).collect();
        l(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    fn list_v5(&mut self, version: Version, once: &[u8], many: &[u8]) -> Vec<u8> {
        if version == Version::V5 { self.list(once, many) } else { vec![] }
    }

    /// A packet that the specification allows.
    pub fn packet(&mut self, version: Version) -> Vec<u8> {
        let v5 = version == Version::V5;
        match self.below(18) {
            0 => self.connect(version),
            1 => self.connack(version),
            2 => self.ack(version, 0x40, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            3 => self.ack(version, 0x50, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            4 => self.ack(version, 0x62, &[0, 0x92]),
            5 => self.ack(version, 0x70, &[0, 0x92]),
            6 => self.subscribe(version),
            7 => self.unsubscribe(version),
            8 => {
                let codes: &[u8] = if v5 { &[0, 1, 2, 0x87, 0x8F, 0x97, 0x9E, 0xA1, 0xA2] } else { &[0, 1, 2, 0x80] };
                self.answer(version, 0x90, codes)
            }
            9 if v5 => self.answer(version, 0xB0, &[0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91]),
            9 => p(0xB0, &[&self.id()]),
            10 => p(0xC0, &[]),
            11 => p(0xD0, &[]),
            12 if v5 => self.disconnect(),
            12 => p(0xE0, &[]),
            13 if v5 => self.auth(),
            _ => self.publish(version),
        }
    }

    fn publish(&mut self, version: Version) -> Vec<u8> {
        let qos = self.below(3) as u8;
        let dup = qos > 0 && self.flip();
        let first = 0x30 | u8::from(dup) << 3 | qos << 1 | u8::from(self.flip());
        let id = if qos > 0 { Vec::from(self.id()) } else { vec![] };
        let list = self.list_v5(version, &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23], &[0x26, 0x0B]);
        p(first, &[&self.topic(), &id, &list, &self.bytes()])
    }

    fn connect(&mut self, version: Version) -> Vec<u8> {
        let (v5, clean) = (version == Version::V5, self.flip());
        let (name, level) = match version {
            Version::V31 => ("MQIsdp", 3),
            Version::V311 => ("MQTT", 4),
            Version::V5 => ("MQTT", 5),
        };
        let level = level | if self.below(8) == 0 { 0x80 } else { 0 };
        let list = self.list_v5(version, &[0x11, 0x21, 0x27, 0x22, 0x19, 0x17, 0x15], &[0x26]);
        let least = if version == Version::V31 || !v5 && !clean { 1 } else { 0 };
        let id = self.text("client-0123", least);
        let (mut flags, mut tail) = (u8::from(clean) << 1, vec![]);
        if self.flip() {
            flags |= 0x04 | (self.below(3) as u8) << 3 | u8::from(self.flip()) << 5;
            tail.extend(self.list_v5(version, &[0x18, 0x01, 0x02, 0x03, 0x08, 0x09], &[0x26]));
            tail.extend(self.topic());
            tail.extend(s(self.bytes()));
        }
        let named = self.flip();
        if named {
            flags |= 0x80;
            tail.extend(self.words());
        }
        if (named || v5) && self.flip() {
            flags |= 0x40;
            tail.extend(s(self.bytes()));
        }
        p(0x10, &[&s(name), &[level, flags], &self.u16(), &list, &id, &tail])
    }

    fn connack(&mut self, version: Version) -> Vec<u8> {
        if version != Version::V5 {
            let code = self.below(6) as u8;
            let present = version == Version::V311 && code == 0 && self.flip();
            return p(0x20, &[&[u8::from(present), code]]);
        }
        let code = self.pick(&[0, 0, 0x81, 0x84, 0x85, 0x87, 0x8A, 0x8C, 0x97, 0x9C, 0x9D, 0x9F]);
        let once = [0x11, 0x21, 0x24, 0x25, 0x27, 0x12, 0x22, 0x1F, 0x28, 0x29, 0x2A, 0x13, 0x1A, 0x1C, 0x15, 0x16];
        let present = code == 0 && self.flip();
        p(0x20, &[&[u8::from(present), code], &self.list(&once, &[0x26])])
    }

    fn ack(&mut self, version: Version, first: u8, codes: &[u8]) -> Vec<u8> {
        let id = self.id();
        if version != Version::V5 {
            return p(first, &[&id]);
        }
        let (code, list) = (self.pick(codes), self.list(&[0x1F], &[0x26]));
        match self.below(4) {
            0 => p(first, &[&id]),
            1 => p(first, &[&id, &[code]]),
            _ => p(first, &[&id, &[code], &list]),
        }
    }

    fn subscribe(&mut self, version: Version) -> Vec<u8> {
        let list = self.list_v5(version, &[0x0B], &[0x26]);
        let mut entries = vec![];
        for _ in 0..1 + self.below(5) {
            entries.extend(self.words());
            entries.push(self.below(3) as u8);
            if version == Version::V5 {
                *entries.last_mut().unwrap() |= (self.below(3) << 4 | self.below(4) << 2) as u8;
            }
        }
        p(0x82, &[&self.id(), &list, &entries])
    }

    fn unsubscribe(&mut self, version: Version) -> Vec<u8> {
        let list = self.list_v5(version, &[], &[0x26]);
        let filters: Vec<u8> = (0..1 + self.below(5)).flat_map(|_| self.words()).collect();
        p(0xA2, &[&self.id(), &list, &filters])
    }

    fn answer(&mut self, version: Version, first: u8, codes: &[u8]) -> Vec<u8> {
        let list = self.list_v5(version, &[0x1F], &[0x26]);
        let codes: Vec<u8> = (0..1 + self.below(5)).map(|_| self.pick(codes)).collect();
        p(first, &[&self.id(), &list, &codes])
    }

    fn disconnect(&mut self) -> Vec<u8> {
        let code = self.pick(&[0, 4, 0x81, 0x82, 0x8B, 0x8D, 0x8E, 0x98, 0x9D, 0xA2]);
        let list = self.list(&[0x11, 0x1F, 0x1C], &[0x26]);
        match self.below(4) {
            0 => p(0xE0, &[]),
            1 => p(0xE0, &[&[code]]),
            _ => p(0xE0, &[&[code], &list]),
        }
    }

    fn auth(&mut self) -> Vec<u8> {
        if self.below(4) == 0 {
            return p(0xF0, &[]);
        }
        let method = [vec![0x15], self.words()].concat();
        let mut list = vec![method];
        if self.flip() {
            list.push([vec![0x16], s(self.bytes())].concat());
        }
        if self.flip() {
            list.push([vec![0x1F], self.words()].concat());
        }
        list.extend((0..self.below(3)).map(|_| [vec![0x26], self.words(), self.words()].concat()));
        let code = self.pick(&[0, 0x18, 0x19]);
        p(0xF0, &[&[code], &l(&list.iter().map(Vec::as_slice).collect::<Vec<_>>())])
    }
}
