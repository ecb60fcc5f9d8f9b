//! get and list.

use std::sync::Arc;

use api::events;
use api::protobuf;
use api::status::{FieldError, Status};
use api::table;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options;
use crate::body::Body;
use crate::cache::{Filter, Page, Shelf};
use crate::errors::Outcome;
use crate::handler::Call;
use crate::media::{Notation, Shape};
use crate::object::{self, Key};
use crate::query::Query;
use crate::respond::{self, View};

/// One object.
pub(crate) async fn get(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    match options::resource_version(call.query.text("resourceVersion"))? {
        Some(at_least) => call.shared.cache.wait(at_least).await?,
        None => drop(call.shared.cache.catch_up().await?),
    }
    let object = shelf(&call)?.get(&call.key()).ok_or_else(|| call.not_found())?;
    Ok(view.object(200, &object.raw, object.revision))
}

/// The objects of a kind.
pub(crate) async fn list(call: Call) -> Outcome<Response<Body>> {
    let view = call.view()?;
    let filter = options::filter(&call)?;
    let page = page(&call, &filter).await?;
    Ok(match (view.wanted.shape, view.wanted.notation) {
        (Shape::Object, Notation::Json) => respond::raw(200, "application/json", plain(&view, &page)),
        (Shape::Object, Notation::Protobuf) => {
            let values: Vec<Value> = page.objects.iter().map(|o| o.value(&view.resource)).collect();
            let list = json!({
                "kind": view.resource.list_kind,
                "apiVersion": view.resource.api_version(),
                "metadata": list_metadata(&page),
            });
            let bytes = protobuf::encode_list(&view.resource.type_name, &list, &values).map_err(Status::internal)?;
            respond::raw(200, protobuf::MEDIA_TYPE, bytes)
        }
        (Shape::Object, Notation::Yaml) => {
            let value: Value = serde_json::from_slice(&plain(&view, &page)).unwrap_or_default();
            view.document(200, &value)
        }
        (Shape::Metadata, _) => view.document(200, &metadata_list(&view, &page)),
        (Shape::Table, _) => view.document(200, &table_list(&view, &page)),
    })
}

/// The shelf of the kind that is asked for.
pub(crate) fn shelf(call: &Call) -> Outcome<Arc<Shelf>> {
    call.shared.cache.shelf(&call.resource).ok_or_else(|| Box::new(Status::path_not_found()))
}

/// Where a paged list goes on.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// Version of the token.
    v: u8,
    /// The revision of the first page: all pages are from that state. Negative: from the newest one, whatever
    /// the pages before were from.
    rv: i64,
    /// Namespace of the last object.
    ns: String,
    /// Its name.
    name: String,
}

impl Continue {
    /// As clients carry it.
    fn encoded(&self) -> String {
        let text = serde_json::to_vec(self).expect("a token of numbers and texts is always JSON");
        URL_SAFE_NO_PAD.encode(text)
    }

    /// Reads a token of ours.
    fn decoded(text: &str) -> Outcome<Self> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|token| token.v == 1)
            .ok_or_else(|| {
                let why = "invalid continue token: continue key is not valid: it is not one that this server gave";
                Box::new(Status::bad_request(why))
            })
    }

    /// Part of a list from here on.
    async fn page(mut self, call: &Call, filter: &Filter, limit: usize) -> Outcome<Page> {
        let cache = &call.shared.cache;
        let at = u64::try_from(self.rv).ok();
        match at {
            Some(revision) => cache.wait(revision).await?,
            None => drop(cache.catch_up().await?),
        }
        let after = Key::new(&self.ns, &self.name);
        let page = shelf(call)?.list(filter, at, cache.revision(), Some(&after), limit);
        page.map_err(|mut status| {
            if status.code == 410 {
                status.message = EXPIRED_TOKEN.to_owned();
                self.rv = -1;
                status.continue_token = self.encoded();
            }
            status
        })
    }
}

