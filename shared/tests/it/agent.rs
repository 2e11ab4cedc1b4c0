//! Agents over real UDP. Push/pull goes through memory, everything else is as in production.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stead_shared::id::{BootId, ClusterId, NodeBoot, NodeId};
use stead_shared::keys::{KeyFile, Keyring, SecretKey};
use stead_shared::member::{Card, MemberState, Members, Phase, Role};
use stead_shared::net::agent::{
    Agent, AgentConfig, AgentError, AgentEvent, End, PeerError, PushPuller, on_own_thread,
};
use stead_shared::net::platform::Platform;
use stead_shared::net::{disk, sock};
use stead_shared::swim::{FatalReason, SelfDescription, SwimConfig};
use stead_shared::wire::datagram::{DATAGRAM_BYTES_MAX, Envelope};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

pub(crate) const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
pub(crate) const CLUSTER: ClusterId = ClusterId(7);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Who can be called where, instead of the link.
#[derive(Clone, Default)]
struct Directory(Arc<Mutex<BTreeMap<SocketAddr, (NodeBoot, Agent)>>>);

impl Directory {
    fn find(&self, addr: SocketAddr) -> Result<(NodeBoot, Agent), PeerError> {
        self.0.lock().unwrap().get(&addr).cloned().ok_or(PeerError::Refused)
    }
}

struct Peer {
    me: Mutex<NodeBoot>,
    addr: SocketAddr,
    directory: Directory,
}

impl PushPuller for Peer {
    async fn push_pull(
        &self,
        addr: SocketAddr,
        _node: Option<NodeId>,
        mine: Bytes,
    ) -> Result<(NodeBoot, Bytes), PeerError> {
        let (who, agent) = self.directory.find(addr)?;
        let me = *self.me.lock().unwrap();
        let answer = agent.push_pull(me, &mine).await;
        Ok((who, answer.map_err(|error| PeerError::Failed(error.to_string()))?))
    }

    async fn hello(&self, addr: SocketAddr) -> Result<NodeBoot, PeerError> {
        Ok(self.directory.find(addr)?.0)
    }

    fn boot_is(&self, boot: BootId) {
        let mut me = self.me.lock().unwrap();
        me.boot = boot;
        if let Some((who, _)) = self.directory.0.lock().unwrap().get_mut(&self.addr) {
            *who = *me;
        }
    }
}

/// One running agent.
struct Running {
    agent: Agent,
    events: mpsc::Receiver<AgentEvent>,
    me: NodeBoot,
    directory: Directory,
}

impl Running {
    fn addr(&self) -> SocketAddr {
        self.agent.gossip()
    }

    /// Waits until the members are as wanted.
    async fn until(&self, what: &str, wanted: impl FnMut(&Arc<Members>) -> bool) {
        let mut members = self.agent.members();
        let waiting = timeout(PATIENCE, members.wait_for(wanted)).await;
        assert!(waiting.is_ok(), "not within {PATIENCE:?}: {what}; {:#?}", self.agent.members());
    }

