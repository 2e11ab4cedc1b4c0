//! What the rest of the program takes: no value in here can be out of range.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::{AckPolicy, NoKey, NodeOptions, OnMinority, RouterOptions};
use crate::hash::ShardCount;
use crate::id::ClusterId;
use crate::session_key::{CookieName, KeySource, parse_list};

/// Most bytes of a name of a member, a cluster or a zone.
const NAME_BYTES_MAX: usize = 64;
/// Most entries of `join`.
const SEEDS_MAX: usize = 64;
/// Weights above this make the ring needlessly large: 512 points for each unit.
const WEIGHT_MAX: u16 = 100;
/// More threads than the largest machines have cores.
const THREADS_MAX: u16 = 1024;
/// A year: session deadlines stay far from the end of the clock.
const SESSION_TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// An option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}; {hint}")]
pub struct ConfigError {
    /// The option, spelled as in the file and, with `--` before it, as a flag.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub hint: String,
}

impl ConfigError {
    fn new(key: &'static str, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { key, problem: problem.into(), hint: hint.into() }
    }
}

/// What nodes and routers have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberConfig {
    /// Where gossip (UDP) and the link (TCP) listen.
    pub gossip: SocketAddr,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// Seeds, `HOST:PORT` each; empty on a node that founds a cluster.
    pub join: Vec<String>,
    /// `HOST:PORT` under which others reach `gossip`, where it differs from it.
    pub advertise: Option<String>,
    /// The cluster's name.
    pub cluster: String,
    /// File with the cluster's keys.
    pub cluster_key_file: Option<PathBuf>,
    /// Gossip without a key outside loopback was asked for.
    pub insecure_gossip: bool,
    /// File with the token for admin POSTs from elsewhere.
    pub admin_token_file: Option<PathBuf>,
    /// Threads that serve requests; `None` for as many as there are cores.
    pub threads: Option<NonZeroUsize>,
}

impl MemberConfig {
    /// The cluster's id.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId::of_name(&self.cluster)
    }

    /// `HOST:PORT` under which others reach a listener of this process that is bound to `bound`:
    /// the address itself, or the advertised host where it listens on all addresses.
    #[must_use]
    pub fn reachable(&self, bound: SocketAddr) -> String {
        let host = self.advertise.as_deref().and_then(|a| a.rsplit_once(':')).map(|(host, _)| host);
        match host {
            Some(host) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
            Some(_) | None => bound.to_string(),
        }
    }
}

/// What a node runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeConfig {
    /// What every member has.
    pub member: MemberConfig,
    /// The node's name.
    pub name: String,
    /// Where it answers plain HTTP.
    pub http: SocketAddr,
    /// Its zone, or empty.
    pub zone: String,
    /// Its weight, 0 to 100.
    pub weight: u16,
    /// Number of shards.
    pub shards: ShardCount,
    /// Capacity factor in thousandths, 1020 to 1250.
    pub balance_permille: u32,
    /// Where the key of a request to `http` is; at least one.
    pub key: Vec<KeySource>,
    /// How long an idle session is kept.
    pub session_ttl: Duration,
    /// Most bytes of all sessions.
    pub memory_max: u64,
    /// Most bytes of state per second that are sent for balance; none is no limit.
    pub handoff_rate: Option<NonZeroU64>,
    /// Copies of each shard beside the owner's, 0 to 2.
    pub replicas: u8,
    /// What must know of a change before its answer goes out.
    pub ack: AckPolicy,
    /// Copies below which changes are refused, 1 to 1 + `replicas`.
    pub min_copies: u8,
    /// What to do on the smaller side of a cut.
    pub on_minority: OnMinority,
    /// How long the ready nodes must not have changed to count.
    pub settled_after: Duration,
    /// Bound of a drain.
    pub drain_timeout: Duration,
    /// Where to keep what must survive a restart.
    pub data_dir: Option<PathBuf>,
    /// After how long without a seed to found alone; `None` never.
    pub form_alone_after: Option<Duration>,
    /// Found a cluster although the data directory remembers another.
    pub found: bool,
}

/// What a router runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterConfig {
    /// What every member has; `join` is not empty.
    pub member: MemberConfig,
    /// The router's name; `None` to make one of its address.
    pub name: Option<String>,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where the key of a request is; at least one.
    pub key: Vec<KeySource>,
    /// What a request without a key gets.
    pub no_key: OnNoKey,
    /// Whether clients see `stead-node`, `stead-shard` and `stead-epoch`.
    pub expose_headers: bool,
}

