//! The flags of `stead node` and `stead router`.
//!
//! Each is optional here: what is not given comes from the file, else from the defaults of
//! [`NodeOptions`] and [`RouterOptions`]. A test holds flags, variables and keys together.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use stead_shared::config::{
    AckPolicy, LogFormat, NoKey, NodeOptions, OnMinority, Patience, RouterOptions, Size, Span,
};

/// Flags of `stead node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Stable name of this node, unique in the cluster; required
    #[arg(long, value_name = "NAME", env = "STEAD_NAME", hide_env_values = true)]
    name: Option<String>,

    /// Address of gossip (UDP) and the link (TCP) [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_GOSSIP", hide_env_values = true)]
    gossip: Option<SocketAddr>,

    /// Address of plain HTTP [default: 127.0.0.1:8081]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_HTTP", hide_env_values = true)]
    http: Option<SocketAddr>,

    /// Address of the admin listener [default: 127.0.0.1:9181]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_ADMIN", hide_env_values = true,
        value_parser = admin_address)]
    admin: Option<SocketAddr>,

    /// Gossip addresses of other members; without any, this node founds a cluster
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "STEAD_JOIN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    join: Option<Vec<String>>,

    /// Under which address others reach --gossip
    #[arg(long, value_name = "HOST:PORT", env = "STEAD_ADVERTISE", hide_env_values = true)]
    advertise: Option<String>,

    /// Name of the cluster [default: stead]
    #[arg(long, value_name = "NAME", env = "STEAD_CLUSTER", hide_env_values = true)]
    cluster: Option<String>,

    /// Zone of this node; copies go to other zones first
    #[arg(long, value_name = "ZONE", env = "STEAD_ZONE", hide_env_values = true)]
    zone: Option<String>,

    /// Share of the shards, relative to other nodes, 0 to 100 [default: 1]
    #[arg(long, value_name = "W", env = "STEAD_WEIGHT", hide_env_values = true)]
    weight: Option<u16>,

    /// Number of shards of the cluster, for ever; a power of two [default: 16384]
    #[arg(long, value_name = "N", env = "STEAD_SHARDS", hide_env_values = true)]
    shards: Option<u32>,

    /// How full a node may be relative to its share, 1.02 to 1.25 [default: 1.05]
    #[arg(long, value_name = "C", env = "STEAD_BALANCE", hide_env_values = true)]
    balance: Option<f64>,

    /// Where the session key is in a request to --http: header:NAME, cookie:NAME, path:N,
    /// query:NAME, regex:RE, ip; several in order of preference [default: path:2]
    #[arg(long, value_name = "SPEC[,SPEC…]", env = "STEAD_KEY", hide_env_values = true)]
    key: Option<String>,

    /// How long a session without access is kept [default: 24h]
    #[arg(long, value_name = "D", env = "STEAD_SESSION_TTL", hide_env_values = true)]
    session_ttl: Option<Span>,

    /// Most bytes of all sessions; writes beyond it get 507 [default: 1GiB]
    #[arg(long, value_name = "B", env = "STEAD_MEMORY_MAX", hide_env_values = true)]
    memory_max: Option<Size>,

    /// Most bytes of state per second sent to other nodes for balance; 0 is no limit
    /// [default: 64MiB]
    #[arg(long, value_name = "B", env = "STEAD_HANDOFF_RATE", hide_env_values = true)]
    handoff_rate: Option<Size>,

    /// Copies of each shard on other nodes, 0 to 2 [default: 1]
    #[arg(long, value_name = "N", env = "STEAD_REPLICAS", hide_env_values = true)]
    replicas: Option<u8>,

    /// What must know of a change before its answer goes out: memory or replica, each also with
    /// +disk [default: replica]
    #[arg(long, value_name = "POLICY", env = "STEAD_ACK", hide_env_values = true)]
    ack: Option<AckPolicy>,

    /// Copies, the owner's included, below which changes are refused [default: 1]
    #[arg(long, value_name = "N", env = "STEAD_MIN_COPIES", hide_env_values = true)]
    min_copies: Option<u8>,

    /// What to do when cut off with less than half of the cluster: serve or stop [default: serve]
    #[arg(long, value_name = "WHAT", env = "STEAD_ON_MINORITY", hide_env_values = true)]
    on_minority: Option<OnMinority>,

    /// How long the ready nodes must not have changed to be those that a majority is counted of
    /// [default: 60s]
    #[arg(long, value_name = "D", env = "STEAD_SETTLED_AFTER", hide_env_values = true)]
    settled_after: Option<Span>,

    /// How long a drain may take [default: 25s]
    #[arg(long, value_name = "D", env = "STEAD_DRAIN_TIMEOUT", hide_env_values = true)]
    drain_timeout: Option<Span>,

    /// Directory for what must survive a restart, sessions too
    #[arg(long, value_name = "DIR", env = "STEAD_DATA_DIR", hide_env_values = true)]
    data_dir: Option<PathBuf>,

    /// File with the cluster's keys, made by `stead keygen`
    #[arg(long, value_name = "FILE", env = "STEAD_CLUSTER_KEY_FILE", hide_env_values = true)]
    cluster_key_file: Option<PathBuf>,

    /// Found a new cluster although the data directory remembers members of another
    #[arg(long, value_name = "BOOL", env = "STEAD_FOUND", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    found: Option<bool>,

    /// Allow gossip outside loopback without keys
    #[arg(long, value_name = "BOOL", env = "STEAD_INSECURE_GOSSIP", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    insecure_gossip: Option<bool>,

    /// File with the token that allows admin POSTs from outside loopback
    #[arg(long, value_name = "FILE", env = "STEAD_ADMIN_TOKEN_FILE", hide_env_values = true)]
    admin_token_file: Option<PathBuf>,

    /// With --join: after how long without a seed to found a cluster alone, or `never`
    /// [default: 10s]
    #[arg(long, value_name = "D", env = "STEAD_FORM_ALONE_AFTER", hide_env_values = true)]
    form_alone_after: Option<Patience>,

    /// Threads that serve requests [default: as many as there are cores]
    #[arg(long, value_name = "N", env = "STEAD_THREADS", hide_env_values = true)]
    threads: Option<u16>,

    /// What is logged: a level, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER", env = "STEAD_LOG", hide_env_values = true)]
    log: Option<String>,

    /// Form of a log line [default: text]
    #[arg(long, value_name = "FORM", env = "STEAD_LOG_FORMAT", hide_env_values = true)]
    log_format: Option<LogForm>,

    /// TOML file with the same options
    #[arg(long, value_name = "FILE", env = "STEAD_CONFIG", hide_env_values = true)]
    pub(super) config: Option<PathBuf>,

    /// Stop when stdin ends
    #[arg(long, hide = true)]
    pub(super) exit_with_parent: bool,
}

