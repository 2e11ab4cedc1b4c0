//! What nodes and routers start alike: sockets, keys, gossip and links.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, AgentConfig, AgentError, AgentEvent};
use super::disk::{self, DiskError};
use super::heard::Heard;
use super::link::{LinkConfig, LinkLimits, Links};
use super::mesh::{Hooks, Mesh, MeshEvent};
use super::platform::Platform;
use super::sock::{self, SockError};
use crate::config::MemberConfig;
use crate::hash::HashSecret;
use crate::id::{NodeBoot, NodeId};
use crate::keys::KeyFile;
use crate::member::{Card, Phase, Role};
use crate::swim::{SelfDescription, SwimConfig};

/// Who a process is, beside what every member has.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// What every member has.
    pub member: MemberConfig,
    /// Stable name.
    pub name: String,
    /// Node or router.
    pub role: Role,
    /// Weight in the ring.
    pub weight: u16,
    /// Zone, or empty.
    pub zone: String,
    /// Where others reach its plain HTTP; empty for none.
    pub http: String,
    /// Number of shards; 0 for a router, which learns it.
    pub n_shards: u32,
    /// Capacity factor of placement, in thousandths.
    pub balance_permille: u32,
    /// Where its boot id is kept, if anywhere.
    pub data_dir: Option<PathBuf>,
    /// Tuning of the membership protocol.
    pub swim: SwimConfig,
    /// The system beneath.
    pub platform: Platform,
}

/// Why a process did not start. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket.
    #[error(transparent)]
    Sock(#[from] SockError),
    /// A file.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Gossip.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The advertised address has no address.
    #[error(
        "--advertise {text}: {why}; give the HOST:PORT under which other members reach this process"
    )]
    Advertise {
        /// What was given.
        text: String,
        /// What the resolver said.
        why: String,
    },
}

/// A running member of the gossip, with links to the others.
#[derive(Debug)]
pub struct Process {
    /// This process.
    pub me: NodeBoot,
    /// Its name.
    pub name: String,
    /// Gossip.
    pub agent: Agent,
    /// News from gossip.
    pub agent_events: mpsc::Receiver<AgentEvent>,
    /// Links.
    pub links: Links,
    /// News from links.
    pub mesh_events: mpsc::Receiver<MeshEvent>,
    /// Whether anybody was heard lately. It does not count before it is told of peers.
    pub heard: Arc<Heard>,
    /// The cluster's keys, if it has any.
    pub keys: Option<KeyFile>,
    /// The cluster's hash secret.
    pub secret: HashSecret,
    /// Stops taking links; gossip ends by `agent`.
    pub stop: CancellationToken,
}

/// The hash of a zone's name, 0 for none.
#[must_use]
pub fn zone_id(zone: &str) -> u32 {
    if zone.is_empty() {
        return 0;
    }
    // Half of the hash will do; never the value that means none.
    ((NodeId::of_name(zone).0 >> 32) as u32).max(1)
}

/// The hash secret of the cluster: its key file's, or the public one.
#[must_use]
pub fn hash_secret(keys: Option<&KeyFile>) -> HashSecret {
    keys.map_or_else(HashSecret::public, |keys| HashSecret::new(*keys.hash_secret().as_bytes()))
}

async fn advertised(config: &MemberConfig, bound: SocketAddr) -> Result<SocketAddr, StartError> {
    let Some(text) = &config.advertise else { return Ok(bound) };
    let error = |why: String| StartError::Advertise { text: text.clone(), why };
    let found = sock::lookup(text).await.map_err(|e| error(e.to_string()))?;
    found.first().copied().ok_or_else(|| error("no address".to_owned()))
}

/// Binds the gossip address, reads the keys and joins the gossip in phase joining.
///
/// # Errors
/// [`StartError`]; nothing is left running.
pub async fn start(config: ProcessConfig, hooks: Arc<dyn Hooks>) -> Result<Process, StartError> {
    let keys = match &config.member.cluster_key_file {
        Some(path) => Some(disk::read_keys(path)?),
        None => None,
    };
    let (udp, tcp) = sock::udp_and_tcp(config.member.gossip, "gossip")?;
    let bound = tcp.local_addr().unwrap_or(config.member.gossip);
    let gossip = advertised(&config.member, bound).await?;
    let boot = disk::next_boot(config.data_dir.as_deref(), config.platform.unix_micros())?;
    let me = NodeBoot { node: NodeId::of_name(&config.name), boot };
    let secret = hash_secret(keys.as_ref());
    let card = Card {
        of: me,
        name: config.name.clone(),
        http: config.http.clone(),
        admin: config.member.reachable(config.member.admin),
        zone: config.zone.clone(),
        n_shards: config.n_shards,
        balance_permille: config.balance_permille,
        secret_fingerprint: secret.fingerprint(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let cluster = config.member.cluster_id();
    let agent_config = AgentConfig {
        me: SelfDescription {
            card,
            role: config.role,
            weight: config.weight,
            zone: zone_id(&config.zone),
            gossip,
            phase: Phase::Joining,
        },
        seeds: config.member.join.clone(),
        keys: keys.as_ref().map(KeyFile::keyring),
        insecure: config.member.insecure_gossip,
        cluster,
        swim: config.swim,
        data_dir: config.data_dir.clone(),
        platform: config.platform.clone(),
    };
    let (agent, run, agent_events) = Agent::prepare(agent_config, udp)?;
    let link_keys = keys.as_ref().map(KeyFile::link_keys);
    let link_config = LinkConfig {
        me,
        role: config.role,
        cluster,
        keys: link_keys.map_or_else(Vec::new, |keys| keys.secrets()),
        limits: LinkLimits::default(),
    };
    let heard = Arc::new(Heard::new(true, config.platform.awake_clock()));
    let (mesh, mesh_events) =
        Mesh::new(link_config, config.platform.clone(), hooks, Arc::clone(&heard));
    let (links, peers) = (mesh.links(), mesh.peers());
    let stop = CancellationToken::new();
    let (serving, stopped) = (links.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(tcp, stopped.cancelled()).await });
    tokio::spawn(mesh.run(agent.clone()));
    config.platform.gossip(run.noting(Arc::clone(&heard)), peers)?;
    let name = config.name;
    Ok(Process { me, name, agent, agent_events, links, mesh_events, heard, keys, secret, stop })
}
