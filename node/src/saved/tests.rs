//! A host that starts with what another one has left on disk.

use http::{Request, Response};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{BootId, Epoch, NodeId, RequestId, SessionKey, ShardId};
use stead_shared::wire::http::RequestMeta;

use std::time::Duration;

use super::*;
use crate::body::Body;
use crate::disk::tests::Scratch;
use crate::logic::window::{Asked, Content, Entry, Kept, Keyed, Trim};
use crate::service::SharedService;
use crate::session::Session;
use crate::store::core::HostConfig;
use crate::store::data::Stored;
use crate::store::merge::Merged;
use crate::store::record::Record;

const SHARD: ShardId = ShardId(3);

fn epoch(counter: u64) -> Epoch {
    Epoch { counter, node: NodeId(counter) }
}

fn host() -> Host {
    let nothing = async |_: Session, _: Request<Body>| Response::new(Body::empty());
    Host::new(HostConfig::default(), SharedService::new(nothing))
}

fn key(name: &str) -> SessionKey {
    SessionKey::new(name.as_bytes().to_vec()).unwrap()
}

async fn put(host: &Host, name: &str, value: &'static str) {
    let session = host.session(SHARD, key(name)).unwrap();
    session.turn(|session| session.put_bytes(value.as_bytes()), |()| ()).await.unwrap();
}

/// A host with these records, which serves them in this epoch and writes them down.
async fn keep(
    scratch: &Scratch,
    records: impl IntoIterator<Item = bytes::Bytes>,
    at: Epoch,
) -> Host {
    let host = open(scratch);
    let mut incoming = host.incoming_from(ShardEpoch { shard: SHARD, epoch: epoch(1) });
    for record in records {
        incoming.add(&record).unwrap();
    }
    incoming.activate(at);
    host
}

fn open(scratch: &Scratch) -> Host {
    let (host, (disk, recovered)) = (host(), scratch.open());
    let found = host.load(disk, true, &recovered, 8).unwrap();
    assert!(found.values().all(|saved| saved.kind == SavedKind::Owner), "{found:?}");
    host
}

/// Goal: a node that starts again still knows through which epochs its shards have come, and takes
/// no unchanged session for a conflict. Method: an owner goes on beside the one that took over,
/// which starts again before they meet.
#[tokio::test]
async fn a_shard_s_histories_are_told_apart_after_a_restart() {
    let (owner, scratch) = (host(), Scratch::new("lineage"));
    owner.activate_empty(SHARD, epoch(1));
    put(&owner, "changed", "before").await;
    put(&owner, "both", "before").await;
    let heir = keep(&scratch, owner.export(SHARD).unwrap(), epoch(2)).await;
    put(&owner, "both", "there").await;
    put(&heir, "changed", "here").await;
    put(&heir, "both", "here").await;
    heir.close_disk().await;
    drop(heir);
    let aside = owner.set_aside(SHARD).unwrap();
    for meeting in 0..2 {
        let heir = open(&scratch);
        assert!(heir.open_saved(SHARD, epoch(3 + meeting)));
        let mut merging = heir.merging(ShardEpoch { shard: SHARD, epoch: epoch(3 + meeting) });
        let mut merged = Vec::new();
        for record in aside.records() {
            merged.extend(merging.add(&record).await.unwrap());
        }
        let n_conflicts = merged.iter().filter(|merged| **merged == Merged::Kept).count();
        assert_eq!((merged.len(), n_conflicts), (2, 1), "meeting {meeting}");
        assert_eq!(heir.conflicts()[0].key, key("both"));
        heir.close_disk().await;
    }
}

/// Goal: what may have been answered before a restart is not run after it.
#[tokio::test]
async fn a_shard_s_floor_outlives_a_restart() {
    let scratch = Scratch::new("floor");
    let records = [Record::ShardPast { seq: 5, floor_ms: 500, lineage: Vec::new() }.encode()];
    let host = keep(&scratch, records, epoch(2)).await;
    host.close_disk().await;
    drop(host);
    let host = open(&scratch);
    assert!(host.open_saved(SHARD, epoch(3)));
    for (first_sent_ms, runs) in [(500, false), (501, true)] {
        let id = RequestId { boot: BootId(1), counter: first_sent_ms };
        let meta = RequestMeta {
            shard: SHARD,
            epoch: None,
            key: key("s"),
            id,
            attempt: 2,
            first_sent_ms,
            deadline_ms: 0,
            client: std::net::Ipv4Addr::LOCALHOST.into(),
            upgrade: false,
        };
        let (_, answer) =
            host.serve(meta, Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().is_success(), runs, "{first_sent_ms}");
    }
}

