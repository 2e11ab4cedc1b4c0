//! A feed on its way to another node, and that node's end of it.
//!
//! There is one stream at a time. When it breaks, the next one begins after the last position that
//! was acknowledged; what the other end has already it skips.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use stead_shared::control;
use stead_shared::net::link::{DialError, Links, RecvHalf, SendHalf, ServerStream, StreamEvent};
use tokio::time::{sleep, sleep_until};

use super::ReplicaReport;
use super::copies::Intake;
use super::feed::Feed;
use super::frame::{Ack, FrameReader};
use crate::host::Host;
use crate::store::following::FillStep;
use crate::transfer::{TransferError, TransferHead, head_of};

/// The pause before a second connection; each one after it is twice as long, until something is
/// acknowledged.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pieces of a stream that are taken in before they are acknowledged: up to 1 MiB.
const EVENTS_MAX: u32 = 64;

/// Sends a feed for as long as somebody uses it.
pub(super) async fn run(host: Host, links: Links, feed: Arc<Feed>) {
    let sender = Sender { host: &host, links, feed: &feed };
    tokio::select! {
        biased;
        () = sender.retired() => {}
        () = sender.send() => {}
        () = sender.watch_silence() => {}
        () = sender.fill() => {}
    }
}

struct Sender<'a> {
    host: &'a Host,
    links: Links,
    feed: &'a Arc<Feed>,
}

impl Sender<'_> {
    async fn retired(&self) {
        while !self.host.replicas().retire(self.feed) {
            self.feed.idle.notified().await;
        }
    }

    /// Ends when the links do.
    async fn send(&self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let before = self.feed.acked();
            match self.stream().await {
                Ok(never) => match never {},
                Err(TransferError::Dial(DialError::Stopping)) => return,
                Err(error) => {
                    tracing::debug!(%error, to = %self.feed.to().node, "a stream of changes broke");
                }
            }
            if before < self.feed.acked() {
                pause = PAUSE_FIRST;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One connection, until it breaks.
    async fn stream(&self) -> Result<Infallible, TransferError> {
        let to = self.feed.to();
        let link = self.links.bulk(to.node, Some(to.boot), self.feed.addr()).await?;
        let head = TransferHead::Replicate { owner: self.links.me() };
        let (mut send, mut recv) = link.open(control::encode(&head), false)?.split();
        tokio::select! {
            biased;
            end = self.read(&mut recv) => end,
            end = self.write(&mut send, link.peer().protocol) => end,
        }
    }

    async fn write(&self, send: &mut SendHalf, protocol: u8) -> Result<Infallible, TransferError> {
        let mut sent = self.feed.acked();
        loop {
            match self.feed.frame_after(sent, protocol) {
                Some((frame, last)) => {
                    send.send(frame).await?;
                    sent = last;
                }
                None => self.feed.queued.notified().await,
            }
        }
    }

    async fn read(&self, recv: &mut RecvHalf) -> Result<Infallible, TransferError> {
        let mut frames = FrameReader::default();
        loop {
            match recv.next().await {
                Some(StreamEvent::Data(data)) => {
                    frames.push(&data);
                    while let Some(ack) = frames.next()? {
                        self.acked(&Ack::decode(&ack)?);
                    }
                }
                Some(StreamEvent::Accepted | StreamEvent::Head(_)) => {}
                Some(StreamEvent::Refused(_) | StreamEvent::Reset(_) | StreamEvent::End(_))
                | None => {
                    return Err(TransferError::Broken);
                }
            }
        }
    }

    fn acked(&self, ack: &Ack) {
        let to = self.feed.to();
        // First: what was refused counts as taken in, and nobody may believe that it was.
        let lost = ack.refused.iter().filter(|refused| {
            let shard = self.host.shard(refused.shard);
            shard.is_some_and(|shard| shard.refused(to, refused.position))
        });
        let lost: Vec<_> = lost.map(|refused| (refused.shard, refused.why)).collect();
        for (_, why) in &lost {
            self.feed.meters().refused(*why);
        }
        let reached = self.feed.ack(self.host.core().now(), ack.position);
        let (mut shards, mut filled) = (Vec::new(), 0);
        for milestone in reached {
            let shard = self.host.shard(milestone.at.shard);
            if shard.is_some_and(|shard| shard.completes(milestone, to)) {
                shards.push(milestone.at);
                filled += u64::from(milestone.is_fill);
            }
        }
        self.feed.meters().filled.increment(filled);
        if !shards.is_empty() {
            self.feed.report(ReplicaReport::Filled { to, shards });
        }
        if !lost.is_empty() {
            self.feed.report(ReplicaReport::FollowerLost { to, shards: lost });
        }
    }

    /// Tells of a silence, again and again.
    async fn watch_silence(&self) {
        let core = self.host.core();
        let after = core.config.silent_after;
        loop {
            let Some(since) = self.feed.silent_since() else {
                self.feed.busy.notified().await;
                continue;
            };
            if core.now() < since + after {
                sleep_until(core.instant(since + after)).await;
                continue;
            }
            self.feed.report(ReplicaReport::FollowerSilent { to: self.feed.to() });
            sleep(after).await;
        }
    }

    /// Fills one copy after the other.
    async fn fill(&self) {
        loop {
            let Some((shard, follow)) = self.feed.next_fill() else {
                self.feed.to_fill.notified().await;
                continue;
            };
            self.feed.room_for_fill().await;
            if !shard.begin_fill(follow) {
                continue;
            }
            let mut cursor = 0;
            while shard.fill_step(follow, &mut cursor) == FillStep::More {
                self.feed.room_for_fill().await;
            }
        }
    }
}

impl Host {
    /// Takes in what the owner of shards sends to their copies here, over a stream of a bulk
    /// connection that it has opened for that. Ends with the stream.
    pub async fn follow(&self, stream: ServerStream) {
        let peer = stream.send.peer().node_boot();
        match head_of(&stream) {
            Ok(TransferHead::Replicate { owner }) if owner.node == peer.node => {
                let mut intake = Intake::new(self, owner);
                if let Err(error) = receive(&mut intake, stream).await {
                    tracing::debug!(%error, from = %owner.node, "a stream of changes broke");
                }
            }
            // The stream's end tells the sender.
            Ok(
                TransferHead::Replicate { .. }
                | TransferHead::Handoff { .. }
                | TransferHead::Offer { .. },
            )
            | Err(_) => tracing::info!(from = %peer.node, "a stream of changes that is none"),
        }
    }
}

async fn receive(intake: &mut Intake, stream: ServerStream) -> Result<(), TransferError> {
    let ServerStream { mut recv, mut send, .. } = stream;
    send.accepted();
    send.head(&Bytes::from_static(b"\0"), false)?;
    let mut frames = FrameReader::default();
    loop {
        let mut event = recv.next().await;
        let mut ack = Ack::default();
        // Everything that is here already is acknowledged at once.
        for n_more in (0..EVENTS_MAX).rev() {
            match event {
                Some(StreamEvent::Data(data)) => frames.push(&data),
                Some(StreamEvent::Accepted | StreamEvent::Refused(_) | StreamEvent::Head(_)) => {}
                Some(StreamEvent::Reset(_) | StreamEvent::End(_)) | None => {
                    return Err(TransferError::Broken);
                }
            }
            while let Some(frame) = frames.next()? {
                intake.take_in(frame, &mut ack)?;
            }
            if n_more == 0 {
                break;
            }
            match recv.try_next() {
                Poll::Ready(next) => event = next,
                Poll::Pending => break,
            }
        }
        if 0 < ack.position {
            send.send(ack.frame()).await?;
        }
    }
}
