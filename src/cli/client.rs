//! A small client of the admin interface.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use stead_shared::net::admin::{ClusterMoves, MembersReport, Problem, ShardsReport};
use stead_shared::net::sock;

use super::exit::Exit;
use super::secrets;

/// For a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that lists all ids of 65536 shards has a tenth of this.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Where the admin interface is.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    /// Admin address of any member
    #[arg(long, value_name = "URL", env = "STEAD_ADMIN", hide_env_values = true,
        default_value = "http://127.0.0.1:9180", value_parser = authority)]
    admin: String,

    /// File with the admin token; needed to change something from another machine
    #[arg(long, value_name = "FILE", env = "STEAD_ADMIN_TOKEN_FILE", hide_env_values = true)]
    admin_token_file: Option<PathBuf>,
}

impl AdminArgs {
    pub(super) fn client(&self) -> anyhow::Result<AdminClient> {
        let token = self.admin_token_file.as_deref().map(secrets::read_token_text).transpose()?;
        Ok(AdminClient { authority: self.admin.clone(), token })
    }
}

/// Asks one process.
#[derive(Clone, Debug)]
pub(super) struct AdminClient {
    authority: String,
    token: Option<String>,
}

/// No answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody there, or too slow.
    #[error(
        "no answer from http://{authority}: {reason}\n  hint: name a member's admin address by --admin or STEAD_ADMIN"
    )]
    Unreachable { authority: String, reason: String },
    /// An error of the process that was asked.
    #[error("{status}: {detail}")]
    Refused { status: StatusCode, detail: String },
    /// Something else answered.
    #[error(
        "http://{authority} answered with something else than stead's JSON ({reason})\n  hint: is it an admin address of a member?"
    )]
    NotStead { authority: String, reason: String },
}

impl ClientError {
    /// The error with the exit code that fits.
    pub(super) fn exit(self) -> anyhow::Error {
        let exit = match &self {
            Self::Unreachable { .. } | Self::NotStead { .. } => Exit::Unavailable,
            Self::Refused { status, .. } if *status == StatusCode::FORBIDDEN => Exit::NoPermission,
            Self::Refused { status, .. } if status.is_client_error() => Exit::Usage,
            Self::Refused { .. } => Exit::TempFail,
        };
        exit.because(self.to_string())
    }
}

impl AdminClient {
    /// A client of a listener of this host.
    pub(super) fn local(addr: SocketAddr) -> Self {
        Self { authority: addr.to_string(), token: None }
    }

    pub(super) async fn members(&self) -> Result<MembersReport, ClientError> {
        self.json(Method::GET, "/v1/members").await
    }

    pub(super) async fn shards(&self) -> Result<ShardsReport, ClientError> {
        self.json(Method::GET, "/v1/shards").await
    }

    /// What is moving in the whole cluster.
    pub(super) async fn moves(&self) -> Result<ClusterMoves, ClientError> {
        self.json(Method::GET, "/v1/moves").await
    }

    /// Whether the process calls itself ready, else the reason why not.
    pub(super) async fn ready(&self) -> Result<(), ClientError> {
        self.ask(Method::GET, "/readyz").await.map(drop)
    }

    /// A request with a JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let body = self.ask(method, path).await?;
        serde_json::from_slice(&body).map_err(|error| self.not_stead(error))
    }

    /// A request; its answer where it is a success.
    async fn ask(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        let exchange = tokio::time::timeout(TIMEOUT, self.exchange(method, path)).await;
        let (status, body) =
            exchange.map_err(|_| self.unreachable(format!("nothing within {TIMEOUT:?}")))??;
        if status.is_success() {
            return Ok(body);
        }
        let problem: Problem = serde_json::from_slice(&body)
            .map_err(|_| self.not_stead(format!("status {status}")))?;
        Err(ClientError::Refused { status, detail: problem.detail })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        let answer = async move {
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(HOST, &self.authority)
                .header("stead-admin", "1");
            if let Some(token) = &self.token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(|e| self.unreachable(e))?;
            let answer = sender.send_request(request).await.map_err(|e| self.unreachable(e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| self.not_stead(error))?.to_bytes()))
        };
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // Its end also ends the answer, which knows better what happened.
            _ = &mut connection => answer.await,
        }
    }

    async fn connect(&self) -> Result<sock::TcpStream, ClientError> {
        let addresses = sock::lookup(&self.authority)
            .await
            .map_err(|error| self.unreachable(format!("cannot resolve it: {error}")))?;
        let mut last = "its name has no address".to_owned();
        for addr in addresses {
            match sock::connect(addr, TIMEOUT).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error.to_string(),
            }
        }
        Err(self.unreachable(last))
    }

    fn unreachable(&self, reason: impl ToString) -> ClientError {
        let reason = reason.to_string();
        ClientError::Unreachable { authority: self.authority.clone(), reason }
    }

    fn not_stead(&self, reason: impl ToString) -> ClientError {
        let reason = reason.to_string();
        ClientError::NotStead { authority: self.authority.clone(), reason }
    }
}

/// `http://HOST:PORT` or `HOST:PORT`, as `HOST:PORT`.
fn authority(text: &str) -> Result<String, String> {
    if text.starts_with("https://") {
        return Err("the admin interface speaks plain HTTP: write http://HOST:PORT".into());
    }
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    stead_shared::config::check_host_port("admin", text)
        .map(|()| text.to_owned())
        .map_err(|error| format!("{}, {}", error.problem, error.hint))
}

/// A text for a query: everything but unreserved characters (RFC 3986 §2.3) is escaped.
pub(super) fn escape(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_address_is_a_url_or_a_plain_address() {
        for text in ["http://127.0.0.1:9180", "http://127.0.0.1:9180/", "127.0.0.1:9180"] {
            assert_eq!(authority(text).as_deref(), Ok("127.0.0.1:9180"));
        }
        for bad in ["https://a:1", "http://a", "http://a:1/path", ""] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_escaped_for_the_query() {
        assert_eq!(escape("a b+c/é~"), "a%20b%2Bc%2F%C3%A9~");
    }
}
