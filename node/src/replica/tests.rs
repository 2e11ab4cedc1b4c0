//! Both ends without a link, in virtual time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use proptest::collection::vec;
use proptest::prelude::*;
use stead_shared::id::{BootId, NodeId, RequestId, SessionKey};
use stead_shared::wire::http::RequestMeta;
use stead_shared::wire::link::PROTOCOL;
use tokio::time::advance;

use super::copies::Intake;
use super::frame::{Ack, FrameReader};
use super::*;
use crate::logic::window::Window;
use crate::store::following::FillStep;
use crate::{Body, HostConfig, Session, SharedService};

const SHARD: ShardId = ShardId(7);
const A: NodeBoot = NodeBoot { node: NodeId(0xa), boot: BootId(1) };
const B: NodeBoot = NodeBoot { node: NodeId(0xb), boot: BootId(1) };
const EPOCH: Epoch = Epoch { counter: 1, node: A.node };
const NEXT: Epoch = Epoch { counter: 2, node: B.node };

/// An owner, its copy, and what is between them.
struct Pair {
    owner: Host,
    other: Host,
    feed: Lease,
    intake: Intake,
    /// Sent over the connection that there is.
    sent: u64,
}

/// What it counts, it deletes where that is asked.
fn host() -> Host {
    let call = async |session: Session, request: Request<Body>| {
        if request.method() == Method::DELETE {
            session.delete().unwrap();
            return Response::new(Body::empty());
        }
        Response::new(Body::from(session.add("asked", 1).unwrap().to_string()))
    };
    let ttl = Duration::from_secs(4000);
    let config =
        HostConfig { session_ttl: ttl, acks: crate::Acks::Memory, ..HostConfig::default() };
    Host::new(config, SharedService::new(call))
}

/// What a copy is sent, by nobody.
pub(crate) fn feed(owner: &Host, to: NodeBoot) -> Arc<Feed> {
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    let (reports, _) = mpsc::unbounded_channel();
    let meters = Arc::clone(&owner.replicas().meters);
    Arc::new(Feed::new((to, addr), 0, usize::MAX, reports, meters))
}

impl Pair {
    fn new() -> Self {
        let (owner, other) = (host(), host());
        owner.activate_empty(SHARD, EPOCH);
        let feed = Lease::new(&feed(&owner, B));
        let intake = Intake::new(&other, A);
        Self { owner, other, feed, intake, sent: 0 }
    }

    fn queue_fill(&self) {
        let shard = self.owner.shard(SHARD).unwrap();
        let epoch = shard.gate().epoch().unwrap();
        shard.queue_fill(self.feed.feed(), epoch).unwrap();
    }

    /// One step of the fill that was queued last.
    fn begin(&self) -> (Arc<Shard>, u64) {
        let (shard, follow) = self.feed.feed().next_fill().unwrap();
        assert!(shard.begin_fill(follow));
        (shard, follow)
    }

    fn fill(&self) {
        self.queue_fill();
        let (shard, follow) = self.begin();
        let mut cursor = 0;
        while shard.fill_step(follow, &mut cursor) == FillStep::More {}
    }

    /// The other end takes in what was not sent yet. What it refused.
    fn deliver(&mut self, acked: bool) -> Vec<(ShardId, Lost)> {
        let mut refused = Vec::new();
        while let Some((frame, last)) = self.feed.feed().frame_after(self.sent, PROTOCOL) {
            let (mut reader, mut ack) = (FrameReader::default(), Ack::default());
            reader.push(&frame);
            self.intake.take_in(reader.next().unwrap().unwrap(), &mut ack).unwrap();
            assert_eq!(ack.position, last);
            refused.extend(ack.refused.iter().map(|it| (it.shard, it.why)));
            self.sent = last;
            if acked {
                self.feed.feed().ack(self.owner.core().now(), last);
            }
        }
        refused
    }

    /// A new connection: what was not acknowledged comes again.
    fn reconnect(&mut self) {
        self.intake = Intake::new(&self.other, A);
        self.sent = self.feed.feed().acked();
    }
}

async fn turn(host: &Host, name: u8, change: impl FnOnce(&Session) + Send) {
    let session = host.session(SHARD, SessionKey::new(vec![name]).unwrap()).unwrap();
    let change = |session: &Session| {
        change(session);
        Ok(())
    };
    session.turn(change, |()| ()).await.unwrap();
}