    /// Waits until the counters are as wanted.
    async fn counted(&self, what: &str, wanted: impl Fn(&Agent) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.agent) {
            assert!(Instant::now() < deadline, "{what}; {:#?}", self.agent.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits for so many more datagrams: some rounds of probes and gossip.
    async fn some_rounds(&self, packets: u64) {
        let before = self.agent.stats().packets_in;
        self.counted("no gossip", |agent| before + packets <= agent.stats().packets_in).await;
    }

    async fn died(&mut self, who: NodeBoot) -> bool {
        loop {
            let event = timeout(PATIENCE, self.events.recv()).await.expect("nobody died");
            match event.expect("the agent runs") {
                AgentEvent::Died { who: dead, confirmed } if dead == who => return confirmed,
                AgentEvent::Died { .. } | AgentEvent::Synced { .. } | AgentEvent::BootIs(_) => {}
            }
        }
    }

    fn deaths_so_far(&mut self) -> usize {
        let mut n = 0;
        while let Ok(event) = self.events.try_recv() {
            n += usize::from(matches!(event, AgentEvent::Died { .. }));
        }
        n
    }

    /// Ends it like a crash.
    async fn crash(self) -> SocketAddr {
        let addr = self.addr();
        self.directory.0.lock().unwrap().remove(&addr);
        self.agent.stop();
        assert_eq!(self.agent.ended().await, End::Stopped);
        addr
    }
}

pub(crate) struct Start<'a> {
    pub(crate) name: &'a str,
    pub(crate) boot: u64,
    pub(crate) seeds: &'a [SocketAddr],
    pub(crate) keys: Option<Keyring>,
    pub(crate) bind: SocketAddr,
}

/// More probes than usual, so that rounds pass in less time; as patient with suspects.
fn quick() -> SwimConfig {
    SwimConfig {
        probe_period: Duration::from_millis(60),
        probe_rtt: Duration::from_millis(25),
        gossip_period: Duration::from_millis(20),
        ..SwimConfig::default()
    }
}

pub(crate) fn config(start: &Start<'_>) -> AgentConfig {
    let of = NodeBoot { node: NodeId::of_name(start.name), boot: BootId(start.boot) };
    let card = Card {
        of,
        name: start.name.to_owned(),
        http: String::new(),
        admin: String::new(),
        zone: String::new(),
        n_shards: 64,
        balance_permille: 1050,
        secret_fingerprint: 1,
        version: "test".to_owned(),
    };
    let phase = Phase::Ready;
    AgentConfig {
        platform: Platform::system(),
        me: SelfDescription { card, role: Role::Node, weight: 1, zone: 0, gossip: ANY_PORT, phase },
        seeds: start.seeds.iter().map(ToString::to_string).collect(),
        keys: start.keys.clone(),
        insecure: false,
        cluster: CLUSTER,
        swim: quick(),
        data_dir: None,
    }
}

fn start(directory: &Directory, start: &Start<'_>) -> Running {
    let mut config = config(start);
    let me = config.me.card.of;
    let socket = sock::udp(start.bind, "--gossip").unwrap();
    config.me.gossip = socket.local_addr().unwrap();
    let (agent, run, events) = Agent::prepare(config, socket).unwrap();
    let addr = agent.gossip();
    directory.0.lock().unwrap().insert(addr, (me, agent.clone()));
    let peer = Peer { me: Mutex::new(me), addr, directory: directory.clone() };
    on_own_thread(run, Arc::new(peer)).unwrap();
    Running { agent, events, me, directory: directory.clone() }
}

fn keys() -> KeyFile {
    KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), 1)
}

/// Agents `a`, `b`, …; each joins by the first one, and all know all.
async fn cluster<const N: usize>(keys: Option<&KeyFile>) -> [Running; N] {
    let directory = Directory::default();
    let mut seeds = Vec::new();
    let all = ["a", "b", "c", "d"];
    let agents = std::array::from_fn(|i| {
        let ring = keys.map(KeyFile::keyring);
        let (name, boot) = (all[i], disk::unix_micros());
        let how = Start { name, boot, seeds: &seeds, keys: ring, bind: ANY_PORT };
        let running = start(&directory, &how);
        seeds.truncate(1);
        seeds.push(running.addr());
        seeds.truncate(1);
        running
    });
    for running in &agents {
        running.until("all know all", |members| n_ready(members) == N).await;
    }
    agents
}

pub(crate) fn n_ready(members: &Members) -> usize {
    members.list.iter().filter(|m| m.state == MemberState::Ready && m.card.is_some()).count()
}

pub(crate) fn n_live(members: &Members) -> usize {
    members.list.iter().filter(|member| member.state.is_live()).count()
}

fn state_of(members: &Members, node: NodeId) -> Option<MemberState> {
    members.find(node).map(|member| member.state)
}

#[tokio::test]
async fn three_agents_find_one_another_with_keys_and_without() {
    for keys in [None, Some(keys())] {
        let [a, b, c] = cluster::<3>(keys.as_ref()).await;
        for running in [&a, &b, &c] {
            running.some_rounds(10).await;
            assert_eq!(running.agent.stats().dropped.iter().sum::<u64>(), 0);
            let members = running.agent.members().borrow().clone();
            assert_eq!(members.me, running.me.node);
            let addr = members.my_self().unwrap().gossip;
            assert_eq!(addr, running.addr());
        }
    }
}

/// Requests may keep every thread of the process's own runtime busy: gossip goes on beside it.
#[tokio::test]
async fn a_busy_runtime_does_not_make_a_process_look_dead() {
    let [mut a, mut b] = cluster::<2>(None).await;
    let wanted = a.agent.stats().packets_in + 60;
    let deadline = Instant::now() + PATIENCE;
    // No await: this runtime has one thread, and it does nothing else.
    while a.agent.stats().packets_in < wanted {
        assert!(Instant::now() < deadline, "gossip has stopped");
        std::thread::yield_now();
    }
    for running in [&mut a, &mut b] {
        assert_eq!(running.deaths_so_far(), 0);
        assert_eq!(n_live(&running.agent.members().borrow()), 2);
    }
}

