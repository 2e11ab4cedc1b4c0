//! `stead move`, `stead pins`, `stead unpin`: shards placed by hand.

use std::time::Duration;

use clap::Args;
use http::Method;
use stead_shared::config::Span;
use stead_shared::net::admin::{PinReport, PinsReport, WhereReport};
use stead_shared::pins::PinKind;

use super::client::{AdminArgs, AdminClient, ClientError, escape};
use super::exit::Exit;
use super::show::{ProgressLines, render, until};
use super::status::POLL;

#[derive(Debug, Args)]
pub(super) struct MoveArgs {
    /// The shard's number; `stead where KEY` shows that of a session
    #[arg(value_parser = shard_number)]
    shard: u32,

    /// The name of the node that is to own it
    node: String,

    #[command(flatten)]
    admin: AdminArgs,

    /// How long it stays there, 1s to 366d; then it goes where placement wants it
    #[arg(long = "for", value_name = "D", default_value = "24h")]
    keep: Span,

    /// Wait until the node owns it
    #[arg(long)]
    wait: bool,

    /// How long to wait
    #[arg(long, value_name = "D", default_value = "60s", requires = "wait")]
    timeout: Span,
}

#[derive(Debug, Args)]
pub(super) struct PinsArgs {
    #[command(flatten)]
    admin: AdminArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    /// The shard's number
    #[arg(value_parser = shard_number)]
    shard: u32,

    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn run_move(args: &MoveArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let MoveArgs { shard, node, keep, .. } = args;
    let path = format!("/v1/shards/{shard}/move?to={}&for={keep}", escape(node));
    super::small_runtime()?.block_on(async {
        let pin: PinReport = client.json(Method::POST, &path).await.map_err(ClientError::exit)?;
        if !args.wait {
            return super::print(&format!(
                "shard {shard} is pinned to {node} for {keep} and moves there; `stead pins` lists \
                 the pins\n"
            ));
        }
        let took = wait_owned(&client, &pin, args.timeout.0).await?;
        super::print(&format!(
            "shard {shard} is at {node} after {:.1} s, pinned for {keep}\n",
            took.as_secs_f64()
        ))
    })
}

pub(super) fn run_pins(args: &PinsArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let report: PinsReport = super::small_runtime()?
        .block_on(client.json(Method::GET, "/v1/pins"))
        .map_err(ClientError::exit)?;
    if args.json {
        return super::print(&format!("{:#}\n", serde_json::json!(report)));
    }
    super::print(&table(&report))
}

pub(super) fn run_unpin(args: &UnpinArgs) -> anyhow::Result<()> {
    let client = args.admin.client()?;
    let shard = args.shard;
    let _: serde_json::Value = super::small_runtime()?
        .block_on(client.json(Method::DELETE, &format!("/v1/shards/{shard}/pin")))
        .map_err(ClientError::exit)?;
    super::print(&format!(
        "shard {shard} is not pinned any more, and goes where placement wants it\n"
    ))
}

fn shard_number(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "want the number of a shard; `stead where KEY` shows a session's")
}

/// Waits until the process that is asked sees the claim of the pin's node.
async fn wait_owned(
    client: &AdminClient,
    pin: &PinReport,
    timeout: Duration,
) -> anyhow::Result<Duration> {
    let mut lines = ProgressLines::new();
    let mut ticks = tokio::time::interval(POLL);
    let path = format!("/v1/shards/{}", pin.shard);
    loop {
        ticks.tick().await;
        let seen: Result<WhereReport, _> = client.json(Method::GET, &path).await;
        let far = match seen {
            Ok(home) => match arrival(&home, pin) {
                Arrival::Here => return Ok(lines.elapsed()),
                Arrival::Unpinned(why) => {
                    return Err(Exit::TempFail.because(format!("shard {}: {why}", pin.shard)));
                }
                Arrival::Waits(far) => far,
            },
            Err(error) => error.to_string(),
        };
        lines.show(&format!("shard {}: {far}", pin.shard));
        if lines.elapsed() >= timeout {
            let PinReport { shard, node, .. } = pin;
            let waited = Span(timeout);
            return Err(Exit::TempFail.because(format!(
                "shard {shard} is not at {node} after {waited}: {far}\n  hint: it stays pinned \
                 and moves when it can; `stead unpin {shard}` takes that back"
            )));
        }
    }
}

