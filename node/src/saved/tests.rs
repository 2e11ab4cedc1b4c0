//! A host that starts with what another one has left on disk.

use http::{Request, Response};
use stead_shared::control::ShardEpoch;
use stead_shared::id::{BootId, Epoch, NodeId, RequestId, SessionKey, ShardId};
use stead_shared::wire::http::RequestMeta;

use super::*;
use crate::body::Body;
use crate::disk::tests::Scratch;
use crate::service::SharedService;
use crate::session::Session;
use crate::store::core::HostConfig;
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
