//! Counters, and what clients were told of them: whatever happened, each is what was answered in the
//! end, and no more than what was asked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::client::{Answer, once};
use crate::counting::sessions;
use crate::harness::{SOON, eventually};

/// What clients were told of a counter.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    counted: i64,
    unknown: i64,
}

impl Told {
    /// Takes down what became of one more. Whether it was counted.
    fn hear(&mut self, answer: Option<&Answer>) -> bool {
        match answer {
            Some(answer) if answer.status.is_success() => {
                self.counted += 1;
                return true;
            }
            Some(answer) if !answer.header("stead-refusal").is_empty() => {}
            Some(_) | None => self.unknown += 1,
        }
        false
    }
}

/// One counter a session.
pub(crate) struct Tally(BTreeMap<String, Told>);

impl Tally {
    /// `n` sessions that nobody has counted on.
    pub(crate) fn new(prefix: &str, n: usize) -> Self {
        Self(sessions(prefix, n).into_iter().map(|name| (name, Told::default())).collect())
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Adds one to every counter by way of `http`. Whether all were answered.
    pub(crate) async fn count_all(&mut self, http: SocketAddr) -> bool {
        let mut all = true;
        for (session, told) in &mut self.0 {
            let path = format!("/sessions/{session}/counters/visits");
            let answer = once(http, Method::POST, &path).await;
            all &= told.hear(answer.as_ref().ok());
        }
        all
    }

    /// Somebody else has added one to a counter, and heard this.
    pub(crate) fn heard(&mut self, session: &str, answer: &Answer) {
        self.0.get_mut(session).expect("one of the counters").hear(Some(answer));
    }

    /// Counts until all are answered.
    pub(crate) async fn until_answered(&mut self, http: SocketAddr) {
        let begun = Instant::now();
        while !self.count_all(http).await {
            assert!(begun.elapsed() < SOON, "counters are not answered by {http}");
        }
    }

    /// Waits until every counter has all that was answered, and asserts that none ever has more than
    /// was asked.
    pub(crate) async fn is_whole(&self, http: SocketAddr, within: Duration) {
        eventually("all that was counted", within, || async {
            for (session, told) in &self.0 {
                let path = format!("/sessions/{session}/counters/visits");
                let found = once(http, Method::GET, &path).await.and_then(Answer::success)?;
                let found = found.counter()?;
                let most = told.counted + told.unknown;
                assert!(found <= most, "{session}: {found}, {told:?}");
                if found < told.counted {
                    return Err(format!("{session}: {found}, {told:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Answers, and requests of which nobody knows.
    pub(crate) fn told(&self) -> (i64, i64) {
        let told = self.0.values();
        told.fold((0, 0), |(counted, unknown), it| (counted + it.counted, unknown + it.unknown))
    }
}