/// Flags of `stead router`.
#[derive(Debug, Args)]
pub(super) struct RouterArgs {
    /// Name of this router, unique in the cluster [default: router- and its address]
    #[arg(long, value_name = "NAME", env = "STEAD_NAME", hide_env_values = true)]
    name: Option<String>,

    /// Address for clients [default: 127.0.0.1:8080]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_LISTEN", hide_env_values = true)]
    listen: Option<SocketAddr>,

    /// Address of gossip (UDP) and the link (TCP) [default: 127.0.0.1:7401]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_GOSSIP", hide_env_values = true)]
    gossip: Option<SocketAddr>,

    /// Address of the admin listener [default: 127.0.0.1:9180]
    #[arg(long, value_name = "IP:PORT", env = "STEAD_ADMIN", hide_env_values = true,
        value_parser = admin_address)]
    admin: Option<SocketAddr>,

    /// Gossip addresses of members; required
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        env = "STEAD_JOIN",
        hide_env_values = true,
        value_delimiter = ','
    )]
    join: Option<Vec<String>>,

    /// Where the session key is in a request: header:NAME, cookie:NAME, path:N, query:NAME,
    /// regex:RE, ip; several in order of preference; required
    #[arg(long, value_name = "SPEC[,SPEC…]", env = "STEAD_KEY", hide_env_values = true)]
    key: Option<String>,

    /// What a request without a key gets [default: refuse, or issue-cookie with --issue-cookie]
    #[arg(long, value_name = "WHAT", env = "STEAD_NO_KEY", hide_env_values = true)]
    no_key: Option<WithoutKey>,

    /// Give clients that bring no key a signed cookie of this name
    #[arg(long, value_name = "NAME", env = "STEAD_ISSUE_COOKIE", hide_env_values = true)]
    issue_cookie: Option<String>,

    /// Mark issued cookies Secure, with the prefix __Host-
    #[arg(long, value_name = "BOOL", env = "STEAD_COOKIE_SECURE", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    cookie_secure: Option<bool>,

    /// Leave stead-node, stead-shard and stead-epoch on answers to clients
    #[arg(long, value_name = "BOOL", env = "STEAD_EXPOSE_HEADERS", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    expose_headers: Option<bool>,

    /// Under which address others reach --gossip
    #[arg(long, value_name = "HOST:PORT", env = "STEAD_ADVERTISE", hide_env_values = true)]
    advertise: Option<String>,

    /// Name of the cluster [default: stead]
    #[arg(long, value_name = "NAME", env = "STEAD_CLUSTER", hide_env_values = true)]
    cluster: Option<String>,

    /// File with the cluster's keys, made by `stead keygen`
    #[arg(long, value_name = "FILE", env = "STEAD_CLUSTER_KEY_FILE", hide_env_values = true)]
    cluster_key_file: Option<PathBuf>,

    /// Allow gossip outside loopback without keys
    #[arg(long, value_name = "BOOL", env = "STEAD_INSECURE_GOSSIP", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        hide_possible_values = true)]
    insecure_gossip: Option<bool>,

    /// File with the token that allows admin POSTs from outside loopback
    #[arg(long, value_name = "FILE", env = "STEAD_ADMIN_TOKEN_FILE", hide_env_values = true)]
    admin_token_file: Option<PathBuf>,

    /// Threads that serve requests [default: as many as there are cores]
    #[arg(long, value_name = "N", env = "STEAD_THREADS", hide_env_values = true)]
    threads: Option<u16>,

    /// What is logged: a level, or target=level,… [default: info]
    #[arg(long, value_name = "FILTER", env = "STEAD_LOG", hide_env_values = true)]
    log: Option<String>,

    /// Form of a log line [default: text]
    #[arg(long, value_name = "FORM", env = "STEAD_LOG_FORMAT", hide_env_values = true)]
    log_format: Option<LogForm>,

    /// TOML file with the same options
    #[arg(long, value_name = "FILE", env = "STEAD_CONFIG", hide_env_values = true)]
    pub(super) config: Option<PathBuf>,

    /// Stop when stdin ends
    #[arg(long, hide = true)]
    pub(super) exit_with_parent: bool,
}

