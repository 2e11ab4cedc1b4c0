//! `stead status`: members and shards, as a table, as JSON, or as a wait until all is well.

use std::time::Duration;

use clap::Args;
use stead_shared::config::Span;
use stead_shared::net::admin::{
    ClusterMoves, MemberReport, MembersReport, MovesReport, ShardsReport,
};
use tokio::time::Instant;

use super::client::{AdminArgs, AdminClient, ClientError};
use super::exit::Exit;
use super::show::{bytes, render};

/// How often a waiting command asks.
pub(super) const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Wait until every live member is ready, every shard is owned by its target, and has its copies
    #[arg(long)]
    wait_healthy: bool,

    /// How long to wait
    #[arg(long, value_name = "D", default_value = "60s", requires = "wait_healthy")]
    timeout: Span,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    super::small_runtime()?.block_on(async {
        let status = if args.wait_healthy {
            wait_healthy(&client, args.timeout.0).await?
        } else {
            Status::ask(&client).await.map_err(ClientError::exit)?
        };
        let status = status.with_moves(&client).await;
        let text = if args.json { status.json() } else { status.table() };
        super::print(&text)
    })
}

/// What one process knows of its cluster.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) members: MembersReport,
    pub(super) shards: ShardsReport,
    /// What is moving in the whole cluster, where somebody asked and was told.
    pub(super) moves: Option<ClusterMoves>,
}

