//! namespaces/finalize: takes the last holds off a namespace, upon which it goes.

use api::decode::{self, Decoded, FieldValidation};
use http::Response;
use serde_json::Value;

use crate::body::Body;
use crate::errors::Outcome;
use crate::handler::Call;
use crate::media;
use crate::verbs::{update, write};

/// Puts the body's `spec.finalizers` in place.
pub(crate) async fn finalize(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let dry_run = call.query.dry_run("UpdateOptions")?;
    let media = media::written(&call.content_type)?;
    let Decoded { object: given, .. } = decode::decode(&call.resource, &call.body, media, FieldValidation::Ignore)?;
    let finalizers = given.pointer("/spec/finalizers").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    let written = write::modify(&call, dry_run, |current, extra| {
        update::precondition(&call, &given, &current.value)?;
        let mut new = current.value.clone();
        new["spec"]["finalizers"] = finalizers.clone();
        decode::normalize(&call.resource, &mut new);
        Ok(update::finish(&call, new, extra))
    })
    .await?;
    Ok(view.object(200, &written.raw, written.revision))
}
