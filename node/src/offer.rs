//! Sessions that were given up, on their way to whoever serves their shards now.
//!
//! A node that was taken for dead and is not, or was on the other side of a cut, finds its shards
//! served by others at higher epochs. It closes its gates and offers what it has; each of the new
//! owners merges it into what it has itself: see [`crate::logic::heal`].
//!
//! ```text
//! given up by                                        served by
//!   open{offer, shards with epochs} ───────────────▶
//!   records and trailer, as in a handoff ──────────▶  each merged when its turn comes
//!   ◀──────────── answer: counts for every shard      once the trailer agrees
//! ```
//!
//! Sessions are dropped here when an answer settles all of their shard, and otherwise offered
//! again, to whoever serves the shard by then; that may be this node. Merging is idempotent, so
//! that a lost answer does no harm. After [`ATTEMPTS`] what is left is dropped, counted and
//! logged.
//!
//! # What this does not promise
//!
//! Deletions leave no trace: a session that was deleted here, and not changed by the new owner, is
//! still there. A request of a session that is yet to be merged is answered from what the new owner
//! has. A node without a disk that ends while it offers takes the rest along.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use serde::{Deserialize, Serialize};
use stead_shared::control::{self, ShardEpoch};
use stead_shared::id::{Epoch, NodeBoot, ShardId};
use stead_shared::net::link::{Links, RecvHalf, ServerStream, StreamEvent};
use stead_shared::net::watch;
use stead_shared::view::View;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::driver::Done;
use crate::host::Host;
use crate::merging::Merging;
use crate::store::aside::SetAside;
use crate::store::merge::{MergeError, Merged};
use crate::store::record::for_peer;
use crate::transfer::{Records, Tally, TransferError, TransferHead, send_records};

/// How often a shard is offered: for about 40 s, longer than its next owner takes to be found.
const ATTEMPTS: u32 = 10;
/// The pause after the first attempt; each one after it is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long one attempt may take; what was merged by then is not lost.
const ATTEMPT_MAX: Duration = Duration::from_secs(60);
/// Most shards in one stream.
const BATCH: usize = 256;

/// What became of the sessions of one shard. The order of the fields is the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    /// Sessions that the owner has now.
    taken: u64,
    /// Sessions that the owner has a state of its own of.
    kept: u64,
    /// Sessions that were not taken in, for now.
    left: u64,
    /// Whether the shard was served there all the time.
    served: bool,
}

impl Outcome {
    const NONE: Self = Self { taken: 0, kept: 0, left: 0, served: true };

    fn add(&mut self, merged: Result<Option<Merged>, MergeError>) {
        match merged {
            Ok(None) => {}
            Ok(Some(Merged::Taken)) => self.taken += 1,
            Ok(Some(Merged::Kept)) => self.kept += 1,
            Err(MergeError::Busy | MergeError::Record(_)) => self.left += 1,
            Err(MergeError::NotServed) => self.served = false,
        }
    }

    /// Everything was merged. Whoever offered it forgets it, so that it has to be where answers wait
    /// for it; where that is not known it is offered again.
    async fn settle(&mut self, merging: Merging) {
        if !self.is_settled() {
            return;
        }
        if 0 < self.taken + self.kept && !merging.is_confirmed().await {
            self.left += 1;
            return;
        }
        merging.finish();
    }

    fn is_settled(&self) -> bool {
        self.served && self.left == 0
    }
}

/// What the receiver of an offer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    shards: Vec<(ShardId, Outcome)>,
}

/// Merges what a stream offers, and answers it.
pub(crate) async fn receive(
    host: &Host,
    shards: &[ShardEpoch],
    stream: ServerStream,
) -> Result<(), TransferError> {
    let ServerStream { mut recv, mut send, .. } = stream;
    send.accepted();
    let mut outcomes: BTreeMap<ShardId, (Merging, Outcome)> =
        shards.iter().map(|at| (at.shard, (host.merging(*at), Outcome::NONE))).collect();
    let mut records = Records::new(&mut recv);
    while let Some((shard, record)) = records.next().await? {
        let (merging, outcome) = outcomes.get_mut(&shard).ok_or(TransferError::Broken)?;
        if outcome.served {
            outcome.add(merging.add(&record).await);
        }
    }
    let mut shards = Vec::with_capacity(outcomes.len());
    for (shard, (merging, mut outcome)) in outcomes {
        outcome.settle(merging).await;
        shards.push((shard, outcome));
    }
    Ok(send.head(&control::encode(&Answer { shards }), true)?)
}

