//! Sessions that are in use while nodes come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, StatusCode};
use stead_node::Handle;
use stead_shared::net::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cluster::{SOON, key, pair, settled, start};
use crate::common::{request, text};

/// Clients that count, each on sessions of its own, and check every answer.
struct Counting {
    handles: watch::Sender<Vec<Handle>>,
    stop: Arc<AtomicBool>,
    counted: watch::Sender<u64>,
    clients: JoinSet<()>,
}

const CLIENTS: usize = 8;
const SESSIONS_EACH: usize = 25;

impl Counting {
    fn begin(handles: Vec<Handle>) -> Self {
        let (handles, seen) = watch::channel(handles);
        let (stop, counted) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let mut clients = JoinSet::new();
        for n in 0..CLIENTS {
            clients.spawn(count(n, seen.clone(), Arc::clone(&stop), counted.clone()));
        }
        Self { handles, stop, counted, clients }
    }

    /// From now on requests go to these nodes in turns.
    fn ask(&self, handles: &[&Handle]) {
        self.handles.send_replace(handles.iter().map(|&handle| handle.clone()).collect());
    }

    /// Lets every session be counted on a few times more.
    async fn some_more(&mut self) {
        let enough = *self.counted.borrow() + (CLIENTS * SESSIONS_EACH * 4) as u64;
        let mut counted = self.counted.subscribe();
        let counting = counted.wait_for(|counted| enough <= *counted);
        tokio::select! {
            biased;
            ended = self.clients.join_next() => panic!("a client has ended: {ended:?}"),
            counted = timeout(SOON, counting) => assert!(counted.is_ok(), "clients should count"),
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
    }
}

async fn count(
    client: usize,
    handles: watch::Receiver<Vec<Handle>>,
    stop: Arc<AtomicBool>,
    counted: watch::Sender<u64>,
) {
    let mut expected = 0;
    let mut turn = client;
    while !stop.load(Ordering::Relaxed) {
        expected += 1;
        for session in 0..SESSIONS_EACH {
            let handle = {
                let handles = handles.borrow();
                handles[turn % handles.len()].clone()
            };
            turn += 1;
            let session = format!("c{client}-{session}");
            let path = format!("/sessions/{session}/counters/visits");
            let answer = handle.request(key(&session), request(Method::POST, &path, "")).await;
            let answer = answer.unwrap_or_else(|refusal| panic!("{session}: {refusal:?}"));
            let (status, node) = (answer.status(), answer.headers().get("stead-node").cloned());
            let body = text(answer).await;
            assert_eq!(
                (status, body.as_str()),
                (StatusCode::OK, format!("{{\"value\":{expected}}}").as_str()),
                "{session} by {} at {node:?}",
                handle.name(),
            );
            counted.send_modify(|counted| *counted += 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_neither_lose_nor_repeat_a_value_while_nodes_come_and_go() {
    let a = start("a", None).await;
    let mut counting = Counting::begin(vec![a.handle.clone()]);
    counting.some_more().await;

    let b = start("b", Some(&a.handle)).await;
    counting.ask(&[&a.handle, &b.handle]);
    settled(&[&a.handle, &b.handle]).await;
    counting.some_more().await;

    a.handle.drain().await;
    counting.ask(&[&b.handle]);
    let report = a.leave().await;
    assert_eq!((report.shards_left, report.sessions_left, report.forced), (0, 0, false));
    settled(&[&b.handle]).await;
    counting.some_more().await;
    assert_eq!(b.handle.stats().sessions, (CLIENTS * SESSIONS_EACH) as u64);
    counting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_restarts_under_its_name_gets_its_shards_back() {
    let (a, b) = pair().await;
    let mut counting = Counting::begin(vec![b.handle.clone()]);
    counting.some_more().await;
    a.leave().await;
    settled(&[&b.handle]).await;
    let a = start("a", Some(&b.handle)).await;
    counting.ask(&[&a.handle, &b.handle]);
    settled(&[&a.handle, &b.handle]).await;
    counting.some_more().await;
    counting.end().await;
    assert_eq!(
        a.handle.stats().sessions + b.handle.stats().sessions,
        (CLIENTS * SESSIONS_EACH) as u64
    );
}
