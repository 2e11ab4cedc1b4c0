//! Answers that the proxy itself makes: the one place where an error becomes a status.
//!
//! Each carries exactly one of `stead-refusal` (the request was not executed) and
//! `stead-outcome: unknown` (it may have been), and says the same in its RFC 9457 document.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use stead_shared::session_key::KeyError;

use crate::body::OutBody;
use crate::logic::framing::Violation;
use crate::logic::retry::Failure;
use stead_shared::border::hardening::Malformed;
use stead_shared::border::headers;

/// Why the proxy answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem<'a> {
    /// The request's framing is not to be trusted.
    Violation(Violation),
    /// The request's head is not allowed.
    Malformed(Malformed),
    /// The request's head does not fit a frame.
    HeadTooLarge,
    /// The body ended before its end, or did not keep to its framing.
    BrokenBody,
    /// No key; these sources were tried.
    NoKey(&'a str),
    /// A key that cannot be used.
    BadKey(KeyError),
    /// It could not be carried to an owner and back.
    Failed(Failure),
}

/// Whether the connection can be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Keep,
    Close,
}

/// What the client may believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Not executed.
    Refusal(&'static str),
    /// May have been executed.
    Unknown,
}

#[derive(Debug)]
struct Answer<'a> {
    status: StatusCode,
    verdict: Verdict,
    title: &'static str,
    detail: std::borrow::Cow<'a, str>,
    retry_after: Option<Duration>,
}

const SOON: Option<Duration> = Some(Duration::from_secs(1));

impl<'a> Answer<'a> {
    fn refused(
        status: StatusCode,
        token: &'static str,
        title: &'static str,
        detail: impl Into<std::borrow::Cow<'a, str>>,
    ) -> Self {
        let verdict = Verdict::Refusal(token);
        Self { status, verdict, title, detail: detail.into(), retry_after: None }
    }

    fn unavailable(token: &'static str, title: &'static str, detail: &'static str) -> Self {
        let answer = Self::refused(StatusCode::SERVICE_UNAVAILABLE, token, title, detail);
        Self { retry_after: SOON, ..answer }
    }

    fn unknown(status: StatusCode, detail: &'static str) -> Self {
        let title = "Outcome unknown";
        Self { status, verdict: Verdict::Unknown, title, detail: detail.into(), retry_after: None }
    }
}

/// The table.
fn answer(problem: Problem<'_>) -> Answer<'_> {
    let malformed = |status, detail: &'static str| {
        Answer::refused(status, "malformed", "Malformed request", detail)
    };
    let no_key = |detail| {
        Answer::refused(StatusCode::BAD_REQUEST, "no-session-key", "No session key", detail)
    };
    match problem {
        Problem::Violation(violation) => match violation {
            Violation::HeadTooLarge => {
                malformed(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, violation.detail())
            }
            Violation::BareLf
            | Violation::BareCr
            | Violation::ObsFold
            | Violation::Fragment
            | Violation::ContentLength
            | Violation::LengthAndEncoding
            | Violation::TransferEncoding
            | Violation::Chunk => malformed(StatusCode::BAD_REQUEST, violation.detail()),
        },
        Problem::Malformed(Malformed::Expectation) => {
            malformed(StatusCode::EXPECTATION_FAILED, Malformed::Expectation.detail())
        }
        Problem::Malformed(head) => malformed(StatusCode::BAD_REQUEST, head.detail()),
        Problem::HeadTooLarge => malformed(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the request's head is too large to be passed on",
        ),
        Problem::BrokenBody => {
            Answer::unknown(StatusCode::BAD_REQUEST, "the request's body broke off")
        }
        Problem::NoKey(tried) => no_key(format!("no session key in the request; tried: {tried}")),
        Problem::BadKey(error) => no_key(error.to_string()),
        Problem::Failed(failure) => failed(failure),
    }
}

fn failed(failure: Failure) -> Answer<'static> {
    match failure {
        Failure::Moving => Answer::unavailable(
            "moving",
            "Session is moving",
            "the session's shard is moving to another node; it was not there in time",
        ),
        Failure::NoOwner => Answer::unavailable(
            "not-owner",
            "No owner in reach",
            "no node that owns the session's shard could be reached",
        ),
        Failure::Overloaded(after) => Answer {
            retry_after: Some(after),
            ..Answer::unavailable(
                "overloaded",
                "Overloaded",
                "there is too much to do for this session's shard",
            )
        },
        Failure::Degraded => Answer::unavailable(
            "degraded",
            "Too few copies",
            "fewer copies of the session's shard are alive than writes require",
        ),
        Failure::Quarantined => Answer {
            retry_after: None,
            ..Answer::unavailable(
                "quarantined",
                "Set aside",
                "the session's state cannot be read and is set aside",
            )
        },
        Failure::Unknown => Answer::unknown(
            StatusCode::BAD_GATEWAY,
            "the connection to the node broke; the request may have been executed",
        ),
        Failure::UnknownInTime => Answer::unknown(
            StatusCode::GATEWAY_TIMEOUT,
            "the node did not answer in time; the request may have been executed",
        ),
    }
}

