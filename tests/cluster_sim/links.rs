//! Connections: what is sent over one comes in order while it lives, and is lost when it breaks.
//!
//! A cut holds back what is under way; it comes when the cut is healed in time, and is lost when
//! the connection is given up first. What a process had sent before it died still comes.

use std::collections::BTreeMap;

use stead_node::logic::heal::lineage::Lineage;
use stead_node::logic::replication::Lost;
use stead_shared::claims::ClaimsUpdate;
use stead_shared::control::{Control, HandoffId, ShardEpoch};
use stead_shared::id::{BootId, Epoch, NodeBoot, ShardId, Version};
use stead_shared::refusal::Refusal;
use stead_shared::sim::{Connect, Host};
use stead_shared::time::Time;

use crate::ctx::{Ctx, Happens, ms};
use crate::feed::Item;
use crate::host::{Ask, Contents, Session};

/// After so long without a sign a connection is given up: a ping after 1 s, 2 s for its answer.
const DEAD_AFTER: std::time::Duration = std::time::Duration::from_secs(3);

/// What travels.
#[derive(Clone, Debug)]
pub(crate) enum Msg {
    Control(Control),
    Claims(ClaimsUpdate),
    ClaimsWanted,
    Request(Ask),
    Answer {
        op: u32,
        attempt: u32,
        answer: Answer,
    },
    /// The stream of a copy begins.
    Begin {
        handoff: HandoffId,
        shards: Vec<ShardEpoch>,
    },
    Record {
        handoff: HandoffId,
        shard: ShardId,
        session: u8,
        state: Session,
    },
    /// All of it was sent; where the shards ended.
    End {
        handoff: HandoffId,
        ends: Vec<(ShardId, Version, Lineage)>,
    },
    /// To copies: the first has this position.
    Items {
        first: u64,
        items: Vec<Item>,
    },
    /// From copies: how far all was taken in, and what was refused.
    Taken {
        position: u64,
        refused: Vec<(u64, ShardId, Lost)>,
    },
    /// Sessions of a shard that was given up.
    Offer {
        number: u64,
        at: ShardEpoch,
        contents: Contents,
        /// Whoever took the shard over has all of it that was answered.
        unconfirmed: bool,
    },
    /// Whether all of them are settled.
    Settled {
        number: u64,
        all: bool,
    },
}

/// How a node answers a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Done {
        epoch: Epoch,
        value: u64,
    },
    Refused(Refusal),
    /// It may have been executed.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Requests and control: one per pair.
    Main,
    /// A stream of state.
    Bulk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Open,
    /// One end is gone; what was under way still comes.
    Closing,
}

#[derive(Debug)]
struct Conn {
    kind: Kind,
    ends: [Host; 2],
    boots: [BootId; 2],
    health: Health,
    /// When the last message sent by each end arrives.
    last: [Time; 2],
    /// How many messages each end has sent, and how many of them have come.
    sent: [u64; 2],
    came: [u64; 2],
    /// By their numbers, what came during a cut or before those that are to come first.
    held: [BTreeMap<u64, (Time, Msg)>; 2],
    is_up: [bool; 2],
    /// What each end sends takes so much longer.
    slow: [std::time::Duration; 2],
}

impl Conn {
    fn side(&self, host: Host) -> usize {
        usize::from(self.ends[0] != host)
    }
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Links {
    conns: BTreeMap<u64, Conn>,
    main: BTreeMap<(Host, Host), u64>,
    last_number: u64,
}

fn pair(a: Host, b: Host) -> (Host, Host) {
    (a.min(b), a.max(b))
}

impl Ctx {
    /// Opens a connection, when a connect would succeed and finds this boot.
    pub(crate) fn connect(
        &mut self,
        from: Host,
        to: Host,
        boot: BootId,
        kind: Kind,
    ) -> Option<u64> {
        let is_open = self.sim.connect(from, to) == Connect::Open && self.sim.is_running(to);
        if !is_open || self.boot_of(to) != boot || !self.sim.is_running(from) {
            return None;
        }
        if kind == Kind::Main
            && let Some(old) = self.links.main.get(&pair(from, to)).copied()
        {
            if self.links.conns.get(&old).is_some_and(|conn| conn.health == Health::Open) {
                return None;
            }
            self.links.conns.remove(&old);
        }
        self.links.last_number += 1;
        let id = self.links.last_number;
        let range = self.knobs.delay.clone();
        let near = self.between(&range);
        let far = near + self.between(&range);
        let now = self.now();
        let conn = Conn {
            kind,
            ends: [from, to],
            boots: [self.boot_of(from), boot],
            health: Health::Open,
            last: [now + near, now + far],
            sent: [0; 2],
            came: [0; 2],
            held: Default::default(),
            is_up: [false; 2],
            slow: Default::default(),
        };
        self.links.conns.insert(id, conn);
        match kind {
            Kind::Main => {
                self.links.main.insert(pair(from, to), id);
                self.after(to, near, Happens::Linked { conn: id });
                self.after(from, far, Happens::Linked { conn: id });
            }
            Kind::Bulk => {
                let conn = self.links.conns.get_mut(&id).expect("just opened");
                conn.is_up = [true; 2];
            }
        }
        Some(id)
    }

