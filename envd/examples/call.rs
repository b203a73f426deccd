//! Calls a capsule's envd by hand, to look into one while developing:
//! `call ADDR:PORT activate|prepare LANGUAGE…|health|exec PROGRAM ARG…|repeat COUNT PROGRAM ARG…|execute CODE`.

use hearth_proto::{
    metadata,
    wire::{
        envd::{ActivateRequest, HealthRequest, PrepareRequest, envd_client::EnvdClient},
        process::{ExecRequest, exec_event},
        run::RunRequest,
    },
};
use std::{
    error::Error,
    io::Write,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tonic::{Request, transport::Endpoint};

/// The token this program gives and shows; `HEARTH_TOKEN` overrides it.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

fn request<T>(message: T) -> Result<Request<T>, Box<dyn Error>> {
    let mut request = Request::new(message);
    let token = std::env::var("HEARTH_TOKEN").unwrap_or_else(|_| TOKEN.to_owned());
    request.metadata_mut().insert(metadata::TOKEN, token.parse()?);
    request.metadata_mut().insert(metadata::REALTIME_NS, now_ns().to_string().parse()?);
    Ok(request)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("no address")?;
    let method = args.next().ok_or("no method")?;
    let rest: Vec<String> = args.collect();
    let endpoint =
        Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(5));
    let mut client = EnvdClient::new(endpoint.tcp_nodelay(true).connect().await?);
    let begun = Instant::now();
    match method.as_str() {
        "activate" => {
            let mut entropy = vec![0; 64];
            getrandom::fill(&mut entropy)?;
            let message = ActivateRequest {
                entropy,
                realtime_ns: now_ns(),
                hostname: "cl-example".to_owned(),
                machine_id: uuid::Uuid::new_v4().simple().to_string(),
                token: TOKEN.to_owned(),
                env: [("CAPSULE".to_owned(), "example".to_owned())].into(),
            };
            println!("{:?}", client.activate(request(message)?).await?.into_inner());
        }
        "prepare" => {
            println!("{:?}", client.prepare(request(PrepareRequest { languages: rest })?).await?.into_inner())
        }
        "health" => println!("{:?}", client.health(request(HealthRequest {})?).await?.into_inner()),
        "exec" => {
            let (cmd, args) = rest.split_first().ok_or("no program")?;
            let message = ExecRequest { cmd: cmd.clone(), args: args.to_vec(), ..ExecRequest::default() };
            let mut events = client.exec(request(message)?).await?.into_inner();
            while let Some(event) = events.message().await? {
                match event.event {
                    Some(exec_event::Event::Stdout(bytes)) => std::io::stdout().write_all(&bytes)?,
                    Some(exec_event::Event::Stderr(bytes)) => std::io::stderr().write_all(&bytes)?,
                    other => eprintln!("{other:?}"),
                }
            }
        }
        "repeat" => {
            let (count, rest) = rest.split_first().ok_or("no count")?;
            let (cmd, args) = rest.split_first().ok_or("no program")?;
            let mut times = Vec::new();
            for _ in 0..count.parse()? {
                let message = ExecRequest { cmd: cmd.clone(), args: args.to_vec(), ..ExecRequest::default() };
                let begun = Instant::now();
                let mut events = client.exec(request(message)?).await?.into_inner();
                while events.message().await?.is_some() {}
                times.push(begun.elapsed().as_micros());
            }
            times.sort_unstable();
            let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
            println!("p10 {} p50 {} p90 {} µs", at(10), at(50), at(90));
        }
        "execute" => {
            let rehearsal = rest.is_empty();
            let code = rest.join("\n");
            let message = RunRequest { code, timeout_ms: 60_000, rehearsal, ..RunRequest::default() };
            let mut events = client.execute(request(message)?).await?.into_inner();
            while let Some(event) = events.message().await? {
                println!("{:?}", event.event);
            }
        }
        other => return Err(format!("no method {other}").into()),
    }
    eprintln!("{} µs", begun.elapsed().as_micros());
    Ok(())
}