/// An attempt at a request of a session: what it is answered, and whether again.
async fn ask(host: &Host, name: u8, counter: u64, attempt: u16, method: Method) -> String {
    let meta = RequestMeta {
        shard: SHARD,
        epoch: None,
        key: SessionKey::new(vec![name]).unwrap(),
        id: RequestId { boot: BootId(9), counter },
        attempt,
        first_sent_ms: counter,
        deadline_ms: 0,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        upgrade: false,
    };
    let request = Request::builder().method(method).body(Body::empty()).unwrap();
    let (_, response) = host.serve(meta, request).await.unwrap();
    if response.headers().contains_key(crate::OUTCOME) {
        return "unknown".to_owned();
    }
    let how = if response.headers().contains_key(crate::REPLAYED) { "again " } else { "" };
    let bytes = response.into_body().collect_up_to(1000).await.unwrap();
    format!("{how}{}", String::from_utf8(bytes.to_vec()).unwrap())
}

/// Everything but when it expires.
fn contents(host: &Host) -> (u64, BTreeMap<SessionKey, String>) {
    let (seq, _, sessions) = host.shard(SHARD).unwrap().snapshot();
    let text = |data: &crate::store::data::Data| {
        let timers: Vec<_> = data.timers().iter().map(|it| (it.id, it.event.clone())).collect();
        let window: Vec<_> = data.window().into_iter().flat_map(Window::recent).collect();
        let answers: Vec<_> = window.into_iter().map(|it| (it.id, &it.answer)).collect();
        let state = (&data.value, data.version(), data.counters());
        format!("{state:?} {timers:?} {answers:?}")
    };
    (seq, sessions.into_iter().map(|(key, data, _)| (key, text(&data))).collect())
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(test);
}

/// A session of a host that had the shard as well.
async fn offered(name: u8) -> Vec<Bytes> {
    let host = host();
    host.activate_empty(SHARD, Epoch { counter: 0, node: A.node });
    for _ in 0..name {
        turn(&host, name, |session| session.put_bytes(b"offered").unwrap()).await;
    }
    host.export(SHARD).unwrap().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to the shard, and however its changes travel.
    #[test]
    fn a_copy_is_what_its_owner_is(steps in vec((0u8..15, 0u8..12), 0..120)) {
        run(async {
            let mut pair = Pair::new();
            pair.queue_fill();
            let mut fill = None;
            let (mut counter, mut asked) = (1, Vec::new());
            for (step, n) in steps {
                let owner = pair.owner.clone();
                match step {
                    0..3 => turn(&owner, n, |session| {
                        session.put_bytes(&[n; 9]).unwrap();
                        session.add("n", 1).unwrap();
                    }).await,
                    3 => turn(&owner, n, |session| session.delete().unwrap()).await,
                    4 => turn(&owner, n, |session| {
                        session.put_bytes(b"brief").unwrap();
                        session.expire_in(Duration::from_secs(10)).unwrap();
                        let _ = session.after(Duration::from_secs(1 << 30), [n]).unwrap();
                    }).await,
                    5 => {
                        advance(Duration::from_secs(11)).await;
                        if n < 6 {
                            owner.shard(SHARD).unwrap().fire(owner.core().now());
                        }
                    }
                    6 => {
                        let mut merging = owner.merging(ShardEpoch { shard: SHARD, epoch: EPOCH });
                        for record in offered(n).await {
                            merging.add(&record).await.unwrap();
                        }
                    }
                    7 => {
                        counter += 1;
                        owner.seal(SHARD).await;
                        owner.reopen(SHARD, Epoch { counter, ..EPOCH });
                    }
                    8 => if let Some((shard, follow, cursor)) = fill.as_mut() {
                        let shard: &Arc<Shard> = shard;
                        shard.fill_step(*follow, cursor);
                    } else {
                        let (shard, follow) = pair.begin();
                        fill = Some((shard, follow, 0));
                    },
                    9 => pair.reconnect(),
                    10 | 11 => {
                        asked.push(n);
                        ask(&owner, n, asked.len() as u64, 1, Method::POST).await;
                    }
                    12 => {
                        asked.push(n);
                        ask(&owner, n, asked.len() as u64, 1, Method::DELETE).await;
                        if n < 2 {
                            advance(Duration::from_secs(70)).await;
                            owner.shard(SHARD).unwrap().fire(owner.core().now());
                        }
                    }
                    _ => assert_eq!(pair.deliver(n % 2 == 0), []),
                }
            }
            if fill.is_none() {
                let (shard, follow) = pair.begin();
                fill = Some((shard, follow, 0));
            }
            let (shard, follow, mut cursor) = fill.unwrap();
            while shard.fill_step(follow, &mut cursor) == FillStep::More {}
            assert_eq!(pair.deliver(true), []);
            let bytes = pair.owner.stats().bytes;
            assert_eq!(pair.other.stats().bytes, bytes);
            assert!(pair.other.promote(SHARD, Epoch { counter: counter + 1, node: B.node }));
            assert_eq!(contents(&pair.other), contents(&pair.owner));
            assert_eq!(pair.other.stats().bytes, bytes);
            assert_eq!(pair.other.stats().sessions, pair.owner.stats().sessions);
            // What was answered is answered by both. What was on its way for long is kept for longer.
            for (n, again) in (1..).zip(asked).map(|(again, n)| (n, again)) {
                let here = ask(&pair.owner, n, again, 2, Method::POST).await;
                let there = ask(&pair.other, n, again, 2, Method::POST).await;
                assert!(here == "unknown" || here.starts_with("again"), "{here}");
                let is_kept = here == "unknown" && there.starts_with("again");
                assert!(is_kept || here == there, "{here} {there}");
            }
        });
    }
}