    /// The process at `host` learns that a connection is open. Who is there, if it still is.
    pub(crate) fn linked(&mut self, id: u64, host: Host) -> Option<NodeBoot> {
        let conn = self.links.conns.get_mut(&id)?;
        let side = conn.side(host);
        conn.is_up[side] = true;
        let other = 1 - side;
        let (peer, boot) = (conn.ends[other], conn.boots[other]);
        Some(NodeBoot { node: self.name_of(peer), boot })
    }

    /// The connection for requests and control, where the process at `from` has one to `to`.
    pub(crate) fn main(&self, from: Host, to: Host) -> Option<(u64, BootId)> {
        let id = *self.links.main.get(&pair(from, to))?;
        let conn = self.links.conns.get(&id)?;
        let side = conn.side(from);
        conn.is_up[side].then_some((id, conn.boots[1 - side]))
    }

    /// Everybody to whom the process at `from` has a connection.
    pub(crate) fn peers(&self, from: Host) -> Vec<Host> {
        (0..self.n_hosts())
            .map(Host)
            .filter(|&to| to != from && self.main(from, to).is_some())
            .collect()
    }

    pub(crate) fn send(&mut self, id: u64, from: Host, msg: Msg) {
        let range = self.knobs.delay.clone();
        let delay = self.between(&range);
        let now = self.now();
        let Some(conn) = self.links.conns.get_mut(&id) else { return };
        if conn.health != Health::Open {
            return;
        }
        let side = conn.side(from);
        let to = conn.ends[1 - side];
        let at = conn.last[side].max(now + delay + conn.slow[side]);
        conn.last[side] = at;
        conn.sent[side] += 1;
        let number = Some(conn.sent[side]);
        self.sim.timer(to, at, Happens::Delivered { conn: id, number, sent: now, msg });
    }

    /// What has come over a connection to `to`, unless it is lost or held back. Messages come in order
    /// but those that are repeated, which have no number.
    pub(crate) fn arrived(
        &mut self,
        (id, number, sent): (u64, Option<u64>, Time),
        to: Host,
        msg: Msg,
    ) -> Option<(Host, BootId, Msg)> {
        let present = self.boot_of(to);
        let conn = self.links.conns.get_mut(&id)?;
        let side = 1 - conn.side(to);
        let (from, boot) = (conn.ends[side], conn.boots[side]);
        // What was held back for a process that has died meanwhile is for nobody.
        if conn.boots[1 - side] != present {
            return None;
        }
        let is_cut = self.sim.is_cut(from, to);
        let Some(number) = number else { return (!is_cut).then_some((from, boot, msg)) };
        let next = conn.came[side] + 1;
        if is_cut || number != next {
            conn.held[side].insert(number, (sent, msg));
            return None;
        }
        conn.came[side] = number;
        if let Some((sent, msg)) = conn.held[side].remove(&(1 + number)) {
            let number = Some(1 + number);
            self.sim.timer(to, self.now(), Happens::Delivered { conn: id, number, sent, msg });
        }
        Some((from, boot, msg))
    }

    /// A connection breaks; what is under way is lost.
    pub(crate) fn break_conn(&mut self, id: u64) {
        let Some(conn) = self.links.conns.remove(&id) else { return };
        if self.links.main.get(&pair(conn.ends[0], conn.ends[1])) == Some(&id) {
            self.links.main.remove(&pair(conn.ends[0], conn.ends[1]));
        }
        for (host, peer) in [(conn.ends[0], conn.ends[1]), (conn.ends[1], conn.ends[0])] {
            let after = std::time::Duration::from_micros(u64::from(self.below(3_000)));
            self.after(host, after, Happens::Unlinked { conn: id, peer, kind: conn.kind });
        }
    }