/// Goal: a node that starts again knows whether anybody else had to have what it answered.
#[tokio::test]
async fn whether_answers_waited_for_a_copy_outlives_a_restart() {
    let copy = NodeBoot { node: NodeId(9), boot: BootId(1) };
    let sets: [(&[&[NodeBoot]], bool); 3] =
        [(&[], true), (&[&[copy]], false), (&[&[copy], &[]], true)];
    for (n, (sets, alone)) in sets.into_iter().enumerate() {
        let scratch = Scratch::new(&format!("alone-{n}"));
        let owner = keep(&scratch, [], epoch(2)).await;
        let feed = crate::replica::tests::feed(&owner, copy);
        for members in sets {
            let shard = owner.shard(SHARD).unwrap();
            if !members.is_empty() {
                shard.adopt(&feed, epoch(2), true).unwrap();
            }
            shard.set_followers(members);
        }
        owner.close_disk().await;
        drop(owner);
        let (host, (disk, recovered)) = (host(), scratch.open());
        let found = host.load(disk, true, &recovered, 8).unwrap();
        assert_eq!(found.get(&SHARD).map(|saved| saved.alone), Some(alone), "{sets:?}");
        host.close_disk().await;
    }
}

/// Goal: who changes more at once than a disk can take, that works, waits for it and is not refused.
#[tokio::test]
async fn changes_wait_for_room_in_the_queue_of_a_disk_that_works() {
    let (host, scratch) = (host(), Scratch::new("wait-for-room"));
    let config = DiskConfig { queue_bytes_max: 64 << 10, ..scratch.config() };
    let (disk, recovered) = Disk::open(config).unwrap();
    host.load(disk, true, &recovered, 8).unwrap();
    host.activate_empty(SHARD, epoch(1));
    let put = async |n: u32| {
        let session = host.session(SHARD, key(&n.to_string())).unwrap();
        session.turn(|session| session.put_bytes(&[7; 10_000]), |()| ()).await
    };
    let all = futures_util::future::join_all((0..100).map(put)).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    host.close_disk().await;
}

/// A host that counts requests of sessions, unless one asks to be gone.
fn counting() -> Host {
    let count = async |session: Session, request: Request<Body>| {
        if request.uri() == "/gone" {
            session.delete().unwrap();
        } else {
            session.add("n", 1).unwrap();
        }
        Response::new(Body::empty())
    };
    Host::new(HostConfig::default(), SharedService::new(count))
}

/// Whether a request of a session was answered by what it had been answered before.
async fn is_replayed(host: &Host, name: &str, counter: u64, attempt: u16, path: &str) -> bool {
    let id = RequestId { boot: BootId(1), counter };
    let meta = RequestMeta {
        shard: SHARD,
        epoch: None,
        key: key(name),
        id,
        attempt,
        first_sent_ms: counter,
        deadline_ms: 0,
        client: std::net::Ipv4Addr::LOCALHOST.into(),
        upgrade: false,
    };
    let mut request = Request::post(path).body(Body::empty()).unwrap();
    if let Some(named) = name.strip_prefix("named-") {
        let value = format!("{named}-{counter}").parse().unwrap();
        request.headers_mut().insert("idempotency-key", value);
    }
    let (_, answer) = host.serve(meta, request).await.unwrap();
    answer.headers().contains_key(crate::REPLAYED)
}

fn open_counting(scratch: &Scratch) -> Host {
    let (host, (disk, recovered)) = (counting(), scratch.open());
    host.load(disk, true, &recovered, 8).unwrap();
    host
}

