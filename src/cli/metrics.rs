//! The recorder behind `/metrics`.

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use stead_shared::net::admin::Render;

use super::exit::Exit;

/// Seconds: 100 µs to 10 s, which a request may take; a factor of about 2.2 between them.
const SECONDS: [f64; 16] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// Bytes: 256 to 16 MiB, in powers of four.
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];
/// Counts per event, such as frames in one write.
const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// How often samples of histograms are folded; they would pile up between scrapes otherwise.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder of the process and returns what renders it.
pub(super) fn start() -> anyhow::Result<(Render, impl Future<Output = ()> + Send + 'static)> {
    let fail = |error: String| Exit::Software.because(format!("cannot start metrics: {error}"));
    let recorder = PrometheusBuilder::new()
        .set_buckets(&COUNTS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS))
        .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES))
        .map_err(|error| fail(error.to_string()))?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| fail(error.to_string()))?;
    let upkeep = {
        let handle = handle.clone();
        async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                handle.run_upkeep();
            }
        }
    };
    Ok((Arc::new(move || handle.render()), upkeep))
}
