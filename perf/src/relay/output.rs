//! What one client of the relay is about to receive. Always true: the bytes of a send that is under way neither move nor
//! change until [`Output::sent`] has seen all of them, because the kernel reads them meanwhile.

use std::rc::Rc;

/// A client that reads so slowly that more than this waits for it is cut off.
pub const WAITING_BYTES_MAX: usize = 256 << 20;

/// Bytes for one client: those under way, then those that wait.
#[derive(Default)]
pub struct Output {
    own: Vec<u8>,
    shared: Option<Rc<Vec<u8>>>,
    flight: Flight,
    offset: usize,
    spare: Vec<u8>,
}

#[derive(Default)]
enum Flight {
    #[default]
    None,
    Own(Vec<u8>),
    Shared(Rc<Vec<u8>>),
}

impl Output {
    /// Bytes for this client alone, in order behind everything given before.
    pub fn own(&mut self) -> &mut Vec<u8> {
        if let Some(shared) = self.shared.take() {
            self.own.extend_from_slice(&shared);
        }
        &mut self.own
    }

    /// A batch that many clients receive. It is copied only if something else waits already.
    pub fn share(&mut self, batch: &Rc<Vec<u8>>) {
        if self.own.is_empty() && self.shared.is_none() {
            self.shared = Some(Rc::clone(batch));
        } else {
            self.own().extend_from_slice(batch);
        }
    }

    /// Bytes that wait behind the send that is under way.
    pub fn waiting_bytes(&self) -> usize {
        self.own.len() + self.shared.as_ref().map_or(0, |shared| shared.len())
    }

    /// Whether a send is under way.
    pub fn is_sending(&self) -> bool {
        !matches!(self.flight, Flight::None)
    }

    /// Takes all that waits as the next send, if none is under way.
    pub fn start(&mut self) -> Option<&[u8]> {
        if self.is_sending() || self.waiting_bytes() == 0 {
            return None;
        }
        self.offset = 0;
        self.flight = match self.shared.take() {
            Some(shared) => Flight::Shared(shared),
            None => Flight::Own(std::mem::replace(&mut self.own, std::mem::take(&mut self.spare))),
        };
        Some(self.flight.bytes())
    }

    /// The kernel took `count` bytes: the rest of this send, if there is one; `batch` receives a shared batch that
    /// nobody needs any more.
    pub fn sent(&mut self, count: usize, batch: impl FnOnce(Vec<u8>)) -> Option<&[u8]> {
        self.offset += count;
        if self.offset < self.flight.bytes().len() {
            return Some(&self.flight.bytes()[self.offset..]);
        }
        match std::mem::take(&mut self.flight) {
            Flight::None => {}
            Flight::Own(mut bytes) => {
                bytes.clear();
                self.spare = bytes;
            }
            Flight::Shared(shared) => {
                if let Some(shared) = Rc::into_inner(shared) {
                    batch(shared);
                }
            }
        }
        None
    }

    /// The send failed; what it carried is gone.
    pub fn abandon(&mut self) {
        self.flight = Flight::None;
    }
}

impl Flight {
    fn bytes(&self) -> &[u8] {
        match self {
            Flight::None => &[],
            Flight::Own(bytes) => bytes,
            Flight::Shared(shared) => shared,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_between_own_and_shared_bytes_and_across_short_sends() {
        let mut output = Output::default();
        let batch = Rc::new(b"batch".to_vec());
        output.share(&batch);
        assert_eq!(output.start(), Some(&b"batch"[..]));
        output.own().extend_from_slice(b"ack");
        output.share(&batch);
        assert_eq!(output.start(), None, "one send at a time");
        assert_eq!(output.sent(2, |_| panic!("still shared")), Some(&b"tch"[..]));
        assert_eq!(output.sent(3, |_| panic!("still shared")), None);
        assert_eq!(output.start(), Some(&b"ackbatch"[..]));
        assert_eq!(output.sent(8, |_| panic!("own bytes are no batch")), None);
        assert!(!output.is_sending());
    }

    #[test]
    fn the_last_client_that_sent_a_batch_gives_it_back() {
        let batch = Rc::new(b"x".to_vec());
        let mut outputs = [Output::default(), Output::default()];
        outputs.iter_mut().for_each(|output| output.share(&batch));
        drop(batch);
        let mut returned = 0;
        for output in &mut outputs {
            output.start();
            output.sent(1, |_| returned += 1);
        }
        assert_eq!(returned, 1);
    }
}
