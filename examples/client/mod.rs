//! A small HTTP client for the examples: one connection, one request at a time.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A connection to a node or a router.
#[derive(Debug)]
pub(crate) struct Client {
    connection: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the client; what fails is told to whoever sends a request.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self { connection: sender })
    }

    /// Sends a request and waits for the head of the answer; the body streams.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>, Error> {
        self.connection.ready().await?;
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.body(Full::new(body.into()))?;
        Ok(self.connection.send_request(request).await?)
    }

    /// Sends a request and waits for the whole answer.
    pub(crate) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Error> {
        let (head, body) = self.send(method, path, body).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }
}
