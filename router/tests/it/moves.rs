//! A shard that moves back and forth under load. Goal: no client notices. Method: two owners count
//! requests by the rules of a handoff (sealed: `moving`; gone: `not-owner` with a hint, sometimes
//! without), clients send one write after another and check every answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use stead_shared::id::NodeId;
use stead_shared::refusal::{Claim, Refusal};
use tokio::task::{JoinSet, yield_now};

use crate::world::{Asked, World, soon};

const CLIENTS: usize = 24;
const WRITES: usize = 40;

/// What the two owners agree on.
struct Shard {
    owner: NodeId,
    counter: u64,
    is_sealed: bool,
    value: u64,
    n_refused: u64,
}

async fn serve(me: NodeId, shard: Arc<Mutex<Shard>>, mut asked: Asked) {
    assert_eq!(asked.body().await, b"+1");
    let refused = {
        let mut shard = shard.lock().unwrap();
        if shard.owner != me {
            shard.n_refused += 1;
            let epoch = stead_shared::id::Epoch { counter: shard.counter, node: shard.owner };
            let claim = (!shard.n_refused.is_multiple_of(3)).then_some(Claim { epoch });
            Err(Refusal::NotOwner { claim })
        } else if shard.is_sealed {
            shard.n_refused += 1;
            Err(Refusal::Moving)
        } else {
            shard.value += 1;
            let epoch = stead_shared::id::Epoch { counter: shard.counter, node: me };
            Ok((epoch, shard.value))
        }
    };
    match refused {
        Ok((epoch, value)) => asked.answer_at(epoch, &value.to_string()).await,
        Err(refusal) => asked.refuse(&refusal),
    }
}

#[tokio::test]
async fn no_write_is_lost_doubled_or_refused_while_a_shard_moves() {
    let n_refused = soon(writes_while_moving()).await;
    assert!(n_refused > 0, "moves were met at all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_when_all_that_happens_in_parallel() {
    soon(writes_while_moving()).await;
}

/// The number of refusals met.
async fn writes_while_moving() -> u64 {
    let mut world = World::new();
    let ids = [world.owners[0].id.node, world.owners[1].id.node];
    let shard = Shard { owner: ids[0], counter: 1, is_sealed: false, value: 0, n_refused: 0 };
    let shard = Arc::new(Mutex::new(shard));
    for (owner, me) in world.owners.iter_mut().zip(ids) {
        let shard = Arc::clone(&shard);
        owner.serve(move |asked| serve(me, Arc::clone(&shard), asked));
    }
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = world.client().await;
        clients.spawn(async move {
            let mut values = Vec::new();
            for _ in 0..WRITES {
                client.send("POST /s/k HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n+1").await;
                let got = client.got().await;
                assert_eq!(got.status, 200, "{}", got.text());
                values.push(got.text().parse::<u64>().unwrap());
            }
            assert!(values.is_sorted(), "a client's own writes are in order");
            values
        });
    }
    let mut counter = 1;
    let mut seen = BTreeSet::new();
    while let Some(values) = {
        // A move: sealed for some turns of the loop, then granted, then known.
        counter += 1;
        let next = counter % 2;
        shard.lock().unwrap().is_sealed = true;
        for _ in 0..counter % 7 {
            yield_now().await;
        }
        {
            let mut shard = shard.lock().unwrap();
            (shard.owner, shard.counter, shard.is_sealed) = (ids[next], counter as u64, false);
        }
        for _ in 0..counter % 5 {
            yield_now().await;
        }
        world.claim(next, counter as u64);
        for _ in 0..counter % 11 {
            yield_now().await;
        }
        match clients.try_join_next() {
            Some(values) => Some(values.unwrap()),
            None if clients.is_empty() => None,
            None => Some(Vec::new()),
        }
    } {
        seen.extend(values);
    }
    soon(world.parked(0)).await;
    let all = (CLIENTS * WRITES) as u64;
    assert_eq!(seen, (1..=all).collect(), "each write counted once");
    shard.lock().unwrap().n_refused
}
