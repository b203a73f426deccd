//! Manifests of snapshots and generations. Most inputs are sealed first, as somebody would who means harm: a checksum
//! keeps accidents out, not people.

#![no_main]

use hearth_agent::snapshot::manifest::Manifest;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::decode(data);
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let seal = format!("{:016x}", xxh3_64(value.to_string().as_bytes()));
    let sealed = json!({ "xxh3": seal, "manifest": value }).to_string();
    if let Ok(manifest) = Manifest::decode(sealed.as_bytes()) {
        // What was accepted can be written and read again, and is the same.
        let again = Manifest::decode(&manifest.encode().expect("a manifest can be written"));
        assert_eq!(again.expect("a written manifest can be read"), manifest);
    }
});