/// What a request without a key gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnNoKey {
    /// 400.
    Refuse,
    /// A new session in a signed cookie.
    IssueCookie {
        /// The cookie's name, without prefix.
        name: CookieName,
        /// `Secure`, with the prefix `__Host-`.
        secure: bool,
    },
    /// Any node, in turns.
    RoundRobin,
}

impl TryFrom<&NodeOptions> for NodeConfig {
    type Error = ConfigError;

    fn try_from(options: &NodeOptions) -> Result<Self, ConfigError> {
        let Some(name) = &options.name else {
            return Err(ConfigError::new(
                "name",
                "missing",
                "give each node a stable name of its own, as in `--name n1`",
            ));
        };
        check_name("name", name, "")?;
        if !options.zone.is_empty() {
            check_name("zone", &options.zone, "")?;
        }
        check_range(
            "session-ttl",
            options.session_ttl.0,
            Duration::from_millis(100)..=SESSION_TTL_MAX,
            "100ms to 365d",
        )?;
        check_range(
            "drain-timeout",
            options.drain_timeout.0,
            Duration::from_millis(100)..=Duration::from_secs(3600),
            "100ms to 1h",
        )?;
        check_range(
            "settled-after",
            options.settled_after.0,
            Duration::from_secs(1)..=Duration::from_secs(3600),
            "1s to 1h",
        )?;
        check_range("weight", options.weight, 0..=WEIGHT_MAX, "0 to 100")?;
        let rate = options.handoff_rate.0;
        if rate > 0 {
            check_range("handoff-rate", rate, 64 << 10..=u64::MAX, "0 or at least 64KiB")?;
        }
        check_range("memory-max", options.memory_max.0, 4 << 10..=u64::MAX, "at least 4KiB")?;
        check_range("replicas", options.replicas, 0..=2, "0 to 2")?;
        let copies = 1..=1 + options.replicas;
        check_range("min-copies", options.min_copies, copies, "1 to 1 + replicas")?;
        if options.ack.waits_for_disk() && options.data_dir.is_none() {
            return Err(ConfigError::new(
                "ack",
                format!("{} without a data-dir: there is no disk to wait for", options.ack),
                "say where to keep sessions, as in `--data-dir /var/lib/stead`, or leave out `+disk`",
            ));
        }
        if let Some(limit) = options.form_alone_after.limit() {
            let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
            check_range("form-alone-after", limit, range, "1s to 24h, or `never`")?;
        }
        Ok(Self {
            member: MemberConfig::check(MemberOptions::of_node(options))?,
            name: name.clone(),
            http: options.http,
            zone: options.zone.clone(),
            weight: options.weight,
            shards: check_shards(options.shards)?,
            balance_permille: check_balance(options.balance)?,
            key: check_keys(&options.key)?,
            session_ttl: options.session_ttl.0,
            memory_max: options.memory_max.0,
            handoff_rate: NonZeroU64::new(rate),
            replicas: options.replicas,
            ack: options.ack,
            min_copies: options.min_copies,
            on_minority: options.on_minority,
            settled_after: options.settled_after.0,
            drain_timeout: options.drain_timeout.0,
            data_dir: options.data_dir.clone(),
            form_alone_after: options.form_alone_after.limit(),
            found: options.found,
        })
    }
}

impl TryFrom<&RouterOptions> for RouterConfig {
    type Error = ConfigError;

    fn try_from(options: &RouterOptions) -> Result<Self, ConfigError> {
        if let Some(name) = &options.name {
            check_name("name", name, ":")?;
        }
        if options.join.is_empty() {
            return Err(ConfigError::new(
                "join",
                "missing: a router founds no cluster",
                "name the gossip address of a node, as in `--join 127.0.0.1:7400`",
            ));
        }
        Ok(Self {
            member: MemberConfig::check(MemberOptions::of_router(options))?,
            name: options.name.clone(),
            listen: options.listen,
            key: check_keys(&options.key)?,
            no_key: check_no_key(options)?,
            expose_headers: options.expose_headers,
        })
    }
}

/// The options that nodes and routers share, by reference.
struct MemberOptions<'a> {
    gossip: SocketAddr,
    admin: SocketAddr,
    join: &'a [String],
    advertise: Option<&'a str>,
    cluster: &'a str,
    cluster_key_file: Option<&'a PathBuf>,
    insecure_gossip: bool,
    admin_token_file: Option<&'a PathBuf>,
    threads: Option<u16>,
    /// The listener for requests, and what it is called.
    served: (&'static str, SocketAddr),
}

