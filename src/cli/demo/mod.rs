//! `stead demo`: a router and nodes as child processes on loopback, to try things out.
//!
//! The children are this very program. They stop when their stdin ends, which the demo holds:
//! however the demo dies, nothing is left running.

mod children;
mod ports;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use stead_shared::net::admin::MemberReport;
use tokio::time::Instant;

use self::children::Children;
use self::ports::{MemberPorts, Ports};
use super::client::AdminClient;
use super::exit::Exit;
use super::signals::Stop;
use super::status::Status;

/// Longest start; what is not ready by then has failed.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the router is asked while all start.
const STARTING_POLL: Duration = Duration::from_millis(50);
/// How often it is asked later.
const WATCHING_POLL: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Number of nodes
    #[arg(long, value_name = "N", env = "STEAD_DEMO_NODES", hide_env_values = true,
        default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,

    /// Port of the router; the nodes' plain HTTP takes the next ones where they are free
    #[arg(long, value_name = "PORT", env = "STEAD_DEMO_PORT", hide_env_values = true,
        default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..65000))]
    port: u16,

    /// Admin port of the router; the nodes' are the next ones
    #[arg(long, value_name = "PORT", env = "STEAD_DEMO_ADMIN_PORT", hide_env_values = true,
        default_value_t = 9180, value_parser = clap::value_parser!(u16).range(1..65000))]
    admin_port: u16,
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    super::small_runtime()?.block_on(async {
        let stop = Stop::watch(false)?;
        let program = std::env::current_exe()
            .map_err(|error| Exit::Os.because(format!("cannot find this program: {error}")))?;
        let start = Instant::now();
        let ports = Ports::choose(args.nodes, args.port, args.admin_port)?;
        let mut children = Children::start(&program, &ports)?;
        let ended = tokio::select! {
            biased;
            () = stop.first() => Ok(()),
            ended = watch(&mut children, &ports, &program, start) => ended,
        };
        super::print("stopping\n")?;
        children.stop().await;
        ended
    })
}

/// Waits until all are ready, says how to use them, then prints a line for every change. Ends
/// only when something fails.
async fn watch(
    children: &mut Children,
    ports: &Ports,
    program: &Path,
    start: Instant,
) -> anyhow::Result<()> {
    let router = AdminClient::local(ports.router.admin);
    let mut status = wait_ready(children, &router, ports.nodes.len(), start).await?;
    super::print(&welcome(children, ports, &shown(program), start.elapsed()))?;
    let mut printed = String::new();
    let mut ticks = tokio::time::interval(WATCHING_POLL);
    loop {
        let line = shards_line(&status);
        if line != printed {
            super::print(&format!("{:7.1} s  {line}\n", start.elapsed().as_secs_f64()))?;
            printed = line;
        }
        ticks.tick().await;
        for ended in children.ended() {
            super::print(&format!("{:7.1} s  {ended}\n", start.elapsed().as_secs_f64()))?;
        }
        children.router_runs()?;
        // A router too busy to answer now is asked again.
        if let Ok(now) = Status::ask(&router).await {
            status = now;
        }
    }
}

async fn wait_ready(
    children: &mut Children,
    router: &AdminClient,
    n_nodes: usize,
    start: Instant,
) -> anyhow::Result<Status> {
    let mut ticks = tokio::time::interval(STARTING_POLL);
    loop {
        ticks.tick().await;
        if let Some(ended) = children.ended().first() {
            return Err(Exit::Unavailable.because(format!("while starting: {ended}")));
        }
        let missing = match Status::ask_ready(router).await {
            Ok(status) => {
                let serving = status.shards.by_node.len();
                match status.unhealthy() {
                    None if serving == n_nodes => return Ok(status),
                    None => format!("{serving} of {n_nodes} nodes own shards"),
                    Some(missing) => missing,
                }
            }
            Err(error) => error.to_string(),
        };
        if start.elapsed() > READY_TIMEOUT {
            let message = format!("not ready after {} s: {missing}", READY_TIMEOUT.as_secs());
            return Err(Exit::TempFail.because(message));
        }
    }
}

