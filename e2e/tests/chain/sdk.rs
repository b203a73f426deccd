//! The official SDK, unmodified and in both generations.

use crate::folder;
use hearth_e2e::{sdk, service::TestService};

async fn all_checks_pass(generation: &str) {
    let dir = folder();
    let service = TestService::start(dir.path(), &[]).await.unwrap();
    let (url, key, generation) = (service.url.clone(), service.key.clone(), generation.to_owned());
    let checked = tokio::task::spawn_blocking(move || sdk::checks(&generation, &url, &key, &[]));
    let output = checked.await.unwrap().unwrap();
    let (told, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{complained}\n{}", service.process.log());
    // A script that stopped early would end well too.
    assert!(told.contains("ok lifecycle ") && told.trim_end().ends_with("0 failed"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_of_the_first_generation_works_unmodified() {
    all_checks_pass("0.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_of_the_second_generation_works_unmodified() {
    all_checks_pass("0.3").await;
}
