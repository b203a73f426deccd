//! Who is let in when, and what a capsule becomes by it.

use crate::capsule::{Capsule, SOON, TOKEN, activation, call, program, run, shell, until};
use hearth_proto::{
    metadata,
    wire::{
        envd::{ActivateRequest, HealthRequest, PrepareRequest},
        process::{ExecRequest, exec_event::Event},
        run::RunRequest,
    },
};
use std::fs;
use tonic::{Code, Request};

fn prepare() -> PrepareRequest {
    PrepareRequest { languages: Vec::new() }
}

#[tokio::test]
async fn only_activate_is_answered_before_activation() {
    let capsule = Capsule::start();
    let mut client = capsule.connect().await;
    let refused = Code::FailedPrecondition;
    assert_eq!(client.health(call(HealthRequest {}, TOKEN)).await.unwrap_err().code(), refused);
    assert_eq!(client.exec(call(program("true", &[]), TOKEN)).await.unwrap_err().code(), refused);
    assert_eq!(client.execute(call(RunRequest::default(), TOKEN)).await.unwrap_err().code(), refused);
    assert_eq!(client.prepare(call(prepare(), TOKEN)).await.unwrap_err().code(), refused);
    client.activate(activation()).await.unwrap();
    client.health(call(HealthRequest {}, TOKEN)).await.unwrap();
}

#[tokio::test]
async fn every_call_needs_the_token() {
    let (_capsule, mut client) = Capsule::active().await;
    let refused = Code::Unauthenticated;
    let wrong = "b-token-of-32-visible-characters";
    assert_eq!(client.health(HealthRequest {}).await.unwrap_err().code(), refused);
    assert_eq!(client.health(call(HealthRequest {}, wrong)).await.unwrap_err().code(), refused);
    assert_eq!(client.exec(call(program("true", &[]), wrong)).await.unwrap_err().code(), refused);
    assert_eq!(client.execute(call(RunRequest::default(), wrong)).await.unwrap_err().code(), refused);
    assert_eq!(client.prepare(call(prepare(), wrong)).await.unwrap_err().code(), refused);
    assert_eq!(
        client.activate(activation()).await.unwrap_err().code(),
        refused,
        "no second life without the token"
    );
    client.activate(call(ActivateRequest { token: wrong.to_owned(), ..activation() }, TOKEN)).await.unwrap();
    assert_eq!(client.health(call(HealthRequest {}, TOKEN)).await.unwrap_err().code(), refused);
    client.health(call(HealthRequest {}, wrong)).await.unwrap();
}

#[tokio::test]
async fn an_activation_makes_it_somebody() {
    let (_capsule, mut client) = Capsule::active().await;
    let names = shell(
        "hostname; cat /etc/hostname /etc/machine-id; grep cl- /etc/hosts; cat /proc/sys/kernel/random/boot_id",
    );
    let first = run(&mut client, names.clone()).await.unwrap();
    let lines: Vec<_> = first.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[..4], ["cl-test", "cl-test", "0123456789abcdef0123456789abcdef", "127.0.1.1 cl-test"]);
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(lines[4], host.trim());
    let again = ActivateRequest { hostname: "cl-other".to_owned(), ..activation() };
    let reply = client.activate(call(again, TOKEN)).await.unwrap().into_inner();
    for step in ["entropy", "clock", "identity", "thaw", "reseed"] {
        assert!(reply.step_us.contains_key(step), "{step}");
    }
    let second = run(&mut client, names).await.unwrap();
    let others: Vec<_> = second.text().lines().collect();
    assert_eq!((others[0], others[3]), ("cl-other", "127.0.1.1 cl-other"));
    assert_ne!(others[4], lines[4], "the boot id is new with each activation");
}