/// Values that were given replace those of the options: plain fields, then optional ones.
macro_rules! overlay {
    ($args:ident => $options:ident: $($field:ident)*; optional: $($optional:ident)*) => {
        $(if let Some(value) = $args.$field { $options.$field = value.into(); })*
        $(if let Some(value) = $args.$optional { $options.$optional = Some(value.into()); })*
    };
}

impl NodeArgs {
    /// Puts the flags over `options`.
    pub(super) fn overlay(self, options: &mut NodeOptions) {
        let args = self;
        overlay!(args => options:
            gossip http admin cluster zone weight shards balance session_ttl memory_max
            handoff_rate replicas ack min_copies on_minority settled_after drain_timeout found insecure_gossip form_alone_after log log_format;
            optional: name advertise data_dir cluster_key_file admin_token_file threads);
        if let Some(seeds) = args.join {
            options.join = seeds_of(seeds);
        }
        if let Some(specs) = args.key {
            options.key = vec![specs];
        }
    }
}

impl RouterArgs {
    /// Puts the flags over `options`.
    pub(super) fn overlay(self, options: &mut RouterOptions) {
        let args = self;
        overlay!(args => options:
            listen gossip admin cluster cookie_secure expose_headers insecure_gossip log log_format;
            optional: name no_key issue_cookie advertise cluster_key_file admin_token_file threads);
        if let Some(seeds) = args.join {
            options.join = seeds_of(seeds);
        }
        if let Some(specs) = args.key {
            options.key = vec![specs];
        }
    }
}

/// Seeds without the empty ones that `a:1,` and an empty variable leave.
fn seeds_of(seeds: Vec<String>) -> Vec<String> {
    seeds.iter().map(|seed| seed.trim().to_owned()).filter(|seed| !seed.is_empty()).collect()
}

/// `STEAD_ADMIN` is also where commands find a process, as a URL: both forms are taken here.
fn admin_address(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/').parse()
}

/// Form of a log line, as a flag.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

impl From<LogForm> for LogFormat {
    fn from(form: LogForm) -> Self {
        match form {
            LogForm::Text => Self::Text,
            LogForm::Json => Self::Json,
        }
    }
}

/// What a request without a key gets, as a flag.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum WithoutKey {
    Refuse,
    IssueCookie,
    RoundRobin,
}

impl From<WithoutKey> for NoKey {
    fn from(what: WithoutKey) -> Self {
        match what {
            WithoutKey::Refuse => Self::Refuse,
            WithoutKey::IssueCookie => Self::IssueCookie,
            WithoutKey::RoundRobin => Self::RoundRobin,
        }
    }
}
