//! Two sides of a cluster that cannot hear each other, and what is left when they can again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use stead_shared::net::admin::{ConflictsReport, ShardsReport, WhereReport};
use tokio::time::Instant;

use crate::client::{Connection, get_json, once};
use crate::counting::sessions;
use crate::harness::{Cluster, Plan, Site, eventually, fresh_dir, keys};
use crate::netns::{self, Host, Net};
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

struct Trial {
    cluster: Cluster,
    counters: Tally,
}

impl Trial {
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

#[tokio::test]
async fn what_both_sides_of_a_cut_changed_is_there_after_it_or_listed() {
    if let Err(why) = netns::able() {
        eprintln!("SKIPPED what_both_sides_of_a_cut_changed_is_there_after_it_or_listed: {why}");
        return;
    }
    let size = Size::asked_for();
    let lasts = if size.full { CUT } else { Duration::ZERO };
    let net = Net::new();
    let hosts: [Host; 6] = std::array::from_fn(|_| net.host());
    let (few, many) = hosts.split_at(2);
    let mut plan = Plan::of(0, SHARDS);
    plan.nodes = hosts[..5].iter().map(Site::at).collect();
    plan.router = Site::at(&hosts[5]);
    plan.options = vec!["--cluster-key-file".to_owned(), keys(&fresh_dir(), "keys.toml")];
    let cluster = Cluster::planned_alone(plan).await;
    cluster.settled(5).await;
    let counters = Tally::new("c", N_COUNTERS);
    let mut trial = Trial { cluster, counters };
    let values = sessions("v", N_VALUES);
    for session in &values {
        put(trial.at(0).0, session, COMMON.to_owned()).await;
    }
    trial.counters.until_answered(trial.at(0).0).await;

    let cut = Instant::now();
    for one in few {
        for other in many {
            net.cut(one, other);
        }
    }
    assert!(!net.reaches(&few[0], &many[0]) && net.reaches(&few[0], &few[1]), "the cut cuts");
    let (here, there) = (trial.at(1).0, trial.at(3).0);
    // Who is on the other side is found out while there is load.
    for _ in 0..3 {
        trial.counters.count_all(trial.at(0).0).await;
        trial.counters.count_all(trial.at(4).0).await;
    }
    trial.split(&[0, 1]).await;
    trial.split(&[2, 3, 4]).await;
    let mut n_rounds = 0;
    while n_rounds < 3 || cut.elapsed() < lasts {
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

    net.heal();
    let healed = Instant::now();
    let keys: Vec<String> = trial.counters.sessions().chain(&values).cloned().collect();
    let admins: Vec<SocketAddr> = (0..5).map(|node| trial.at(node).1).collect();
    eventually("one owner of each shard", size.within(ONE_OWNER), || async {
        for key in &keys {
            let mut owners = BTreeSet::new();
            for admin in &admins {
                let home: WhereReport = get_json(*admin, &format!("/v1/where?key={key}")).await?;
                owners.insert((home.owner, home.epoch));
            }
            if owners.len() != 1 || owners.iter().any(|(owner, _)| owner.is_none()) {
                return Err(format!("{key}: {owners:?}"));
            }
        }
        Ok(())
    })
    .await;
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
    for admin in &admins {
        let report: ConflictsReport = get_json(*admin, "/v1/conflicts").await.unwrap();
        // A side that began empty knew nothing of what was there: that is no ancestor of its value.
        for conflict in report.conflicts.into_iter().filter(|it| it.value != COMMON_BASE64) {
            assert!(listed.insert(conflict.key.clone()), "{} is listed twice", conflict.key);
        }
    }
    assert_eq!(listed, lost, "conflicts");
    let (counted, unknown) = trial.counters.told();
    println!("{counted} counted, {unknown} unknown, {} conflicts", listed.len());
}
