//! Which session a request is for: the key in it, or the one its cookie names, or a new one.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use http::request::Parts;
use stead_shared::config::OnNoKey;
use stead_shared::id::SessionKey;
use stead_shared::net::platform::Platform;
use stead_shared::session_key::{CookieName, KeyError, KeySource, cookie, extract};

use crate::config::{ProxyConfig, ProxyConfigError};
use crate::logic::cookie::{self, Secure, Signer};

/// Requests without a key are spread over this many made-up ones.
const NAMELESS: u64 = 4096;

/// Finds the key of a request.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// Sources before the issued cookie in the order of preference, and those after it.
    before: Vec<KeySource>,
    after: Vec<KeySource>,
    no_key: NoKey,
    /// As configured, for the client's eyes.
    pub(crate) tried: String,
}

#[derive(Debug)]
enum NoKey {
    Refuse,
    Issue(Box<Issuer>),
    RoundRobin(AtomicU64),
}

#[derive(Debug)]
struct Issuer {
    signer: Signer,
    name: CookieName,
    secure: Secure,
    platform: Platform,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) key: SessionKey,
    /// The cookie that the answer must set.
    pub(crate) set_cookie: Option<HeaderValue>,
}

/// Nothing usable was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotFound {
    None,
    Invalid(KeyError),
}

impl Sessions {
    pub(crate) fn new(config: &ProxyConfig) -> Result<Self, ProxyConfigError> {
        if config.keys.is_empty() {
            return Err(ProxyConfigError::NoKeySource);
        }
        let mut sources: Vec<String> = config.keys.iter().map(ToString::to_string).collect();
        let no_key = match &config.no_key {
            OnNoKey::Refuse => NoKey::Refuse,
            OnNoKey::RoundRobin => NoKey::RoundRobin(AtomicU64::new(0)),
            OnNoKey::IssueCookie { name, secure } => {
                let key = config.cookie_key.ok_or(ProxyConfigError::NoCookieKey)?;
                sources.push(format!("issued cookie {}", name.as_str()));
                NoKey::Issue(Box::new(Issuer::new(name, *secure, &key, &config.platform)))
            }
        };
        // A source that names the issued cookie means that cookie, signature and all: an id that
        // the client made up must not be taken.
        let mut before = config.keys.clone();
        let mut after = Vec::new();
        if let (OnNoKey::IssueCookie { name, .. }, NoKey::Issue(issuer)) = (&config.no_key, &no_key)
        {
            let is_issued = |source: &KeySource| match source {
                KeySource::Cookie(other) => other == name || *other == issuer.name,
                KeySource::Header(_)
                | KeySource::Path(_)
                | KeySource::Query(_)
                | KeySource::Regex(_)
                | KeySource::Ip => false,
            };
            if let Some(at) = before.iter().position(is_issued) {
                after = before.split_off(at);
                after.retain(|source| !is_issued(source));
            }
        }
        Ok(Self { before, after, no_key, tried: sources.join(", ") })
    }

    /// The key of a request; `now` gives Unix seconds.
    pub(crate) fn find(
        &self,
        parts: &Parts,
        client: IpAddr,
        now: impl Fn() -> u64,
    ) -> Result<Found, NotFound> {
        let look = |sources| {
            extract(sources, &parts.uri, &parts.headers, client).map_err(NotFound::Invalid)
        };
        let known = |key| Found { key, set_cookie: None };
        if let Some(key) = look(&self.before)? {
            return Ok(known(key));
        }
        match &self.no_key {
            NoKey::Refuse => Err(NotFound::None),
            NoKey::RoundRobin(turn) => {
                let n = turn.fetch_add(1, Ordering::Relaxed) % NAMELESS;
                let key = SessionKey::new(format!("stead-no-key-{n}").into_bytes());
                Ok(known(key.expect("a short text is a key")))
            }
            NoKey::Issue(issuer) => {
                if let Some(value) = cookie(&parts.headers, &issuer.name)
                    && let Some(id) = issuer.signer.verify(value, now())
                {
                    return Ok(known(cookie::key_of(id)));
                }
                match look(&self.after)? {
                    Some(key) => Ok(known(key)),
                    None => Ok(issuer.issue(now())),
                }
            }
        }
    }
}

impl Issuer {
    fn new(name: &CookieName, secure: bool, key: &[u8; 32], platform: &Platform) -> Self {
        let secure = if secure { Secure::Yes } else { Secure::No };
        let full = cookie::full_name(name.as_str(), secure);
        let name = full.parse().expect("a prefix of letters keeps a name a name");
        Self { signer: Signer::new(key), name, secure, platform: platform.clone() }
    }

    fn issue(&self, now: u64) -> Found {
        let id = self.platform.random();
        let value = self.signer.issue(id, now);
        let set_cookie = cookie::set_cookie(self.name.as_str(), &value, self.secure);
        Found { key: cookie::key_of(id), set_cookie: Some(set_cookie) }
    }
}
