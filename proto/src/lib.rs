//! The contract between Hearth's parts: generated wire types, ids and error codes. No I/O.
//!
//! Wire types stay at the borders: a receiver validates them and turns them into its own types.

pub mod error;
pub mod id;
pub mod metadata;

/// Generated code: one module per .proto package.
#[allow(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated; the documentation is in the .proto files"
)]
pub mod wire {
    pub mod run {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.run.v1");
        }
    }
    pub mod process {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.process.v1");
        }
    }
    pub mod files {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.files.v1");
        }
    }
    pub mod port {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.port.v1");
        }
    }
    pub mod envd {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.envd.v1");
        }
    }
    pub mod agent {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.agent.v1");
        }
    }
    pub mod pool {
        pub use v1::*;
        pub mod v1 {
            tonic::include_proto!("hearth.pool.v1");
        }
    }
}
