//! Requests that this process took in itself, on its HTTP listener or by [`Handle::request`]:
//! served here, or forwarded to the shard's owner.
//!
//! ```text
//! request ─▶ place ─┬─ here ────▶ host ────┬─▶ answer
//!              ▲    ├─ owner ───▶ link ────┤
//!              │    └─ nowhere ─┐          │ refused: moving, not-owner
//!              └──── park ◀─────┴──────────┘
//! ```
//!
//! The owner answers or refuses; it never forwards what came over a link, so a request is
//! forwarded once and cannot go in circles. What was refused was not executed and may be tried
//! elsewhere. What broke off may have been executed: it is tried again when all of it is still here,
//! under the same id, so that it is applied once. Requests of one shard that have to wait do so in one queue, see
//! [`stead_shared::park`].

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::Poll;
use std::time::Duration;

use http::header::UPGRADE;
use http::{Method, Request, Response, StatusCode, request, response};
use stead_shared::border::websocket::Frames;
use stead_shared::id::{Epoch, NodeBoot, SessionKey, ShardId};
use stead_shared::net::link::{
    ClientStream, DialError, Link, OpenError, RecvHalf, ResetCode, SendHalf, StreamEvent,
};
use stead_shared::net::parking::Turn;
use stead_shared::park::{Cause, Ticket, Wait};
use stead_shared::refusal::Refusal;
use stead_shared::route::{Route, route};
use stead_shared::view::View;
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_refusal, decode_response, encode_request,
};
use stead_shared::wire::link::ONCE_SINCE;
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::link_body::LinkBody;
use crate::logic::gate::Gate;
use crate::node::Handle;
use crate::problem::Problem;
use crate::serve::{in_turn, left_ms, refusal_of, welcome};
use crate::tunnel;
use crate::upgrade::Upgrade;
use crate::upload::{Upload, UploadError};

mod common;

pub(crate) use common::Forwarding;

/// Hints to a newer owner that one request follows. Each leads to a higher epoch, so more than
/// one is already rare.
const HINTS_MAX: u8 = 3;
/// Times that a request which changes something is sent again although it may have been executed.
/// One that kills its owner should not kill all of them.
const REPLAYS_MAX: u8 = 3;
/// Attempts of one request, whatever their reasons.
const ATTEMPTS_MAX: u16 = 64;

/// An answer, and what came with it from the host that made it.
pub(crate) type Carried = (Option<ResponseMeta>, Response<Body>);

/// Where an attempt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here(Epoch),
    There(Destination),
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    owner: NodeBoot,
    addr: SocketAddr,
    epoch: Epoch,
}

/// What became of an attempt.
enum Outcome {
    Answer(ResponseMeta, Response<Body>),
    /// Not executed.
    Refused(Refusal),
    /// Not executed, and it cannot be.
    Problem(Problem),
    /// Not sent: the link had closed.
    Unsent,
    /// Perhaps executed, and no answer has begun.
    Broken,
}

/// A request that is being carried.
struct Errand {
    meta: RequestMeta,
    parts: request::Parts,
    upload: Upload,
    upgrade: Option<Upgrade>,
    deadline: Instant,
    /// Its place in the queue, once it had to wait.
    ticket: Option<Ticket>,
    turn: Option<Turn>,
    /// The highest epoch that it was sent to.
    tried: Option<Epoch>,
    n_hints: u8,
    n_attempts: u16,
    /// Times that it was sent again although it may have been executed.
    n_replays: u8,
    /// An attempt broke after it was sent.
    may_have_run: bool,
}

impl Errand {
    fn is_read(&self) -> bool {
        self.parts.method.is_safe()
    }

    /// The same head again, for one more attempt.
    fn head(&self) -> request::Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.parts.method.clone();
        parts.uri = self.parts.uri.clone();
        parts.version = self.parts.version;
        parts.headers = self.parts.headers.clone();
        parts.extensions = self.parts.extensions.clone();
        parts
    }

    fn left_ms(&self) -> u32 {
        left_ms(self.deadline)
    }
}

