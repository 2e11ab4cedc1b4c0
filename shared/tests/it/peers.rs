//! Agents whose push/pull and hellos go over the real link: UDP and TCP on one port number.

use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use stead_shared::control::kind;
use stead_shared::id::{BootId, ClusterId, NodeBoot};
use stead_shared::keys::{KeyFile, SecretKey};
use stead_shared::member::{Members, Role};
use stead_shared::net::agent::{Agent, AgentEvent, End, on_own_thread};
use stead_shared::net::heard::{Heard, boottime};
use stead_shared::net::link::{
    CallError, LinkConfig, LinkLimits, Links, PeerInfo, Reply, ServerStream,
};
use stead_shared::net::mesh::{Hooks, Mesh};
use stead_shared::net::platform::Platform;
use stead_shared::net::{disk, sock};
use stead_shared::swim::FatalReason;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::agent::{ANY_PORT, CLUSTER, PATIENCE, Start, config, n_live, n_ready};

/// What a process does beside gossip: nothing.
struct Quiet;

impl Hooks for Quiet {
    fn opened(&self, _: PeerInfo, _: ServerStream) {}
    fn call(&self, _: PeerInfo, _: u8, _: Bytes, _: Reply) {}
}

/// A process: gossip and links.
struct Process {
    agent: Agent,
    links: Links,
    events: mpsc::Receiver<AgentEvent>,
    me: NodeBoot,
    server: JoinHandle<()>,
    mesh: JoinHandle<()>,
}

impl Process {
    fn start(how: &Start<'_>, keys: Option<&KeyFile>, cluster: ClusterId) -> Self {
        let mut config = config(how);
        let me = config.me.card.of;
        let (socket, listener) = sock::udp_and_tcp(how.bind, "--gossip").unwrap();
        config.me.gossip = socket.local_addr().unwrap();
        config.cluster = cluster;
        config.keys = keys.map(KeyFile::keyring);
        let (agent, run, events) = Agent::prepare(config, socket).unwrap();
        let link_config = LinkConfig {
            me,
            role: Role::Node,
            cluster,
            keys: keys.map(|keys| keys.link_keys().secrets()).unwrap_or_default(),
            limits: LinkLimits::default(),
        };
        let heard = Arc::new(Heard::new(false, Box::new(boottime)));
        let (mesh, _) = Mesh::new(link_config, Platform::system(), Arc::new(Quiet), heard);
        let (links, peers) = (mesh.links(), mesh.peers());
        let mesh = tokio::spawn(mesh.run(agent.clone()));
        let serving = links.clone();
        let server = tokio::spawn(async move { serving.serve(listener, pending()).await });
        on_own_thread(run, peers).unwrap();
        Self { agent, links, events, me, server, mesh }
    }

    async fn until(&self, what: &str, wanted: impl FnMut(&Arc<Members>) -> bool) {
        let mut members = self.agent.members();
        let waiting = timeout(PATIENCE, members.wait_for(wanted)).await;
        assert!(waiting.is_ok(), "not within {PATIENCE:?}: {what}; {:#?}", self.agent.members());
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

    /// Ends it like a kill -9: no goodbye, and its port refuses.
    async fn crash(self) {
        let Self { agent, links, server, mesh, .. } = self;
        agent.stop();
        server.abort();
        mesh.abort();
        assert!(server.await.is_err(), "the port is closed");
        links.close_all().await;
        assert_eq!(agent.ended().await, End::Stopped);
    }
}

fn keys() -> KeyFile {
    KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([2; 32]), 1)
}

async fn three(keys: Option<&KeyFile>) -> [Process; 3] {
    let mut seeds = Vec::new();
    let all = ["a", "b", "c"].map(|name| {
        let boot = disk::unix_micros();
        let how = Start { name, boot, seeds: &seeds, keys: None, bind: ANY_PORT };
        let process = Process::start(&how, keys, CLUSTER);
        if seeds.is_empty() {
            seeds.push(process.agent.gossip());
        }
        process
    });
    for process in &all {
        process.until("all know all", |members| n_ready(members) == 3).await;
    }
    all
}

fn joiner<'a>(seeds: &'a [std::net::SocketAddr], name: &'a str) -> Start<'a> {
    Start { name, boot: disk::unix_micros(), seeds, keys: None, bind: ANY_PORT }
}

