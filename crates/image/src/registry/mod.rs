//! Images from registries: the OCI distribution protocol, as a client that only reads.
//!
//! ```text
//!   [`Puller::pull`] ── endpoints: mirrors, then the registry ── credentials: the pod's, the operator's, none
//!        │
//!        ├─ manifest (index → this machine's) ── digest and length verified
//!        ├─ layers that are missing, some at a time ── [`client`]: tokens, redirects, tries, resumed downloads
//!        └─ each verified, unpacked, and then the image listed ── [`crate::store`]
//! ```
//!
//! Written over hyper, like the rest of this project's HTTP: resumed downloads, a private authority per registry and name
//! resolution without the C library are what a ready-made client would have to be bent to. Source:
//! the OCI distribution specification, version 1.1.

pub mod auth;
pub mod client;
mod error;
mod pull;
mod resolve;
pub mod settings;
mod wire;

pub use error::ClientError;
pub use pull::{PullError, Pulled, Puller};
