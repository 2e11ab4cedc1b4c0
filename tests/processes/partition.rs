//! Two sides of a cluster that cannot hear each other, and what is left when they can again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use stead_shared::net::admin::{ConflictsReport, MembersReport, ShardsReport, WhereReport};
use tokio::time::Instant;

use crate::client::{Answer, Connection, get_json, once};
use crate::counting::sessions;
use crate::harness::{Cluster, Plan, SOON, Site, eventually, fresh_dir, keys};
use crate::netns::{self, Host, Net};
use crate::promises::{MEMORY, NO_COPIES};
use crate::tally::Tally;
use crate::trial::Size;

const SHARDS: u32 = 64;
const N_COUNTERS: usize = 60;
const N_VALUES: usize = 20;
/// How long everybody has to take the other side for dead and its shards over: some are claimed only
/// after `orphan_grace`.
const TAKEN_OVER: Duration = Duration::from_secs(60);
/// What every value is before the cut.
const COMMON: &str = "common";
const COMMON_BASE64: &str = "Y29tbW9u";
/// How long a cut lasts at full size.
const CUT: Duration = Duration::from_secs(30);
/// How long it takes until one node has each shard, from when everybody hears everybody.
const ONE_OWNER: Duration = Duration::from_secs(10);
/// How long what both sides have may take to meet.
const HEALED: Duration = Duration::from_secs(60);
/// The smaller side.
const FEW: [usize; 2] = [0, 1];
/// The larger one, where the router is, too.
const MANY: [usize; 3] = [2, 3, 4];

/// Five nodes, and counters that were counted once at least.
struct Trial {
    size: Size,
    cluster: Cluster,
    counters: Tally,
    hosts: [Host; 6],
    // Ends when nobody is there any more.
    net: Net,
}

impl Trial {
    async fn start(options: &[&str]) -> Self {
        let net = Net::new();
        let hosts: [Host; 6] = std::array::from_fn(|_| net.host());
        let mut plan = Plan::of(0, SHARDS);
        plan.nodes = hosts[..5].iter().map(Site::at).collect();
        plan.router = Site::at(&hosts[5]);
        plan.options = vec!["--cluster-key-file".to_owned(), keys(&fresh_dir(), "keys.toml")];
        plan.node_options = options.iter().map(|word| (*word).to_owned()).collect();
        let cluster = Cluster::planned_alone(plan).await;
        cluster.settled(5).await;
        let counters = Tally::new("c", N_COUNTERS);
        let mut trial = Self { size: Size::asked_for(), cluster, counters, hosts, net };
        trial.counters.until_answered(trial.at(0).0).await;
        trial
    }

    /// The few hear the many no more.
    fn cut(&self) {
        let (few, many) = self.hosts.split_at(FEW.len());
        for one in few {
            for other in many {
                self.net.cut(one, other);
            }
        }
        let reaches = |a: &Host, b: &Host| self.net.reaches(a, b);
        assert!(!reaches(&few[0], &many[0]) && reaches(&few[0], &few[1]), "the cut cuts");
    }

    fn cut_lasts(&self) -> Duration {
        if self.size.full { CUT } else { Duration::ZERO }
    }