#[tokio::test]
async fn three_processes_find_one_another_over_the_link_and_one_leaves() {
    for keys in [None, Some(keys())] {
        let [a, b, c] = three(keys.as_ref()).await;
        assert_eq!(b.agent.leave().await, End::Left);
        for process in [&a, &c] {
            process.until("left", |members| n_live(members) == 2).await;
        }
    }
}

#[tokio::test]
async fn a_crash_is_proved_by_refused_connects_before_silence_would_tell() {
    let [mut a, b, mut c] = three(None).await;
    let dead = b.me;
    b.crash().await;
    assert!(a.died(dead).await && c.died(dead).await, "confirmed");
}

#[tokio::test]
async fn a_joiner_with_another_key_or_cluster_ends_with_what_to_do() {
    let [a, b, _c] = three(Some(&keys())).await;
    let seeds = [a.agent.gossip()];
    let other = KeyFile::generate(SecretKey::new([1; 32]), SecretKey::new([9; 32]), 1);
    let cases = [
        (Some(&other), CLUSTER, "--cluster-key-file"),
        (None, CLUSTER, "--cluster-key-file"),
        (Some(&keys()), ClusterId(9), "--cluster"),
    ];
    for (keys, cluster, advice) in cases {
        let stranger = Process::start(&joiner(&seeds, "d"), keys, cluster);
        let end = timeout(PATIENCE, stranger.agent.ended()).await.unwrap();
        let End::Rejected { addr, why } = end else { panic!("{end:?}") };
        assert_eq!(addr, seeds[0]);
        assert!(why.contains(advice), "{why}");
    }
    assert_eq!(n_live(&b.agent.members().borrow()), 3);
}

#[tokio::test]
async fn a_joiner_with_the_new_key_file_meets_members_that_have_the_old_one() {
    let [a, b, c] = three(Some(&keys())).await;
    let new = keys().rotate(SecretKey::new([5; 32]), 2);
    let seeds = [a.agent.gossip()];
    let d = Process::start(&joiner(&seeds, "d"), Some(&new), CLUSTER);
    for process in [&a, &b, &c, &d] {
        process.until("all four", |members| n_ready(members) == 4).await;
    }
    for process in [&a, &b, &c] {
        process.agent.set_keys(new.keyring());
        process.links.set_keys(&new.link_keys().secrets());
    }
    let next = new.rotate(SecretKey::new([6; 32]), 3);
    let e = Process::start(&joiner(&seeds, "e"), Some(&next), CLUSTER);
    e.until("all five", |members| n_ready(members) == 5).await;
}

#[tokio::test]
async fn two_processes_of_one_name_are_told_apart_by_the_hello() {
    let [a, b, _c] = three(Some(&keys())).await;
    let seeds = [a.agent.gossip()];
    let twin = Process::start(&joiner(&seeds, "b"), Some(&keys()), CLUSTER);
    let end = timeout(PATIENCE, twin.agent.ended()).await.unwrap();
    let taken = FatalReason::NameTaken { addr: b.agent.gossip(), boot: b.me.boot };
    assert_eq!(end, End::Fatal(taken));
    assert!(a.agent.members().borrow().is_live(b.me));
}

/// The clock went back between two runs, and there is no data directory.
#[tokio::test]
async fn a_boot_id_that_was_raised_is_the_one_in_hellos_too() {
    let [a, b, c] = three(None).await;
    let (old, bind) = (b.me, b.agent.gossip());
    b.crash().await;
    let seeds = [a.agent.gossip()];
    let how = Start { bind, boot: old.boot.0 - 5, ..joiner(&seeds, "b") };
    let _late = Process::start(&how, None, CLUSTER);
    let wanted = NodeBoot { boot: BootId(old.boot.0 + 1), ..old };
    for process in [&a, &c] {
        process.until("the raised boot", |members| members.is_live(wanted)).await;
        let dialled = process.links.to(old.node, Some(wanted.boot), bind).await;
        assert_eq!(dialled.unwrap().peer().node_boot(), wanted);
    }
}

#[tokio::test]
async fn a_call_that_brings_no_list_is_not_answered_and_harms_nothing() {
    let [a, b, _c] = three(None).await;
    let link = a.links.to(b.me.node, Some(b.me.boot), b.agent.gossip()).await.unwrap();
    for garbage in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", &[7; 5000]] {
        let answer = link.call(kind::PUSH_PULL, Bytes::copy_from_slice(garbage), PATIENCE).await;
        assert_eq!(answer, Err(CallError::Unanswered));
    }
    assert!(!link.is_closed());
    assert_eq!(n_live(&b.agent.members().borrow()), 3);
}
