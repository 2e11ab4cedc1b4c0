//! `GET /sessions/{id}/ws`: a WebSocket room (RFC 6455) for everybody in the session.
//!
//! Each text message of a client takes a turn of the session, gets the next sequence number and
//! goes to everybody in the room, its sender included, as the text
//! `{"seq":7,"text":"the message"}`. Numbers begin with 1, have no gaps, and go on after a move;
//! everybody gets the messages in their order. Who joins gets the messages from then on.
//!
//! | close code | why |
//! |---|---|
//! | 1012 | the session's shard moves, or the session was deleted: connect again |
//! | 1013 | too slow, or the node is too busy or has no memory left: connect again later |
//! | 1003 | a binary message |
//! | 1009 | a message over 64 KiB |
//! | 1001 | nothing was heard of the client for three pings |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use dashmap::DashMap;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use serde::Serialize;
use sha1::{Digest, Sha1};
use stead_shared::id::SessionKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Bytes, Message, Utf8Bytes};

use super::{BuiltInConfig, wrong_method};
use crate::body::Body;
use crate::problem::Problem;
use crate::session::{Attached, Session, SessionHandle, TurnError};
use crate::turn::Unstoppable;
use crate::upgrade::{Upgrade, Upgraded};

/// The counter with a room's last sequence number. No path can name it: it is a control
/// character.
const SEQUENCE: &str = "\0room";

/// What the server adds to the client's key (RFC 6455 §1.3).
const HANDSHAKE_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How long a `101` may take to leave, and a close frame to be answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// All rooms of the node, by session. A room is there while somebody is in it.
#[derive(Debug)]
pub(super) struct Rooms {
    config: BuiltInConfig,
    by_session: DashMap<SessionKey, Arc<Room>>,
    metrics: RoomMetrics,
}

#[derive(Debug, Default)]
struct Room {
    state: Mutex<RoomState>,
}

#[derive(Debug, Default)]
struct RoomState {
    clients: Vec<Client>,
    client_last: u64,
    /// The last client has left, and the room with it.
    is_closed: bool,
}

/// The room's end of a client. Dropping it tells the client's task that it is too slow.
#[derive(Debug)]
struct Client {
    id: u64,
    messages: mpsc::Sender<Utf8Bytes>,
    _stays: oneshot::Sender<()>,
}

/// The client's place in a room. Dropping it leaves the room.
struct Place {
    rooms: Arc<Rooms>,
    key: SessionKey,
    room: Arc<Room>,
    id: u64,
    messages: mpsc::Receiver<Utf8Bytes>,
    too_slow: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct RoomMetrics {
    clients: Gauge,
    messages: Counter,
    gone: Counter,
    too_slow: Counter,
    silent: Counter,
    refused: Counter,
    broken: Counter,
    left: Counter,
}

impl RoomMetrics {
    fn new() -> Self {
        describe_gauge!("stead_room_clients", "WebSocket clients in rooms");
        describe_counter!("stead_room_messages_total", "Messages of rooms that got a number");
        describe_counter!("stead_room_closes_total", "Clients that left a room, by why");
        let closes = |reason| counter!("stead_room_closes_total", "reason" => reason);
        Self {
            clients: gauge!("stead_room_clients"),
            messages: counter!("stead_room_messages_total"),
            gone: closes("session-gone"),
            too_slow: closes("too-slow"),
            silent: closes("silent"),
            refused: closes("refused"),
            broken: closes("broken"),
            left: closes("left"),
        }
    }
}

/// Why a client's connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    SessionGone,
    TooSlow,
    Silent,
    Binary,
    TooLong,
    Invalid,
    Busy,
    /// It closed, or its connection broke.
    Left,
    Broken,
}

#[derive(Serialize)]
struct Envelope<'a> {
    seq: i64,
    text: &'a str,
}

impl Rooms {
    pub(super) fn new(config: BuiltInConfig) -> Self {
        Self { config, by_session: DashMap::new(), metrics: RoomMetrics::new() }
    }

    /// Answers the handshake. The client is in the room before the answer leaves, so that it
    /// misses nothing after it.
    pub(super) fn answer(
        self: &Arc<Self>,
        session: &Session,
        request: &Request<()>,
    ) -> Result<Response<Body>, Problem> {
        if request.method() != Method::GET {
            return Err(wrong_method("GET"));
        }
        let accept = accept_key(request.headers())?;
        let upgrade = Upgrade::of(request).ok_or_else(upgrade_required)?;
        let handle = session.handle();
        let attached = handle.attach().map_err(|refusal| Problem::of_refusal(&refusal))?;
        let place = self.join(handle.key()).ok_or_else(room_full)?;
        tokio::spawn(host(place, handle, attached, upgrade));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        Ok(response)
    }