    /// Waits until everybody names the same owner of each key.
    async fn has_one_owner_of_each(&self, keys: &[String]) {
        eventually("one owner of each shard", self.size.within(ONE_OWNER), || async {
            for key in keys {
                let mut owners = BTreeSet::new();
                for node in 0..5 {
                    let path = format!("/v1/where?key={key}");
                    let home: WhereReport = get_json(self.at(node).1, &path).await?;
                    owners.insert((home.owner, home.epoch));
                }
                if owners.len() != 1 || owners.iter().any(|(owner, _)| owner.is_none()) {
                    return Err(format!("{key}: {owners:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Whether a node takes itself for one of too few, of five that it knows.
    async fn is_minority(&self, node: usize) -> Result<bool, String> {
        let report: MembersReport = get_json(self.at(node).1, "/v1/members").await?;
        match report.majority {
            Some(majority) if majority.settled == 5 => Ok(majority.is_minority),
            other => Err(format!("{other:?}")),
        }
    }

    fn at(&self, node: usize) -> (SocketAddr, SocketAddr) {
        (self.cluster.nodes[node].http, self.cluster.nodes[node].admin)
    }

    /// Waits until all shards have owners among these nodes, as each of them sees it, and every
    /// counter can be counted.
    async fn split(&mut self, side: &[usize]) {
        for &node in side {
            let (_, admin) = self.at(node);
            eventually("owners for all shards on one side", TAKEN_OVER, || async {
                let report: ShardsReport = get_json(admin, "/v1/shards").await?;
                let is_split = report.unowned == 0 && report.by_node.len() == side.len();
                if is_split { Ok(()) } else { Err(format!("{report:?}")) }
            })
            .await;
        }
        self.counters.until_answered(self.at(side[0]).0).await;
    }
}

async fn put(addr: SocketAddr, session: &str, value: String) {
    let path = format!("/sessions/{session}");
    let mut connection = Connection::open(addr).await.unwrap();
    let body = Bytes::from(value);
    connection.send_body(Method::PUT, &path, body).await.unwrap().success().unwrap();
}

async fn value(addr: SocketAddr, session: &str) -> Result<String, String> {
    let answer = once(addr, Method::GET, &format!("/sessions/{session}")).await?.success()?;
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// Goal: what either side of a cut answered is there when it has healed, or listed, whatever answers
/// wait for. Method: counters are counted on both sides, values are written on one of them or on both;
/// afterwards counters must have what both sides answered and no more than they were asked.
async fn what_both_sides_changed_is_there(test: &str, options: &[&str]) {
    if netns::is_missing_for(test) {
        return;
    }
    let mut trial = Trial::start(options).await;
    let values = sessions("v", N_VALUES);
    for session in &values {
        put(trial.at(0).0, session, COMMON.to_owned()).await;
    }

    let cut = Instant::now();
    trial.cut();
    let (here, there) = (trial.at(1).0, trial.at(3).0);
    // Who is on the other side is found out while there is load.
    for _ in 0..3 {
        trial.counters.count_all(trial.at(0).0).await;
        trial.counters.count_all(trial.at(4).0).await;
    }
    trial.split(&FEW).await;
    trial.split(&MANY).await;
    let mut n_rounds = 0;
    while n_rounds < 3 || cut.elapsed() < trial.cut_lasts() {
        assert!(trial.counters.count_all(here).await && trial.counters.count_all(there).await);
        n_rounds += 1;
    }
    // A third of the values changes here, a third there, the rest on both sides.
    let mut wanted = BTreeMap::new();
    let mut lost = BTreeSet::new();
    for (i, session) in values.iter().enumerate() {
        if i % 3 != 1 {
            put(trial.at(0).0, session, format!("few {session}")).await;
            wanted.insert(session.clone(), format!("few {session}"));
        }
        if i % 3 != 0 {
            put(trial.at(2).0, session, format!("many {session}")).await;
            wanted.insert(session.clone(), format!("many {session}"));
        }
        if i % 3 == 2 {
            lost.insert(session.clone());
        }
    }

    trial.net.heal();
    let healed = Instant::now();
    let keys: Vec<String> = trial.counters.sessions().chain(&values).cloned().collect();
    trial.has_one_owner_of_each(&keys).await;
    println!("one owner of each shard {:.1} s after the heal", healed.elapsed().as_secs_f64());
    let http = trial.at(2).0;
    trial.counters.is_whole(http, HEALED).await;
    println!("all counters are whole {:.1} s after the heal", healed.elapsed().as_secs_f64());
    eventually("the values that were written last", HEALED, || async {
        for (session, wanted) in &wanted {
            let seen = value(http, session).await?;
            if seen != *wanted {
                return Err(format!("{session}: {seen}, not {wanted}"));
            }
        }
        Ok(())
    })
    .await;
    let mut listed = BTreeSet::new();
    for node in 0..5 {
        let report: ConflictsReport = get_json(trial.at(node).1, "/v1/conflicts").await.unwrap();
        // A side that began empty knew nothing of what was there: that is no ancestor of its value.
        for conflict in report.conflicts.into_iter().filter(|it| it.value != COMMON_BASE64) {
            assert!(listed.insert(conflict.key.clone()), "{} is listed twice", conflict.key);
        }
    }
    assert_eq!(listed, lost, "conflicts");
    let (counted, unknown) = trial.counters.told();
    println!("{counted} counted, {unknown} unknown, {} conflicts", listed.len());
}

#[tokio::test]
async fn what_both_sides_of_a_cut_changed_is_there_after_it_or_listed() {
    let test = "what_both_sides_of_a_cut_changed_is_there_after_it_or_listed";
    what_both_sides_changed_is_there(test, &[]).await;
}

#[tokio::test]
async fn what_both_sides_answered_from_memory_is_there_after_a_cut_or_listed() {
    let test = "what_both_sides_answered_from_memory_is_there_after_a_cut_or_listed";
    what_both_sides_changed_is_there(test, &MEMORY).await;
}

#[tokio::test]
async fn what_both_sides_changed_without_copies_is_there_after_a_cut_or_listed() {
    let test = "what_both_sides_changed_without_copies_is_there_after_a_cut_or_listed";
    what_both_sides_changed_is_there(test, &NO_COPIES).await;
}

/// Goal: with `--on-minority stop` the smaller side of a cut answers nothing from when it has noticed
/// until it hears the others again, and what it answered before that is not lost, whatever answers
/// wait for. Method: counters are counted on both sides until the smaller one refuses, then on the
/// larger one, and on both again after the heal; they must have what was answered and no more than was
/// asked.
async fn the_smaller_side_stops(test: &str, options: &[&str]) {
    if netns::is_missing_for(test) {
        return;
    }
    let stop = ["--on-minority", "stop", "--settled-after", "8s"];
    let mut trial = Trial::start(&[&stop, options].concat()).await;
    for node in 0..5 {
        eventually("a settled set of five", SOON, || trial.is_minority(node)).await;
    }

    let cut = Instant::now();
    trial.cut();
    let (here, there) = (trial.at(1).0, trial.at(3).0);
    for node in FEW {
        while !trial.is_minority(node).await.unwrap() {
            assert!(cut.elapsed() < SOON, "n{} does not notice", node + 1);
            trial.counters.count_all(here).await;
            trial.counters.count_all(there).await;
        }
    }
    println!("both of the few have noticed after {:.1} s", cut.elapsed().as_secs_f64());
    trial.split(&MANY).await;
    let mut n_rounds = 0;
    while n_rounds < 3 || cut.elapsed() < trial.cut_lasts() {
        assert!(trial.counters.count_all(there).await);
        for node in FEW {
            for session in trial.counters.sessions() {
                let path = format!("/sessions/{session}/counters/visits");
                for method in [Method::GET, Method::POST] {
                    let answer = once(trial.at(node).0, method, &path).await.unwrap();
                    assert_eq!(answer.status.as_u16(), 503, "{session}: {answer:?}");
                    assert_eq!(answer.header("stead-refusal"), "degraded", "{answer:?}");
                }
            }
        }
        n_rounds += 1;
    }

    trial.net.heal();
    let healed = Instant::now();
    for node in FEW {
        eventually("most of the cluster", SOON, || async {
            let ready: Answer = once(trial.at(node).1, Method::GET, "/readyz").await?;
            match (trial.is_minority(node).await?, ready.status.as_u16()) {
                (false, 200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    println!("both of the few are ready {:.1} s after the heal", healed.elapsed().as_secs_f64());
    trial.counters.until_answered(here).await;
    let keys: Vec<String> = trial.counters.sessions().cloned().collect();
    trial.has_one_owner_of_each(&keys).await;
    for node in [1, 3] {
        trial.counters.is_whole(trial.at(node).0, HEALED).await;
    }
    let (counted, unknown) = trial.counters.told();
    println!("{counted} counted, {unknown} unknown");
}

#[tokio::test]
async fn the_smaller_side_of_a_cut_stops_and_loses_nothing() {
    the_smaller_side_stops("the_smaller_side_of_a_cut_stops_and_loses_nothing", &[]).await;
}

#[tokio::test]
async fn the_smaller_side_with_answers_from_memory_stops_and_loses_nothing() {
    let test = "the_smaller_side_with_answers_from_memory_stops_and_loses_nothing";
    the_smaller_side_stops(test, &MEMORY).await;
}

#[tokio::test]
async fn the_smaller_side_without_copies_stops_and_loses_nothing() {
    the_smaller_side_stops("the_smaller_side_without_copies_stops_and_loses_nothing", &NO_COPIES)
        .await;
}