/// Goal: what was answered is answered again after restarts, of sessions that answered little, much,
/// by names, or are gone, though each change writes one answer only.
#[tokio::test]
async fn what_was_answered_outlives_restarts() {
    let scratch = Scratch::new("answers");
    let host = open_counting(&scratch);
    host.activate_empty(SHARD, epoch(1));
    let names = ["few", "many", "named-a", "gone"];
    let mut next = 1;
    for life in 0..3_u64 {
        let host = if life == 0 { host.clone() } else { open_counting(&scratch) };
        assert!(life == 0 || host.open_saved(SHARD, epoch(1 + life)));
        for (name, n) in names.into_iter().zip([2, 100, 50, 3]) {
            for counter in next..next + n {
                assert!(!is_replayed(&host, name, counter, 1, "/").await, "{name} {counter}");
            }
            if name == "gone" {
                is_replayed(&host, name, next + n, 1, "/gone").await;
            }
        }
        let host = if life == 1 {
            host.close_disk().await;
            drop(host);
            let host = open_counting(&scratch);
            assert!(host.open_saved(SHARD, epoch(9)));
            host
        } else {
            host
        };
        for (name, n) in names.into_iter().zip([2, 100, 50, 4]) {
            for counter in next..next + n {
                assert!(is_replayed(&host, name, counter, 2, "/").await, "{life} {name} {counter}");
            }
        }
        host.close_disk().await;
        drop(host);
        next += 1000;
    }
}

/// Goal: what a copy follows is on its disk as it is in its memory. Method: the records of a session
/// that answers more than its window holds, falls silent, and answers again.
#[tokio::test(start_paused = true)]
async fn the_window_of_a_copy_is_on_its_disk_as_in_its_memory() {
    let scratch = Scratch::new("copy");
    let host = host();
    let (disk, recovered) = scratch.open();
    host.load(disk, true, &recovered, 8).unwrap();
    let core = host.core();
    let at = |seq| Version { epoch: epoch(1), seq };
    let meta = |seq| ShardMeta {
        at: at(seq),
        role: Role::Owner,
        complete: true,
        begun: None,
        alone: false,
    };
    let mut pen = core.begin_on_disk(SHARD, meta(0)).unwrap();
    let mut copy = Arriving::new();
    let mut owner = Stored::new(b"s", at(0), core.now());
    let mut seq = 0;
    for round in [200, 0, 3, 70] {
        let mut records = Vec::new();
        for _ in 0..round {
            seq += 1;
            let key = (seq % 3 == 0).then(|| {
                Box::new(Keyed { name: seq.to_string().as_bytes().into(), fingerprint: 1 })
            });
            let id = Some(RequestId { boot: BootId(1), counter: seq });
            let asked = Asked { id, attempt: 1, first_sent_ms: seq, key };
            let content = Content::new(b"", &seq.to_le_bytes());
            let answer = Kept { status: 200, version: at(seq), has_etag: false, content };
            owner.data.set_version(at(seq));
            owner.data.value = Some(seq.to_le_bytes().as_slice().into());
            owner.data.set_value_version(at(seq));
            owner.expires = core.now() + Duration::from_secs(600);
            let mut window = owner.data.take_window();
            let entry = Entry::new(asked, answer, core.now());
            let trim = window.add(entry.clone(), core.now());
            owner.data.set_window(window);
            let whole = (&*owner.key, &owner.data, owner.expires);
            records.push(Record::of_change(whole, (trim, Some(&entry)), core.now()).encode());
        }
        if round == 0 {
            tokio::time::advance(Duration::from_secs(61)).await;
            let Trim { recent, keyed } = owner.data.window().unwrap().expired(core.now());
            owner.data.trim_window(Trim { recent, keyed });
            let (recent_gone, keyed_gone, floor_ms) = (recent, keyed, 0);
            seq += 1;
            records.push(Record::Trimmed { key: b"s", recent_gone, keyed_gone, floor_ms }.encode());
        }
        for record in records {
            copy.add(core, &record).unwrap();
            pen.follow(core, at(seq), &record, copy.sessions());
        }
        pen.meta(meta(seq), copy.past());
        core.saving.get().unwrap().settled().await.unwrap();
        let saved = core.saving.get().unwrap().disk().read(SHARD, None, 1).unwrap();
        let mut read = Arriving::new();
        saved.iter().for_each(|saved| read.add_saved(core, saved).unwrap());
        let window = |of: &Arriving| of.sessions().at_rest(b"s").unwrap().data.window().cloned();
        let entries = |of: &Arriving| {
            let window = window(of).unwrap();
            let all = window.recent().chain(window.keyed());
            let all: Vec<_> = all.map(|it| (it.id, it.key.clone(), it.answer.clone())).collect();
            (all, window.floor_ms(), window.extent(false), window.extent(true))
        };
        assert_eq!(entries(&read), entries(&copy), "after {seq}");
    }
    host.close_disk().await;
}
