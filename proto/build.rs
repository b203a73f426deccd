//! Compiles the .proto files.

fn main() -> std::io::Result<()> {
    let names = ["run", "process", "guest_processes", "files", "port", "envd", "agent", "pool"];
    let files = names.map(|name| format!("proto/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&files, &["proto".to_owned()])
}
