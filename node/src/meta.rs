//! What is known of a request and of its answer beside their heads.

use std::net::IpAddr;

use stead_shared::id::{Epoch, RequestId, SessionKey, ShardId};

/// What comes with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestMeta {
    /// The shard of the key.
    pub shard: ShardId,
    /// The epoch in which the sender believes the shard is served.
    pub epoch: Option<Epoch>,
    /// The session.
    pub key: SessionKey,
    /// The request, across its attempts.
    pub id: RequestId,
    /// 1 for the first attempt.
    pub attempt: u16,
    /// When the first attempt was sent, in Unix milliseconds.
    pub first_sent_ms: u64,
    /// Milliseconds until nobody waits for the answer any more; 0 for no limit.
    pub deadline_ms: u32,
    /// Where the client is.
    pub client: IpAddr,
    /// Whether the request asks for another protocol.
    pub upgrade: bool,
}

/// What goes with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    /// The shard of the session.
    pub shard: ShardId,
    /// The epoch in which the request was served.
    pub epoch: Epoch,
    /// Length of the body, where it is known.
    pub length: Option<u64>,
    /// How full the shard's mailbox is: 0 empty, 255 full.
    pub pressure: u8,
}
