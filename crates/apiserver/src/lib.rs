//! The Kubernetes API over a store.
//!
//! One registry, one generic path: no kind has a file of handlers here. A request goes
//!
//! ```text
//!  ApiService ─▶ route ─▶ authorizer ─▶ verb ─▶ decode ─▶ admission ─▶ strategy, validation ─▶ store
//!  (limits,      (path)   (identity)     │        (crate api)
//!   panics)                              └─ reads and watches ◀── cache ◀── one watch on the store
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`ApiServer`], `server` | what one server is made of, its start |
//! | `service` | the `tower::Service`: limits, panics, identities of in-process clients |
//! | `route`, `query`, `media` | path, query and headers, taken apart |
//! | `handler` | from request to verb, by way of the authorizer |
//! | `verbs` | get, list, watch, create, update, patch, delete, deletecollection |
//! | `sub` | scale, binding, eviction, namespace finalization, holders, access reviews |
//! | `admission` | what the server adds to or refuses about objects, kind by kind |
//! | `published` | the service `default/kubernetes`, by which pods find the server |
//! | `cache` | the newest state and the recent changes, kept in memory, fanned out to watchers |
//! | `crd` | kinds that CustomResourceDefinitions declare, as they come and go |
//! | `discovery`, `documents`, `health`, `metrics` | documents outside the objects |
//! | `annex` | documents that the program around the server answers |
//! | `sign_in` | the paths at which browsers sign in |
//! | `encoding` | compression, and answers that the client has already |
//! | `gate` | how many requests at once, and how many of one client |
//! | [`audit`] | who asked for what |
//! | [`carry`] | what of a backup goes into a store that takes the backed-up one's place |
//! | [`auth`] | who asks, and what they may do |
//! | [`listen`], [`tls`] | the TLS listener and the certificate authority |
//! | `streams` | logs, exec, attach and port-forward: from HTTP to a node's agent |

pub mod audit;
pub mod auth;
pub mod carry;
pub mod listen;
pub mod tls;

mod admission;
mod annex;
mod body;
mod bootstrap;
mod cache;
mod crd;
mod discovery;
mod documents;
mod encoding;
mod errors;
mod gate;
mod handler;
mod health;
mod media;
mod metrics;
mod object;
mod published;
mod query;
mod respond;
mod route;
mod server;
mod service;
mod sign_in;
mod skim;
mod streams;
mod sub;
mod verbs;

pub use annex::{Annex, AnnexRequest};
pub use body::{Body, BodyError};
pub use errors::Error;
pub use published::Published;
pub use server::{ApiServer, AuthorizerChoice, Limits, Options};
pub use service::{ApiService, InProcess};
