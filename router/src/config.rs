//! What a proxy runs with.

use std::time::Duration;

use stead_shared::config::OnNoKey;
use stead_shared::id::BootId;
use stead_shared::net::platform::Platform;
use stead_shared::session_key::KeySource;

use crate::sessions::Sessions;

use crate::logic::retry::Replay;
use stead_shared::park;

/// What a proxy runs with.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// What names this process's requests, with a number: [`NodeBoot::requests`].
    ///
    /// [`NodeBoot::requests`]: stead_shared::id::NodeBoot::requests
    pub boot: BootId,
    /// Where the key of a request is, in order of preference; at least one.
    pub keys: Vec<KeySource>,
    /// What a request without a key gets.
    pub no_key: OnNoKey,
    /// Signs issued cookies; all routers of a cluster share it. Required when cookies are issued.
    pub cookie_key: Option<[u8; 32]>,
    /// Whether clients see `stead-node`, `stead-shard` and `stead-epoch`. Default: no.
    pub expose_headers: bool,
    /// Which requests are sent again when they may have been executed. Default: all whose body is
    /// still here, where nodes apply each once; otherwise those that change nothing.
    pub replay: Replay,
    /// Bounds of waiting for an owner.
    pub park: park::Limits,
    /// Bounds of what clients may take.
    pub limits: Limits,
    /// The system beneath.
    pub platform: Platform,
}

impl ProxyConfig {
    /// Defaults, with the key at these places.
    #[must_use]
    pub fn new(boot: BootId, keys: Vec<KeySource>) -> Self {
        Self {
            boot,
            keys,
            no_key: OnNoKey::Refuse,
            cookie_key: None,
            expose_headers: false,
            replay: Replay::default(),
            park: park::Limits::default(),
            limits: Limits::default(),
            platform: Platform::system(),
        }
    }

    /// Whether a proxy can run with it.
    ///
    /// # Errors
    /// What [`Proxy::new`](crate::Proxy::new) would say.
    pub fn check(&self) -> Result<(), ProxyConfigError> {
        Sessions::new(self).map(drop)
    }
}

/// Bounds of what clients may take. All are checked ten times a second, not to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at a time; more wait in the kernel's queue. Default 16384. Each costs
    /// about 20 KiB.
    pub connections_max: usize,
    /// Longest time for a request's head to arrive, from its first byte. Default 10 s.
    pub head_timeout: Duration,
    /// Longest time between requests. Default 75 s, above the 60 s of common load balancers.
    pub idle_timeout: Duration,
    /// Longest time from a request's head to its answer's head. Default 60 s.
    pub request_timeout: Duration,
    /// Longest time in which a client takes nothing of an answer that is there. Default 60 s.
    pub stall_timeout: Duration,
    /// Longest time for requests to finish at the end. Default 10 s.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            request_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// A configuration that cannot work. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyConfigError {
    /// No key sources.
    #[error("a proxy needs at least one key source")]
    NoKeySource,
    /// Cookies without a key.
    #[error("cookies are issued, and there is no key that signs them")]
    NoCookieKey,
}