/// What a client hears of a request that was refused after an attempt that may have been
/// executed, or whose answer was lost.
fn outcome_unknown(status: StatusCode, detail: &str) -> Problem {
    let title = "The request may have been executed";
    Problem::new(status, "outcome-unknown", title, detail).outcome_unknown()
}

fn unknown() -> Problem {
    let detail = "The connection to the session's node broke before its answer began.";
    outcome_unknown(StatusCode::BAD_GATEWAY, detail)
}

impl Handle {
    /// Answers a request of the session `key`, whichever node of the cluster owns it: here, or by
    /// forwarding it to the owner. While the session moves or its owner is being replaced the
    /// request waits: two seconds at most for the end of a move, ten for a new owner. A node that has stopped, cut off
    /// with the smaller part of its cluster, asks nobody: `Degraded`.
    ///
    /// The answer carries `stead-node`, `stead-shard` and `stead-epoch`. An error of `stead` that
    /// leaves open whether the request was executed is an answer too, with `stead-outcome:
    /// unknown`. A WebSocket needs an [`Upgrade`] among the request's extensions.
    ///
    /// # Errors
    /// The request was not executed.
    pub async fn request(
        &self,
        key: SessionKey,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        // An answer from memory needs no wait: who asks in a loop would keep the thread for ever.
        tokio::task::coop::consume_budget().await;
        let upgrades = request.extensions().get::<Upgrade>().is_some();
        let meta = self.meta(key, IpAddr::V4(Ipv4Addr::LOCALHOST), upgrades);
        let (meta, mut response) = self.carry(meta, request).await?;
        self.stamp(meta.as_ref(), response.headers_mut());
        Ok(response)
    }

    /// Attempts until there is an answer, or no hope. An answer without a meta is this node's own.
    pub(crate) async fn carry(
        &self,
        meta: RequestMeta,
        request: Request<Body>,
    ) -> Result<Carried, Refusal> {
        let (parts, body) = request.into_parts();
        let mut errand = Errand {
            upgrade: parts.extensions.get::<Upgrade>().cloned(),
            deadline: Instant::now() + Duration::from_millis(u64::from(meta.deadline_ms)),
            upload: Upload::new(body),
            meta,
            parts,
            ticket: None,
            turn: None,
            tried: None,
            n_hints: 0,
            n_attempts: 0,
            n_replays: 0,
            may_have_run: false,
        };
        match self.deliver(&mut errand).await {
            Err(_) if errand.may_have_run => Ok((None, unknown().into_response())),
            delivered => delivered,
        }
    }

    async fn deliver(&self, errand: &mut Errand) -> Result<Carried, Refusal> {
        let shard = errand.meta.shard;
        let host = &self.inner.host;
        if host.is_stopped() {
            return Err(Refusal::Degraded);
        }
        if host.is_in_doubt() && host.gate(shard).is_some() {
            self.park(errand, Some(Cause::Moving)).await?;
        } else if self.inner.forwarding.parking.has_queue(shard) {
            self.park(errand, None).await?;
        }
        let mut hint = None;
        loop {
            let place = self.place(&self.view(), shard, hint.take());
            errand.n_attempts += 1;
            let outcome = match place {
                Place::Here(epoch) => self.serve_here(errand, epoch).await,
                Place::There(to) => self.forward(errand, to).await,
                Place::Nowhere => Outcome::Refused(Refusal::NotOwner { claim: None }),
            };
            let refusal = match outcome {
                Outcome::Answer(meta, response) => return Ok((Some(meta), response)),
                Outcome::Problem(problem) => return Ok((None, problem.into_response())),
                Outcome::Refused(refusal) => refusal,
                Outcome::Unsent if errand.n_attempts < ATTEMPTS_MAX => continue,
                Outcome::Unsent => Refusal::NotOwner { claim: None },
                Outcome::Broken => {
                    errand.may_have_run = true;
                    errand.meta.attempt = errand.meta.attempt.saturating_add(1);
                    errand.n_replays += 1;
                    let is_last = REPLAYS_MAX < errand.n_replays;
                    if !errand.upload.is_kept() || (is_last && !errand.is_read()) {
                        return Ok((None, unknown().into_response()));
                    }
                    Refusal::NotOwner { claim: None }
                }
            };
            hint = self.after(errand, refusal).await?;
        }
    }

