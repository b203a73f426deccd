//! A gateway with something of its own: a route that tells a team how many capsules it has, a header on every answer,
//! and a counter that grows in the background.
//!
//! Run it beside `hearth pool-manager` and `hearth agent` in place of `hearth gateway`:
//! `DATABASE_URL=… cargo run --example embed -- --dir /var/lib/hearth`.

use axum::{
    Json, Router,
    extract::State,
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Parser;
use futures::{FutureExt, future::BoxFuture};
use hearth_gateway::{Config, Extension, Gateway, Hearth};
use hearth_proto::wire::pool::ListCapsuleRecordsRequest;
use hearth_service::shutdown::Shutdown;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Counts how long it runs, and tells it.
#[derive(Debug, Clone, Default)]
pub struct Counting {
    ticks: Arc<AtomicU64>,
}

impl Extension for Counting {
    fn routes(&self, hearth: &Hearth) -> Router {
        Router::new().route("/ours/count", get(count)).with_state((hearth.clone(), self.clone()))
    }

    fn layer(&self, router: Router, _: &Hearth) -> Router {
        router.layer(map_response(|mut response: Response| async {
            response.headers_mut().insert("x-ours", HeaderValue::from_static("yes"));
            response
        }))
    }

    fn background(&self, _: Hearth, stop: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        let ticks = Arc::clone(&self.ticks);
        let work = async move {
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                ticks.fetch_add(1, Ordering::Relaxed);
            }
        };
        Some(work.boxed())
    }
}

async fn count(State((hearth, counting)): State<(Hearth, Counting)>, headers: HeaderMap) -> Response {
    // Whoever may list capsules may count them.
    let owner = match hearth.caller(&headers, &Method::GET, "/v1/capsules").await {
        Ok(owner) => owner,
        Err(refusal) => return refusal,
    };
    let request = ListCapsuleRecordsRequest { team_id: owner.team.to_string(), ..Default::default() };
    let capsules = match hearth.pool_manager().list_capsules(request).await {
        Ok(listed) => Some(listed.into_inner().capsules.len()),
        Err(_) => None,
    };
    let keys = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM api_keys WHERE team_id = $1")
        .bind(owner.team.uuid())
        .fetch_one(hearth.database())
        .await;
    match keys {
        Ok(keys) => {
            let ticks = counting.ticks.load(Ordering::Relaxed);
            Json(serde_json::json!({ "capsules": capsules, "keys": keys, "ticks": ticks })).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
#[allow(dead_code, reason = "the test uses the extension without the program")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = Shutdown::new();
    let gateway = Gateway::builder(Command::parse().config).extension(Counting::default());
    let running = gateway.start(shutdown.clone()).await?;
    println!("http://{}/ours/count", running.address());
    tokio::signal::ctrl_c().await?;
    shutdown.finish(Duration::from_secs(30)).await;
    Ok(())
}
