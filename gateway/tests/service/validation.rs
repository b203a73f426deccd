//! Bad input: status, code, and the field by name.

use crate::testbed::{Testbed, refusal};

const CAPSULE: &str = "/v1/capsules/cl-0000000000000000000000000";

/// Body, status, and how the message begins or, with `…`, what it contains.
type Case = (&'static str, u16, &'static str);

async fn check(bed: &Testbed, path: &str, cases: &[Case]) {
    for (body, status, says) in cases {
        let refused = refusal(bed.post(path, *body)).await;
        let code = if *status == 413 { "too_large" } else { "invalid_request" };
        assert_eq!((refused.status, refused.code.as_str()), (*status, code), "{body}: {}", refused.message);
        let named = match says.strip_prefix('…') {
            Some(part) => refused.message.contains(part),
            None => refused.message.starts_with(says),
        };
        assert!(named, "{body}: {}", refused.message);
    }
}

#[tokio::test]
async fn execute_names_the_field() {
    let bed =
        Testbed::start_with(&["--max-timeout-ms=60000", "--max-code-bytes=64", "--max-files-bytes=16"]).await;
    let cases: &[Case] = &[
        ("", 400, "the body is empty"),
        ("{", 400, "…not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("{\"code\":\"1\",}", 400, "…trailing comma at line 1 column 13"),
        ("[\"1\"]", 400, "the body must be a JSON object, not a list"),
        (r#"{"code":"\ud800"}"#, 400, "…not valid JSON"),
        ("{}", 400, "code: required"),
        (r#"{"code":null}"#, 400, "code: required"),
        (r#"{"code":1}"#, 400, "code: expected a string, got a number"),
        (r#"{"code":["1"]}"#, 400, "code: expected a string, got a list"),
        (
            r#"{"code":"0123456789012345678901234567890123456789012345678901234567890123456789"}"#,
            413,
            "code: over 64 bytes",
        ),
        (
            r#"{"code":"1","language":"bash"}"#,
            400,
            "language: `bash` is not available yet; available: python",
        ),
        (r#"{"code":"1","language":"cobol"}"#, 400, "language: `cobol` is unknown; available: python"),
        (r#"{"code":"1","language":3}"#, 400, "language: expected a string"),
        (r#"{"code":"1","template":"../x"}"#, 400, "template: must be"),
        (r#"{"code":"1","timeout_ms":0}"#, 400, "timeout_ms: must be from 1 to 60000, got 0"),
        (r#"{"code":"1","timeout_ms":60001}"#, 400, "timeout_ms: must be from 1 to 60000"),
        (r#"{"code":"1","timeout_ms":1.5}"#, 400, "timeout_ms: expected a whole number, got 1.5"),
        (r#"{"code":"1","timeout_ms":"5"}"#, 400, "timeout_ms: expected a whole number, got a string"),
        (r#"{"code":"1","memory_mb":-1}"#, 400, "memory_mb: must be from 1"),
        (r#"{"code":"1","max_output_bytes":0}"#, 400, "max_output_bytes: must be from 1"),
        (r#"{"code":"1","network":"internet"}"#, 400, "network: a one-shot run has none"),
        (r#"{"code":"1","network":{"allow":["10.0.0.0/8"]}}"#, 400, "network: a one-shot run has none"),
        (r#"{"code":"1","network":{"allow":["x"]}}"#, 400, "network.allow[0]: `x` is not an IPv4 range"),
        (r#"{"code":"1","session":"s"}"#, 400, "session: "),
        (r#"{"code":"1","artifacts":"yes"}"#, 400, "artifacts: expected true or false"),
        (r#"{"code":"1","cwd":"tmp"}"#, 400, "cwd: must be an absolute path"),
        (r#"{"code":"1","cwd":"/\u0000"}"#, 400, "cwd: must not contain NUL"),
        (r#"{"code":"1","stdin":1}"#, 400, "stdin: expected a string"),
        (r#"{"code":"1","env":[]}"#, 400, "env: expected an object of strings, got a list"),
        (r#"{"code":"1","env":{"A":1}}"#, 400, "env.A: expected a string"),
        (r#"{"code":"1","env":{"":"x"}}"#, 400, "env: `` is not a usable variable name"),
        (r#"{"code":"1","env":{"A B":"x"}}"#, 400, "env: `A B` is not a usable variable name"),
        (r#"{"code":"1","files":{}}"#, 400, "files: expected a list, got an object"),
        (r#"{"code":"1","files":["x"]}"#, 400, "files[0]: expected an object, got a string"),
        (r#"{"code":"1","files":[{"content":"x"}]}"#, 400, "files[0].path: required"),
        (
            r#"{"code":"1","files":[{"path":"a","content":"x"},{"path":"b"}]}"#,
            400,
            "files[1].content: content or",
        ),
        (
            r#"{"code":"1","files":[{"path":"a","content":"x","content_base64":""}]}"#,
            400,
            "files[0].content: give",
        ),
        (
            r#"{"code":"1","files":[{"path":"a","content_base64":"*"}]}"#,
            400,
            "files[0].content_base64: not valid base64",
        ),
        (r#"{"code":"1","files":[{"path":"a/","content":""}]}"#, 400, "files[0].path: must name a file"),
        (r#"{"code":"1","files":[{"path":"a/.","content":""}]}"#, 400, "files[0].path: must name a file"),
        (
            r#"{"code":"1","files":[{"path":"a/../../b","content":""}]}"#,
            400,
            "files[0].path: must not contain `..`",
        ),
        (r#"{"code":"1","context_id":"c"}"#, 400, "context_id: only the default context"),
        (r#"{"code":"1","timeout_ms":-5}"#, 400, "timeout_ms: must be from 1 to 60000, got -5"),
        (r#"{"code":"1","timeout_ms":NaN}"#, 400, "…not valid JSON: expected value at line 1 column 26"),
        (r#"{"code":"1","timeout_ms":1e400}"#, 400, "…not valid JSON: number out of range"),
        (r#"{"code":"1","timeout_ms":99999999999999999999}"#, 400, "timeout_ms: expected a whole number"),
        (r#"{"code":"1","files":[{"path":"a","content":"0123456789abcdef"}]}"#, 413, "files: over 16 bytes"),
    ];
    check(&bed, "/v1/execute", cases).await;
    let refused = refusal(bed.post("/v1/execute", b"{\"code\":\"\xff\"}".to_vec())).await;
    assert_eq!((refused.status, refused.message.as_str()), (400, "the body is not valid UTF-8 at byte 9"));
}

#[tokio::test]
async fn counts_are_limited_where_the_field_can_be_named() {
    let bed = Testbed::start().await;
    let many = |number: usize| {
        let files: Vec<_> =
            (0..number).map(|file| serde_json::json!({ "path": file.to_string(), "content": "" })).collect();
        let env: serde_json::Map<_, _> =
            (0..number).map(|name| (format!("A{name}"), serde_json::json!(""))).collect();
        (
            serde_json::json!({ "code": "1", "files": files }).to_string(),
            serde_json::json!({ "code": "1", "cmd": "x", "env": env }).to_string(),
        )
    };
    let (files, env) = many(256);
    assert_eq!(refusal(bed.post("/v1/execute", files)).await.code, "host_unavailable");
    assert_eq!(refusal(bed.post("/v1/execute", env)).await.code, "host_unavailable");
    let (files, env) = many(257);
    let refused = refusal(bed.post("/v1/execute", files)).await;
    assert_eq!((refused.status, refused.message.as_str()), (400, "files: over 256 files"));
    for path in ["/v1/execute", "/v1/capsules", &format!("{CAPSULE}/exec"), &format!("{CAPSULE}/execute")] {
        let refused = refusal(bed.post(path, env.clone())).await;
        assert_eq!((refused.status, refused.message.as_str()), (400, "env: over 256 variables"), "{path}");
    }
}

#[tokio::test]
async fn what_belongs_to_the_capsule_is_refused_in_one() {
    let bed = Testbed::start().await;
    let cases: &[Case] = &[
        (r#"{"code":"1","template":"code"}"#, 400, "template: decided when the capsule was created"),
        (r#"{"code":"1","memory_mb":512}"#, 400, "memory_mb: decided when the capsule was created"),
        (r#"{"code":"1","session":"s"}"#, 400, "session: decided when the capsule was created"),
        (r#"{"code":"1","network":"internet"}"#, 400, "network: a one-shot run has none"),
        (r#"{"code":"1","context_id":"c"}"#, 400, "context_id: only the default context"),
        (r#"{"code":1}"#, 400, "code: expected a string"),
    ];
    check(&bed, &format!("{CAPSULE}/execute"), cases).await;
}

#[tokio::test]
async fn headers_are_checked_too() {
    let bed = Testbed::start().await;
    let request = || bed.post("/v1/execute", r#"{"code":"1"}"#);
    let streams = refusal(request().header("accept", "text/event-stream")).await;
    assert_eq!((streams.status, streams.code.as_str()), (406, "invalid_request"));
    let key = refusal(request().header("idempotency-key", "x".repeat(256))).await;
    assert_eq!((key.status, key.code.as_str()), (400, "invalid_request"));
    assert!(key.message.starts_with("Idempotency-Key: "));
    let twice = refusal(request().header("idempotency-key", "a").header("idempotency-key", "b")).await;
    assert_eq!((twice.status, twice.message.as_str()), (400, "Idempotency-Key: given more than once"));
    // Good requests of odd form go as far as the absent pool-manager.
    for good in [
        request().header("content-type", "text/plain"),
        request().header("idempotency-key", "k-1"),
        bed.post(
            "/v1/execute",
            " \n{\"code\":\"1\",\"unknown\":{\"x\":[1]},\"network\":\"none\",\"session\":null} ",
        ),
    ] {
        assert_eq!(refusal(good).await.code, "host_unavailable");
    }
}

#[tokio::test]
async fn exec_names_the_field() {
    let bed = Testbed::start_with(&["--max-timeout-ms=60000"]).await;
    let cases: &[Case] = &[
        ("", 400, "the body is empty"),
        ("{}", 400, "cmd: required"),
        (r#"{"cmd":""}"#, 400, "cmd: must not be empty"),
        (r#"{"cmd":["ls"]}"#, 400, "cmd: expected a string, got a list"),
        (r#"{"cmd":"ls","args":"-l"}"#, 400, "args: expected a list, got a string"),
        (r#"{"cmd":"ls","args":["a",1]}"#, 400, "args[1]: expected a string, got a number"),
        (r#"{"cmd":"ls","args":["a\u0000"]}"#, 400, "args[0]: must not contain NUL"),
        (r#"{"cmd":"ls","background":true,"tag":"12"}"#, 400, "tag: must be 1 to 64 characters"),
        (r#"{"cmd":"ls","background":true,"keep_stdin":1}"#, 400, "keep_stdin: expected true or false"),
        (r#"{"cmd":"ls","background":"no"}"#, 400, "background: expected true or false"),
        (r#"{"cmd":"ls","timeout_sec":"1"}"#, 400, "timeout_sec: expected a whole number"),
        (r#"{"cmd":"ls","timeout_sec":61}"#, 400, "timeout_sec: must be at most 60, got 61"),
        (r#"{"cmd":"ls","envs":{"A":null}}"#, 400, "envs.A: expected a string, got null"),
        (r#"{"cmd":"ls","cwd":5}"#, 400, "cwd: expected a string"),
    ];
    check(&bed, &format!("{CAPSULE}/exec"), cases).await;
}

#[tokio::test]
async fn create_and_execute_in_a_capsule_name_the_field() {
    let bed = Testbed::start().await;
    let create: &[Case] = &[
        ("null", 400, "the body must be a JSON object, not null"),
        (r#"{"template":5}"#, 400, "template: expected a string"),
        (r#"{"vcpus":1.5}"#, 400, "vcpus: expected a whole number"),
        (r#"{"metadata":[]}"#, 400, "metadata: expected an object of strings"),
        (r#"{"timeout_action":"stop"}"#, 400, "timeout_action: must be"),
        (r#"{"network":"lan"}"#, 400, "network: must be"),
        (r#"{"public_ports":[49983]}"#, 400, "public_ports: 49983 is the guest daemon's own"),
    ];
    check(&bed, "/v1/capsules", create).await;
    let run: &[Case] = &[
        ("{}", 400, "code: required"),
        (r#"{"code":"1","context_id":"c"}"#, 400, "context_id: only the default"),
    ];
    check(&bed, &format!("{CAPSULE}/execute"), run).await;
}