async fn wait_healthy(client: &AdminClient, timeout: Duration) -> anyhow::Result<Status> {
    let deadline = Instant::now() + timeout;
    let mut ticks = tokio::time::interval(POLL);
    loop {
        ticks.tick().await;
        let missing = match Status::ask_ready(client).await {
            Ok(status) => match status.unhealthy() {
                None => return Ok(status),
                Some(missing) => missing,
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            let waited = Span(timeout);
            return Err(Exit::TempFail.because(format!("not healthy after {waited}: {missing}")));
        }
    }
}

impl Status {
    pub(super) async fn ask(client: &AdminClient) -> Result<Self, ClientError> {
        let (members, shards) = (client.members().await?, client.shards().await?);
        Ok(Self { members, shards, moves: None })
    }

    /// The same with what is moving, unless the process that is asked cannot say.
    async fn with_moves(self, client: &AdminClient) -> Self {
        Self { moves: client.moves().await.ok(), ..self }
    }

    /// The same, of a process that calls itself ready.
    pub(super) async fn ask_ready(client: &AdminClient) -> Result<Self, ClientError> {
        client.ready().await?;
        Self::ask(client).await
    }

    /// What is missing, `None` when nothing is.
    pub(super) fn unhealthy(&self) -> Option<String> {
        let shards = &self.shards;
        let unsettled = |m: &&MemberReport| ["joining", "leaving", "suspect"].contains(&&*m.state);
        if let Some(member) = self.members.members.iter().find(unsettled) {
            return Some(format!("{} is {}", member.name, member.state));
        }
        if shards.shards == 0 {
            return Some("no node has been met".into());
        }
        if shards.unowned > 0 {
            return Some(format!("{} shards have no owner", shards.unowned));
        }
        if shards.moving > 0 {
            return Some(format!("{} shards are moving", shards.moving));
        }
        if shards.under_replicated > 0 {
            return Some(format!("{} shards have too few copies", shards.under_replicated));
        }
        let owned = |node: &String| shards.by_node.get(node).copied().unwrap_or(0);
        let (node, wanted) =
            shards.targets.iter().find(|(node, wanted)| owned(node) != **wanted)?;
        Some(format!("{node} owns {} shards and should own {wanted}", owned(node)))
    }

    fn json(&self) -> String {
        let text = serde_json::json!({
            "healthy": self.unhealthy().is_none(),
            "members_digest": self.members.members_digest,
            "members": self.members.members,
            "shards": self.shards,
            "moves": self.moves,
        });
        format!("{text:#}\n")
    }

    fn table(&self) -> String {
        let shards = &self.shards;
        let health = self.unhealthy().unwrap_or_else(|| "healthy".to_owned());
        let mut text = format!(
            "{health}\n{} shards: {} unowned, {} moving, {} under-replicated; members digest {}\n{}\n\n",
            shards.shards,
            shards.unowned,
            shards.moving,
            shards.under_replicated,
            self.members.members_digest,
            moves_line(self.moves.as_ref()),
        );
        let mut rows = vec![
            [
                "NAME", "ROLE", "STATE", "SHARDS", "TARGET", "MOVING", "WEIGHT", "ZONE", "HTTP",
                "ADMIN", "GOSSIP", "VERSION",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows.extend(self.members.members.iter().map(|member| self.row(member)));
        render(&rows, &(3..=6), &mut text);
        text
    }

    /// Shards that `node` has still to hand off or to take over.
    fn remaining(&self, node: &str) -> Option<u32> {
        self.moves.as_ref()?.by_node.get(node).map(MovesReport::remaining)
    }

    fn row(&self, member: &MemberReport) -> Vec<String> {
        let count = |n: Option<&u32>| n.map_or_else(|| "-".to_owned(), u32::to_string);
        let text = |t: &str| if t.is_empty() { "-".to_owned() } else { t.to_owned() };
        vec![
            text(&member.name),
            text(&member.role),
            text(&member.state),
            count(self.shards.by_node.get(&member.name)),
            count(self.shards.targets.get(&member.name)),
            count(self.remaining(&member.name).as_ref()),
            if member.role == "node" { member.weight.to_string() } else { "-".into() },
            text(&member.zone),
            text(&member.http),
            text(&member.admin),
            text(&member.gossip),
            text(&member.version),
        ]
    }
}

/// What is moving, and what is still to move.
fn moves_line(moves: Option<&ClusterMoves>) -> String {
    let Some(moves) = moves else { return "moves: not known".to_owned() };
    let total = moves.total;
    let mut line = match total.remaining() {
        0 => "moves: none".to_owned(),
        remaining => {
            let (moving, left) = (total.moving, bytes(total.bytes_left));
            format!("moves: {moving} moving, {remaining} remaining ({left})")
        }
    };
    if total.bytes_per_second > 0 {
        line += &format!(" at {}/s", bytes(total.bytes_per_second));
    }
    if total.frozen {
        line += "; those for balance are frozen";
    }
    if !moves.silent.is_empty() {
        line += &format!("; no answer from {}", moves.silent.join(", "));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stead_shared::net::admin::PendingMoves;

    use super::*;

    fn member(name: &str, role: &str, state: &str) -> MemberReport {
        MemberReport {
            name: name.into(),
            role: role.into(),
            state: state.into(),
            weight: u16::from(role == "node"),
            zone: String::new(),
            gossip: "127.0.0.1:7400".into(),
            http: "127.0.0.1:8081".into(),
            admin: "127.0.0.1:9181".into(),
            boot_id: 1,
            version: "0.1.0".into(),
        }
    }

    fn status(members: Vec<MemberReport>, unowned: u32, moving: u32) -> Status {
        let by_node = BTreeMap::from([("n1".to_owned(), 8 - unowned)]);
        Status {
            members: MembersReport {
                members_digest: "0123456789abcdef".into(),
                members,
                majority: None,
                promises: None,
            },
            shards: ShardsReport {
                shards: 8,
                targets: by_node.clone(),
                by_node,
                unowned,
                moving,
                ..ShardsReport::default()
            },
            moves: None,
        }
    }

    fn two_members() -> Status {
        status(vec![member("n1", "node", "ready"), member("router-1", "router", "ready")], 0, 0)
    }

    #[test]
    fn the_table_lines_up() {
        assert_eq!(
            two_members().table(),
            "healthy\n\
             8 shards: 0 unowned, 0 moving, 0 under-replicated; members digest 0123456789abcdef\n\
             moves: not known\n\
             \n\
             NAME      ROLE    STATE  SHARDS  TARGET  MOVING  WEIGHT  ZONE  HTTP            ADMIN           GOSSIP          VERSION\n\
             n1        node    ready       8       8       -       1  -     127.0.0.1:8081  127.0.0.1:9181  127.0.0.1:7400  0.1.0\n\
             router-1  router  ready       -       -       -       -  -     127.0.0.1:8081  127.0.0.1:9181  127.0.0.1:7400  0.1.0\n"
        );
    }

    #[test]
    fn moves_are_on_a_line_and_in_a_column() {
        let pending = PendingMoves { balance: 11, ..PendingMoves::default() };
        let one = MovesReport { moving: 1, pending, bytes_left: 3 << 20, ..Default::default() };
        let by_node = BTreeMap::from([("n1".to_owned(), one)]);
        let mut moves = ClusterMoves { total: one, by_node, silent: vec![] };
        assert_eq!(moves_line(Some(&moves)), "moves: 1 moving, 12 remaining (3.0 MiB)");
        let status = Status { moves: Some(moves.clone()), ..two_members() };
        let table = status.table();
        assert!(table.contains("n1        node    ready       8       8      12 "), "{table}");
        assert_eq!(status.json().matches("\"bytes_left\": 3145728").count(), 2);
        moves.total = MovesReport { bytes_per_second: 2048, frozen: true, ..one };
        moves.silent = vec!["n2".into(), "n3".into()];
        let line = "moves: 1 moving, 12 remaining (3.0 MiB) at 2.0 KiB/s; those for balance are \
                    frozen; no answer from n2, n3";
        assert_eq!(moves_line(Some(&moves)), line);
        assert_eq!(moves_line(Some(&ClusterMoves::default())), "moves: none");
    }

    #[test]
    fn health_needs_settled_members_and_owned_shards() {
        let ready = || member("n1", "node", "ready");
        assert_eq!(status(vec![ready()], 0, 0).unhealthy(), None);
        assert_eq!(status(vec![ready(), member("n2", "node", "down")], 0, 0).unhealthy(), None);
        for (members, unowned, moving, why) in [
            (vec![ready(), member("n2", "node", "joining")], 0, 0, "n2 is joining"),
            (vec![ready()], 3, 0, "3 shards have no owner"),
            (vec![ready()], 0, 2, "2 shards are moving"),
        ] {
            assert_eq!(status(members, unowned, moving).unhealthy().as_deref(), Some(why));
        }
    }
}