/// What a client is told whose token is too old; with it comes one that goes on all the same.
const EXPIRED_TOKEN: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// Reads what the query's versions and limits say.
pub(super) async fn page(call: &Call, filter: &Filter) -> Outcome<Page> {
    let query = &call.query;
    let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let version = query.text("resourceVersion");
    check(query)?;
    let asked = options::resource_version(version)?;
    let token = query.text("continue");
    if !token.is_empty() {
        if asked.is_some_and(|v| v > 0) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Box::new(Status::bad_request(why)));
        }
        return Continue::decoded(token)?.page(call, filter, limit).await;
    }
    let cache = &call.shared.cache;
    match asked {
        None => drop(cache.catch_up().await?),
        Some(version) => cache.wait(version).await?,
    }
    // Without a rule, a limit has always meant the very version; and with version 0 it has none of its own.
    let exactly = match query.text("resourceVersionMatch") {
        "Exact" => asked,
        "" if limit > 0 => asked.filter(|version| *version > 0),
        _ => None,
    };
    let limit = if asked == Some(0) { 0 } else { limit };
    shelf(call)?.list(filter, exactly, cache.revision(), None, limit)
}

/// The rules for the options of a list.
fn check(query: &Query) -> Outcome<()> {
    const MATCH: &str = "resourceVersionMatch";
    let (version, matching) = (query.text("resourceVersion"), query.text(MATCH));
    let mut errors = Vec::new();
    let mut forbid = |broken: bool, field: &str, why: &str| {
        if broken {
            errors.push(FieldError::forbidden(field, why));
        }
    };
    if !matching.is_empty() {
        let token = !query.text("continue").is_empty();
        forbid(version.is_empty(), MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        forbid(token, MATCH, "resourceVersionMatch is forbidden when continue is provided");
        let exactly_any = matching == "Exact" && version == "0";
        forbid(exactly_any, MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
    let sends = query.get("sendInitialEvents").is_some();
    forbid(sends, "sendInitialEvents", "sendInitialEvents is forbidden for list");
    if !matches!(matching, "" | "Exact" | "NotOlderThan") {
        errors.push(FieldError::not_supported(MATCH, matching, &["Exact", "NotOlderThan", ""]));
    }
    options::valid(errors)
}

/// A list's metadata.
pub(super) fn list_metadata(page: &Page) -> Value {
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(next) = &page.next {
        let rv = i64::try_from(page.revision).unwrap_or(i64::MAX);
        let token = Continue { v: 1, rv, ns: next.namespace.to_string(), name: next.name.to_string() };
        metadata["continue"] = token.encoded().into();
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    metadata
}

/// The list as upstream writes it, from stored bytes.
fn plain(view: &View, page: &Page) -> Vec<u8> {
    let size: usize = page.objects.iter().map(|o| o.raw.len() + 40).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        view.resource.list_kind,
        view.resource.api_version(),
        list_metadata(page)
    );
    out.extend_from_slice(head.as_bytes());
    for (n, object) in page.objects.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        if view.resource.custom.is_some() {
            // Lists of custom kinds repeat kind and version, which may be another than that of the shelf.
            out.extend(object::served_bytes(&view.resource, &object.raw, object.revision));
        } else if events::is_view(&view.resource) {
            let mut item = object.value(&view.resource);
            item.as_object_mut().into_iter().for_each(|o| o.retain(|name, _| name != "kind" && name != "apiVersion"));
            out.extend_from_slice(item.to_string().as_bytes());
        } else {
            object.write_item(&mut out);
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// The list as metadata alone.
fn metadata_list(view: &View, page: &Page) -> Value {
    let items: Vec<Value> = page.objects.iter().map(|o| respond::partial(&o.value(&view.resource))).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata(page),
        "items": items,
    })
}

/// The list as a table.
fn table_list(view: &View, page: &Page) -> Value {
    let values: Vec<Value> = page.objects.iter().map(|o| o.value(&view.resource)).collect();
    let items: Vec<&Value> = values.iter().collect();
    let mut table = table::render(&view.resource, &items, view.now, view.include);
    table["metadata"] = list_metadata(page);
    table
}
