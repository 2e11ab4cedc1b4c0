//! A service without state in front of Redis, as cheap as it can be: what `run` compares with.
//!
//! One thread. All requests share one connection to Redis, whose client gathers what has come and
//! sends it in one write. Where replicas are to be waited for, one `WAIT` follows each such batch:
//! Redis does nothing else on a connection while it waits, so a `WAIT` for every increment would
//! make them wait for each other.
//!
//! ```text
//! redis_app LISTEN REDIS [REPLICAS]
//! ```
//! `POST /sessions/{id}/counters/{name}` increments, `GET` reads: as the session service answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// How long replicas may take, in milliseconds.
const WAIT_MS: u32 = 1000;
/// Most commands of one batch; there are never more than connections.
const BATCH_MAX: usize = 1024;
const BUFFER_BYTES: usize = 64 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (listen, redis, replicas) = match args.as_slice() {
        [listen, redis] => (listen, redis, 0),
        [listen, redis, replicas] => (listen, redis, number(replicas)?),
        _ => return Err(io::Error::other("usage: redis_app LISTEN REDIS [REPLICAS]")),
    };
    let redis = Redis::connect(redis.parse().map_err(io::Error::other)?, replicas).await?;
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let redis = redis.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(&redis, request));
            // A client that goes away is none of our business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
        });
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| io::Error::other(format!("{text} is no number")))
}

// ---- HTTP -----------------------------------------------------------------------------------

#[derive(Serialize)]
struct Counter {
    value: i64,
}

async fn answer(
    redis: &Redis,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let verb = match *request.method() {
        Method::POST => "INCR",
        Method::GET => "GET",
        _ => return Ok(empty(StatusCode::METHOD_NOT_ALLOWED)),
    };
    let Some(key) = key(request.uri().path()) else { return Ok(empty(StatusCode::NOT_FOUND)) };
    Ok(match redis.ask(verb, &key).await {
        Ok(Some(value)) => {
            let body = serde_json::to_vec(&Counter { value }).expect("a number is always JSON");
            let mut response = Response::new(Full::from(body));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        Ok(None) => empty(StatusCode::NOT_FOUND),
        Err(Failed) => empty(StatusCode::BAD_GATEWAY),
    })
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// `ID:NAME` of `/sessions/ID/counters/NAME`.
fn key(path: &str) -> Option<String> {
    let mut parts = path.strip_prefix("/sessions/")?.split('/');
    let (id, counters, name) = (parts.next()?, parts.next()?, parts.next()?);
    (counters == "counters" && parts.next().is_none()).then(|| format!("{id}:{name}"))
}

// ---- Redis ----------------------------------------------------------------------------------

/// Redis refused, its replicas did not answer in time, or it is gone.
#[derive(Clone, Copy, Debug)]
struct Failed;

type Value = Result<Option<i64>, Failed>;

struct Command {
    bytes: Vec<u8>,
    answer: oneshot::Sender<Value>,
}

/// One connection for everybody.
#[derive(Clone)]
struct Redis {
    commands: mpsc::Sender<Command>,
}

impl Redis {
    async fn connect(addr: SocketAddr, replicas: u32) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let (commands, queue) = mpsc::channel(BATCH_MAX);
        let (sent, unanswered) = mpsc::unbounded_channel();
        tokio::spawn(send(write, queue, sent, replicas));
        tokio::spawn(receive(read, unanswered, replicas));
        Ok(Self { commands })
    }

    async fn ask(&self, verb: &str, key: &str) -> Value {
        let (verb_len, key_len) = (verb.len(), key.len());
        let bytes = format!("*2\r\n${verb_len}\r\n{verb}\r\n${key_len}\r\n{key}\r\n").into_bytes();
        let (answer, answered) = oneshot::channel();
        self.commands.send(Command { bytes, answer }).await.map_err(|_| Failed)?;
        answered.await.unwrap_or(Err(Failed))
    }
}

type Batch = Vec<oneshot::Sender<Value>>;

/// Sends what has come, in one write.
async fn send(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Command>,
    sent: mpsc::UnboundedSender<Batch>,
    replicas: u32,
) -> io::Result<()> {
    let (mut commands, mut bytes) = (Vec::new(), Vec::with_capacity(BUFFER_BYTES));
    let (replicas, wait_ms) = ((0 < replicas).then(|| replicas.to_string()), WAIT_MS.to_string());
    while 0 < queue.recv_many(&mut commands, BATCH_MAX).await {
        bytes.clear();
        let batch = commands.drain(..).map(|command: Command| {
            bytes.extend_from_slice(&command.bytes);
            command.answer
        });
        let batch = batch.collect();
        if let Some(replicas) = &replicas {
            let (n, ms) = (replicas.len(), wait_ms.len());
            let wait = format!("*3\r\n$4\r\nWAIT\r\n${n}\r\n{replicas}\r\n${ms}\r\n{wait_ms}\r\n");
            bytes.extend_from_slice(wait.as_bytes());
        }
        if sent.send(batch).is_err() {
            break;
        }
        write.write_all(&bytes).await?;
    }
    Ok(())
}

/// Gives the answers to those who wait. When the connection ends everybody is told that it failed.
async fn receive(
    mut read: OwnedReadHalf,
    mut unanswered: mpsc::UnboundedReceiver<Batch>,
    replicas: u32,
) {
    let mut replies = Replies::default();
    while let Some(batch) = unanswered.recv().await {
        let mut values = VecDeque::with_capacity(batch.len());
        let n_replies = batch.len() + usize::from(0 < replicas);
        while values.len() < n_replies {
            match replies.next() {
                Some(value) => values.push_back(value),
                None => match read.read_buf(&mut replies.bytes).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
            }
        }
        let is_enough = |value: &Value| matches!(value, Ok(Some(n)) if i64::from(replicas) <= *n);
        let is_known = replicas == 0 || values.pop_back().as_ref().is_some_and(is_enough);
        for (answer, value) in batch.into_iter().zip(values) {
            // Who asked may have gone.
            let _ = answer.send(if is_known { value } else { Err(Failed) });
        }
    }
}

/// Replies as they come: numbers, strings that are numbers, nothing, and errors.
#[derive(Default)]
struct Replies {
    bytes: Vec<u8>,
    at: usize,
}

impl Replies {
    fn next(&mut self) -> Option<Value> {
        let found = self.parse();
        if found.is_none() {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        found
    }

    fn parse(&mut self) -> Option<Value> {
        let line = line(&self.bytes[self.at..])?;
        let mut end = self.at + line.len() + 2;
        let value = match line.split_first() {
            Some((b':', digits)) => read_number(digits),
            Some((b'$', b"-1")) => Ok(None),
            Some((b'$', _)) => {
                let digits = self::line(&self.bytes[end..])?;
                end += digits.len() + 2;
                read_number(digits)
            }
            Some(_) | None => Err(Failed),
        };
        self.at = end;
        Some(value)
    }
}

fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some(&bytes[..end])
}

fn read_number(digits: &[u8]) -> Value {
    let text = std::str::from_utf8(digits).map_err(|_| Failed)?;
    text.parse().map(Some).map_err(|_| Failed)
}