#[tokio::test]
async fn a_change_of_phase_or_weight_is_seen_by_all() {
    let [a, b] = cluster::<2>(None).await;
    b.agent.set_weight(5);
    b.agent.set_phase(Phase::Leaving);
    let b_node = b.me.node;
    a.until("leaving with weight 5", |members| {
        members.find(b_node).is_some_and(|m| m.state == MemberState::Leaving && m.weight == 5)
    })
    .await;
}

#[tokio::test]
async fn whoever_leaves_has_left_and_did_not_die() {
    let [mut a, b, mut c] = cluster::<3>(Some(&keys())).await;
    assert_eq!(b.agent.leave().await, End::Left);
    for running in [&mut a, &mut c] {
        let b_node = b.me.node;
        running.until("left", |members| state_of(members, b_node) == Some(MemberState::Left)).await;
        assert_eq!(running.deaths_so_far(), 0);
    }
}

#[tokio::test]
async fn two_refused_connects_are_proof_of_death() {
    let [mut a, b, mut c] = cluster::<3>(None).await;
    let dead = b.me;
    b.crash().await;
    a.agent.refused(dead, a.me.node);
    c.agent.refused(dead, c.me.node);
    assert!(a.died(dead).await);
    assert!(c.died(dead).await);
}

#[tokio::test]
async fn a_restart_is_the_confirmed_death_of_the_boot_before() {
    let [mut a, b] = cluster::<2>(None).await;
    let (old, directory) = (b.me, b.directory.clone());
    let bind = b.crash().await;
    let seeds = [a.addr()];
    let how = Start { name: "b", boot: old.boot.0 + 1, seeds: &seeds, keys: None, bind };
    let new = start(&directory, &how);
    assert!(a.died(old).await);
    a.until("the new boot is ready", |members| {
        members.find(old.node).is_some_and(|m| m.boot == new.me.boot && m.state.is_live())
    })
    .await;
}

#[tokio::test]
async fn two_processes_of_one_name_cannot_both_be_members() {
    let [a, b] = cluster::<2>(None).await;
    let seeds = [a.addr()];
    let boot = disk::unix_micros();
    let how = Start { name: "b", boot, seeds: &seeds, keys: None, bind: ANY_PORT };
    let twin = start(&a.directory, &how);
    let end = timeout(PATIENCE, twin.agent.ended()).await.unwrap();
    let taken = FatalReason::NameTaken { addr: b.addr(), boot: b.me.boot };
    assert_eq!(end, End::Fatal(taken));
    assert!(a.agent.members().borrow().is_live(b.me));
}

#[tokio::test]
async fn an_older_boot_id_is_raised_above_the_dead_one() {
    let [a, b] = cluster::<2>(None).await;
    let (old, directory) = (b.me, b.directory.clone());
    let bind = b.crash().await;
    let seeds = [a.addr()];
    let how = Start { name: "b", boot: old.boot.0 - 5, seeds: &seeds, keys: None, bind };
    let _late = start(&directory, &how);
    let wanted = BootId(old.boot.0 + 1);
    a.until("a boot above the dead one", |members| {
        members.find(old.node).is_some_and(|m| m.boot == wanted && m.state.is_live())
    })
    .await;
}