/// A problem document (RFC 9457).
#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// The answer to a problem.
pub(crate) fn respond(problem: Problem<'_>, then: Then) -> Response<OutBody> {
    let answer = answer(problem);
    let (name, token): (HeaderName, _) = match answer.verdict {
        Verdict::Refusal(token) => (headers::REFUSAL, token),
        Verdict::Unknown => (headers::OUTCOME, "unknown"),
    };
    let document = Document {
        kind: "about:blank",
        title: answer.title,
        status: answer.status.as_u16(),
        detail: &answer.detail,
        refusal: if name == headers::REFUSAL { Some(token) } else { None },
        outcome: if name == headers::OUTCOME { Some(token) } else { None },
        retry_after_ms: answer
            .retry_after
            .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    };
    let body = serde_json::to_vec(&document).expect("texts and numbers can be written as JSON");
    let mut response = Response::new(OutBody::full(Bytes::from(body)));
    *response.status_mut() = answer.status;
    let map = response.headers_mut();
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    map.insert(name, HeaderValue::from_static(token));
    if let Some(after) = answer.retry_after {
        // Whole seconds, and never too early.
        map.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
    }
    if then == Then::Close {
        map.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const ALL_FAILURES: [Failure; 7] = [
        Failure::Moving,
        Failure::NoOwner,
        Failure::Overloaded(Duration::from_millis(1500)),
        Failure::Degraded,
        Failure::Quarantined,
        Failure::Unknown,
        Failure::UnknownInTime,
    ];

    async fn answered(problem: Problem<'_>) -> (StatusCode, http::HeaderMap, serde_json::Value) {
        let (parts, body) = respond(problem, Then::Keep).into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn every_error_says_exactly_one_thing_in_header_and_document() {
        let mut problems: Vec<Problem<'_>> =
            ALL_FAILURES.iter().map(|&failure| Problem::Failed(failure)).collect();
        problems.extend([
            Problem::Violation(Violation::BareLf),
            Problem::Malformed(Malformed::Connect),
            Problem::HeadTooLarge,
            Problem::BrokenBody,
            Problem::NoKey("path:2"),
            Problem::BadKey(KeyError::Empty),
        ]);
        for problem in problems {
            let (status, map, document) = answered(problem).await;
            let refusal = map.get(headers::REFUSAL).map(|value| value.to_str().unwrap());
            let outcome = map.get(headers::OUTCOME).map(|value| value.to_str().unwrap());
            assert!(refusal.is_some() != outcome.is_some(), "{problem:?}");
            assert_eq!(document["refusal"].as_str(), refusal, "{problem:?}");
            assert_eq!(document["outcome"].as_str(), outcome, "{problem:?}");
            assert_eq!(document["status"], status.as_u16());
            assert_eq!(map[CONTENT_TYPE], "application/problem+json");
            for field in ["type", "title", "detail"] {
                assert!(!document[field].as_str().unwrap().is_empty(), "{problem:?} {field}");
            }
            let after = map.get(RETRY_AFTER).is_some();
            assert_eq!(document.get("retry_after_ms").is_some(), after, "{problem:?}");
        }
    }

    #[tokio::test]
    async fn each_failure_has_its_status() {
        for (failure, want) in ALL_FAILURES.iter().zip([503, 503, 503, 503, 503, 502, 504]) {
            assert_eq!(answered(Problem::Failed(*failure)).await.0.as_u16(), want, "{failure:?}");
        }
        let (_, map, document) = answered(Problem::Failed(ALL_FAILURES[2])).await;
        assert_eq!(
            (map[RETRY_AFTER].to_str().unwrap(), &document["retry_after_ms"]),
            ("2", &1500.into())
        );
        let (status, _, document) = answered(Problem::NoKey("path:2, ip")).await;
        assert_eq!(status, 400);
        assert!(document["detail"].as_str().unwrap().contains("path:2, ip"));
    }
}