impl<'a> MemberOptions<'a> {
    fn of_node(options: &'a NodeOptions) -> Self {
        Self {
            gossip: options.gossip,
            admin: options.admin,
            join: &options.join,
            advertise: options.advertise.as_deref(),
            cluster: &options.cluster,
            cluster_key_file: options.cluster_key_file.as_ref(),
            insecure_gossip: options.insecure_gossip,
            admin_token_file: options.admin_token_file.as_ref(),
            threads: options.threads,
            served: ("http", options.http),
        }
    }

    fn of_router(options: &'a RouterOptions) -> Self {
        Self {
            gossip: options.gossip,
            admin: options.admin,
            join: &options.join,
            advertise: options.advertise.as_deref(),
            cluster: &options.cluster,
            cluster_key_file: options.cluster_key_file.as_ref(),
            insecure_gossip: options.insecure_gossip,
            admin_token_file: options.admin_token_file.as_ref(),
            threads: options.threads,
            served: ("listen", options.listen),
        }
    }
}

impl MemberConfig {
    fn check(options: MemberOptions<'_>) -> Result<Self, ConfigError> {
        check_name("cluster", options.cluster, "")?;
        if options.join.len() > SEEDS_MAX {
            let problem = format!("{} seeds", options.join.len());
            return Err(ConfigError::new("join", problem, "two or three are enough, 64 the most"));
        }
        for seed in options.join {
            check_host_port("join", seed)?;
        }
        check_advertise(&options)?;
        check_distinct(&options)?;
        check_security(&options)?;
        if let Some(threads) = options.threads {
            check_range("threads", threads, 1..=THREADS_MAX, "1 to 1024, or leave it out")?;
        }
        Ok(Self {
            gossip: options.gossip,
            admin: options.admin,
            join: options.join.to_vec(),
            advertise: options.advertise.map(str::to_owned),
            cluster: options.cluster.to_owned(),
            cluster_key_file: options.cluster_key_file.cloned(),
            insecure_gossip: options.insecure_gossip,
            admin_token_file: options.admin_token_file.cloned(),
            threads: options.threads.and_then(|n| NonZeroUsize::new(n.into())),
        })
    }
}

fn check_advertise(options: &MemberOptions<'_>) -> Result<(), ConfigError> {
    match options.advertise {
        Some(address) => check_host_port("advertise", address),
        None if options.gossip.ip().is_unspecified() => Err(ConfigError::new(
            "advertise",
            format!("missing, while gossip listens on all addresses ({})", options.gossip),
            "say where others reach this process, as in `--advertise 10.0.0.5:7400`",
        )),
        None => Ok(()),
    }
}

/// Two listeners on one port would fail while starting; here the message is better.
fn check_distinct(options: &MemberOptions<'_>) -> Result<(), ConfigError> {
    let listeners = [("gossip", options.gossip), options.served, ("admin", options.admin)];
    for (i, (key, address)) in listeners.iter().enumerate() {
        let same = |(_, other): &&(&str, SocketAddr)| address.port() != 0 && address == other;
        if let Some((other, _)) = listeners[..i].iter().find(same) {
            return Err(ConfigError::new(
                key,
                format!("{address} is also the address of {other}"),
                "each listener needs a port of its own",
            ));
        }
    }
    Ok(())
}

fn check_security(options: &MemberOptions<'_>) -> Result<(), ConfigError> {
    let open = options.cluster_key_file.is_none() && !options.insecure_gossip;
    if open && !options.gossip.ip().is_loopback() {
        return Err(ConfigError::new(
            "gossip",
            format!("{} is reachable from outside, and there is no key", options.gossip),
            "make a key with `stead keygen`, give it to every member by --cluster-key-file, or \
             say --insecure-gossip in a closed network",
        ));
    }
    Ok(())
}

fn check_no_key(options: &RouterOptions) -> Result<OnNoKey, ConfigError> {
    let issue = |name: &str| {
        let name = name.parse::<CookieName>().map_err(|error| {
            ConfigError::new("issue-cookie", error.to_string(), "letters, digits, `-` and `_` do")
        })?;
        if options.cluster_key_file.is_none() && !options.listen.ip().is_loopback() {
            return Err(ConfigError::new(
                "issue-cookie",
                format!("cookies for clients of {} need a key that signs them", options.listen),
                "give --cluster-key-file (made by `stead keygen`)",
            ));
        }
        Ok(OnNoKey::IssueCookie { name, secure: options.cookie_secure })
    };
    match (options.no_key, options.issue_cookie.as_deref()) {
        (None | Some(NoKey::IssueCookie), Some(name)) => issue(name),
        (Some(NoKey::IssueCookie), None) => issue("stead"),
        (None | Some(NoKey::Refuse), None) => Ok(OnNoKey::Refuse),
        (Some(NoKey::RoundRobin), None) => Ok(OnNoKey::RoundRobin),
        (Some(NoKey::Refuse | NoKey::RoundRobin), Some(_)) => {
            Err(ConfigError::new("no-key", "contradicts issue-cookie", "leave one of the two out"))
        }
    }
}

