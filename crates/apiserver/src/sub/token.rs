//! serviceaccounts/token: a token for a service account.

use std::sync::Arc;

use api::decode;
use api::status::Status;
use http::Response;
use serde_json::{Value, json};

use crate::auth::service_account::{Asked, Objects, request};
use crate::body::Body;
use crate::cache::Cache;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::{media, respond};

/// Makes a token for the account that the path names. Nothing is stored: a dry run is the same.
pub(crate) async fn create(call: Call) -> Outcome<Response<Body>> {
    call.query.dry_run("CreateOptions")?;
    let parsed = decode::typed("authentication/v1.TokenRequest", &call.body, media::written(&call.content_type)?);
    let mut body: Value =
        parsed.map_err(|why| Status::bad_request(format!("the TokenRequest cannot be read: {why}")))?;
    if !body.is_object() || !matches!(body["kind"].as_str(), None | Some("TokenRequest")) {
        return Err(Box::new(Status::bad_request("the body must be a TokenRequest")));
    }
    if !body["spec"].is_object() {
        body["spec"] = json!({});
    }
    call.shared.cache.catch_up().await?;
    let key = call.key();
    let found = call.shared.cache.get("", "serviceaccounts", &key.namespace, &key.name);
    let account = found.ok_or_else(|| call.not_found())?.value(&call.resource);
    let objects = Stored(call.shared.cache.clone());
    let asked = Asked { identity: &call.identity, account: &account, body: &body };
    let answer = request(&call.shared.issuer, &objects, &asked)?;
    Ok(respond::json(201, &answer))
}

/// What tokens are bound to, as the cache has it.
pub(crate) struct Stored(pub(crate) Arc<Cache>);

impl Objects for Stored {
    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let shelf = self.0.named("", plural)?;
        Some(self.0.get("", plural, namespace, name)?.value(shelf.resource()))
    }
}
