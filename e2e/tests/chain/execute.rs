//! `/v1/execute`: answers, outputs, files, bursts.

use crate::folder;
use futures::future::join_all;
use hearth_e2e::service::TestService;
use serde_json::json;
use std::collections::HashSet;

#[tokio::test(flavor = "multi_thread")]
async fn code_is_answered_with_everything_it_gave() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "1")]).await.unwrap();
    let answer =
        service.execute("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6*7").await.unwrap();
    assert_eq!(answer.text("/status"), "ok", "{answer:?}");
    assert_eq!(answer.text("/stdout"), "out\n");
    assert_eq!(answer.text("/stderr"), "err\n");
    assert_eq!(answer.text("/results/0/text~1plain"), "42");
    assert_eq!(answer.body.pointer("/execution_count"), Some(&json!(1)), "warm-up left a trace: {answer:?}");

    let answer = service.execute("1/0").await.unwrap();
    assert_eq!(
        (answer.text("/status"), answer.text("/error/name")),
        ("error", "ZeroDivisionError"),
        "{answer:?}"
    );
    let traceback = answer.body.pointer("/error/traceback").map(ToString::to_string).unwrap_or_default();
    assert!(traceback.contains("1/0"), "{answer:?}");

    let plot = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()";
    let answer = service.execute(plot).await.unwrap();
    let png = answer.text("/results/0/image~1png");
    assert!(png.starts_with("iVBORw0KGgo"), "{answer:?}");

    let request = json!({
        "code": "import os\nprint(open('in.txt').read(), os.environ['WHO'], input())\nopen('made.txt','w').write('x')",
        "files": [{ "path": "in.txt", "content": "hello" }],
        "env": { "WHO": "me" },
        "stdin": "typed\n",
    });
    let answer = service.post("/v1/execute", &request).await.unwrap();
    assert_eq!(answer.text("/stdout").trim_end(), "hello me typed", "{answer:?}");
    let artifacts = answer.body.pointer("/artifacts").and_then(|artifacts| artifacts.as_array()).cloned();
    let made: Vec<_> =
        artifacts.iter().flatten().map(|file| (&file["path"], &file["content_base64"])).collect();
    assert_eq!(made, [(&json!("made.txt"), &json!("eA=="))], "what was put in is no artifact: {answer:?}");
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_at_once_with_a_pool_of_four_are_all_right() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "4")]).await.unwrap();
    service.pool("a full pool", |pool| pool.parked == 4).await.unwrap();
    let codes: Vec<String> = (0..20).map(|number| format!("print({number} * {number})")).collect();
    let answers = join_all(codes.iter().map(|code| service.execute(code))).await;
    let mut capsules = HashSet::new();
    let mut warm = 0;
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(answer.text("/stdout"), format!("{}\n", number * number), "{answer:?}");
        assert!(capsules.insert(answer.text("/capsule/id").to_owned()), "a capsule was used twice");
        warm += usize::from(answer.text("/timings/source") == "warm");
    }
    assert!(warm >= 4, "only {warm} came from the pool");
    service.pool("the pool to be full again", |pool| pool.parked == 4).await.unwrap();
    service.stop_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_image_is_filled_ahead_of_the_faults() {
    let dir = folder();
    let service = TestService::start(dir.path(), &[("HEARTH_POOL_TARGET", "0")]).await.unwrap();
    let metrics = || async {
        let text = service.get("/metrics").await.unwrap().body.as_str().unwrap_or_default().to_owned();
        move |name: &str| -> f64 {
            let value = |line: &str| line.strip_prefix(name)?.trim().parse::<f64>().ok();
            text.lines().find_map(value).unwrap_or(0.0)
        }
    };
    // The first capsule fills the image that the start left empty.
    assert_eq!(service.execute("print(1)").await.unwrap().text("/stdout"), "1\n");
    let filled = r#"hearth_agent_prefetched_pages_total{result="filled"}"#;
    let before = metrics().await(filled);
    assert!(before > 1000.0, "{before} pages");
    assert_eq!(service.execute("print(2)").await.unwrap().text("/stdout"), "2\n");
    assert_eq!(metrics().await(filled), before, "an image is filled once");
    let evict = hearth_proto::wire::agent::EvictImageRequest { template: "code".to_owned() };
    let evicted = service.agent().unwrap().evict_image(evict).await.unwrap().into_inner();
    assert!(evicted.bytes > 4 << 20, "{evicted:?}");
    assert_eq!(service.execute("print(3)").await.unwrap().text("/stdout"), "3\n");
    assert!(metrics().await(filled) > before, "the fresh image was not filled");
    service.stop_clean().unwrap();
}
