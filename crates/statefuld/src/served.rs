//! From files to what a server is asked to hold: which kinds it serves, and what stands in the way.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use api::resource::{Registry, Resource};
use kube::Client;
use kube::discovery::{Discovery, Scope};

use crate::manifest::{self, Document, Rules, Sorted};

/// Reads files, and refuses at once what no server would change: bad syntax, slips of the pen.
pub fn read(files: &[PathBuf], rules: Rules<'_>) -> Result<Vec<Document>> {
    let documents = manifest::read(files)?;
    let registry = manifest::with_definitions(&Registry::builtin(), &documents);
    // Whether the rest is served, the server will say.
    manifest::sort(&registry, documents.clone(), Rules { strict: false, ..rules })?;
    Ok(documents)
}

/// Sorts documents by what the server serves. It is asked only for kinds that are not built in.
pub async fn sort(client: &Client, documents: Vec<Document>, rules: Rules<'_>) -> Result<Sorted> {
    let builtin = Registry::builtin();
    let mut registry = manifest::with_definitions(&builtin, &documents);
    let first = manifest::sort(&registry, documents.clone(), Rules { strict: false, ..rules })?;
    if first.skipped.is_empty() {
        return Ok(first);
    }
    let known: BTreeSet<(String, String, String)> =
        registry.all().iter().map(|r| (r.group.clone(), r.version.clone(), r.kind.clone())).collect();
    let discovery = Discovery::new(client.clone()).run().await.context("the API does not say what it serves")?;
    for group in discovery.groups() {
        for version in group.versions() {
            for (found, can) in group.versioned_resources(version) {
                let key = (found.group.clone(), found.version.clone(), found.kind.clone());
                if !known.contains(&key) {
                    registry.add(resource(&found, can.scope == Scope::Namespaced));
                }
            }
        }
    }
    manifest::sort(&registry, documents, rules)
}

/// A kind as discovery tells of it; only what is needed to address its objects.
fn resource(found: &kube::discovery::ApiResource, namespaced: bool) -> Resource {
    Resource {
        group: found.group.clone(),
        version: found.version.clone(),
        kind: found.kind.clone(),
        list_kind: format!("{}List", found.kind),
        plural: found.plural.clone(),
        singular: found.kind.to_lowercase(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        type_name: String::new(),
        verbs: Vec::new(),
        subresources: Vec::new(),
        custom: None,
    }
}

/// A built-in kind.
pub fn builtin(group: &str, version: &str, kind: &str) -> Arc<Resource> {
    Registry::builtin().find_kind(group, version, kind).expect("it is built in")
}
