//! What `stead node` and `stead router` have in common before they start.

use std::future::Future;
use std::pin::Pin;

use stead_shared::config::MemberConfig;
use stead_shared::keys::KeyFile;
use stead_shared::net::admin::{AdminToken, Render};

use super::exit::Exit;
use super::{metrics, secrets, signals};

/// Ready at the reason to stop.
pub(super) type Stop = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Files read, metrics and signals watched. Nothing listens yet.
pub(super) struct Started {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) keys: Option<KeyFile>,
    pub(super) token: Option<AdminToken>,
    pub(super) metrics: Render,
    pub(super) stop: Stop,
}

impl Started {
    pub(super) fn new(member: &MemberConfig, with_parent: bool) -> anyhow::Result<Self> {
        let keys = member.cluster_key_file.as_deref().map(secrets::read_keys).transpose()?;
        let token = member.admin_token_file.as_deref().map(secrets::read_token).transpose()?;
        let (metrics, upkeep) = metrics::start()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Exit::Os.because(format!("cannot start a runtime: {error}")))?;
        runtime.spawn(upkeep);
        let stop = {
            let _inside = runtime.enter();
            Box::pin(signals::stop(with_parent)?)
        };
        Ok(Self { runtime, keys, token, metrics, stop })
    }
}
