//! Measures the round trip of a cell through the whole crate: request, queue, kernel, events.
//!
//!     cargo run --release -p hearth-runtimes --example round_trip -- [PYTHON] [N]

use futures::StreamExt;
use hearth_proto::wire::run::RunRequest;
use hearth_runtimes::{Config, Runtimes};
use std::time::{Duration, Instant};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = Config::new(std::env::temp_dir().join("hearth-round-trip"));
    config.python = arguments.next().unwrap_or_else(|| "/usr/bin/python3".into()).into();
    let count: usize = arguments.next().map_or(Ok(200), |text| text.parse())?;
    let runtimes = Runtimes::new(config);
    let started = Instant::now();
    runtimes.warm("python").await?;
    println!("started and warmed in {:.2} s", started.elapsed().as_secs_f64());
    for code in ["print(1+1)", "1+1", "x = 1", "1/0"] {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            times.push(round(&runtimes, code).await?);
        }
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
        println!("{code:12} p50 {:.3} ms  p95 {:.3} ms  p99 {:.3} ms", at(50), at(95), at(99));
    }
    Ok(())
}

async fn round(runtimes: &Runtimes, code: &str) -> Result<Duration, hearth_runtimes::RuntimeError> {
    let started = Instant::now();
    let request = RunRequest { code: code.into(), timeout_ms: 10_000, ..RunRequest::default() };
    let mut stream = runtimes.execute(request).await?;
    while stream.next().await.is_some() {}
    Ok(started.elapsed())
}
