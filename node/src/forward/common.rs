//! What all forwards of a process share: the queues of those that wait, and what is counted.

use std::sync::Arc;

use metrics::{Counter, counter, gauge, histogram};
use stead_shared::net::parking::{self, Parking};
use stead_shared::net::watch;
use stead_shared::park::Limits;
use stead_shared::route::{Route, route};
use stead_shared::view::View;

use crate::host::Host;
use crate::logic::gate::Gate;

/// What all forwards of a process share.
pub(crate) struct Forwarding {
    pub(crate) parking: Arc<Parking>,
    pub(super) answered: Counter,
    pub(super) refused: Counter,
    pub(super) unreachable: Counter,
    pub(super) broken: Counter,
}

impl Forwarding {
    pub(crate) fn new(host: Host, views: watch::Receiver<Arc<View>>) -> Self {
        let outcome = |outcome| counter!("stead_node_forwards_total", "outcome" => outcome);
        metrics::describe_counter!(
            "stead_node_forwards_total",
            "Attempts to have a request of this node's own listener answered by the owner"
        );
        let seen = views.clone();
        let owner_epoch = Box::new(move |shard| match host.gate(shard) {
            // A doubt closes every gate.
            Some(Gate::Serving(_)) if host.is_in_doubt() => None,
            Some(Gate::Serving(epoch)) => Some(epoch),
            Some(Gate::Sealed(_) | Gate::Gone) | None => match route(&seen.borrow(), shard) {
                Route::Owner { epoch, .. } => Some(epoch),
                Route::Park => None,
            },
        });
        let parking = Parking::new(Limits::default(), views, owner_epoch, meters());
        Self {
            parking: Arc::new(parking),
            answered: outcome("answered"),
            refused: outcome("refused"),
            unreachable: outcome("unreachable"),
            broken: outcome("broken"),
        }
    }
}

fn meters() -> parking::Meters {
    metrics::describe_gauge!("stead_node_parked", "Requests that wait at this node for an owner");
    metrics::describe_counter!(
        "stead_node_park_total",
        "Waits for a shard's owner at this node, by how they ended"
    );
    metrics::describe_histogram!(
        "stead_node_park_seconds",
        metrics::Unit::Seconds,
        "How long each wait for a shard's owner at this node lasted"
    );
    let ended = |outcome| counter!("stead_node_park_total", "outcome" => outcome);
    parking::Meters {
        waiting: gauge!("stead_node_parked"),
        released: ended("released"),
        too_long: ended("too-long"),
        full: ended("full"),
        left: ended("left"),
        seconds: histogram!("stead_node_park_seconds"),
    }
}