    /// Where requests of `shard` go; `hint` is the epoch of an owner that the view may not know.
    fn place(&self, view: &View, shard: ShardId, hint: Option<Epoch>) -> Place {
        if let Some(Gate::Serving(epoch)) = self.inner.host.gate(shard) {
            return Place::Here(epoch);
        }
        let known = match route(view, shard) {
            Route::Owner { owner, addr, epoch } => Some(Destination { owner, addr, epoch }),
            Route::Park => None,
        };
        let hinted = hint.filter(|epoch| known.is_none_or(|known| known.epoch < *epoch));
        let hinted = hinted.and_then(|epoch| {
            let member = view.members.find(epoch.node).filter(|member| member.state.is_live())?;
            Some(Destination { owner: member.node_boot(), addr: member.gossip, epoch })
        });
        match hinted.or(known) {
            // The grant is still on its way. It is news for whoever waits only as long as nobody
            // has tried its epoch.
            Some(to) if to.owner.node == self.inner.me && known != Some(to) => Place::Nowhere,
            Some(to) if to.owner.node == self.inner.me => Place::Here(to.epoch),
            Some(to) => Place::There(to),
            None => Place::Nowhere,
        }
    }

    /// What follows a refusal: the epoch of another owner to try at once, or a look at the view
    /// after a wait.
    async fn after(&self, errand: &mut Errand, refusal: Refusal) -> Result<Option<Epoch>, Refusal> {
        let (claim, cause) = match &refusal {
            Refusal::NotOwner { claim } => (claim.map(|claim| claim.epoch), Cause::NoOwner),
            Refusal::Moving => (None, Cause::Moving),
            Refusal::Overloaded { .. }
            | Refusal::Degraded
            | Refusal::Quarantined
            | Refusal::DeadlinePassed => return Err(refusal),
        };
        if ATTEMPTS_MAX <= errand.n_attempts {
            return Err(refusal);
        }
        // Nobody here claims what the others have: there is nothing to wait for.
        if self.inner.host.is_stopped() {
            return Err(Refusal::Degraded);
        }
        if let Some(epoch) = claim.filter(|epoch| errand.tried < Some(*epoch))
            && errand.n_hints < HINTS_MAX
        {
            errand.n_hints += 1;
            return Ok(Some(epoch));
        }
        self.park(errand, Some(cause)).await?;
        Ok(None)
    }

    /// Waits for the turn of this request; `cause` is none when it only queues behind others.
    async fn park(&self, errand: &mut Errand, cause: Option<Cause>) -> Result<(), Refusal> {
        let parking = &self.inner.forwarding.parking;
        let wait = Wait {
            shard: errand.meta.shard,
            again: errand.ticket,
            cause,
            tried: errand.tried,
            bytes: errand.upload.kept_bytes(),
            deadline: parking.time_of(errand.deadline),
        };
        let turn = parking.wait(wait, errand.turn.take()).await.map_err(refusal_of)?;
        errand.ticket = Some(turn.ticket());
        errand.turn = Some(turn);
        Ok(())
    }

    async fn serve_here(&self, errand: &mut Errand, epoch: Epoch) -> Outcome {
        errand.tried = errand.tried.max(Some(epoch));
        errand.meta.epoch = None;
        errand.meta.deadline_ms = errand.left_ms();
        let upload = std::mem::replace(&mut errand.upload, Upload::new(Body::empty()));
        let (body, lender) = upload.lend();
        let request = Request::from_parts(errand.head(), body);
        let meta = errand.meta.clone();
        let serving = std::pin::pin!(self.inner.host.serve(meta, request));
        match in_turn(&mut errand.turn, serving).await {
            Ok((meta, response)) => Outcome::Answer(meta, response),
            Err(refusal) => {
                // The host has dropped what it did not execute.
                if let Some(upload) = lender.take_back() {
                    errand.upload = upload;
                }
                Outcome::Refused(self.inner.server.with_claim(errand.meta.shard, refusal))
            }
        }
    }