#[derive(Debug, PartialEq)]
enum Arrival {
    Here,
    Waits(String),
    Unpinned(String),
}

fn arrival(home: &WhereReport, wanted: &PinReport) -> Arrival {
    let node = &wanted.node;
    if home.owner.as_ref() == Some(node) {
        return Arrival::Here;
    }
    let owner = home.owner.as_deref().unwrap_or("nobody");
    match &home.pin {
        None => Arrival::Unpinned(format!("its pin to {node} is gone; it is at {owner}")),
        Some(pin) if pin.node != *node => {
            Arrival::Unpinned(format!("{} pinned it to {} instead", pin.author, pin.node))
        }
        Some(pin) if !pin.effective => Arrival::Waits(format!("at {owner}; {node} is away")),
        Some(_) => Arrival::Waits(format!("at {owner}, on its way to {node}")),
    }
}

/// `hand` or `heat`.
pub(super) fn kind(kind: PinKind) -> &'static str {
    match kind {
        PinKind::Hand => "hand",
        PinKind::Heat => "heat",
    }
}

fn table(report: &PinsReport) -> String {
    if report.pins.is_empty() {
        return "no shard is pinned\n".to_owned();
    }
    let mut rows =
        vec![["SHARD", "NODE", "BY", "AUTHOR", "FOR", "EFFECT"].map(str::to_owned).to_vec()];
    rows.extend(report.pins.iter().map(|pin| {
        vec![
            pin.shard.to_string(),
            pin.node.clone(),
            kind(pin.kind).to_owned(),
            pin.author.clone(),
            until(pin.expires_ms),
            if pin.effective { "yes" } else { "none: node away" }.to_owned(),
        ]
    }));
    let mut text = String::new();
    render(&rows, &(0..=0), &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(node: &str, effective: bool) -> PinReport {
        PinReport {
            shard: 5,
            node: node.into(),
            kind: PinKind::Hand,
            author: "router-1".into(),
            version: 1,
            expires_ms: 0,
            effective,
        }
    }

    fn home(owner: &str, pin: Option<PinReport>) -> WhereReport {
        let (owner, epoch) = (Some(owner.to_owned()), None);
        WhereReport { shard: 5, owner, epoch, replicas: vec![], pin }
    }

    #[test]
    fn a_shard_has_arrived_when_its_node_owns_it_and_never_will_without_its_pin() {
        let wanted = pin("n2", true);
        assert_eq!(arrival(&home("n2", Some(pin("n2", true))), &wanted), Arrival::Here);
        assert_eq!(arrival(&home("n2", None), &wanted), Arrival::Here);
        let waits = arrival(&home("n1", Some(pin("n2", true))), &wanted);
        assert_eq!(waits, Arrival::Waits("at n1, on its way to n2".into()));
        let away = arrival(&home("n1", Some(pin("n2", false))), &wanted);
        assert_eq!(away, Arrival::Waits("at n1; n2 is away".into()));
        let gone = arrival(&home("n1", None), &wanted);
        assert_eq!(gone, Arrival::Unpinned("its pin to n2 is gone; it is at n1".into()));
        let other = arrival(&home("n1", Some(pin("n3", true))), &wanted);
        assert_eq!(other, Arrival::Unpinned("router-1 pinned it to n3 instead".into()));
    }

    #[test]
    fn the_table_says_who_pinned_what_where() {
        assert_eq!(table(&PinsReport::default()), "no shard is pinned\n");
        let pins = vec![pin("n2", true), PinReport { shard: 16, ..pin("n3", false) }];
        let expected = "SHARD  NODE  BY    AUTHOR    FOR  EFFECT\n\
                        \x20   5  n2    hand  router-1  0s   yes\n\
                        \x20  16  n3    hand  router-1  0s   none: node away\n";
        assert_eq!(table(&PinsReport { pins }), expected);
    }
}
