//! A capsule's network: a namespace of its own with one tap, and a router between all of them and the host.
//!
//! A capsule's namespace and its tap have no names: they live as long as the VMM (and the agent's descriptors). Only the
//! agent, which holds the namespace, can make sockets there. A link leads from it to the router's namespace, where the
//! policy of each capsule is a few elements in sets; without them nothing leads further. The router's namespace is the
//! one thing with a name, so that a later agent finds it: removing it removes all links.
//! Without `nft` there is no router and no way out; capsules work all the same.

pub mod config;
pub mod dns;
mod links;
pub mod netns;
pub mod nft;
pub mod plan;
pub mod policy;
pub mod router;
pub mod ruleset;
pub mod slots;
pub mod tap;
