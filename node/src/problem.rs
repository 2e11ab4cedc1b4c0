//! Errors as documents: RFC 9457 `application/problem+json`.

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, UPGRADE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use stead_shared::refusal::Refusal;

use crate::body::Body;

/// Says that the request was not executed, and why.
pub const REFUSAL: HeaderName = HeaderName::from_static("stead-refusal");
/// Says `unknown` when the request may have been executed.
pub const OUTCOME: HeaderName = HeaderName::from_static("stead-outcome");

/// An error on its way to a client.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    refusal: Option<&'static str>,
    is_outcome_unknown: bool,
    retry_after_ms: Option<u32>,
    allow: Option<&'static str>,
    upgrade: Option<&'static str>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u32>,
}

impl Problem {
    /// An error of this `status`; `kind` is the last part of its type.
    pub fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            title,
            detail: detail.into(),
            refusal: None,
            is_outcome_unknown: false,
            retry_after_ms: None,
            allow: None,
            upgrade: None,
        }
    }

    /// The one that goes with a refusal of the host.
    #[must_use]
    pub fn of_refusal(refusal: &Refusal) -> Self {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let (kind, title) = match refusal {
            Refusal::NotOwner { .. } => ("not-owner", "This node does not own the session"),
            Refusal::Moving => ("moving", "The session is moving to another node"),
            Refusal::Overloaded { .. } => ("overloaded", "Too many requests for this shard"),
            Refusal::Degraded => ("degraded", "Too few copies of the session"),
            Refusal::Quarantined => ("quarantined", "The session's state cannot be read here"),
            Refusal::DeadlinePassed => ("overloaded", "The request waited too long for its turn"),
        };
        let mut problem = Self::new(unavailable, kind, title, "The request was not executed.");
        problem.refusal = Some(refusal.token());
        problem.retry_after_ms = match refusal {
            Refusal::Overloaded { retry_after_ms } => Some(*retry_after_ms),
            Refusal::Moving | Refusal::NotOwner { .. } => Some(200),
            Refusal::Degraded | Refusal::DeadlinePassed => Some(1000),
            Refusal::Quarantined => None,
        };
        problem
    }

    /// Marks the request as not executed.
    #[must_use]
    pub fn refused(mut self, token: &'static str) -> Self {
        self.refusal = Some(token);
        self
    }

    /// Says after how many milliseconds a retry may help.
    #[must_use]
    pub fn retry_after(mut self, ms: u32) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Marks the request as one that may have been executed.
    #[must_use]
    pub fn outcome_unknown(mut self) -> Self {
        self.is_outcome_unknown = true;
        self
    }

    /// Names the methods that would have been right.
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// Names the protocol that would have been right.
    #[must_use]
    pub fn upgrade(mut self, protocol: &'static str) -> Self {
        self.upgrade = Some(protocol);
        self
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        let document = Document {
            kind: format!("urn:stead:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            refusal: self.refusal,
            outcome: self.is_outcome_unknown.then_some("unknown"),
            retry_after_ms: self.retry_after_ms,
        };
        let body = serde_json::to_vec(&document).expect("texts and numbers are always JSON");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(token) = self.refusal {
            headers.insert(REFUSAL, HeaderValue::from_static(token));
        }
        if self.is_outcome_unknown {
            headers.insert(OUTCOME, HeaderValue::from_static("unknown"));
        }
        if let Some(methods) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        if let Some(protocol) = self.upgrade {
            headers.insert(UPGRADE, HeaderValue::from_static(protocol));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
        }
        response
    }
}