    fn join(self: &Arc<Self>, key: &SessionKey) -> Option<Place> {
        loop {
            let room = Arc::clone(&self.by_session.entry(key.clone()).or_default());
            let mut state = room.lock();
            if state.is_closed {
                // Its last client takes it out of the map right now.
                drop(state);
                std::hint::spin_loop();
                continue;
            }
            if self.config.room_clients_max <= state.clients.len() {
                return None;
            }
            let (sender, messages) = mpsc::channel(self.config.room_queue_max.max(1));
            let (stays, too_slow) = oneshot::channel();
            state.client_last += 1;
            let id = state.client_last;
            state.clients.push(Client { id, messages: sender, _stays: stays });
            drop(state);
            self.metrics.clients.increment(1.0);
            let (rooms, key) = (Arc::clone(self), key.clone());
            return Some(Place { rooms, key, room, id, messages, too_slow });
        }
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, RoomState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a message to everybody. Whoever has no room for it is thrown out.
    fn tell(&self, message: &Utf8Bytes) {
        self.lock().clients.retain(|client| client.messages.try_send(message.clone()).is_ok());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        state.clients.retain(|client| client.id != self.id);
        if state.clients.is_empty() && !state.is_closed {
            state.is_closed = true;
            drop(state);
            let is_ours = |_: &SessionKey, room: &Arc<Room>| Arc::ptr_eq(room, &self.room);
            self.rooms.by_session.remove_if(&self.key, is_ours);
        }
        self.rooms.metrics.clients.decrement(1.0);
    }
}

/// One client from its handshake to its end.
async fn host(mut place: Place, handle: SessionHandle, mut attached: Attached, upgrade: Upgrade) {
    let rooms = Arc::clone(&place.rooms);
    let end = match timeout(PATIENCE, upgrade.stream()).await {
        Ok(Ok(stream)) => {
            let mut socket = WebSocketStream::from_raw_socket(
                stream,
                Role::Server,
                Some(socket_config(&rooms.config)),
            )
            .await;
            let end = converse(&mut socket, &mut place, &handle, &mut attached).await;
            // Gone from the room before the goodbyes, which may take their time.
            drop((place, attached));
            say_goodbye(socket, end).await;
            end
        }
        Ok(Err(_)) | Err(_) => End::Broken,
    };
    rooms.metrics.count(end);
}

fn socket_config(config: &BuiltInConfig) -> WebSocketConfig {
    let message = config.message_bytes_max;
    WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(4 << 10)
        .max_write_buffer_size((4 << 10) + 4 * message)
        .max_message_size(Some(message))
        .max_frame_size(Some(message))
}

type Socket = WebSocketStream<Upgraded>;

async fn converse(
    socket: &mut Socket,
    place: &mut Place,
    handle: &SessionHandle,
    attached: &mut Attached,
) -> End {
    let config = place.rooms.config.clone();
    let (mut sink, mut source) = socket.split();
    let listener = Listener {
        handle,
        room: Arc::clone(&place.room),
        metrics: &place.rooms.metrics,
        silence_max: config.ping_every * 3,
    };
    tokio::select! {
        biased;
        _ = attached.gone() => End::SessionGone,
        _ = &mut place.too_slow => End::TooSlow,
        end = listener.listen(&mut source) => end,
        end = speak(&mut sink, &mut place.messages, config.ping_every) => end,
    }
}

/// Takes a client's messages.
struct Listener<'a> {
    handle: &'a SessionHandle,
    room: Arc<Room>,
    metrics: &'a RoomMetrics,
    silence_max: Duration,
}

