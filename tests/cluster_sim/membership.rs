//! Who is there: the truth, and what each process has heard of it by now.

use std::sync::Arc;

use stead_shared::id::BootId;
use stead_shared::member::{Member, MemberState, Members, Phase, Role};
use stead_shared::placement::Targets;
use stead_shared::sim::Host;
use stead_shared::time::Time;

use crate::ctx::{Ctx, Happens, ms, targets_of};

/// How long placement counts a member that went down.
pub(crate) const DOWN_GRACE: std::time::Duration = std::time::Duration::from_secs(1);

/// What really is.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) boot: BootId,
    pub(crate) is_up: bool,
    pub(crate) phase: Phase,
    /// The latest news that went out to everybody.
    pub(crate) last: Option<News>,
}

/// What is thought of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Alive,
    Suspect,
    Down { confirmed: bool },
    Left,
}

/// News of one member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) about: Host,
    pub(crate) boot: BootId,
    /// Later news have higher ones.
    pub(crate) stamp: u64,
    pub(crate) phase: Phase,
    pub(crate) health: Health,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    news: News,
    down_since: Time,
}

/// What one process has heard.
#[derive(Debug)]
pub(crate) struct Sight {
    me: Host,
    seen: Vec<Option<Seen>>,
    pins: (u32, u8),
    pub(crate) members: Arc<Members>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) digest: u64,
}

/// What follows from news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Members,
    /// This boot is dead, too.
    Died {
        boot: BootId,
        confirmed: bool,
    },
}

impl Sight {
    pub(crate) fn new(ctx: &Ctx, me: Host) -> Self {
        let seen = (0..ctx.n_hosts()).map(|_| None).collect();
        let members = Arc::new(Members { me: ctx.name_of(me), list: Vec::new() });
        let (targets, digest) = targets_of(&ctx.params, &members, ctx.pins.1);
        let mut sight = Self { me, seen, pins: ctx.pins, members, targets, digest };
        let own = ctx.news_of(me, Health::Alive, 0);
        sight.seen[me.0 as usize] = Some(Seen { news: own, down_since: Time::ZERO });
        sight.rebuild(ctx);
        sight
    }

    /// Takes news in.
    pub(crate) fn take(&mut self, ctx: &Ctx, news: News) -> Change {
        let slot = &mut self.seen[news.about.0 as usize];
        let old = slot.map(|seen| seen.news);
        let is_new = old.is_none_or(|old| (old.boot, old.stamp) < (news.boot, news.stamp));
        // Of itself a process believes itself.
        if !is_new || (news.about == self.me && news.health != Health::Alive) {
            return Change::Nothing;
        }
        *slot = Some(Seen { news, down_since: ctx.now() });
        let change = match (old, news.health) {
            (Some(old), _) if old.boot < news.boot => match old.health {
                Health::Left | Health::Down { confirmed: true } => Change::Members,
                Health::Alive | Health::Suspect | Health::Down { confirmed: false } => {
                    Change::Died { boot: old.boot, confirmed: true }
                }
            },
            (_, Health::Down { confirmed }) => Change::Died { boot: news.boot, confirmed },
            (_, Health::Alive | Health::Suspect | Health::Left) => Change::Members,
        };
        self.rebuild(ctx);
        change
    }

    /// Takes pins in, if they are newer.
    pub(crate) fn pin(&mut self, ctx: &Ctx, pins: (u32, u8)) {
        self.pins = self.pins.max(pins);
        self.rebuild(ctx);
    }

    pub(crate) fn rebuild(&mut self, ctx: &Ctx) {
        let mut list: Vec<Member> =
            self.seen.iter().flatten().map(|seen| member_of(ctx, seen)).collect();
        list.sort_unstable_by_key(|member| member.id);
        self.members = Arc::new(Members { me: ctx.name_of(self.me), list });
        (self.targets, self.digest) = targets_of(&ctx.params, &self.members, self.pins.1);
    }

    /// The boot of this host that is thought to live.
    pub(crate) fn live(&self, host: Host) -> Option<BootId> {
        let news = self.seen[host.0 as usize].as_ref()?.news;
        match news.health {
            Health::Alive | Health::Suspect => Some(news.boot),
            Health::Down { .. } | Health::Left => None,
        }
    }
}

fn member_of(ctx: &Ctx, seen: &Seen) -> Member {
    let News { about, boot, phase, health, .. } = seen.news;
    let state = match (health, phase) {
        (Health::Alive, Phase::Joining) => MemberState::Joining,
        (Health::Alive, Phase::Ready) => MemberState::Ready,
        (Health::Alive, Phase::Leaving) => MemberState::Leaving,
        (Health::Suspect, _) => MemberState::Suspect,
        (Health::Down { .. }, _) => MemberState::Down,
        (Health::Left, _) => MemberState::Left,
    };
    let counts = match health {
        Health::Alive | Health::Suspect => true,
        Health::Down { .. } => ctx.now().since(seen.down_since) < DOWN_GRACE,
        Health::Left => false,
    };
    let role = if ctx.is_node(about) { Role::Node } else { Role::Router };
    Member {
        id: ctx.name_of(about),
        boot,
        role,
        phase,
        state,
        weight: 1,
        zone: 0,
        gossip: std::net::SocketAddr::from(([127, 0, 0, 1], 7000)),
        in_ring: role == Role::Node && phase == Phase::Ready && counts,
        held_down: false,
        card: None,
    }
}

impl Ctx {
    fn news_of(&self, about: Host, health: Health, stamp: u64) -> News {
        let truth = &self.truth[about.0 as usize];
        News { about, boot: truth.boot, stamp, phase: truth.phase, health }
    }

    pub(crate) fn stamped(&mut self, about: Host, health: Health) -> News {
        self.next_stamp += 1;
        self.news_of(about, health, self.next_stamp)
    }

    /// Tells everybody, each at its own time, at least `after` from now.
    pub(crate) fn spread(&mut self, news: News, after: std::time::Duration) {
        self.truth[news.about.0 as usize].last = Some(news);
        let range = self.knobs.news.clone();
        for host in (0..self.n_hosts()).map(Host).filter(|host| *host != news.about) {
            if self.sim.is_alive(host) {
                let lag = after + self.between(&range);
                self.after(host, lag, Happens::News(news));
            }
        }
    }

    /// A newcomer hears of everybody from one of them, at once.
    pub(crate) fn introduce(&mut self, host: Host) {
        let others = self.truth.iter().filter_map(|truth| truth.last);
        let news: Vec<News> = others.filter(|news| news.about != host).collect();
        let range = self.knobs.news.clone();
        let lag = self.between(&range);
        self.after(host, lag, Happens::Introduced(news));
    }

    /// A process says how far it is.
    pub(crate) fn set_phase(&mut self, host: Host, phase: Phase) -> News {
        self.truth[host.0 as usize].phase = phase;
        let news = self.stamped(host, Health::Alive);
        self.spread(news, ms(0));
        news
    }

    /// What the others make of the end of a process.
    pub(crate) fn mourn(&mut self, host: Host, confirmed: bool) {
        if confirmed {
            let news = self.stamped(host, Health::Down { confirmed });
            self.spread(news, ms(20));
        } else {
            let suspect = self.stamped(host, Health::Suspect);
            self.spread(suspect, ms(600));
            let down = self.stamped(host, Health::Down { confirmed });
            self.spread(down, ms(2_600));
        }
    }
}
