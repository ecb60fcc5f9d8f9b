//! Who holds which pod name, and the holding node's word that a pod is gone.
//!
//! `GET /apis/statefuld.io/v1/namespaces/<ns>/holders[/<pod>]` and `GET /apis/statefuld.io/v1/holders` show records.
//! `DELETE …/holders/<pod>?uid=<uid>` releases one: by the node that the record names, which thereby says that
//! nothing of that pod runs there any longer, or by somebody whom roles allow `delete` on `holders` in the group
//! `statefuld.io` (the operator who knows that the node is dead). It answers 404 where nothing is held.

use std::sync::Arc;

use api::status::Status;
use http::{Method, Response};
use serde_json::{Value, json};
use store::{Compare, Op, Txn, TxnOutcome};

use crate::admission::holders::{self, HOLDERS};
use crate::auth::node::node_of;
use crate::auth::{Decision, Identity};
use crate::body::Body;
use crate::errors::{Outcome, from_store};
use crate::handler::{attributes, denied};
use crate::query::Query;
use crate::respond;
use crate::route::Target;
use crate::server::Shared;

/// The group of the records.
const GROUP: &str = "statefuld.io";

/// Shows or releases records.
pub(crate) async fn holders(
    shared: &Arc<Shared>,
    identity: &Identity,
    target: &Target,
    method: &Method,
    query: &Query,
) -> Outcome<Response<Body>> {
    if target.version != "v1" || !target.subresource.is_empty() {
        return Err(Box::new(Status::path_not_found()));
    }
    match (method, target.name.is_empty()) {
        (&Method::GET, true) => list(shared, identity, target).await,
        (&Method::GET, false) => get(shared, identity, target).await,
        (&Method::DELETE, false) => release(shared, identity, target, query).await,
        _ => Err(Box::new(Status::method_not_allowed())),
    }
}

/// All records that the asker may see: a node sees its own.
async fn list(shared: &Shared, identity: &Identity, target: &Target) -> Outcome<Response<Body>> {
    let own = node_of(identity);
    if own.is_none() {
        authorize(shared, identity, "list", target)?;
    }
    let revision = shared.cache.catch_up().await?;
    let prefix =
        if target.namespace.is_empty() { HOLDERS.to_owned() } else { format!("{HOLDERS}{}/", target.namespace) };
    let mut items: Vec<Value> = Vec::new();
    for entry in shared.cache.notes_below(&prefix) {
        let (holder, _) = holders::read(&entry)?;
        if own.is_none_or(|own| own == holder.node) {
            items.push(holder.to_value());
        }
    }
    Ok(respond::json(
        200,
        &json!({"kind": "HolderList", "apiVersion": "statefuld.io/v1",
            "metadata": {"resourceVersion": revision.to_string()}, "items": items}),
    ))
}

/// One record.
async fn get(shared: &Shared, identity: &Identity, target: &Target) -> Outcome<Response<Body>> {
    shared.cache.catch_up().await?;
    let found = holders::find(shared, &target.namespace, &target.name)?;
    match found {
        Some((holder, _)) if node_of(identity) == Some(&holder.node) => Ok(respond::json(200, &holder.to_value())),
        found => {
            authorize(shared, identity, "get", target)?;
            let (holder, _) = found.ok_or_else(|| Box::new(Status::not_found(GROUP, "holders", &target.name)))?;
            Ok(respond::json(200, &holder.to_value()))
        }
    }
}

/// Releases a record.
async fn release(shared: &Shared, identity: &Identity, target: &Target, query: &Query) -> Outcome<Response<Body>> {
    let not_found = || Box::new(Status::not_found(GROUP, "holders", &target.name));
    loop {
        shared.cache.catch_up().await?;
        let found = holders::find(shared, &target.namespace, &target.name)?;
        let uid = query.text("uid");
        let own = node_of(identity);
        // A node learns nothing about records that are not its own, but that they are not.
        let is_own = |holder: &holders::Holder| own == Some(&holder.node) || (own.is_some() && holder.uid != uid);
        if !found.as_ref().map_or(own.is_some(), |(holder, _)| is_own(holder)) {
            authorize(shared, identity, "delete", target)?;
        }
        let (holder, revision) = found.ok_or_else(not_found)?;
        if uid.is_empty() {
            return Err(Box::new(Status::bad_request("name the uid of the pod that is gone: ?uid=<uid>")));
        }
        if uid != holder.uid {
            let why = format!("another uid than {uid} holds the name");
            return Err(Box::new(Status::conflict(GROUP, "holders", &target.name, why)));
        }
        let key = holders::key(&target.namespace, &target.name);
        let txn =
            Txn { compare: vec![Compare { key: key.clone(), mod_revision: revision }], ops: vec![Op::Delete { key }] };
        match shared.store.txn(txn).await.map_err(from_store)? {
            TxnOutcome::Committed { .. } => {
                tracing::info!(
                    pod = %format!("{}/{}", holder.namespace, holder.name), uid, node = %holder.node,
                    by = %identity.user, "the name was released"
                );
                let status = Status::deleted(GROUP, "holders", &target.name, uid);
                return Ok(respond::json(200, &status.to_value()));
            }
            TxnOutcome::Failed { revision, .. } => shared.cache.wait(revision).await?,
        }
    }
}

/// 403 unless roles allow it.
fn authorize(shared: &Shared, identity: &Identity, verb: &str, target: &Target) -> Outcome<()> {
    let attributes = attributes(identity, verb, target);
    match shared.authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(why) => Err(Box::new(denied(&attributes, &why))),
    }
}
