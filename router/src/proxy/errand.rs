//! A request on its way, with what it has been through.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, request};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use stead_shared::rules::Rules;
use stead_shared::wire::http::RequestMeta;
use tokio::time::Instant;

use crate::client::ClientState;
use crate::config::ProxyConfig;
use crate::logic::retry::{Event, Failure, Next, Sent, Trail};
use crate::respond::Then;
use crate::upstream::Upload;
use stead_shared::border::headers;
use stead_shared::net::parking::Turn;
use stead_shared::park::Ticket;

/// A request that is being carried.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) parts: request::Parts,
    pub(super) meta: RequestMeta,
    pub(super) upload: Option<Box<Upload>>,
    /// The protocol asked for, and the client's connection once it may be used for it.
    pub(super) upgrade: Option<(HeaderValue, OnUpgrade)>,
    pub(super) trail: Trail,
    pub(super) ticket: Option<Ticket>,
    pub(super) turn: Option<Turn>,
    pub(super) begun: Instant,
    pub(super) is_read: bool,
    /// The present attempt's stream is open.
    pub(super) is_sent: bool,
    pub(super) takes_trailers: bool,
    pub(super) set_cookie: Option<HeaderValue>,
}

/// Why an errand ends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    Failed(Failure),
    BrokenBody,
    HeadTooLarge,
}

impl Errand {
    pub(super) fn new(
        mut parts: request::Parts,
        body: Incoming,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
        meta: RequestMeta,
        client: &Arc<ClientState>,
        begun: Instant,
    ) -> Self {
        let upload = if body.is_end_stream() {
            None
        } else {
            Some(Box::new(Upload::new(body, Arc::clone(client))))
        };
        let takes_trailers = headers::takes_trailers(&parts.headers);
        let protocol = upgrade.as_ref().map(|(protocol, _)| protocol.clone());
        headers::to_node(&mut parts.headers, parts.version, &client.ip_text, protocol);
        if parts.uri.authority().is_some() {
            parts.uri = origin_form(&parts.uri);
        }
        Self {
            is_read: parts.method.is_safe(),
            parts,
            meta,
            upload,
            upgrade,
            trail: Trail::new(Rules::ALL),
            ticket: None,
            turn: None,
            begun,
            is_sent: false,
            takes_trailers,
            set_cookie: None,
        }
    }

    pub(super) fn deadline(&self, config: &ProxyConfig) -> Instant {
        self.begun + config.limits.request_timeout
    }

    pub(super) fn sent(&self) -> Sent {
        let is_kept = self.upload.as_ref().is_none_or(|upload| upload.is_kept());
        Sent { is_read: self.is_read, is_kept }
    }

    /// Whether the connection can go on after an answer of ours: not with a body half read.
    pub(super) fn then(&self) -> Then {
        let unread = self.upload.as_ref().is_some_and(|upload| !upload.has_ended());
        if unread { Then::Close } else { Then::Keep }
    }

    pub(super) fn out_of_time(&mut self, config: &ProxyConfig) -> Undelivered {
        match self.trail.next(&Event::OutOfTime { sent: self.is_sent }, config.replay) {
            Next::Fail(failure) => Undelivered::Failed(failure),
            Next::Redirect(_) | Next::Park(_) | Next::AtOnce | Next::Replay | Next::Again => {
                Undelivered::Failed(Failure::UnknownInTime)
            }
        }
    }
}

/// `http://host/path?query` as `/path?query`.
fn origin_form(uri: &Uri) -> Uri {
    let slash = || PathAndQuery::from_static("/");
    Uri::from(uri.path_and_query().cloned().unwrap_or_else(slash))
}