#[tokio::test]
async fn a_bad_activation_is_refused_and_changes_nothing() {
    let (_capsule, mut client) = Capsule::active().await;
    for (request, field) in [
        (ActivateRequest { entropy: vec![1; 31], ..activation() }, "entropy"),
        (ActivateRequest { realtime_ns: 0, ..activation() }, "realtime_ns"),
        (ActivateRequest { hostname: "no name".to_owned(), ..activation() }, "hostname"),
        (ActivateRequest { machine_id: "1".to_owned(), ..activation() }, "machine_id"),
        (ActivateRequest { token: "short".to_owned(), ..activation() }, "token"),
    ] {
        let status = client.activate(call(request, TOKEN)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        assert!(status.message().starts_with(field), "{status:?}");
        client.health(call(HealthRequest {}, TOKEN)).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_activation_fails_closed() {
    let (capsule, mut client) = Capsule::active().await;
    // Without the group of user processes, nothing can be thawed.
    fs::remove_dir(capsule.cgroup.path()).unwrap();
    let status = client.activate(call(activation(), TOKEN)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(capsule.take_errors().len(), 1);
    assert_eq!(
        client.health(call(HealthRequest {}, TOKEN)).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    fs::create_dir(capsule.cgroup.path()).unwrap();
    assert_eq!(client.activate(activation()).await.unwrap_err().code(), Code::Unauthenticated);
    client.activate(call(activation(), TOKEN)).await.unwrap();
}

#[tokio::test]
async fn every_call_corrects_the_clock() {
    let (_capsule, mut client) = Capsule::active().await;
    let agents_ns = 2_000_000_000_000_000_000_i64;
    let mut request = Request::new(HealthRequest {});
    request.metadata_mut().insert(metadata::TOKEN, TOKEN.parse().unwrap());
    request.metadata_mut().insert(metadata::REALTIME_NS, agents_ns.to_string().parse().unwrap());
    let reply = client.health(request).await.unwrap().into_inner();
    assert!(
        (0..50_000_000).contains(&(reply.realtime_ns - agents_ns)),
        "{} ns off",
        reply.realtime_ns - agents_ns
    );
    assert_ne!(reply.uptime_ms, 0);
    let mut request = Request::new(HealthRequest {});
    request.metadata_mut().insert(metadata::TOKEN, TOKEN.parse().unwrap());
    request.metadata_mut().insert(metadata::REALTIME_NS, "soon".parse().unwrap());
    assert_eq!(client.health(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_prepared_capsule_is_frozen_and_starts_anew() {
    let (capsule, mut client) = Capsule::active().await;
    let beat = std::path::Path::new(&capsule.home()).join("beat");
    let script = format!(
        "setsid sh -c 'while :; do echo . >> {0}; sleep 0.02; done' >/dev/null 2>&1 &",
        beat.display()
    );
    run(&mut client, shell(&script)).await.unwrap();
    until("the process beats", || beat.exists()).await;
    client.prepare(call(prepare(), TOKEN)).await.unwrap();
    let events = fs::read_to_string(capsule.cgroup.path().join("cgroup.events")).unwrap();
    assert!(events.contains("frozen 1"), "{events}");
    assert_eq!(
        client.health(call(HealthRequest {}, TOKEN)).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let frozen = fs::metadata(&beat).unwrap().len();
    let next = ActivateRequest {
        token: "c-token-of-32-visible-characters".to_owned(),
        env: Default::default(),
        ..activation()
    };
    let token = next.token.clone();
    let mut client = capsule.connect().await;
    assert_eq!(fs::metadata(&beat).unwrap().len(), frozen);
    client.activate(next).await.unwrap();
    until("the process beats again", || frozen < fs::metadata(&beat).unwrap().len()).await;
    let events = client.exec(call(shell("echo ${CAPSULE:-none}"), &token)).await.unwrap().into_inner();
    assert_eq!(
        crate::capsule::collect(events).await.unwrap().text(),
        "none",
        "the environment is not inherited"
    );
}

#[tokio::test]
async fn a_new_connection_after_prepare_ends_the_old_ones() {
    let (capsule, mut client) = Capsule::active().await;
    let mut events = client
        .exec(call(ExecRequest { timeout_ms: 60_000, ..shell("echo up; sleep 1000") }, TOKEN))
        .await
        .unwrap()
        .into_inner();
    while !matches!(events.message().await.unwrap().unwrap().event, Some(Event::Stdout(_))) {}
    client.prepare(call(prepare(), TOKEN)).await.unwrap();
    let mut next = capsule.connect().await;
    next.activate(activation()).await.unwrap();
    let end = tokio::time::timeout(SOON, events.message()).await.expect("the old stream ends");
    assert!(end.is_err(), "{end:?}");
    until("its process ends too", || capsule.cgroup.wait_empty(std::time::Duration::ZERO).unwrap()).await;
    next.health(call(HealthRequest {}, TOKEN)).await.unwrap();
}