fn check_keys(specs: &[String]) -> Result<Vec<KeySource>, ConfigError> {
    parse_list(&specs.join(",")).map_err(|error| {
        ConfigError::new("key", error.to_string(), "for example `header:x-session,path:2`")
    })
}

fn check_shards(shards: u32) -> Result<ShardCount, ConfigError> {
    ShardCount::new(shards).map_err(|_| {
        ConfigError::new(
            "shards",
            format!("{shards} is not a power of two from 1 to 65536"),
            "16384 suits up to 160 nodes; it can never be changed later",
        )
    })
}

fn check_balance(balance: f64) -> Result<u32, ConfigError> {
    if (1.02..=1.25).contains(&balance) {
        return Ok((balance * 1000.0).round() as u32);
    }
    Err(ConfigError::new(
        "balance",
        format!("{balance} is outside 1.02 to 1.25"),
        "1.05 suits most clusters",
    ))
}

fn check_range<T: PartialOrd + std::fmt::Debug>(
    key: &'static str,
    value: T,
    range: std::ops::RangeInclusive<T>,
    words: &str,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("{value:?} is out of range"), format!("give {words}")))
}

fn check_name(key: &'static str, name: &str, more: &str) -> Result<(), ConfigError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c) || more.contains(c);
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(fits) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    Err(ConfigError::new(
        key,
        format!("`{shown}` is not a name"),
        format!("use 1 to {NAME_BYTES_MAX} letters, digits, `.`, `-` or `_`"),
    ))
}

