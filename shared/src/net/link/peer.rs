//! One peer: the open connections to it, and who is dialling it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ConnectionKind, DialError, Link};
use crate::id::BootId;

/// Everything about one peer.
#[derive(Default)]
pub(super) struct Peer {
    /// Open connections, the one to use first.
    main: Mutex<Vec<Link>>,
    bulk: Mutex<Vec<Link>>,
    dialling_main: Dialling,
    dialling_bulk: Dialling,
}

/// One dial at a time; those who waited for it share its failure.
#[derive(Default)]
pub(super) struct Dialling {
    pub(super) turn: tokio::sync::Mutex<()>,
    last: Mutex<(u64, Option<DialError>)>,
}

impl Peer {
    pub(super) fn links(&self, kind: ConnectionKind) -> MutexGuard<'_, Vec<Link>> {
        let links = match kind {
            ConnectionKind::Main => &self.main,
            ConnectionKind::Bulk => &self.bulk,
        };
        links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dialling(&self, kind: ConnectionKind) -> &Dialling {
        match kind {
            ConnectionKind::Main => &self.dialling_main,
            ConnectionKind::Bulk => &self.dialling_bulk,
        }
    }

    /// The first open connection to that boot, or to any.
    pub(super) fn open(&self, kind: ConnectionKind, boot: Option<BootId>) -> Option<Link> {
        let links = self.links(kind);
        let mut open = links.iter().filter(|link| !link.is_closed());
        open.find(|link| boot.is_none_or(|boot| link.peer().boot == boot)).cloned()
    }
}

impl Dialling {
    pub(super) fn last(&self) -> MutexGuard<'_, (u64, Option<DialError>)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
