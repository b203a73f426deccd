//! A capsule's network: a namespace of its own with one tap, held by descriptors only.
//!
//! Nothing is given a name on the host: the namespace and the tap live as long as the VMM (and the agent's descriptors),
//! so there is nothing to sweep. No route leads out of the namespace: a capsule reaches only the agent's end of its tap,
//! and only the agent, which holds the namespace, can make sockets there.

pub mod netns;
pub mod tap;
