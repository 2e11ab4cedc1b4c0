//! What can be tuned, and the rules that are put around foca.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Most bytes of a payload handed to the shell: what is left of a 1,400 byte datagram after the
/// authenticated envelope.
pub const PAYLOAD_BYTES_MAX: usize = 1_280;

/// A rule put around foca. Each mends something that was seen to go wrong without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Timers fire in one order, and the time for which this process stood still is not held
    /// against others.
    OrderedTimers,
    /// A suspicion that was refuted in time accuses nobody.
    RefutedIsForgotten,
    /// Whoever hears nobody accuses nobody, for a bounded time, and does not carry the
    /// accusations of its loneliness back into the cluster.
    DeafAccusesNobody,
    /// Seeds that are not up are tried for ever, their names resolved anew each time.
    SeedLoop,
    /// Whole lists are exchanged on joining and then periodically, with down members too.
    PushPull,
    /// A newcomer makes sure that no other process of its name is alive before it speaks.
    NameIsAsked,
    /// A newer boot of a node is the confirmed death of the older one.
    BootIsDeath,
    /// The ring is damped, and refused connects are proof of death.
    DampedRing,
    /// Leaving tells everybody.
    LeaveTellsAll,
    /// What we add to the gossip is small and sent on change only.
    NoticesOnChange,
}

impl Rule {
    /// All of them, in the order in which they are numbered in the design.
    pub const ALL: [Self; 10] = [
        Self::OrderedTimers,
        Self::RefutedIsForgotten,
        Self::DeafAccusesNobody,
        Self::SeedLoop,
        Self::PushPull,
        Self::NameIsAsked,
        Self::BootIsDeath,
        Self::DampedRing,
        Self::LeaveTellsAll,
        Self::NoticesOnChange,
    ];
}

/// The rules that hold. All of them, except in tests that show what each is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwimRules(u16);

impl SwimRules {
    /// Every rule.
    #[must_use]
    pub const fn all() -> Self {
        Self((1 << Rule::ALL.len()) - 1)
    }

    /// These rules but `rule`.
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u16))
    }

    /// Whether `rule` holds.
    #[must_use]
    pub const fn hold(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u16) != 0
    }
}

impl Default for SwimRules {
    fn default() -> Self {
        Self::all()
    }
}

/// How membership behaves. The defaults were chosen by simulation: a crash is seen by all within
/// about 3 s (5 s at most) up to 100 members, and 5 % loss takes nobody for dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwimConfig {
    /// How often one random member is probed. 500 ms. Shorter finds deaths sooner and costs
    /// packets in proportion.
    pub probe_period: Duration,
    /// How long a probe waits for its answer before it asks others to try. 200 ms; less than
    /// half of the period.
    pub probe_rtt: Duration,
    /// How many others try. 3.
    pub indirect_probes: NonZeroUsize,
    /// How long a suspect has to speak up. 2 s. Shorter takes paused processes for dead.
    pub suspicion: Duration,
    /// A member asks the next one in the order of ids for a sign of life when it heard nothing of
    /// it for this long. 750 ms. Random probes alone find a death after half a second or after
    /// three; this bounds it, for one small packet a second.
    pub watch_after: Duration,
    /// How often news is passed on, while there is any. 100 ms.
    pub gossip_period: Duration,
    /// To how many members. 3.
    pub gossip_fanout: NonZeroUsize,
    /// How often each piece of news is passed on by each member. 16; fewer leave a tail of
    /// members that learn it late.
    pub transmissions: NonZeroU8,
    /// How often members that are down are spoken to, so that a partition heals. 5 s.
    pub down_period: Duration,
    /// To how many of them. 3.
    pub down_fanout: NonZeroUsize,
    /// A member that heard nobody for this long is deaf. 2.5 s.
    pub deaf_after: Duration,
    /// A member that is deaf for this long holds that all others are gone. 30 s.
    pub deaf_max: Duration,
    /// How often seeds that are not up are tried. 5 s; sooner, from 200 ms on, until the first
    /// one answered.
    pub seed_period: Duration,
    /// How often the whole list is exchanged with one random known member. 10 s.
    pub push_pull_period: Duration,
    /// The same while nobody is known to be alive. 2 s.
    pub lonely_period: Duration,
    /// How long a process of this node's name has to answer a newcomer. 500 ms.
    pub name_timeout: Duration,
    /// How long a member that went down stays in the ring. 1 s. Longer moves less when a node
    /// comes right back, and leaves its shards without a target for longer.
    pub down_grace: Duration,
    /// Within what time refusals seen by different members count together. 10 s.
    pub refusal_window: Duration,
    /// Unclean deaths in [`flap_window`](Self::flap_window) that hold a node down. 3.
    pub flap_deaths: usize,
    /// 60 s.
    pub flap_window: Duration,
    /// How long it is held down the first time; each further time is twice as long. 30 s.
    pub hold_down: Duration,
    /// And this long at most. 5 min.
    pub hold_down_max: Duration,
    /// How many rounds of goodbyes a leaver sends, a gossip period apart. 3.
    pub leave_rounds: u32,
    /// How long members that left are listed. 10 min.
    pub remember_left: Duration,
    /// How long members that died are listed, and spoken to in case they were only cut off. 1 h.
    pub remember_down: Duration,
    /// Most members known at a time, gone ones included. 4096. The longest gone is forgotten
    /// first; beyond it newcomers are not taken in.
    pub n_members_max: usize,
    /// The rules that hold.
    pub rules: SwimRules,
}

impl Default for SwimConfig {
    fn default() -> Self {
        const THREE: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");
        Self {
            probe_period: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            indirect_probes: THREE,
            suspicion: Duration::from_secs(2),
            watch_after: Duration::from_millis(750),
            gossip_period: Duration::from_millis(100),
            gossip_fanout: THREE,
            transmissions: NonZeroU8::new(16).expect("sixteen is not zero"),
            down_period: Duration::from_secs(5),
            down_fanout: THREE,
            deaf_after: Duration::from_millis(2_500),
            deaf_max: Duration::from_secs(30),
            seed_period: Duration::from_secs(5),
            push_pull_period: Duration::from_secs(10),
            lonely_period: Duration::from_secs(2),
            name_timeout: Duration::from_millis(500),
            down_grace: Duration::from_secs(1),
            refusal_window: Duration::from_secs(10),
            flap_deaths: 3,
            flap_window: Duration::from_secs(60),
            hold_down: Duration::from_secs(30),
            hold_down_max: Duration::from_secs(300),
            leave_rounds: 3,
            remember_left: Duration::from_secs(600),
            remember_down: Duration::from_secs(3_600),
            n_members_max: 4_096,
            rules: SwimRules::all(),
        }
    }
}

impl SwimConfig {
    pub(crate) fn foca(&self) -> foca::Config {
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: self.indirect_probes,
            max_transmissions: self.transmissions,
            suspect_to_down_after: self.suspicion,
            // The roster decides when somebody is forgotten.
            remove_down_after: None,
            // One byte in front says what the payload is.
            max_packet_size: NonZeroUsize::new(PAYLOAD_BYTES_MAX - 1).expect("larger than one"),
            notify_down_members: true,
            // Push/pull tells all that an announcement would, and completely.
            periodic_announce: None,
            periodic_announce_to_down_members: Some(foca::PeriodicParams {
                frequency: self.down_period,
                num_members: self.down_fanout,
            }),
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: self.gossip_period,
                num_members: self.gossip_fanout,
            }),
        }
    }
}
