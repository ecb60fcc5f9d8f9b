//! Kubernetes API kinds as data: schema, defaulting, validation, selectors, tables, errors.
//!
//! One table of facts drives everything that touches an object's shape. Objects themselves are
//! `serde_json::Value`s from end to end.
//!
//! ```text
//!   data/schema.txt ──▶ schema ──┬─▶ decode    body → object: types, unknown fields, normal form
//!                                ├─▶ defaults  what a client left out
//!                                ├─▶ openapi   documents for clients
//!                                └─▶ merge keys for crate `patch`
//!   resource: which kinds are served, and how they are addressed
//!   crd, structural: the same for kinds that CustomResourceDefinitions declare
//! ```

pub mod amounts;
pub mod beyond;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod events;
pub mod limits;
pub mod managed;
pub mod names;
pub mod openapi;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod structural;
pub mod table;
pub mod validate;