    // ---- over the link ---------------------------------------------------------------------

    async fn forward(&self, errand: &mut Errand, to: Destination) -> Outcome {
        let shared = &self.inner.forwarding;
        let outcome = self.try_forward(errand, to).await;
        match &outcome {
            Outcome::Answer(..) => shared.answered.increment(1),
            Outcome::Refused(_) | Outcome::Problem(_) => shared.refused.increment(1),
            Outcome::Unsent => shared.unreachable.increment(1),
            Outcome::Broken => shared.broken.increment(1),
        }
        outcome
    }

    async fn try_forward(&self, errand: &mut Errand, to: Destination) -> Outcome {
        errand.tried = errand.tried.max(Some(to.epoch));
        let Some(link) = self.link(to).await else {
            return Outcome::Refused(Refusal::NotOwner { claim: None });
        };
        if errand.may_have_run && !errand.is_read() && link.peer().protocol < ONCE_SINCE {
            return Outcome::Problem(unknown());
        }
        errand.meta.epoch = Some(to.epoch);
        errand.meta.deadline_ms = errand.left_ms();
        let Ok(head) = encode_request(&errand.meta, &errand.parts) else {
            return Outcome::Problem(head_too_large());
        };
        errand.upload.rewind();
        let stream = match link.open(head, errand.upload.is_empty() && errand.upgrade.is_none()) {
            Ok(stream) => stream,
            Err(OpenError::Closed(_)) => return Outcome::Unsent,
            Err(OpenError::Full | OpenError::TooMany) => return Outcome::Refused(BUSY),
            Err(OpenError::HeadTooLong) => return Outcome::Problem(head_too_large()),
        };
        errand.turn = Turn::sent(errand.turn.take());
        let exchange = exchange(stream, &mut errand.upload, &mut errand.turn);
        match timeout_at(errand.deadline, exchange).await {
            Ok(Exchanged::Head(head)) => self.answer(errand, to, *head),
            Ok(Exchanged::Refused(refusal)) => Outcome::Refused(refusal),
            Ok(Exchanged::Unsent) => Outcome::Unsent,
            Ok(Exchanged::Broken) => Outcome::Broken,
            Ok(Exchanged::BrokenBody) => Outcome::Problem(body_cut_off()),
            Err(_) => Outcome::Problem(too_late()),
        }
    }

    /// An answer that has begun, with what follows its head.
    fn answer(&self, errand: &mut Errand, to: Destination, head: Head) -> Outcome {
        let Head { meta, mut parts, recv, mut send } = head;
        if meta.epoch < to.epoch {
            // Whoever gave it had been replaced before it was asked.
            return Outcome::Broken;
        }
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(upgrade) = errand.upgrade.take() else { return Outcome::Broken };
            let is_websocket = parts
                .headers
                .get(UPGRADE)
                .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
            let frames = is_websocket.then(Frames::new);
            tokio::spawn(async move {
                if let Ok(near) = upgrade.stream().await {
                    tunnel::run(near, recv, send, frames).await;
                }
            });
            return Outcome::Answer(meta, Response::from_parts(parts, Body::empty()));
        }
        if errand.upgrade.is_some() {
            // An error means that the owner has closed the stream already.
            let _ = send.finish(None);
        } else if !errand.upload.is_empty() && !errand.upload.is_done() {
            let mut upload = std::mem::replace(&mut errand.upload, Upload::new(Body::empty()));
            tokio::spawn(async move {
                // Either side's end ends it; the answer tells what became of it.
                let _ = poll_fn(|cx| upload.poll_send(&mut send, cx)).await;
            });
        }
        parts.version = http::Version::HTTP_11;
        let has_body = errand.parts.method != Method::HEAD && may_have_body(parts.status);
        let body =
            if has_body { Body::new(LinkBody::new(recv, meta.length)) } else { Body::empty() };
        Outcome::Answer(meta, Response::from_parts(parts, body))
    }

    async fn link(&self, to: Destination) -> Option<Link> {
        match self.inner.links.to(to.owner.node, Some(to.owner.boot), to.addr).await {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::debug!(node = %to.owner.node, %error, "cannot reach an owner");
                match error {
                    DialError::Refused
                    | DialError::Timeout
                    | DialError::Rejected(_)
                    | DialError::Io(_)
                    | DialError::WrongPeer { .. } => self.inner.agent.accuse(to.owner.node),
                    DialError::Stopping | DialError::TooMany => {}
                }
                None
            }
        }
    }
}