    /// The process at `host` is gone: its peers learn it after what it had sent, or, without a
    /// last word, by silence.
    pub(crate) fn hang_up(&mut self, host: Host, has_last_word: bool) {
        let ids: Vec<u64> = self.conns_of(host);
        for id in ids {
            let now = self.now();
            let Some(conn) = self.links.conns.get_mut(&id) else { continue };
            conn.health = Health::Closing;
            let side = conn.side(host);
            let peer = conn.ends[1 - side];
            let at =
                if has_last_word { conn.last[side].max(now + ms(1)) } else { now + DEAD_AFTER };
            let kind = conn.kind;
            self.sim.timer(peer, at, Happens::Unlinked { conn: id, peer: host, kind });
        }
    }

    /// A process has seen that its connection to `peer` is gone. Whether it was the present one.
    pub(crate) fn unlinked(&mut self, id: u64, host: Host, peer: Host) -> bool {
        self.links.conns.remove(&id);
        let present = self.links.main.get(&pair(host, peer)).copied();
        if present == Some(id) {
            self.links.main.remove(&pair(host, peer));
        }
        present.is_none() || present == Some(id)
    }

    fn conns_of(&self, host: Host) -> Vec<u64> {
        let of_host = |(id, conn): (&u64, &Conn)| conn.ends.contains(&host).then_some(*id);
        self.links.conns.iter().filter_map(of_host).collect()
    }

    fn conns_between(&self, a: Host, b: Host) -> Vec<u64> {
        let between = |(id, conn): (&u64, &Conn)| {
            (conn.ends.contains(&a) && conn.ends.contains(&b)).then_some(*id)
        };
        self.links.conns.iter().filter_map(between).collect()
    }

    /// One of the connections of this kind, if there is any.
    pub(crate) fn some_conn(&mut self, kind: Kind) -> Option<u64> {
        let of_kind = |(id, conn): (&u64, &Conn)| (conn.kind == kind).then_some(*id);
        let ids: Vec<u64> = self.links.conns.iter().filter_map(of_kind).collect();
        let n = self.below(u32::try_from(ids.len()).expect("few"));
        ids.get(n as usize).copied()
    }

    /// All connections of this kind from and to a process break.
    pub(crate) fn break_all(&mut self, host: Host, kind: Kind) {
        for id in self.conns_of(host) {
            if self.links.conns.get(&id).is_some_and(|conn| conn.kind == kind) {
                self.break_conn(id);
            }
        }
    }

    /// What is sent from `from` to `to` takes longer from now on.
    pub(crate) fn slow_down(&mut self, from: Host, to: Host, by: std::time::Duration) {
        for id in self.conns_between(from, to) {
            if let Some(conn) = self.links.conns.get_mut(&id) {
                let side = conn.side(from);
                conn.slow[side] = by;
            }
        }
    }

    /// Nothing gets from `from` to `to`; connections are given up after a while.
    pub(crate) fn cut(&mut self, from: Host, to: Host) {
        self.sim.cut(from, to);
        let world = self.world();
        self.after(world, DEAD_AFTER, Happens::LinkTimeout { a: from, b: to });
    }

    /// Cuts and pauses that last give connections up.
    pub(crate) fn link_timeout(&mut self, a: Host, b: Host) {
        let is_silent = self.sim.is_cut(a, b)
            || self.sim.is_cut(b, a)
            || (self.sim.is_alive(a) && !self.sim.is_running(a));
        if is_silent {
            for id in self.conns_between(a, b) {
                self.break_conn(id);
            }
        }
    }

    /// All cuts are healed: what was held back comes now.
    pub(crate) fn heal(&mut self) {
        self.sim.heal();
        let ids: Vec<u64> = self.links.conns.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                let now = self.now();
                let Some(conn) = self.links.conns.get_mut(&id) else { continue };
                conn.slow = Default::default();
                let held = std::mem::take(&mut conn.held[side]);
                let to = conn.ends[1 - side];
                if !held.is_empty() {
                    conn.last[side] = conn.last[side].max(now + ms(1));
                }
                for (number, (sent, msg)) in held {
                    let number = Some(number);
                    self.sim.timer(to, now, Happens::Delivered { conn: id, number, sent, msg });
                }
            }
        }
    }
}