impl Listener<'_> {
    async fn listen(&self, source: &mut SplitStream<&mut Socket>) -> End {
        loop {
            let message = match timeout(self.silence_max, source.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return end_of(&error),
                Ok(None) => return End::Left,
                Err(_) => return End::Silent,
            };
            match message {
                Message::Text(text) => {
                    if let Err(error) = self.number(text).await {
                        return end_of_turn(&error);
                    }
                }
                Message::Binary(_) => return End::Binary,
                // A close is answered by the socket, which ends after it.
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Gives a message its number and sends it out, in one turn of the session: also when its
    /// sender goes meanwhile, so that no number is missing.
    async fn number(&self, text: Utf8Bytes) -> Result<(), TurnError> {
        let (room, messages) = (Arc::clone(&self.room), self.metrics.messages.clone());
        let send = move |seq: &i64| {
            let envelope = Envelope { seq: *seq, text: &text };
            let message = serde_json::to_string(&envelope).expect("a text is always JSON");
            room.tell(&message.into());
            messages.increment(1);
        };
        let handle = self.handle.clone();
        let turn =
            async move { handle.turn(|session| session.add(SEQUENCE, 1), send).await.map(drop) };
        Unstoppable::new(Box::pin(turn)).await
    }
}

/// Sends a client what the room says.
async fn speak(
    sink: &mut SplitSink<&mut Socket, Message>,
    messages: &mut mpsc::Receiver<Utf8Bytes>,
    ping_every: Duration,
) -> End {
    let mut pings = interval_at(Instant::now() + ping_every, ping_every);
    loop {
        let message = tokio::select! {
            biased;
            message = messages.recv() => match message {
                Some(text) => Message::Text(text),
                None => return End::TooSlow,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if sink.feed(message).await.is_err() {
            return End::Broken;
        }
        // All that is there goes out in one write.
        while let Ok(text) = messages.try_recv() {
            if sink.feed(Message::Text(text)).await.is_err() {
                return End::Broken;
            }
        }
        if sink.flush().await.is_err() {
            return End::Broken;
        }
    }
}

/// Sends the close frame and gives the client a while to answer it.
async fn say_goodbye(mut socket: Socket, end: End) {
    let Some((code, reason)) = end.close() else { return };
    let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
    let goodbye = async {
        if socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    // Who does not answer is cut off.
    let _ = timeout(PATIENCE, goodbye).await;
}

impl End {
    fn close(self) -> Option<(CloseCode, &'static str)> {
        match self {
            Self::SessionGone => Some((CloseCode::Restart, "the session moved, connect again")),
            Self::TooSlow => Some((CloseCode::Again, "too slow, connect again later")),
            Self::Busy => Some((CloseCode::Again, "too busy, connect again later")),
            Self::Silent => Some((CloseCode::Away, "nothing was heard of you")),
            Self::Binary => Some((CloseCode::Unsupported, "only text is understood")),
            Self::TooLong => Some((CloseCode::Size, "the message is too long")),
            Self::Invalid => Some((CloseCode::Protocol, "that is not the protocol")),
            Self::Left | Self::Broken => None,
        }
    }
}

impl RoomMetrics {
    fn count(&self, end: End) {
        let counter = match end {
            End::SessionGone => &self.gone,
            End::TooSlow => &self.too_slow,
            End::Silent => &self.silent,
            End::Binary | End::TooLong | End::Invalid | End::Busy => &self.refused,
            End::Left => &self.left,
            End::Broken => &self.broken,
        };
        counter.increment(1);
    }
}

fn end_of(error: &tungstenite::Error) -> End {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => End::Left,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Broken,
        Error::Capacity(_) => End::TooLong,
        Error::Protocol(_) | Error::Utf8(_) => End::Invalid,
        // Which others there are depends on how the library was built.
        _ => End::Broken,
    }
}

fn end_of_turn(error: &TurnError) -> End {
    use stead_shared::refusal::Refusal;
    match error {
        TurnError::Lost | TurnError::Refused(Refusal::Moving | Refusal::NotOwner { .. }) => {
            End::SessionGone
        }
        TurnError::Refused(
            Refusal::Overloaded { .. }
            | Refusal::Degraded
            | Refusal::Quarantined
            | Refusal::DeadlinePassed,
        )
        | TurnError::State(_) => End::Busy,
    }
}

/// The answer to the client's key, when the handshake is one (RFC 6455 §4.2.1).
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(upgrade_required());
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(upgrade_required)?;
    if BASE64_STANDARD.decode(key).map(|key| key.len()) != Ok(16) {
        return Err(super::bad_request("bad-handshake", "Sec-WebSocket-Key is not 16 bytes."));
    }
    let digest = Sha1::new().chain_update(key).chain_update(HANDSHAKE_GUID).finalize();
    let accept = BASE64_STANDARD.encode(digest);
    Ok(HeaderValue::try_from(accept).expect("base64 is visible ASCII"))
}

fn upgrade_required() -> Problem {
    Problem::new(
        StatusCode::UPGRADE_REQUIRED,
        "upgrade-required",
        "This resource is a WebSocket",
        "Connect with a WebSocket of version 13.",
    )
    .upgrade("websocket")
}

fn room_full() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "room-full",
        "The room is full",
        "Try again when somebody has left.",
    )
    .refused("overloaded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_answered_as_in_the_rfc() {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        headers.insert(SEC_WEBSOCKET_KEY, key);
        assert_eq!(accept_key(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("c2hvcnQ="));
        assert!(accept_key(&headers).is_err());
        headers.remove(SEC_WEBSOCKET_VERSION);
        assert!(accept_key(&headers).is_err());
    }
}
