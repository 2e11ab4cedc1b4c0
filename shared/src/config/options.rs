//! The options themselves. The doc comments of the fields are also the descriptions in the schema.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AckPolicy, OnMinority, Patience, Size, Span};

/// Options of `stead node`.
///
/// Keys of the file are spelled like the flags (`session-ttl`); underscores are taken as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct NodeOptions {
    /// Stable name of this node, unique in the cluster. Required. 1 to 64 letters, digits, `.`,
    /// `-` or `_`. Its hash is the node's identity and its place in the ring: under another name
    /// a restarted node is another node, and its shards move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Address of gossip (UDP) and the link between members (TCP, same port number). Default
    /// 127.0.0.1:7400. Outside loopback it needs `cluster-key-file`, or `insecure-gossip`.
    pub gossip: SocketAddr,

    /// Address of plain HTTP/1.1 and HTTP/2, for people, other proxies and clients without a
    /// router. Default 127.0.0.1:8081.
    pub http: SocketAddr,

    /// Address of the admin listener: metrics, health, members, shards, drain. Default
    /// 127.0.0.1:9181. Its GETs are open to whoever reaches it: keep it off public networks.
    pub admin: SocketAddr,

    /// Gossip addresses of other members, `HOST:PORT`; names are resolved anew each time. Default
    /// none: this node founds a cluster. Give every node the same two or three: with one only,
    /// nobody can join while that one is down.
    pub join: Vec<String>,

    /// `HOST:PORT` under which others reach `gossip`; its host also stands for `http` and `admin`
    /// when those listen on all addresses. Default: the address of `gossip`. Required when
    /// `gossip` is `0.0.0.0` or `[::]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,

    /// Name of the cluster, the same on all members. Default `stead`. 1 to 64 letters, digits,
    /// `.`, `-` or `_`. Members of another cluster are ignored, and counted.
    pub cluster: String,

    /// Zone (rack, availability zone) of this node. Default empty. Copies of a shard go to other
    /// zones first.
    pub zone: String,

    /// Share of the shards, relative to the other nodes' weights. Default 1, range 0 to 100.
    /// 0 owns nothing; each unit costs 512 ring points on every member.
    pub weight: u16,

    /// Number of shards of the whole cluster, the same on all nodes, for ever. Default 16384;
    /// a power of two, 1 to 65536. Keep 100 or more per node: fewer balance badly and move in
    /// large pieces, more cost memory and time in every table.
    pub shards: u32,

    /// How full a node may be, relative to its fair share. Default 1.05, range 1.02 to 1.25, the
    /// same on all nodes. Lower is more even and moves more shards when a node joins or leaves,
    /// higher is the other way round.
    pub balance: f64,

    /// Where the session key is in a request to `http`, in order of preference: `header:NAME`,
    /// `cookie:NAME`, `path:N` (segment, from 1), `query:NAME`, `regex:RE` (first group, on the
    /// path), `ip`. Default `path:2`.
    pub key: Vec<String>,

    /// How long a session without access is kept. Default 24h, range 100ms to 365d. Longer holds
    /// more memory, shorter loses what a slow user still wants.
    #[serde(alias = "session_ttl")]
    pub session_ttl: Span,

    /// Most bytes of all sessions on this node. Default 1GiB, at least 4KiB. When it is reached
    /// writes get 507; nothing is evicted in silence. Leave room for the shards of a node that
    /// dies.
    #[serde(alias = "memory_max")]
    pub memory_max: Size,

    /// Most bytes of state per second that this node sends to others for balance, on all streams
    /// together. Default 64MiB; 0 is no limit, else at least 64KiB. Lower leaves more of the
    /// network to requests and makes joins and returns longer; drains are never slowed down.
    #[serde(alias = "handoff_rate")]
    pub handoff_rate: Size,

    /// Copies of each shard on other nodes, beside the owner's. Default 1, range 0 to 2. Each holds
    /// as much memory again; without one, a node that dies takes its sessions along.
    pub replicas: u8,

    /// What must know of a change before its answer goes out: `memory` or `replica`, each also with
    /// `+disk`. Default `replica`: with one replica, any one node may die at a time and no change
    /// that was answered is lost. `memory` answers sooner and may lose the latest changes. With
    /// `+disk`, which needs a `data-dir`, all nodes may be killed at once; each answer waits for
    /// the owner's disk.
    pub ack: AckPolicy,

    /// Copies, the owner's included, below which changes are refused. Default 1, range 1 to
    /// 1 + replicas. Higher refuses changes while a node is missing, rather than keep them in too
    /// few places.
    #[serde(alias = "min_copies")]
    pub min_copies: u8,

    /// What this node does when it is cut off with less than half of the cluster, or with half of
    /// it and without the lowest node id: `serve` or `stop`. Default `serve`: both sides of a cut
    /// take changes, which are merged when it heals. `stop` answers 503 there, so that no session
    /// has two histories for longer than it takes to notice the cut.
    #[serde(alias = "on_minority")]
    pub on_minority: OnMinority,

    /// How long the ready nodes must not have changed to be those of which a majority is counted.
    /// Default 60s, range 1s to 1h. Nodes that leave count no more at once, nodes that
    /// `stead members forget` names neither. Shorter takes a slow death of many for the new normal.
    #[serde(alias = "settled_after")]
    pub settled_after: Span,

    /// How long a drain may take before the process ends all the same. Default 25s, range 100ms to
    /// 1h. Keep it below the grace period of whoever stops the process (Kubernetes: 30 s); too
    /// short loses the sessions that did not move in time.
    #[serde(alias = "drain_timeout")]
    pub drain_timeout: Span,

    /// Directory for what must survive a restart: the sessions, too. Default none: sessions are in
    /// memory alone, and this start counts as new by the clock alone, so that the clock must not go
    /// back between starts. With one, a change is on disk a second after it was made, or before it
    /// is answered: see `ack`.
    #[serde(alias = "data_dir", skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,

    /// File made by `stead keygen`, the same on all members. Default none: loopback only. It
    /// authenticates and encrypts gossip, proves membership on the link, and hides which shard a
    /// key falls on.
    #[serde(alias = "cluster_key_file", skip_serializing_if = "Option::is_none")]
    pub cluster_key_file: Option<PathBuf>,

    /// Found a new cluster although the data directory remembers members of another. Default
    /// false: a node without `join` that has been in a cluster then refuses to start, because it
    /// would serve the same sessions beside that cluster.
    #[serde(default)]
    pub found: bool,

    /// Allow gossip outside loopback without a key. Default false. Whoever can send a packet to
    /// the gossip port then controls the cluster: for trials in a closed network only.
    #[serde(alias = "insecure_gossip")]
    pub insecure_gossip: bool,

    /// File with the token that allows admin POSTs from outside loopback, as
    /// `Authorization: Bearer TOKEN`. Default none: POSTs from loopback only.
    #[serde(alias = "admin_token_file", skip_serializing_if = "Option::is_none")]
    pub admin_token_file: Option<PathBuf>,

    /// With `join`: after how long without any seed this node founds a cluster alone. Default
    /// 10s, at least 1s, or `never`. Shorter risks two clusters when the network is late, longer
    /// delays the first start of a cluster whose seeds are gone.
    #[serde(alias = "form_alone_after")]
    pub form_alone_after: Patience,

    /// Threads that serve requests. Default: as many as the cores that this process may use;
    /// range 1 to 1024. A request is cheapest with one thread, which pays for no handing over
    /// between threads; more threads serve more of them. Gossip has a thread of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u16>,

    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or a list of
    /// `target=level`. Default `info`. `debug` logs single shards and costs throughput.
    pub log: String,

    /// Form of a log line. Default `text`.
    #[serde(alias = "log_format")]
    pub log_format: LogFormat,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            name: None,
            gossip: loopback(7400),
            http: loopback(8081),
            admin: loopback(9181),
            join: Vec::new(),
            advertise: None,
            cluster: "stead".into(),
            zone: String::new(),
            weight: 1,
            shards: 16384,
            balance: 1.05,
            key: vec!["path:2".into()],
            session_ttl: Span::secs(24 * 3600),
            memory_max: Size::mib(1024),
            handoff_rate: Size::mib(64),
            replicas: 1,
            ack: AckPolicy::Replica,
            min_copies: 1,
            on_minority: OnMinority::Serve,
            settled_after: Span::secs(60),
            drain_timeout: Span::secs(25),
            data_dir: None,
            cluster_key_file: None,
            found: false,
            insecure_gossip: false,
            admin_token_file: None,
            threads: None,
            form_alone_after: Patience::After(Span::secs(10)),
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// Options of `stead router`.
///
/// Keys of the file are spelled like the flags (`issue-cookie`); underscores are taken as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct RouterOptions {
    /// Name of this router, unique in the cluster. Default: `router-` and the address others
    /// reach it by. 1 to 64 letters, digits, `.`, `-`, `_` or `:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Address for clients, HTTP/1.1 and HTTP/2. Default 127.0.0.1:8080.
    pub listen: SocketAddr,

    /// Address of gossip (UDP) and the link between members (TCP, same port number). Default
    /// 127.0.0.1:7401. Outside loopback it needs `cluster-key-file`, or `insecure-gossip`.
    pub gossip: SocketAddr,

    /// Address of the admin listener: metrics, health, members, shards, drain. Default
    /// 127.0.0.1:9180. Its GETs are open to whoever reaches it: keep it off public networks.
    pub admin: SocketAddr,

    /// Gossip addresses of members, `HOST:PORT`; names are resolved anew each time. Required: a
    /// router founds nothing.
    pub join: Vec<String>,

    /// Where the session key is in a request, in order of preference: `header:NAME`,
    /// `cookie:NAME`, `path:N` (segment, from 1), `query:NAME`, `regex:RE` (first group, on the
    /// path), `ip`. Required.
    pub key: Vec<String>,

    /// What a request without a key gets: `refuse` (400), `issue-cookie` (a new session, named by
    /// a signed cookie) or `round-robin` (any node, for what has no session). Default `refuse`,
    /// or `issue-cookie` when `issue-cookie` names one.
    #[serde(alias = "no_key", skip_serializing_if = "Option::is_none")]
    pub no_key: Option<NoKey>,

    /// Name of the signed cookie given to clients that bring no key. Default none; `stead` with
    /// `no-key = "issue-cookie"`. Outside loopback it needs `cluster-key-file`, which signs it.
    #[serde(alias = "issue_cookie", skip_serializing_if = "Option::is_none")]
    pub issue_cookie: Option<String>,

    /// Mark issued cookies `Secure` and name them `__Host-…`. Default false. For listeners behind
    /// something that ends TLS; over plain HTTP browsers would not send such cookies back.
    #[serde(alias = "cookie_secure")]
    pub cookie_secure: bool,

    /// Leave `stead-node`, `stead-shard` and `stead-epoch` on answers to clients. Default false:
    /// they tell strangers how the cluster is built.
    #[serde(alias = "expose_headers")]
    pub expose_headers: bool,

    /// `HOST:PORT` under which others reach `gossip`. Default: the address of `gossip`. Required
    /// when `gossip` is `0.0.0.0` or `[::]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,

    /// Name of the cluster, the same on all members. Default `stead`. 1 to 64 letters, digits,
    /// `.`, `-` or `_`.
    pub cluster: String,

    /// File made by `stead keygen`, the same on all members. Default none: loopback only.
    #[serde(alias = "cluster_key_file", skip_serializing_if = "Option::is_none")]
    pub cluster_key_file: Option<PathBuf>,

    /// Allow gossip outside loopback without a key. Default false. Whoever can send a packet to
    /// the gossip port then controls the cluster: for trials in a closed network only.
    #[serde(alias = "insecure_gossip")]
    pub insecure_gossip: bool,

    /// File with the token that allows admin POSTs from outside loopback, as
    /// `Authorization: Bearer TOKEN`. Default none: POSTs from loopback only.
    #[serde(alias = "admin_token_file", skip_serializing_if = "Option::is_none")]
    pub admin_token_file: Option<PathBuf>,

    /// Threads that serve requests. Default: as many as the cores that this process may use;
    /// range 1 to 1024. A request is cheapest with one thread, which pays for no handing over
    /// between threads; more threads serve more of them. Gossip has a thread of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u16>,

    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or a list of
    /// `target=level`. Default `info`.
    pub log: String,

    /// Form of a log line. Default `text`.
    #[serde(alias = "log_format")]
    pub log_format: LogFormat,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self {
            name: None,
            listen: loopback(8080),
            gossip: loopback(7401),
            admin: loopback(9180),
            join: Vec::new(),
            key: Vec::new(),
            no_key: None,
            issue_cookie: None,
            cookie_secure: false,
            expose_headers: false,
            advertise: None,
            cluster: "stead".into(),
            cluster_key_file: None,
            insecure_gossip: false,
            admin_token_file: None,
            threads: None,
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// What a request without a key gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NoKey {
    /// 400 `no-session-key`, listing the sources tried.
    Refuse,
    /// A new key in a signed cookie.
    IssueCookie,
    /// Any node, in turns.
    RoundRobin,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_both_spellings_taken() {
        let read = |text: &str| serde_json::from_str::<NodeOptions>(text);
        assert!(read(r#"{"nmae": "n1"}"#).is_err());
        let kebab = read(r#"{"session-ttl": "1h", "memory-max": 4096}"#).unwrap();
        let snake = read(r#"{"session_ttl": "1h", "memory_max": "4k"}"#).unwrap();
        assert_eq!(kebab, snake);
        assert_eq!(kebab.session_ttl, Span::secs(3600));
    }

    #[test]
    fn the_defaults_read_back_what_they_print() {
        let text = serde_json::to_string(&NodeOptions::default()).unwrap();
        assert_eq!(serde_json::from_str::<NodeOptions>(&text).unwrap(), NodeOptions::default());
        let text = serde_json::to_string(&RouterOptions::default()).unwrap();
        assert_eq!(serde_json::from_str::<RouterOptions>(&text).unwrap(), RouterOptions::default());
    }
}
