//! Which ports the demo's processes get.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use stead_shared::net::sock;

use crate::cli::exit::Exit;

/// Gossip of the router is this far below its port, 7400 for 8080; the nodes take the next ones.
/// Others where these are in use. Demos that start together do not reach for the same ones that
/// way: they would find each other and be one cluster.
const GOSSIP_BELOW: u16 = 680;

/// The listeners of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberPorts {
    pub(super) gossip: SocketAddr,
    /// Plain HTTP of a node, the clients' listener of the router.
    pub(super) http: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) router: MemberPorts,
    /// By name, in order.
    pub(super) nodes: Vec<(String, MemberPorts)>,
    newcomer: MemberPorts,
}

/// A node of the demo: its name, listeners and seeds.
pub(super) struct DemoNode<'a> {
    pub(super) name: String,
    pub(super) ports: &'a MemberPorts,
    pub(super) join: String,
}

impl DemoNode<'_> {
    /// The arguments of its process.
    pub(super) fn arguments(&self) -> Vec<String> {
        let MemberPorts { gossip, http, admin } = self.ports;
        let flags = [
            ("--name", self.name.clone()),
            ("--gossip", gossip.to_string()),
            ("--http", http.to_string()),
            ("--admin", admin.to_string()),
            ("--join", self.join.clone()),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        std::iter::once("node".to_owned()).chain(flags).collect()
    }

    /// The same for a person to paste.
    pub(super) fn command(&self, program: &str) -> String {
        format!("{program} {}", self.arguments().join(" "))
    }
}

/// Holds the ports until all are chosen, so that none is chosen twice.
#[derive(Default)]
struct Held {
    _tcp: Vec<sock::TcpListener>,
    _udp: Vec<sock::UdpSocket>,
}

impl Ports {
    /// Chooses them. The router's and the admin ports are as asked for, the others are the next
    /// ones where those are free.
    pub(super) fn choose(n_nodes: u16, port: u16, admin_port: u16) -> anyhow::Result<Self> {
        if port.abs_diff(admin_port) <= n_nodes + 1 {
            return Err(Exit::Usage.because(format!(
                "--port {port} and --admin-port {admin_port} are too close: each takes {} ports",
                n_nodes + 2
            )));
        }
        let mut held = Held::default();
        let gossip = port.checked_sub(GOSSIP_BELOW).filter(|gossip| *gossip > 1023);
        let gossip = |i| gossip.map_or(0, |gossip| gossip + i);
        let router = MemberPorts {
            gossip: held.gossip(gossip(0))?,
            http: held.exactly(port, "--port")?,
            admin: held.exactly(admin_port, "--admin-port")?,
        };
        let mut nodes = Vec::new();
        for i in 1..=n_nodes {
            let ports = MemberPorts {
                gossip: held.gossip(gossip(i))?,
                http: held.preferably(port + i)?,
                admin: held.exactly(admin_port + i, "--admin-port (a node's)")?,
            };
            nodes.push((format!("n{i}"), ports));
        }
        let next = n_nodes + 1;
        let newcomer = MemberPorts {
            gossip: held.gossip(gossip(next))?,
            http: held.preferably(port + next)?,
            admin: held.preferably(admin_port + next)?,
        };
        Ok(Self { router, nodes, newcomer })
    }

    /// The nodes to start.
    pub(super) fn demo_nodes(&self) -> impl Iterator<Item = DemoNode<'_>> {
        let join = self.join();
        self.nodes.iter().map(move |(name, ports)| DemoNode {
            name: name.clone(),
            ports,
            join: join.clone(),
        })
    }

    /// The node that a person may add.
    pub(super) fn newcomer(&self) -> DemoNode<'_> {
        let name = format!("n{}", self.nodes.len() + 1);
        DemoNode { name, ports: &self.newcomer, join: self.join() }
    }

    /// The seeds: the first three nodes.
    pub(super) fn join(&self) -> String {
        let seeds: Vec<String> =
            self.nodes.iter().take(3).map(|(_, ports)| ports.gossip.to_string()).collect();
        seeds.join(",")
    }
}

impl Held {
    fn exactly(&mut self, port: u16, what: &'static str) -> anyhow::Result<SocketAddr> {
        let listener = sock::tcp_listener(loopback(port), what)
            .map_err(|error| Exit::Os.because(error.to_string()))?;
        let addr = bound(listener.local_addr())?;
        self._tcp.push(listener);
        Ok(addr)
    }

    fn preferably(&mut self, port: u16) -> anyhow::Result<SocketAddr> {
        self.exactly(port, "a node").or_else(|_| self.exactly(0, "a node"))
    }

    fn gossip(&mut self, port: u16) -> anyhow::Result<SocketAddr> {
        let (udp, tcp) = sock::udp_and_tcp(loopback(port), "gossip")
            .or_else(|_| sock::udp_and_tcp(loopback(0), "gossip"))
            .map_err(|error| Exit::Os.because(error.to_string()))?;
        let addr = bound(tcp.local_addr())?;
        self._tcp.push(tcp);
        self._udp.push(udp);
        Ok(addr)
    }
}

fn bound(addr: std::io::Result<SocketAddr>) -> anyhow::Result<SocketAddr> {
    addr.map_err(|error| Exit::Os.because(format!("a listener has no address: {error}")))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