#[test]
fn a_copy_keeps_a_session_as_long_as_its_owner_and_hears_of_few_accesses() {
    run(async {
        let mut pair = Pair::new();
        pair.fill();
        turn(&pair.owner, 1, |session| session.put_bytes(b"x").unwrap()).await;
        let before = pair.feed.feed().last();
        // Four times its time to live, with an access every minute.
        for _ in 0..267 {
            advance(Duration::from_secs(60)).await;
            turn(&pair.owner, 1, |session| drop(session.bytes().unwrap())).await;
        }
        let touches = pair.feed.feed().last() - before;
        assert!((15..18).contains(&touches), "{touches}");
        pair.deliver(true);
        let (_, _, at_owner) = pair.owner.shard(SHARD).unwrap().snapshot();
        pair.other.promote(SHARD, NEXT);
        let (_, _, at_copy) = pair.other.shard(SHARD).unwrap().snapshot();
        let (owner, copy) = (at_owner[0].2, at_copy[0].2);
        assert!(owner <= copy, "{owner:?} {copy:?}");
        // An item that waits for long makes it longer still: here it waited from the begin.
        assert!(copy.since(owner) <= Duration::from_secs(4000), "{owner:?} {copy:?}");
    });
}

#[test]
fn a_copy_that_is_served_answers_what_its_owner_had_answered() {
    run(async {
        let mut pair = Pair::new();
        pair.fill();
        assert_eq!(ask(&pair.owner, 1, 1, 1, Method::POST).await, "1");
        assert_eq!(ask(&pair.owner, 1, 2, 1, Method::POST).await, "2");
        ask(&pair.owner, 2, 3, 1, Method::POST).await;
        ask(&pair.owner, 2, 4, 1, Method::DELETE).await;
        pair.deliver(true);
        // It was applied here, and the copy never heard of it.
        assert_eq!(ask(&pair.owner, 1, 5, 1, Method::POST).await, "3");
        assert!(pair.other.promote(SHARD, NEXT));
        assert_eq!(ask(&pair.other, 1, 1, 2, Method::POST).await, "again 1");
        assert_eq!(ask(&pair.other, 2, 3, 2, Method::POST).await, "again 1");
        assert_eq!(ask(&pair.other, 1, 5, 2, Method::POST).await, "3");
        assert_eq!(pair.other.stats().sessions, 1);
    });
}

#[test]
fn what_does_not_fit_is_refused_once_and_what_begins_anew_is_not() {
    run(async {
        let mut pair = Pair::new();
        pair.fill();
        turn(&pair.owner, 1, |session| session.put_bytes(b"x").unwrap()).await;
        assert_eq!(pair.deliver(true), []);
        assert_eq!(pair.other.drop_copy(SHARD), 1);
        for _ in 0..3 {
            turn(&pair.owner, 1, |session| session.put_bytes(b"y").unwrap()).await;
        }
        assert_eq!(pair.deliver(true), [(SHARD, Lost::NoCopy)]);
        assert_eq!(pair.other.copies(), []);
        pair.fill();
        assert_eq!(pair.deliver(true), []);
        assert!(pair.other.promote(SHARD, NEXT));
        // Each begin is answered.
        for _ in 0..2 {
            pair.fill();
            assert_eq!(pair.deliver(true), [(SHARD, Lost::HigherEpoch(NEXT))]);
        }
    });
}

