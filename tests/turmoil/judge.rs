//! Clients that count, and know what each answer must be.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use stead_shared::net::turmoil::net::TcpStream;
use tokio::task::JoinSet;

use crate::world::{FRONT, World};

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(20);
/// Before a client dials again.
const REDIAL: Duration = Duration::from_millis(50);

/// The name of a session by its number.
pub(crate) fn session(number: usize) -> String {
    format!("s{number}")
}

/// What was seen of one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) session: String,
    /// The last value.
    pub(crate) value: u64,
    /// Requests since then that may have counted.
    pub(crate) doubts: u64,
    /// Answers that were no value.
    pub(crate) failures: u64,
    /// How often it began anew, because whoever had it was lost.
    pub(crate) restarts: u64,
}

impl Seen {
    /// Takes an answer. A value that was given before, or that skips, is never right.
    fn take(&mut self, value: u64) {
        let counted = (self.value + 1)..=(self.value + 1 + self.doubts);
        if !counted.contains(&value) {
            let anew = 1..=(1 + self.doubts);
            assert!(anew.contains(&value), "{value} after {self:?}");
            self.restarts += 1;
        }
        self.value = value;
        self.doubts = 0;
    }
}

/// Clients that run until they are told to stop.
pub(crate) struct Clients {
    stop: Rc<Cell<bool>>,
    tasks: JoinSet<Vec<Seen>>,
}

impl Clients {
    /// Begins to count on `n_sessions` sessions with `n_clients` kept connections to the router,
    /// each session by one of them.
    pub(crate) fn start(world: &World, n_clients: usize, n_sessions: usize) -> Self {
        let stop = Rc::new(Cell::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..n_clients {
            let mine = (number..n_sessions).step_by(n_clients).map(session);
            let seen = mine.map(|session| Seen { session, ..Seen::default() }).collect();
            let client = Client { name: format!("client{number}"), world: world.clone(), to: None };
            tasks.spawn_local(client.count(seen, Rc::clone(&stop)));
        }
        Self { stop, tasks }
    }

    /// Ends the clients after the requests that are under way. What they saw, in the order of
    /// the sessions' names.
    pub(crate) async fn stop(self) -> Vec<Seen> {
        self.stop.set(true);
        let mut seen = self.tasks.join_all().await.concat();
        seen.sort_by(|a, b| a.session.cmp(&b.session));
        seen
    }
}

/// Asks for the value of each session; each must be what was counted last.
pub(crate) async fn read_all(world: &World, seen: &[Seen]) {
    let mut client = Client { name: "reader".to_owned(), world: world.clone(), to: None };
    for seen in seen {
        let value = client.ask(Method::GET, &seen.session).await;
        let counted = seen.value..=(seen.value + seen.doubts);
        assert!(value.is_ok_and(|value| counted.contains(&value)), "{value:?} after {seen:?}");
    }
}

struct Client {
    name: String,
    world: World,
    to: Option<SendRequest<Empty<Bytes>>>,
}

/// Why there was no value. Whether it may have been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    Refused,
    Unknown,
}

impl Client {
    async fn count(mut self, mut seen: Vec<Seen>, stop: Rc<Cell<bool>>) -> Vec<Seen> {
        for next in (0..seen.len()).cycle() {
            if stop.get() {
                break;
            }
            let seen = &mut seen[next];
            match self.ask(Method::POST, &seen.session).await {
                Ok(value) => seen.take(value),
                Err(failed) => {
                    seen.failures += 1;
                    seen.doubts += u64::from(failed == Failed::Unknown);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        seen
    }

    /// One request, in the log when it goes out and when its answer is here.
    async fn ask(&mut self, method: Method, session: &str) -> Result<u64, Failed> {
        self.world.log.say(&self.name, format_args!("{method} {session}"));
        let outcome = self.exchange(method, session).await;
        let text = match &outcome {
            Ok((status, outcome, body)) => format!("{status} {outcome}{body}"),
            Err(error) => error.clone(),
        };
        self.world.log.say(&self.name, format_args!("     {session} -> {text}"));
        let Ok((status, outcome, body)) = outcome else {
            self.to = None;
            tokio::time::sleep(REDIAL).await;
            return Err(Failed::Unknown);
        };
        if status == StatusCode::OK {
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            return Ok(json["value"].as_u64().unwrap());
        }
        // What is not said to be refused may have been executed.
        if outcome.contains("stead-refusal") { Err(Failed::Refused) } else { Err(Failed::Unknown) }
    }

    async fn exchange(
        &mut self,
        method: Method,
        session: &str,
    ) -> Result<(StatusCode, String, String), String> {
        let to = match &mut self.to {
            Some(to) if !to.is_closed() => to,
            to => to.insert(dial().await?),
        };
        to.ready().await.map_err(|error| error.to_string())?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/sessions/{session}/counters/hits"))
            .header("host", FRONT)
            .body(Empty::new())
            .unwrap();
        let answer = to.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let said = ["stead-outcome", "stead-refusal"].into_iter().filter_map(|name| {
            let value = head.headers.get(name)?.to_str().ok()?;
            Some(format!("{name}={value} "))
        });
        Ok((head.status, said.collect(), String::from_utf8_lossy(&body).into_owned()))
    }
}

async fn dial() -> Result<SendRequest<Empty<Bytes>>, String> {
    let socket = TcpStream::connect(FRONT).await.map_err(|error| error.to_string())?;
    let (to, connection) =
        handshake(TokioIo::new(socket)).await.map_err(|error| error.to_string())?;
    // Its end is seen where it is used.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(to)
}
