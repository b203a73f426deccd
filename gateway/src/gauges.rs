//! Gauges of the bounded pools, and the upkeep of the metrics registry.

use crate::{app::App, middleware, ops::stages};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Often enough for a scrape, rare enough to cost nothing. It also bounds what the registry keeps between scrapes.
const EVERY: Duration = Duration::from_secs(5);

/// Describes all metrics of the gateway.
pub(crate) fn describe() {
    middleware::describe();
    stages::describe();
    metrics::describe_gauge!("hearth_gateway_request_slots_free", "Requests that could begin now");
    metrics::describe_gauge!("hearth_gateway_database_connections", "Connections to Postgres by state");
    metrics::describe_gauge!(
        "hearth_gateway_agent_channels",
        "Channels to agents by state, and calls that wait for one"
    );
    metrics::describe_gauge!("hearth_gateway_idempotency_keys", "Answers kept by idempotency key");
}

/// Sets the gauges until shutdown.
pub(crate) async fn run(app: App, stop: CancellationToken) {
    loop {
        set(&app);
        app.metrics.run_upkeep();
        tokio::select! {
            // Stop first: there is nothing to finish.
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "sizes of pools are far below 2^52")]
fn set(app: &App) {
    metrics::gauge!("hearth_gateway_request_slots_free").set(app.permits.available_permits() as f64);
    let database = app.store.pool();
    let idle = database.num_idle();
    let open = usize::try_from(database.size()).unwrap_or(usize::MAX);
    metrics::gauge!("hearth_gateway_database_connections", "state" => "idle").set(idle as f64);
    metrics::gauge!("hearth_gateway_database_connections", "state" => "used")
        .set(open.saturating_sub(idle) as f64);
    let agents = app.agents.fullness();
    metrics::gauge!("hearth_gateway_agent_channels", "state" => "idle").set(agents.idle as f64);
    metrics::gauge!("hearth_gateway_agent_channels", "state" => "used")
        .set(agents.open.saturating_sub(agents.idle) as f64);
    metrics::gauge!("hearth_gateway_agent_channels", "state" => "waiting").set(agents.waiting as f64);
    metrics::gauge!("hearth_gateway_idempotency_keys").set(app.idempotency.len() as f64);
}