/// How many shards each node serves, and who is not as usual.
fn shards_line(status: &Status) -> String {
    let describe = |member: &MemberReport| {
        let shards = status.shards.by_node.get(&member.name);
        let usual = member.state == "ready";
        match (member.role == "node", usual, shards) {
            (true, true, shards) => {
                Some(format!("{} {}", member.name, shards.copied().unwrap_or(0)))
            }
            (true, false, Some(shards)) => {
                Some(format!("{} {shards} ({})", member.name, member.state))
            }
            (_, false, _) => Some(format!("{} {}", member.name, member.state)),
            (false, true, _) => None,
        }
    };
    let mut line: Vec<String> = status.members.members.iter().filter_map(describe).collect();
    if status.shards.unowned > 0 {
        line.push(format!("unowned {}", status.shards.unowned));
    }
    line.join("   ")
}

/// What runs, and what to try.
fn welcome(children: &Children, ports: &Ports, program: &str, took: Duration) -> String {
    let mut text = format!("ready in {:.1} s\n\n", took.as_secs_f64());
    let row = |name: &str, http: SocketAddr, ports: &MemberPorts| {
        format!(
            "  {name:<7} http://{:<16} admin http://{:<16} gossip {:<16} pid {}\n",
            http.to_string(),
            ports.admin.to_string(),
            ports.gossip.to_string(),
            children.pid(name)
        )
    };
    text += &row("router", ports.router.http, &ports.router);
    for (name, node) in &ports.nodes {
        text += &row(name, node.http, node);
    }
    let (router, admin) = (ports.router.http, ports.router.admin);
    let (killed, _) = &ports.nodes[0];
    let (drained, _) = &ports.nodes[1 % ports.nodes.len()];
    let count = format!("curl -i -X POST http://{router}/sessions/alice/counters/visits");
    text += &format!(
        "\nTry:\n  # a counter: always the same node\n  {count}\n  \
         # a killed node: its sessions are served on from their copies\n  \
         kill -9 {}; {count}\n  \
         # a drained node: its sessions move\n  \
         curl -X POST -H 'stead-admin: 1' 'http://{admin}/v1/drain?node={drained}'\n\n\
         Add a node:\n  {}\n\nCtrl-C stops all of them.\n\n",
        children.pid(killed),
        ports.newcomer().command(program),
    );
    text
}

/// The program as somebody in this directory would call it.
fn shown(program: &Path) -> String {
    let here: Option<PathBuf> = std::env::current_dir()
        .ok()
        .and_then(|here| program.strip_prefix(here).map(Path::to_owned).ok());
    here.as_deref().unwrap_or(program).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stead_shared::net::admin::{MembersReport, ShardsReport};

    use super::*;

    #[test]
    fn a_line_names_counts_and_whoever_is_not_as_usual() {
        let member = |name: &str, role: &str, state: &str| MemberReport {
            name: name.into(),
            role: role.into(),
            state: state.into(),
            weight: 1,
            zone: String::new(),
            gossip: String::new(),
            http: String::new(),
            admin: String::new(),
            boot_id: 1,
            version: String::new(),
        };
        let members = vec![
            member("n1", "node", "ready"),
            member("n2", "node", "leaving"),
            member("n3", "node", "down"),
            member("n4", "node", "joining"),
            member("router-1", "router", "ready"),
        ];
        let by_node = BTreeMap::from([("n1".to_owned(), 5), ("n2".to_owned(), 2)]);
        let status = Status {
            members: MembersReport {
                members_digest: String::new(),
                members,
                majority: None,
                promises: None,
            },
            shards: ShardsReport { shards: 8, by_node, unowned: 1, ..ShardsReport::default() },
            moves: None,
        };
        let line = "n1 5   n2 2 (leaving)   n3 down   n4 joining   unowned 1";
        assert_eq!(shards_line(&status), line);
    }
}
