//! `hearth demo`: the main job from beginning to end, in half a minute: start, run code in capsules through the public
//! API, show the answers, save a plot, show timings, stop, leave nothing.

use crate::{args::UpArgs, client::Client, run, up::Service};
use anyhow::{Context, bail};
use hearth_agent::config::OnStop;
use hearth_proto::wire::pool::{SetPoolRequest, pool_manager_client::PoolManagerClient};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// A first template build takes half a minute under software emulation, several on a busy machine.
const READY_DEADLINE: Duration = Duration::from_secs(600);
/// Between two looks at `/ready`.
const PAUSE: Duration = Duration::from_millis(200);
/// Where the plot is saved.
const OUT: &str = "out";
/// Runs per row of the table.
const RUNS: usize = 5;

const HELLO: &str =
    "import platform, sys\nprint('Python', sys.version.split()[0], 'on Linux', platform.release())";
const TABLE: &str = "import pandas as pd\n\
    pd.DataFrame({'n': range(1, 6)}).assign(square=lambda t: t.n**2, cube=lambda t: t.n**3)";
const ERROR: &str = "def half(x):\n    return 1 / x\nhalf(0)";
const PLOT: &str = "import numpy as np, matplotlib.pyplot as plt\n\
    x = np.linspace(0, 4 * np.pi, 400)\n\
    for k in range(1, 6):\n    plt.plot(x, np.sin(x) / k, label=f'sin(x)/{k}')\n\
    plt.title('drawn in a capsule'); plt.legend(); plt.grid(alpha=.3); plt.show()";

/// Runs the demo.
pub async fn demo(mut args: UpArgs) -> anyhow::Result<ExitCode> {
    // Its log would drown the demo; warnings matter.
    if args.log.log == "info" {
        args.log.log = "warn".to_owned();
    }
    args.log.start();
    // Nobody comes back for its capsules.
    args.agent.on_stop = Some(OnStop::Destroy);
    // A port of its own: the demo may run beside a service.
    args.gateway.listen.set_port(0);
    let place = args.place.clone();
    println!("Starting Hearth (data in {}).", place.dir.display());
    let service = tokio::select! {
        service = Service::start(args) => service?,
        _ = hearth_service::shutdown::signal() => bail!("stopped while starting"),
    };
    let outcome = tokio::select! {
        outcome = show(&service, &place.dir) => outcome,
        _ = hearth_service::shutdown::signal() => Err(anyhow::anyhow!("stopped")),
    };
    println!("\nStopping.");
    service.stop().await;
    outcome?;
    println!("Stopped; nothing is left running.");
    Ok(ExitCode::SUCCESS)
}

async fn show(service: &Service, dir: &Path) -> anyhow::Result<()> {
    let key = service.api_key().context("the first API key")?;
    let client = Client::with_key(&service.url(), key)?;
    ready(&client).await?;
    let show = |title: &str, code: &str| {
        println!("\n── {title}");
        for line in code.lines() {
            println!("   │ {line}");
        }
    };
    for (title, code) in [("Hello", HELLO), ("A table", TABLE), ("An error", ERROR), ("A plot", PLOT)] {
        show(title, code);
        let answer = client.post("/v1/execute", &json!({ "code": code })).await?;
        for path in run::show(&answer, Path::new(OUT))? {
            println!("saved {}", path.display());
        }
    }
    timings(&client, dir).await
}

/// Waits for `/ready` and shows what it says meanwhile.
async fn ready(client: &Client) -> anyhow::Result<()> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let terminal = !bar.is_hidden();
    let (start, mut last) = (Instant::now(), String::new());
    loop {
        let detail = match client.get("/ready").await {
            Ok(_) => break,
            Err(error) => error.to_string(),
        };
        if detail != last {
            bar.set_message(detail.clone());
            if !terminal {
                println!("[{:5.1} s] {detail}", start.elapsed().as_secs_f32());
            }
            last = detail;
        }
        if READY_DEADLINE < start.elapsed() {
            bail!("not ready after {} s: {last}", READY_DEADLINE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
    bar.finish_and_clear();
    println!("Ready after {:.1} s.", start.elapsed().as_secs_f32());
    Ok(())
}

/// Measures the three ways to an answer and prints the table.
async fn timings(client: &Client, dir: &Path) -> anyhow::Result<()> {
    let code = json!({ "code": "print(1+1)" });
    let capsule = client.post("/v1/capsules", &json!({})).await?;
    let id = capsule.get("id").and_then(Value::as_str).context("the new capsule's id")?.to_owned();
    let context = measure(client, &format!("/v1/capsules/{id}/execute"), &code, None).await;
    client.call(reqwest::Method::DELETE, &format!("/v1/capsules/{id}"), None).await?;
    let context = context?;
    let mut pool = PoolManagerClient::new(hearth_service::socket::channel(
        &hearth_service::socket::endpoint(&dir.join("pool.sock")),
    )?);
    filled(&mut pool, 2).await?;
    let warm = measure(client, "/v1/execute", &code, Some(("warm", &mut pool))).await?;
    pool.set_pool(SetPoolRequest { template: "code".to_owned(), target: 0 }).await?;
    let restored = measure(client, "/v1/execute", &code, Some(("restored", &mut pool))).await?;
    println!("\n── How long `print(1+1)` takes over HTTP (median of {RUNS})");
    for (name, value) in [
        ("in a live context", context),
        ("fresh capsule from the pool", warm),
        ("fresh capsule restored on the spot", restored),
    ] {
        println!("   {name:36} {:8.1} ms", value.as_secs_f64() * 1000.0);
    }
    Ok(())
}

type Pool<'a> = Option<(&'static str, &'a mut PoolManagerClient<tonic::transport::Channel>)>;

/// Median of some runs; each must have come from the wanted source.
async fn measure(client: &Client, path: &str, body: &Value, mut pool: Pool<'_>) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        if let Some(("warm", pool)) = &mut pool {
            filled(pool, 1).await?;
        }
        let start = Instant::now();
        let answer = client.post(path, body).await?;
        times.push(start.elapsed());
        if answer.get("stdout").and_then(Value::as_str) != Some("2\n") {
            bail!("print(1+1) gave {answer}");
        }
        let source = answer.pointer("/timings/source").and_then(Value::as_str);
        if let Some((wanted, _)) = pool
            && source != Some(wanted)
        {
            bail!("a capsule came {source:?}, not {wanted}");
        }
    }
    times.sort_unstable();
    Ok(times[RUNS / 2])
}

/// Waits until the pool has capsules parked.
async fn filled(pool: &mut PoolManagerClient<tonic::transport::Channel>, count: u32) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let status = pool.get_status(hearth_proto::wire::pool::GetStatusRequest {}).await?.into_inner();
        if status.pools.iter().any(|pool| count <= pool.parked) {
            return Ok(());
        }
        if READY_DEADLINE < start.elapsed() {
            bail!("the pool does not fill: {status:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
