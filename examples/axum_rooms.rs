//! Game rooms behind an `axum::Router`: every room is a session, lives on one node, and has a
//! clock that ticks as long as somebody is in.
//!
//! ```text
//! cargo run --example axum_rooms --features axum
//! curl -X PUT localhost:8081/rooms/tea/players/ann      # ann enters; the clock starts
//! curl -N localhost:8081/rooms/tea/ticks                # a line for each tick
//! curl localhost:8081/rooms/tea                         # {"ticks":42,"players":["ann"]}
//! curl -X DELETE localhost:8081/rooms/tea/players/ann   # the last one out: the room is gone
//! ```
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::routing::{get, put};
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use stead::shared::id::SessionKey;
use stead::{Body, Node, NodeError, Problem, Service, Session, State, tower};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

#[cfg(test)]
mod client;

/// How often a room ticks.
const TICK: Duration = Duration::from_millis(200);
/// Ticks that a slow reader may be behind. It misses older ones.
const BEHIND_MAX: usize = 256;

/// The state of a room. A session has a bounded size, so a room has a bounded number of players.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Room {
    ticks: u64,
    players: BTreeSet<String>,
}

impl State for Room {
    const VERSION: u32 = 1;
}

/// What the handlers of one process share beside the sessions: news for those who watch a room
/// here. All rooms share one channel, which does for an example.
#[derive(Clone, Debug)]
struct News {
    ticks: broadcast::Sender<(SessionKey, u64)>,
}

/// Nodes find the room's name, the session key, in the second segment of the path; the handlers
/// do not need it, as the session is that of the room.
fn app(news: News) -> axum::Router {
    axum::Router::new()
        .route("/rooms/{room}", get(look))
        .route("/rooms/{room}/ticks", get(watch))
        .route("/rooms/{room}/players/{player}", put(enter).delete(leave))
        .with_state(news)
}

async fn look(session: Session) -> Result<Json<Room>, Problem> {
    session.get()?.map(Json).ok_or_else(no_room)
}

async fn enter(
    session: Session,
    Path((_room, player)): Path<(String, String)>,
) -> Result<Json<Room>, Problem> {
    let room = session.update(|room: &mut Room| {
        room.players.insert(player);
        room.clone()
    })?;
    if session.timers()? == 0 {
        // Moves with the room: the clock goes on where the room goes.
        session.every(TICK, "tick")?;
    }
    Ok(Json(room))
}

async fn leave(
    session: Session,
    Path((_room, player)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let is_empty = session.update(|room: &mut Room| {
        room.players.remove(&player);
        room.players.is_empty()
    })?;
    if is_empty {
        // And its clock with it.
        session.delete()?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A line for each tick, until the room goes: because it is empty, or to another node, where the
/// client finds it when it asks again.
///
/// The room's turn ends when the head of the answer leaves; the body may take as long as it likes.
async fn watch(session: Session, Shared(news): Shared<News>) -> Result<axum::body::Body, Problem> {
    if session.get::<Room>()?.is_none() {
        return Err(no_room());
    }
    let mut ticks = news.ticks.subscribe();
    let mut here = session.handle().attach().map_err(|refusal| Problem::of_refusal(&refusal))?;
    let watched = session.key().clone();
    let (lines, body) = Body::channel(1, None);
    tokio::spawn(async move {
        loop {
            let tick = tokio::select! {
                biased;
                _ = here.gone() => break,
                () = lines.reader_gone() => return,
                tick = ticks.recv() => tick,
            };
            match tick {
                Ok((room, n)) if room == watched => {
                    if lines.send(format!("tick {n}\n").into()).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break,
            }
        }
        // A reader that is gone needs no end.
        let _ = lines.finish().await;
    });
    Ok(axum::body::Body::new(body))
}

/// One tick: a turn of the room like that of a request.
///
/// Readers hear of it just before it is committed. Should the node lose the room in between,
/// they hear of this tick again, from the room's next node.
async fn tick(news: News, session: Session, _event: Bytes) {
    let ticked = session.update(|room: &mut Room| {
        room.ticks += 1;
        room.ticks
    });
    match ticked {
        // Nobody may be watching.
        Ok(n) => drop(news.ticks.send((session.key().clone(), n))),
        Err(error) => tracing::warn!(?session, %error, "a tick was lost"),
    }
}

fn no_room() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-room", "Nobody is in this room", "")
}

async fn open(name: &str, gossip: SocketAddr, http: SocketAddr) -> Result<Node, NodeError> {
    let (ticks, _) = broadcast::channel(BEHIND_MAX);
    let news = News { ticks };
    // `.tower(app)` is all that an application without timers needs.
    let service =
        tower(app(news.clone())).on_timer(move |session, event| tick(news.clone(), session, event));
    let node = Node::builder().name(name).gossip(gossip).http(http).service(service);
    let node = node.start().await?;
    node.ready().await?;
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let node = open("n1", "127.0.0.1:7400".parse()?, "127.0.0.1:8081".parse()?).await?;
    println!("rooms on http://{}/rooms/, Ctrl-C ends", node.handle().http_addr());
    node.run_until(async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Method;
    use http_body_util::BodyExt;
    use hyper::body::Incoming;

    use super::client::Client;
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// What comes next, or an empty text at the end.
    async fn next(body: &mut Incoming) -> String {
        let Some(frame) = body.frame().await else { return String::new() };
        String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()
    }

    async fn ticks_are_counted() {
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let node = open("n1", anywhere, anywhere).await.unwrap();
        let addr = node.handle().http_addr();
        let mut player = Client::connect(addr).await.unwrap();
        let room = player.ask(Method::GET, "/rooms/tea", "").await.unwrap();
        assert_eq!(room.status(), StatusCode::NOT_FOUND);
        let room = player.ask(Method::PUT, "/rooms/tea/players/ann", "").await.unwrap();
        assert_eq!(&room.body()[..], br#"{"ticks":0,"players":["ann"]}"#);

        let mut watcher = Client::connect(addr).await.unwrap();
        let mut lines =
            watcher.send(Method::GET, "/rooms/tea/ticks", "").await.unwrap().into_body();
        let first = next(&mut lines).await;
        let first: u64 = first.trim().strip_prefix("tick ").unwrap().parse().unwrap();
        for n in first + 1..first + 4 {
            assert_eq!(next(&mut lines).await, format!("tick {n}\n"));
        }
        // Takes its turn after that of the last tick.
        let room = player.ask(Method::PUT, "/rooms/tea/players/bob", "").await.unwrap();
        let room: Room = serde_json::from_slice(room.body()).unwrap();
        assert!(first + 3 <= room.ticks, "{room:?}");
        assert!(room.players.iter().eq(["ann", "bob"]));

        for name in ["ann", "bob"] {
            let path = format!("/rooms/tea/players/{name}");
            let left = player.ask(Method::DELETE, &path, "").await.unwrap();
            assert_eq!(left.status(), StatusCode::NO_CONTENT);
        }
        while !next(&mut lines).await.is_empty() {}
        let room = player.ask(Method::GET, "/rooms/tea", "").await.unwrap();
        assert_eq!(room.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_room_ticks_while_somebody_is_in() {
        tokio::time::timeout(SOON, ticks_are_counted()).await.expect("in time");
    }
}
