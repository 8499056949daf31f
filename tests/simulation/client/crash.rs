//! What a crash of its node means to a client: which connection is gone, and what is left of its session.

use super::{Client, Reply};
use crate::{coverage::Coverage, oracle::Oracle, world::Env};

impl Client {
    /// The node of this client has died. `kept`: what it had acknowledged will be there again. `lossy`: nobody knows
    /// what will be.
    pub fn node_crashed(&mut self, env: &mut Env, kept: bool, lossy: bool) {
        let now_us = env.now_us;
        let (mut open, mut asked) = (false, false);
        if let Some(conn) = &mut self.conn {
            conn.crashed_us = Some(now_us);
            conn.forgotten = !kept;
            (open, asked) = (conn.open && !conn.leaving, !conn.open);
            if open {
                self.lease.left_us = now_us;
            }
        }
        if let Some(conn) = &self.conn
            && let Some(will) = conn.will
        {
            env.oracle.wills.connection_crashed(will, conn.pipe, conn.leaving, now_us);
        }
        let (least_s, most_s) = self.lease.expiry_s;
        if !kept {
            self.lease.expiry_s = (0, 0);
            self.lease.must_be_clean |= lossy;
        }
        let epoch = self.epoch;
        if lossy && asked {
            // Its CONNECT may yet find a session of which nobody knows what is left.
            self.cut(env, false);
        }
        let Some(epoch) = epoch else { return };
        if most_s == 0 && env.oracle.refused(self.cluster, env.oracle.epochs[epoch].connected_us, now_us) {
            // The end of the session before it may not be in the log, which takes it for living.
            self.lease.must_be_clean = true;
        }
        let over = least_s != u32::MAX && now_us >= self.lease.left_us + u64::from(least_s) * 1_000_000;
        if !kept || most_s == 0 {
            env.oracle.end_epoch(epoch, now_us);
        } else if asked || least_s == 0 || !open && over {
            // It may have ended before the crash, and be there again nevertheless.
            env.oracle.epochs[epoch].doubtful = true;
        }
    }

    /// The node of this client accepts again; it has forgotten ends of connections from `kept_us` on.
    pub fn node_up(&mut self, kept_us: u64, now_us: u64) {
        if self.lease.closed_us >= kept_us {
            self.lease.closed_us = now_us;
        }
    }

    /// Which handshakes a crash cuts.
    pub fn cover_handshakes(&self, oracle: &Oracle, coverage: &mut Coverage) {
        let Some(conn) = self.conn.as_ref().filter(|conn| conn.open) else { return };
        let qos2 = || self.out.iter().filter(|out| oracle.publishes.qos(out.number) == 2);
        coverage.one("cut_before_pubrec", qos2().filter(|out| !out.released).count() as u64);
        coverage.one("cut_before_pubcomp", qos2().filter(|out| out.released).count() as u64);
        coverage.one("cut_before_pubrel", self.received.len() as u64);
        let pubcomps = conn.acks.iter().filter(|(_, reply)| matches!(reply, Reply::Pubcomp(..))).count();
        coverage.one("cut_after_pubrel", pubcomps as u64);
    }
}
