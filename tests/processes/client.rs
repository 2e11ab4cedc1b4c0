//! A plain HTTP/1.1 client on hyper's connections.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// Longer than anything that the router parks.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The answer, unless its status is an error.
    pub(crate) fn success(self) -> Result<Self, String> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(format!("{}: {}", self.status, String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The `value` of a counter's answer.
    pub(crate) fn counter(&self) -> Result<i64, String> {
        let json: serde_json::Value =
            serde_json::from_slice(&self.body).map_err(|error| error.to_string())?;
        json["value"].as_i64().ok_or_else(|| format!("no value in {json}"))
    }
}

/// One kept connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Result<Self, String> {
        let text = |error: &dyn std::error::Error| format!("connect to {addr}: {error}");
        let stream = TcpStream::connect(addr).await.map_err(|error| text(&error))?;
        stream.set_nodelay(true).map_err(|error| text(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
        tokio::spawn(connection);
        Ok(Self { sender, host: addr.to_string() })
    }

    /// Sends one request without a body and reads the whole answer.
    pub(crate) async fn send(&mut self, method: Method, path: &str) -> Result<Answer, String> {
        self.send_body(method, path, Bytes::new()).await
    }

    /// Sends one request and reads the whole answer.
    pub(crate) async fn send_body(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, String> {
        self.send_keyed(method, path, body, None).await
    }

    /// The same with an idempotency key.
    pub(crate) async fn send_keyed(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        key: Option<&str>,
    ) -> Result<Answer, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header("stead-admin", "1");
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let exchange = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Answer { status: parts.status, headers: parts.headers, body })
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer.map_err(|error| format!("{path}: {error}")),
            Err(_) => Err(format!("{path}: no answer within {TIMEOUT:?}")),
        }
    }
}

/// One request on a connection of its own.
pub(crate) async fn once(addr: SocketAddr, method: Method, path: &str) -> Result<Answer, String> {
    Connection::open(addr).await?.send(method, path).await
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> Result<Answer, String> {
    once(addr, Method::GET, path).await
}

pub(crate) async fn get_json<T: DeserializeOwned>(
    addr: SocketAddr,
    path: &str,
) -> Result<T, String> {
    let answer = get(addr, path).await?.success()?;
    serde_json::from_slice(&answer.body).map_err(|error| format!("{path}: {error}"))
}

/// Adds one to a counter of a session.
pub(crate) async fn count(addr: SocketAddr, session: &str) -> Result<Answer, String> {
    once(addr, Method::POST, &format!("/sessions/{session}/counters/visits")).await?.success()
}
