//! Compiles the .proto files.

fn main() -> std::io::Result<()> {
    let files = ["run", "process", "port", "envd", "agent", "pool"].map(|name| format!("proto/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&files, &["proto".to_owned()])
}
