//! OpenAPI documents for clients: version 3, one per group and version with an index, and version
//! 2 in one piece.
//!
//! Both come from the same registry and schema. Clients look in them for the parameters that a
//! server understands (`fieldValidation`, `dryRun`), for the keys that lists merge by, and for
//! what `explain` shows.
//!
//! ```text
//! Registry ──▶ paths ──┐ types in use          ┌──▶ document
//! Schema   ──▶ schemas ┴───────────────────────┘
//! ```

mod binary;
mod custom;
mod paths;
mod schemas;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::resource::Registry;
use crate::schema::{NodeId, Schema};
use schemas::Describer;

pub use binary::encode as binary;

/// The version of Kubernetes whose API this is.
pub const KUBERNETES_VERSION: &str = "v1.37.0";

/// Which document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// OpenAPI 3.0.
    V3,
    /// Swagger 2.0.
    V2,
}

/// The index of the v3 documents, as `/openapi/v3` answers. An address changes when its document
/// does, so that clients may keep documents for ever: `tag` tells the content of one apart from any other.
pub fn v3_index(registry: &Registry, tag: impl Fn(&str, &str) -> Option<String>) -> Value {
    let mut paths = Map::new();
    for (group, version) in registry.group_versions() {
        let Some(tag) = tag(&group, &version) else { continue };
        let path = group_path(&group, &version);
        let url = format!("/openapi/v3/{path}?hash={tag}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// The v3 document of one group and version; `None` if nothing is served there.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let resources = registry.in_group_version(group, version);
    if resources.is_empty() {
        return None;
    }
    let mut used = BTreeSet::new();
    let paths = paths::of_group_version(Dialect::V3, group, version, &resources, &mut used);
    let schemas = schemas::all(&Describer::new(Dialect::V3, registry), used, &resources);
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": bearer_token()},
        },
    }))
}

/// The v2 document, as `/openapi/v2` answers.
pub fn v2(registry: &Registry) -> Value {
    let mut used = BTreeSet::new();
    let mut all_paths = Map::new();
    for (group, version) in registry.group_versions() {
        let resources = registry.in_group_version(&group, &version);
        all_paths.extend(paths::of_group_version(Dialect::V2, &group, &version, &resources, &mut used));
    }
    let definitions = schemas::all(&Describer::new(Dialect::V2, registry), used, &registry.all());
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": KUBERNETES_VERSION},
        "paths": all_paths,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": bearer_token()},
        "security": [{"BearerToken": []}],
    })
}

/// Media types of the v2 document in its binary form, as clients ask for it. The first is no valid media type and is
/// what they send; the second is what it is answered as.
pub const V2_PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// How clients send a token.
fn bearer_token() -> Value {
    json!({"type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer token"})
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The type of what a subresource reads and writes; types are named after the group's first word.
fn type_of(group: &str, version: &str, kind: &str) -> Option<NodeId> {
    let package = match group.split('.').next() {
        None | Some("") => "core",
        Some(package) => package,
    };
    Schema::builtin().find(&format!("{package}/{version}.{kind}"))
}

#[cfg(test)]
mod tests;