/// Shards that were given up: the epoch they were seen in elsewhere, and what was in them.
type Given = BTreeMap<ShardId, (Epoch, SetAside)>;

/// Totals of an offer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    shards: u64,
    taken: u64,
    kept: u64,
}

/// Offers sessions of shards that were given up.
pub(crate) struct Offerer {
    pub(crate) me: NodeBoot,
    pub(crate) links: Links,
    pub(crate) host: Host,
    pub(crate) views: watch::Receiver<Arc<View>>,
    /// Limits attempts at a time.
    pub(crate) slots: Arc<Semaphore>,
    /// Hears what need not be offered any more.
    pub(crate) done: mpsc::Sender<Done>,
}

impl Offerer {
    /// Offers until everything is settled or the attempts are used up. `to` is who served the
    /// shards, in these epochs, when they were given up.
    pub(crate) async fn offer(self, to: NodeBoot, given: Vec<(ShardEpoch, SetAside)>) {
        let mut given: Given =
            given.into_iter().map(|(at, aside)| (at.shard, (at.epoch, aside))).collect();
        let mut shards: Vec<ShardId> = given.keys().copied().collect();
        let mut totals = Totals::default();
        let mut pause = PAUSE_FIRST;
        for attempt in 1..=ATTEMPTS {
            let slot = self.slots.acquire().await.expect("the semaphore is never closed");
            for (owner, shards) in self.owners(to, &given) {
                for batch in shards.chunks(BATCH) {
                    self.offer_batch(owner, batch, &mut given, &mut totals).await;
                }
            }
            drop(slot);
            self.tell_done(&mut shards, &given).await;
            if given.is_empty() || attempt == ATTEMPTS {
                break;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        given.values_mut().for_each(|(_, aside)| aside.leave_on_disk());
        report(totals, &given);
        self.tell_done(&mut shards, &Given::new()).await;
    }

    /// Tells which of `shards` are not offered any more.
    async fn tell_done(&self, shards: &mut Vec<ShardId>, given: &Given) {
        let done: Vec<ShardId> = shards.extract_if(.., |it| !given.contains_key(it)).collect();
        if !done.is_empty() {
            // Without the driver there is nobody to tell.
            let _ = self.done.send(Done::Offered(done)).await;
        }
    }

    /// Who serves the shards now, as far as is known.
    fn owners(&self, to: NodeBoot, given: &Given) -> BTreeMap<NodeBoot, Vec<ShardEpoch>> {
        let view = self.views.borrow();
        let mut owners: BTreeMap<NodeBoot, Vec<ShardEpoch>> = BTreeMap::new();
        for (&shard, &(seen, _)) in given {
            let claim = view.live_claim(shard).filter(|(epoch, _)| seen <= *epoch);
            let (epoch, owner) = claim.unwrap_or((seen, to));
            owners.entry(owner).or_default().push(ShardEpoch { shard, epoch });
        }
        owners
    }

    async fn offer_batch(
        &self,
        owner: NodeBoot,
        shards: &[ShardEpoch],
        given: &mut Given,
        totals: &mut Totals,
    ) {
        let attempt = async {
            match owner == self.me {
                true => Ok(self.take_back(shards, given).await),
                false => self.send(owner, shards, given).await,
            }
        };
        match timeout(ATTEMPT_MAX, attempt).await.unwrap_or(Err(TransferError::Timeout)) {
            Ok(answer) => {
                for (shard, outcome) in answer.shards.iter().filter(|(_, o)| o.is_settled()) {
                    if let Some((_, mut aside)) = given.remove(shard) {
                        aside.forget_on_disk();
                        totals.shards += 1;
                        totals.taken += outcome.taken;
                        totals.kept += outcome.kept;
                    }
                }
            }
            Err(error) => {
                tracing::info!(%error, to = %owner.node, n_shards = shards.len(),
                    "sessions of shards that were given up are offered again");
            }
        }
    }

    async fn send(
        &self,
        to: NodeBoot,
        shards: &[ShardEpoch],
        given: &Given,
    ) -> Result<Answer, TransferError> {
        let addr = self.address(to).ok_or(TransferError::NoAddress)?;
        let link = self.links.bulk(to.node, Some(to.boot), addr).await?;
        let head = TransferHead::Offer { from: self.me, shards: shards.to_vec() };
        let (mut stream, answer) = link.open(control::encode(&head), false)?.split();
        let records = shards.iter().filter_map(|at| given.get(&at.shard));
        let records = records
            .flat_map(|(_, aside)| aside.records().map(move |record| (aside.shard(), record)))
            .map(|(shard, record)| (shard, for_peer(record, link.peer().protocol)));
        send_records(&mut stream, records, &Tally::default()).await?;
        answer_of(answer).await
    }

    fn address(&self, of: NodeBoot) -> Option<SocketAddr> {
        self.views.borrow().members.find(of.node).map(|member| member.gossip)
    }

    /// The shards came back to this node meanwhile, without these sessions.
    async fn take_back(&self, shards: &[ShardEpoch], given: &Given) -> Answer {
        let mut answer = Answer { shards: Vec::with_capacity(shards.len()) };
        for at in shards {
            let (mut merging, mut outcome) = (self.host.merging(*at), Outcome::NONE);
            for record in given.get(&at.shard).into_iter().flat_map(|(_, aside)| aside.records()) {
                outcome.add(merging.add(&record).await);
            }
            outcome.settle(merging).await;
            answer.shards.push((at.shard, outcome));
        }
        answer
    }
}

async fn answer_of(mut stream: RecvHalf) -> Result<Answer, TransferError> {
    loop {
        match stream.next().await {
            Some(StreamEvent::Head(head)) => return decode(&head),
            Some(StreamEvent::Accepted | StreamEvent::Data(_)) => {}
            Some(StreamEvent::Refused(_) | StreamEvent::Reset(_) | StreamEvent::End(_)) | None => {
                return Err(TransferError::Broken);
            }
        }
    }
}

fn decode(head: &Bytes) -> Result<Answer, TransferError> {
    control::decode(head).map_err(|_| TransferError::Head)
}

/// Counts and tells how an offer ended. What was not taken is dropped by the caller.
fn report(totals: Totals, dropped: &Given) {
    let n_dropped: usize = dropped.values().map(|(_, aside)| aside.sessions()).sum();
    counter!("stead_offers_total", "outcome" => "done").increment(totals.shards);
    counter!("stead_offers_total", "outcome" => "failed").increment(dropped.len() as u64);
    let sessions = |outcome| counter!("stead_offered_sessions_total", "outcome" => outcome);
    sessions("taken").increment(totals.taken);
    sessions("kept").increment(totals.kept);
    sessions("dropped").increment(n_dropped as u64);
    let Totals { taken, kept, .. } = totals;
    if n_dropped == 0 && kept == 0 {
        tracing::info!(taken, "the new owners have the sessions of the shards that were given up");
    } else {
        tracing::warn!(
            taken,
            kept,
            dropped = n_dropped,
            "of shards that were given up: sessions that are in what the new owners have now, \
             sessions whose value lost to a later one there (GET /v1/conflicts), and sessions \
             dropped because nobody took them"
        );
    }
}

#[cfg(test)]
mod tests {
    use stead_shared::config::NodeOptions;
    use stead_shared::id::{Epoch, NodeId, SessionKey};

    use super::*;
    use crate::service::SharedService;
    use crate::{Handle, HostConfig, Node};

    const SOON: Duration = Duration::from_secs(20);

    async fn node(name: &str, join: Option<&Node>) -> Node {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = NodeOptions {
            name: Some(name.to_owned()),
            gossip: anywhere,
            http: anywhere,
            join: join.map(|seed| seed.handle().gossip_addr().to_string()).into_iter().collect(),
            shards: 64,
            ..NodeOptions::default()
        };
        let node = Node::builder().options(options).start().await.unwrap();
        timeout(SOON, node.ready()).await.expect("ready in time").unwrap();
        node
    }

    /// A value that lost leaves something, too: counters of both are in the session.
    #[tokio::test]
    async fn what_lost_is_settled_only_where_answers_wait_for_the_rest() {
        let nothing = async |_: crate::Session, _: http::Request<crate::Body>| {
            http::Response::new(crate::Body::empty())
        };
        let host = Host::new(HostConfig::default(), SharedService::new(nothing));
        let at = ShardEpoch { shard: ShardId(1), epoch: Epoch { counter: 1, node: NodeId(1) } };
        // The shard has left since: nobody knows where what was merged is.
        for (merged, left) in [(None, 0), (Some(Merged::Taken), 1), (Some(Merged::Kept), 1)] {
            let mut outcome = Outcome::NONE;
            outcome.add(Ok(merged));
            outcome.settle(host.merging(at)).await;
            assert_eq!(outcome.left, left, "{merged:?}");
        }
    }

    /// Two nodes, and every shard at its target.
    async fn pair() -> (Node, Node) {
        let a = node("a", None).await;
        let b = node("b", Some(&a)).await;
        for node in [&a, &b] {
            let mut views = node.handle().views();
            let settled = views.wait_for(|view| {
                view.params.ring_nodes(&view.members).len() == 2
                    && (0..64).map(ShardId).all(|shard| {
                        let owner = view.live_claim(shard).map(|(_, owner)| owner.node);
                        owner.is_some() && owner == view.targets.owner_of(shard)
                    })
            });
            timeout(SOON, settled).await.expect("settled in time").unwrap();
        }
        (a, b)
    }

    fn offerer(of: &Handle) -> Offerer {
        let view = of.view();
        let me = view.members.find(of.inner.me).unwrap().node_boot();
        let (links, host) = (of.inner.links.clone(), of.inner.host.clone());
        let (slots, done) = (Arc::new(Semaphore::new(1)), of.inner.done.clone());
        Offerer { me, links, host, views: of.views(), slots, done }
    }

    fn key(text: &str) -> SessionKey {
        SessionKey::new(text.as_bytes().to_vec()).unwrap()
    }

    async fn put(host: &Host, shard: ShardId, name: &str, value: &str) {
        let session = host.session(shard, key(name)).unwrap();
        session.turn(|session| session.put_bytes(value.as_bytes()), |()| ()).await.unwrap();
    }

    async fn value(host: &Host, shard: ShardId, name: &str) -> String {
        let session = host.session(shard, key(name)).unwrap();
        let value = session.turn(|session| session.bytes(), |_| ()).await.unwrap();
        String::from_utf8(value.unwrap().to_vec()).unwrap()
    }

    /// The first shard that `node` owns, as `seen_by` sees it.
    fn shard_of(node: &Handle, seen_by: &Handle) -> (ShardEpoch, NodeBoot) {
        let view = seen_by.view();
        let claims = (0..64).map(ShardId).filter_map(|shard| {
            let (epoch, owner) = view.live_claim(shard)?;
            (owner.node == node.inner.me).then_some((ShardEpoch { shard, epoch }, owner))
        });
        claims.into_iter().next().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_new_owner_takes_the_sessions_it_has_not_and_keeps_its_own() {
        let (a, b) = pair().await;
        let (a, b) = (a.handle(), b.handle());
        let (at, owner) = shard_of(&b, &a);
        let (old, new) = (&a.inner.host, &b.inner.host);
        old.activate_empty(at.shard, Epoch { counter: 1, node: NodeId(1) });
        put(old, at.shard, "both", "old").await;
        for n in 0..300 {
            put(old, at.shard, &format!("s{n}"), &n.to_string().repeat(1_000)).await;
        }
        put(new, at.shard, "both", "new").await;
        let given = vec![(at, old.set_aside(at.shard).unwrap())];
        // Who was first seen with the shards need not have them any more.
        let gone = NodeBoot { node: NodeId(7), ..owner };
        offerer(&a).offer(gone, given).await;
        assert_eq!(value(new, at.shard, "both").await, "new");
        for n in 0..300 {
            let name = format!("s{n}");
            assert_eq!(value(new, at.shard, &name).await, n.to_string().repeat(1_000));
        }
        assert_eq!((old.stats().sessions, new.stats().sessions), (0, 301));
        assert!(old.gate(at.shard).is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_shard_that_has_come_back_gets_its_sessions_back() {
        let (a, _b) = pair().await;
        let a = a.handle();
        let (at, me) = shard_of(&a, &a);
        let host = &a.inner.host;
        put(host, at.shard, "s", "old").await;
        let given = vec![(at, host.set_aside(at.shard).unwrap())];
        host.activate_empty(at.shard, at.epoch);
        offerer(&a).offer(me, given).await;
        assert_eq!(value(host, at.shard, "s").await, "old");
        assert_eq!(host.stats().sessions, 1);
    }

    #[test]
    fn an_answer_reads_back_and_other_bytes_do_not() {
        let outcome = Outcome { taken: 3, kept: 2, left: 1, served: true };
        let answer = Answer { shards: vec![(ShardId(9), outcome)] };
        let bytes = control::encode(&answer);
        assert_eq!(bytes[..], [1, 1, 9, 3, 2, 1, 1]);
        assert_eq!(decode(&bytes).unwrap(), answer);
        assert!(decode(&bytes.slice(..5)).is_err());
        assert!(!outcome.is_settled());
    }
}