/// The begin of an answer.
struct Head {
    meta: ResponseMeta,
    parts: response::Parts,
    recv: RecvHalf,
    send: SendHalf,
}

/// How an exchange over the link went.
enum Exchanged {
    Head(Box<Head>),
    Refused(Refusal),
    Unsent,
    Broken,
    /// The client did not send what it began.
    BrokenBody,
}

/// What can be said of a refusal that cannot be read, or of a peer that is full: not executed.
const BUSY: Refusal = Refusal::Overloaded { retry_after_ms: 1_000 };

/// Sends a request's body and waits for the answer's head.
async fn exchange(stream: ClientStream, upload: &mut Upload, turn: &mut Option<Turn>) -> Exchanged {
    let (mut send, mut recv) = stream.split();
    let has_body = !upload.is_empty();
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(event) = recv.poll_next(cx) {
                return Poll::Ready(Ok(event));
            }
            if has_body && upload.poll_send(&mut send, cx) == Poll::Ready(Err(UploadError::Body)) {
                return Poll::Ready(Err(()));
            }
            // When the stream took no more, its other half says why.
            Poll::Pending
        });
        let Ok(event) = event.await else { return Exchanged::BrokenBody };
        return match event {
            Some(StreamEvent::Accepted) => {
                welcome(turn);
                upload.accepted();
                continue;
            }
            Some(StreamEvent::Head(head)) => match decode_response(head) {
                Ok((meta, parts)) => {
                    welcome(turn);
                    upload.accepted();
                    Exchanged::Head(Box::new(Head { meta, parts, recv, send }))
                }
                Err(_) => Exchanged::Broken,
            },
            Some(StreamEvent::Refused(refusal)) => {
                Exchanged::Refused(decode_refusal(&refusal).unwrap_or(BUSY))
            }
            Some(StreamEvent::Reset(ResetCode::TooMany)) => Exchanged::Refused(BUSY),
            Some(StreamEvent::Reset(ResetCode::LinkClosed)) | None if !send.flushed() => {
                Exchanged::Unsent
            }
            Some(StreamEvent::Reset(_) | StreamEvent::Data(_) | StreamEvent::End(_)) | None => {
                Exchanged::Broken
            }
        };
    }
}

/// Whether an answer with this status has content (RFC 9110 §6.4.1).
fn may_have_body(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::NO_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

fn head_too_large() -> Problem {
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let detail = "It does not fit the link to the session's node. It was not executed.";
    Problem::new(status, "malformed", "The request's head is too large", detail)
        .refused("malformed")
}

fn body_cut_off() -> Problem {
    let detail = "The content ended before its announced end.";
    Problem::new(StatusCode::BAD_REQUEST, "body-cut-off", "The content was cut off", detail)
        .outcome_unknown()
}

fn too_late() -> Problem {
    let detail = "The session's node did not answer in time.";
    outcome_unknown(StatusCode::GATEWAY_TIMEOUT, detail)
}

#[cfg(test)]
mod tests;