/// An attacker outside the cluster, with a socket and an address, against a cluster with keys.
#[tokio::test]
async fn what_an_outsider_sends_is_dropped_counted_and_never_answered() {
    let [mut a, mut b, c] = cluster::<3>(Some(&keys())).await;
    let outside = UdpSocket::bind(ANY_PORT).await.unwrap();
    let liar = NodeBoot { node: c.me.node, boot: BootId(disk::unix_micros()) };
    let unix_ms = disk::unix_micros() / 1000;
    let sealed = |cluster, keys: Option<Keyring>, to| {
        Envelope::new(liar, cluster, keys).seal(to, b"\x00victim", unix_ms, [3; 24]).unwrap()
    };
    let ring = || Some(keys().keyring());
    let wrong_key = KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([9; 32]), 1);
    let newer_key = wrong_key.clone().rotate(SecretKey::new([8; 32]), 1);
    let newest_only = {
        // A key that was rotated out, or is not known yet.
        let text = newer_key.render().replace("id = 2", "id = 9").replace("id = 1", "id = 8");
        KeyFile::parse(&text).unwrap().keyring()
    };
    let genuine = sealed(CLUSTER, ring(), a.me);
    let mut flipped = genuine.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut oversized = genuine.clone();
    oversized.resize(DATAGRAM_BYTES_MAX + 200, 0);
    let late = Envelope::new(liar, CLUSTER, ring())
        .seal(a.me, b"\x00victim", unix_ms - 60_000, [4; 24])
        .unwrap();
    let attacks = [
        (oversized, "oversized"),
        (genuine[..50].to_vec(), "truncated"),
        (b"\x01\x02\x03 a packet of another protocol".to_vec(), "not_ours"),
        (sealed(ClusterId(8), ring(), a.me), "wrong_cluster"),
        (sealed(CLUSTER, ring(), b.me), "wrong_destination"),
        (sealed(CLUSTER, None, a.me), "plain"),
        (sealed(CLUSTER, Some(newest_only), a.me), "unknown_key"),
        (sealed(CLUSTER, Some(wrong_key.keyring()), a.me), "forged"),
        (flipped, "forged"),
        (late, "clock"),
        (genuine.clone(), ""),
        (genuine.clone(), "replayed"),
        (genuine, "replayed"),
    ];
    let before = a.agent.members().borrow().list.iter().map(|m| m.boot).collect::<Vec<_>>();
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for (bytes, reason) in attacks {
        outside.send_to(&bytes, a.addr()).await.unwrap();
        if !reason.is_empty() {
            *wanted.entry(reason).or_default() += 1;
        }
    }
    let n_wanted = wanted.values().sum::<u64>();
    a.counted("all dropped", |agent| agent.stats().dropped.iter().sum::<u64>() == n_wanted).await;
    for (reason, n) in wanted {
        assert_eq!(a.agent.stats().dropped_for(reason), n, "{reason}");
    }
    // Loopback delivers within the call that sends, so an answer would be here.
    let mut answer = [0; 2000];
    assert!(outside.try_recv_from(&mut answer).is_err(), "nobody outside is answered");
    a.some_rounds(20).await;
    let after = a.agent.members().borrow().list.iter().map(|m| m.boot).collect::<Vec<_>>();
    assert_eq!((after, n_live(&a.agent.members().borrow())), (before, 3));
    assert_eq!((a.deaths_so_far(), b.deaths_so_far()), (0, 0));
}

/// The new key reaches one member after the other, with whole rounds of gossip between.
#[tokio::test]
async fn a_rotation_of_keys_loses_no_member_and_no_packet() {
    let old = keys();
    let mut all = cluster::<3>(Some(&old)).await;
    let new = old.rotate(SecretKey::new([5; 32]), 2);
    for at in 0..all.len() {
        all[at].agent.set_keys(new.keyring());
        for running in &all {
            running.some_rounds(10).await;
        }
    }
    // The old key goes: the file of the next rotation has the new one as its oldest.
    let next = new.rotate(SecretKey::new([6; 32]), 3);
    for running in &all {
        running.agent.set_keys(next.keyring());
    }
    for running in &mut all {
        running.some_rounds(20).await;
        assert_eq!(running.deaths_so_far(), 0);
        assert_eq!(running.agent.stats().dropped.iter().sum::<u64>(), 0);
        assert_eq!(n_live(&running.agent.members().borrow()), 3);
    }
}

#[tokio::test]
async fn an_agent_without_a_key_stays_on_loopback_unless_told_to_be_insecure() {
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let how = Start { name: "a", boot: 1, seeds: &[], keys: None, bind: everywhere };
    let socket = || sock::udp(everywhere, "--gossip").unwrap();
    let error = Agent::prepare(config(&how), socket()).unwrap_err();
    assert!(matches!(error, AgentError::NoKey { .. }), "{error:?}");
    assert!(error.to_string().contains("--cluster-key-file"));
    assert!(Agent::prepare(AgentConfig { insecure: true, ..config(&how) }, socket()).is_ok());
    let keys = Some(keys().keyring());
    assert!(Agent::prepare(AgentConfig { keys, ..config(&how) }, socket()).is_ok());

    let mut nowhere = AgentConfig { insecure: true, ..config(&how) };
    nowhere.me.gossip = everywhere;
    let error = Agent::prepare(nowhere, socket()).unwrap_err();
    assert!(error.to_string().contains("--advertise"), "{error}");
}