/// Goal: nobody believes that a copy has what it refused. Method: the acknowledgement that says so is
/// lost with its connection, and what it was for comes again by the next one.
#[test]
fn what_was_refused_is_told_again_until_it_is_heard() {
    run(async {
        let mut pair = Pair::new();
        pair.fill();
        assert_eq!(pair.deliver(true), []);
        pair.other.drop_copy(SHARD);
        for _ in 0..2 {
            turn(&pair.owner, 1, |session| session.put_bytes(b"x").unwrap()).await;
        }
        for _ in 0..2 {
            assert_eq!(pair.deliver(false), [(SHARD, Lost::NoCopy)]);
            pair.reconnect();
        }
        assert_eq!(pair.deliver(true), [(SHARD, Lost::NoCopy)]);
        // It is heard. What begins anew is not refused because something before it was.
        pair.reconnect();
        assert_eq!(pair.deliver(true), []);
        pair.fill();
        for _ in 0..2 {
            assert_eq!(pair.deliver(false), []);
            pair.reconnect();
        }
        assert_eq!(pair.other.drop_copy(SHARD), 1);
        turn(&pair.owner, 1, |session| session.put_bytes(b"y").unwrap()).await;
        for _ in 0..2 {
            assert_eq!(pair.deliver(false), [(SHARD, Lost::NoCopy)]);
            pair.reconnect();
        }
    });
}

#[test]
fn many_empty_shards_with_a_follower_stay_small() {
    run(async {
        let pair = Pair::new();
        for n in 0..100 {
            let shard = ShardId(1000 + n);
            pair.owner.activate_empty(shard, EPOCH);
            pair.owner.shard(shard).unwrap().queue_fill(pair.feed.feed(), EPOCH).unwrap();
            assert!(pair.owner.shard(shard).unwrap().is_bare());
        }
    });
}

/// A copy that is offered says where it comes from: who began without it has what it holds, and who
/// went on from it keeps what is newer.
#[test]
fn a_copy_that_is_given_up_is_merged() {
    run(async {
        let mut pair = Pair::new();
        ask(&pair.owner, 1, 1, 1, Method::GET).await;
        pair.fill();
        ask(&pair.owner, 1, 2, 1, Method::GET).await;
        assert_eq!(pair.deliver(true), []);
        // Not in the copy.
        ask(&pair.owner, 1, 3, 1, Method::GET).await;
        let stranger = host();
        stranger.activate_empty(SHARD, NEXT);
        ask(&stranger, 1, 4, 1, Method::GET).await;
        let aside = pair.other.set_copy_aside(SHARD).unwrap();
        assert!(pair.other.set_copy_aside(SHARD).is_none());
        for (served_by, epoch, asked) in [(&stranger, NEXT, "4"), (&pair.owner, EPOCH, "4")] {
            for _ in 0..2 {
                let mut merging = served_by.merging(ShardEpoch { shard: SHARD, epoch });
                for record in aside.records() {
                    merging.add(&record).await.unwrap();
                }
                merging.finish();
            }
            assert_eq!(ask(served_by, 1, 5, 1, Method::GET).await, asked);
        }
        drop(aside);
        assert_eq!(pair.other.stats().sessions, 0);
    });
}

/// Another owner fills a copy where a complete one was: that one waits for what becomes of it.
#[test]
fn a_copy_that_another_owner_replaces_can_still_be_offered() {
    run(async {
        let mut pair = Pair::new();
        ask(&pair.owner, 1, 1, 1, Method::GET).await;
        pair.fill();
        assert_eq!(pair.deliver(true), []);
        let mut stranger = Pair::new();
        stranger.owner = host();
        stranger.owner.activate_empty(SHARD, NEXT);
        stranger.other = pair.other.clone();
        stranger.intake = Intake::new(&pair.other, B);
        ask(&stranger.owner, 2, 2, 1, Method::GET).await;
        stranger.fill();
        assert_eq!(stranger.deliver(true), []);
        let aside = pair.other.set_replaced_aside(SHARD).unwrap();
        let mut merging = stranger.owner.merging(ShardEpoch { shard: SHARD, epoch: NEXT });
        for record in aside.records() {
            merging.add(&record).await.unwrap();
        }
        merging.finish();
        assert_eq!(ask(&stranger.owner, 1, 3, 1, Method::GET).await, "2");
        // Its own owner's replaces nothing that waits.
        stranger.fill();
        assert_eq!(stranger.deliver(true), []);
        assert!(pair.other.set_replaced_aside(SHARD).is_none());
    });
}