/// Checks that `text` looks like `HOST:PORT`, without resolving it. `key` names the option.
///
/// # Errors
/// When there is no host, or no port from 1 to 65535.
pub fn check_host_port(key: &'static str, text: &str) -> Result<(), ConfigError> {
    let split = text.rsplit_once(':');
    let port_fits = split.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|p| p != 0));
    let host = split.map_or("", |(host, _)| host);
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_fits = bracketed || (!host.is_empty() && !host.contains([':', '/', ' ', ',']));
    if port_fits && host_fits && text.len() <= 260 {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(ConfigError::new(
        key,
        format!("`{shown}` is not HOST:PORT"),
        "for example `127.0.0.1:7400`, `node-0.stead:7400` or `[::1]:7400`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Patience, Size, Span};

    fn node() -> NodeOptions {
        NodeOptions { name: Some("n1".into()), ..NodeOptions::default() }
    }

    fn router() -> RouterOptions {
        RouterOptions {
            join: vec!["127.0.0.1:7400".into()],
            key: vec!["path:2".into()],
            ..RouterOptions::default()
        }
    }

    /// The options that `change` makes of good ones are refused because of `key`.
    #[track_caller]
    fn refused(key: &str, change: impl FnOnce(&mut NodeOptions)) {
        let mut options = node();
        change(&mut options);
        assert_eq!(NodeConfig::try_from(&options).unwrap_err().key, key);
    }

    #[track_caller]
    fn router_refused(key: &str, change: impl FnOnce(&mut RouterOptions)) {
        let mut options = router();
        change(&mut options);
        assert_eq!(RouterConfig::try_from(&options).unwrap_err().key, key);
    }

    #[test]
    fn a_name_is_all_that_a_node_needs() {
        let config = NodeConfig::try_from(&node()).unwrap();
        assert_eq!(config.balance_permille, 1050);
        assert_eq!(config.form_alone_after, Some(Duration::from_secs(10)));
        refused("name", |o| o.name = None);
    }

    #[test]
    fn values_out_of_range_name_their_option() {
        refused("name", |o| o.name = Some("n 1".into()));
        refused("name", |o| o.name = Some("n".repeat(65)));
        refused("zone", |o| o.zone = "a/b".into());
        refused("cluster", |o| o.cluster = String::new());
        refused("weight", |o| o.weight = 101);
        refused("shards", |o| o.shards = 1000);
        refused("shards", |o| o.shards = 0);
        refused("shards", |o| o.shards = 131_072);
        refused("balance", |o| o.balance = 1.0);
        refused("balance", |o| o.balance = f64::NAN);
        refused("session-ttl", |o| o.session_ttl = Span::secs(0));
        refused("drain-timeout", |o| o.drain_timeout = Span::secs(7200));
        refused("handoff-rate", |o| o.handoff_rate = Size(1));
        refused("memory-max", |o| o.memory_max = Size(1));
        refused("replicas", |o| o.replicas = 3);
        refused("settled-after", |o| o.settled_after = Span::secs(0));
        refused("min-copies", |o| o.min_copies = 3);
        refused("min-copies", |o| o.min_copies = 0);
        refused("threads", |o| o.threads = Some(0));
        refused("form-alone-after", |o| o.form_alone_after = Patience::After(Span::secs(0)));
        refused("key", |o| o.key = vec![]);
        refused("key", |o| o.key = vec!["path:0".into()]);
        refused("join", |o| o.join = vec!["nowhere".into()]);
        refused("advertise", |o| o.advertise = Some("http://x:1".into()));
        refused("admin", |o| o.admin = o.http);
    }

    #[test]
    fn gossip_outside_loopback_needs_a_key_or_a_confession() {
        let outside: SocketAddr = "10.0.0.5:7400".parse().unwrap();
        refused("gossip", |o| o.gossip = outside);
        for allow in [
            |o: &mut NodeOptions| o.insecure_gossip = true,
            |o: &mut NodeOptions| o.cluster_key_file = Some("/etc/stead/keys.toml".into()),
        ] {
            let mut options = NodeOptions { gossip: outside, ..node() };
            allow(&mut options);
            NodeConfig::try_from(&options).unwrap();
        }
    }

    #[test]
    fn listening_everywhere_needs_an_address_to_give_to_others() {
        refused("advertise", |o| {
            o.gossip = "0.0.0.0:7400".parse().unwrap();
            o.insecure_gossip = true;
        });
        let config = NodeConfig::try_from(&NodeOptions {
            gossip: "0.0.0.0:7400".parse().unwrap(),
            http: "0.0.0.0:8081".parse().unwrap(),
            advertise: Some("n1.example:7400".into()),
            insecure_gossip: true,
            ..node()
        })
        .unwrap();
        assert_eq!(config.member.reachable(config.http), "n1.example:8081");
        assert_eq!(config.member.reachable(config.member.admin), "127.0.0.1:9181");
    }

    #[test]
    fn a_router_needs_seeds_and_a_key() {
        RouterConfig::try_from(&router()).unwrap();
        router_refused("join", |o| o.join = vec![]);
        router_refused("key", |o| o.key = vec![]);
    }

    #[test]
    fn what_happens_without_a_key_is_one_choice() {
        let chosen = |no_key, cookie: Option<&str>| {
            let issue_cookie = cookie.map(str::to_owned);
            RouterConfig::try_from(&RouterOptions { no_key, issue_cookie, ..router() })
                .map(|config| config.no_key)
        };
        let cookie =
            |name: &str| OnNoKey::IssueCookie { name: name.parse().unwrap(), secure: false };
        assert_eq!(chosen(None, None), Ok(OnNoKey::Refuse));
        assert_eq!(chosen(None, Some("sid")), Ok(cookie("sid")));
        assert_eq!(chosen(Some(NoKey::IssueCookie), None), Ok(cookie("stead")));
        assert_eq!(chosen(Some(NoKey::RoundRobin), None), Ok(OnNoKey::RoundRobin));
        assert_eq!(chosen(Some(NoKey::RoundRobin), Some("sid")).unwrap_err().key, "no-key");
        assert_eq!(chosen(None, Some("a b")).unwrap_err().key, "issue-cookie");
    }

    #[test]
    fn issued_cookies_outside_loopback_need_a_key() {
        router_refused("issue-cookie", |o| {
            o.listen = "0.0.0.0:8080".parse().unwrap();
            o.issue_cookie = Some("sid".into());
        });
    }

    #[test]
    fn seeds_are_names_or_addresses_with_a_port() {
        for good in ["a:1", "node-0.stead:7400", "127.0.0.1:65535", "[::1]:7400"] {
            check_host_port("join", good).unwrap();
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:65536", "::1:7400x", "http://a:1", "a:1,b:2"] {
            assert!(check_host_port("join", bad).is_err(), "{bad}");
        }
    }
}
