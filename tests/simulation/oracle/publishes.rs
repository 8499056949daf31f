//! Every publish that a client sent, by number. The number is the payload, so whoever receives a message
//! knows which one it is.

/// One PUBLISH or will.
#[derive(Clone, Default, Debug)]
pub struct Publish {
    /// Index of the cluster where it enters.
    pub cluster: usize,
    /// Index of its client.
    pub publisher: usize,
    /// Position among all that this client sends.
    pub order: u64,
    /// Position of its last sending.
    pub last_order: u64,
    /// Topic.
    pub topic: String,
    /// QoS.
    pub qos: u8,
    /// RETAIN.
    pub retain: bool,
    /// An empty payload: the retained value goes.
    pub delete: bool,
    /// Bytes behind the number.
    pub padding: usize,
    /// When it was sent first.
    pub sent_us: u64,
    /// When PUBACK or PUBREC came.
    pub acknowledged_us: Option<u64>,
    /// When it was sure that the broker had read it.
    pub proved_us: Option<u64>,
    /// It was refused with a reason.
    pub refused: bool,
    /// How often it was sent again.
    pub resent: u32,
    /// It is a will: nobody sends it.
    pub will: bool,
    /// Its node died before it was acknowledged, or needed no acknowledgement: it may be gone.
    pub shaken: bool,
    /// Its node died, and was not to keep anything.
    pub forgotten: bool,
}

impl Publish {
    /// A subscription has to stand until then to surely get it. Of QoS 0 nobody hears when it is over.
    pub fn over_us(&self) -> Option<u64> {
        match self.qos {
            0 => self.proved_us.map(|_| u64::MAX),
            _ => self.acknowledged_us,
        }
    }

    /// From this time on it was surely read by the broker, and with QoS 1 and 2 handled.
    pub fn done_us(&self) -> Option<u64> {
        match self.qos {
            0 => self.proved_us,
            _ => self.acknowledged_us,
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Publishes {
    all: Vec<Publish>,
}

impl Publishes {
    /// Notes one; its number.
    pub fn add(&mut self, mut publish: Publish) -> u64 {
        publish.last_order = publish.order;
        self.all.push(publish);
        self.all.len() as u64 - 1
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.all.len() as u64
    }

    /// One of them.
    pub fn at(&self, number: u64) -> &Publish {
        &self.all[number as usize]
    }

    /// One of them.
    pub fn at_mut(&mut self, number: u64) -> &mut Publish {
        &mut self.all[number as usize]
    }

    /// With their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Publish)> {
        self.all.iter().enumerate().map(|(number, publish)| (number as u64, publish))
    }

    /// QoS of one.
    pub fn qos(&self, number: u64) -> u8 {
        self.at(number).qos
    }

    /// It was sent again, after `order`.
    pub fn resent(&mut self, number: u64, order: u64) {
        let publish = self.at_mut(number);
        publish.resent += 1;
        publish.last_order = order;
    }

    /// The bytes that say which publish it is.
    pub fn token(number: u64) -> String {
        format!("#{number};")
    }

    /// Its payload.
    pub fn payload(&self, number: u64) -> Vec<u8> {
        let publish = self.at(number);
        if publish.delete {
            return Vec::new();
        }
        let mut payload = Publishes::token(number).into_bytes();
        payload.extend((0..publish.padding).map(|i| b'a' + ((number as usize + i) % 26) as u8));
        payload
    }

    /// Which publish has this payload? `None` for an empty one, and for one that nobody sent.
    pub fn read(&self, payload: &[u8]) -> Option<u64> {
        let text = payload.strip_prefix(b"#")?;
        let end = text.iter().position(|byte| *byte == b';')?;
        let number: u64 = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
        (number < self.all.len() as u64 && self.payload(number) == payload).then_some(number)
    }

    /// For traces and failures.
    pub fn describe(&self, number: u64) -> String {
        let p = self.at(number);
        let flags = [
            (p.retain, " retain"),
            (p.delete, " delete"),
            (p.will, " will"),
            (p.refused, " refused"),
            (p.shaken, " shaken"),
        ];
        let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        format!(
            "#{number} {} q{}{flags} of client {} (sent {} acknowledged {:?} proved {:?} resent {})",
            p.topic, p.qos, p.publisher, p.sent_us, p.acknowledged_us, p.proved_us, p.resent
        )
    }
}
