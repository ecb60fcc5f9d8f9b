//! Documents outside the objects: what is served, in which version, and in what state the server is.

use std::sync::Arc;

use api::openapi;
use api::resource::{Resource, Subresource};
use api::status::Status;
use http::header::{CACHE_CONTROL, ETAG, EXPIRES, HeaderValue, LOCATION, VARY};
use http::{Method, Response};
use jiff::SignedDuration;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::body::Body;
use crate::documents::Document;
use crate::errors::Outcome;
use crate::query::Query;
use crate::server::Shared;
use crate::sub::reviews;
use crate::{health, media, metrics, respond};

/// The Kubernetes version whose behaviour is served.
const MINOR: &str = "37";

/// Answers a document's path; it has no slash at its end.
pub(crate) fn document(
    shared: &Arc<Shared>,
    method: &Method,
    path: &str,
    accept: &str,
    query: &Query,
) -> Outcome<Response<Body>> {
    let known = find(shared, path, accept, query)?;
    match known {
        Some(_) if !matches!(*method, Method::GET | Method::HEAD) => Err(Box::new(Status::method_not_allowed())),
        Some(response) => Ok(response),
        None => unknown(shared, path),
    }
}

/// The document of a path.
fn find(shared: &Arc<Shared>, path: &str, accept: &str, query: &Query) -> Outcome<Option<Response<Body>>> {
    if let Some(answer) = health::answer(shared, path, query) {
        return Ok(Some(answer));
    }
    let aggregated = media::accepts(
        accept,
        "application/json",
        &[("g", "apidiscovery.k8s.io"), ("v", "v2"), ("as", "APIGroupDiscoveryList")],
    );
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Ok(Some(match segments.as_slice() {
        [""] => respond::json(200, &root(shared)),
        ["version"] => respond::json(200, &version()),
        ["metrics"] => {
            let open = media::accepts(accept, "application/openmetrics-text", &[]);
            let media = if open { metrics::OPEN_METRICS } else { metrics::TEXT };
            respond::raw(200, media, shared.metrics.text(shared.cache.counts(), open))
        }
        ["api"] if aggregated => aggregate(shared, true),
        ["apis"] if aggregated => aggregate(shared, false),
        ["api"] => respond::json(
            200,
            &json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]}),
        ),
        ["apis"] => {
            let groups: Vec<Value> = groups(shared).iter().map(|(g, versions)| group_value(g, versions)).collect();
            respond::json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => {
            let Some((name, versions)) = groups(shared).into_iter().find(|(g, _)| g == group) else { return Ok(None) };
            let mut value = group_value(&name, &versions);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            respond::json(200, &value)
        }
        ["api", version] => match resource_list(shared, "", version) {
            Some(list) => respond::json(200, &list),
            None => return Ok(None),
        },
        ["apis", group, version] => match resource_list(shared, group, version) {
            Some(list) => respond::json(200, &list),
            None => return Ok(None),
        },
        [".well-known", "openid-configuration"] => respond::json(200, &shared.issuer.discovery()),
        ["openid", "v1", "jwks"] => respond::raw(200, "application/jwk-set+json", shared.issuer.key_set().to_string()),
        ["openapi", rest @ ..] => return openapi_document(shared, rest, accept, query),
        _ => return Ok(None),
    }))
}

/// 404 for a path without a document, in the way upstream says it there.
fn unknown(shared: &Arc<Shared>, path: &str) -> Outcome<Response<Body>> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        ["apis", group, ..] if !groups(shared).iter().any(|(g, _)| g == group) => {
            Ok(respond::text(404, "404 page not found\n"))
        }
        ["api" | "apis", ..] => Err(Box::new(Status::path_not_found())),
        _ => Ok(respond::json(404, &root(shared))),
    }
}

/// What there is, as paths.
fn root(shared: &Shared) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups(shared) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|v| format!("/apis/{group}/{v}")));
    }
    for path in [
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    paths.sort();
    json!({"paths": paths})
}

/// Which version this is: Kubernetes', and in the build part our own.
fn version() -> Value {
    let own = env!("CARGO_PKG_VERSION");
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+statefuld.{own}"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
        "emulationMajor": "1",
        "emulationMinor": MINOR,
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": MINOR,
    })
}

/// Named groups with their versions.
fn groups(shared: &Shared) -> Vec<(String, Vec<String>)> {
    let mut out: Vec<(String, Vec<String>)> = Vec::new();
    let reviews = reviews::GROUPS.iter().map(|g| ((*g).to_owned(), "v1".to_owned()));
    for (group, version) in shared.registry.group_versions().into_iter().chain(reviews) {
        if group.is_empty() {
            continue;
        }
        match out.iter_mut().find(|(g, _)| *g == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => out.push((group, vec![version])),
        }
    }
    out.sort();
    for (_, versions) in &mut out {
        versions.sort_by(|a, b| api::resource::compare_versions(b, a));
    }
    out
}

/// One group, as the old discovery shows it.
fn group_value(group: &str, versions: &[String]) -> Value {
    let version = |v: &String| json!({"groupVersion": format!("{group}/{v}"), "version": v});
    json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// The resources of one version, as the old discovery shows them.
fn resource_list(shared: &Shared, group: &str, version: &str) -> Option<Value> {
    let resources = shared.registry.in_group_version(group, version);
    let reviews = reviews::kinds(group, version);
    if resources.is_empty() && reviews.is_empty() {
        return None;
    }
    let mut list: Vec<Value> = reviews
        .iter()
        .map(|(plural, kind, namespaced)| {
            json!({"name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind, "verbs": ["create"]})
        })
        .collect();
    for resource in &resources {
        list.push(resource_value(resource));
        list.extend(resource.subresources.iter().map(|sub| subresource_value(resource, sub)));
    }
    let group_version = api::resource::api_version(group, version);
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}))
}

/// One resource, as the old discovery shows it.
fn resource_value(resource: &Resource) -> Value {
    let mut value = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs,
        "storageVersionHash": storage_hash(resource),
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    value
}

/// One subresource, as the old discovery shows it.
fn subresource_value(resource: &Resource, sub: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", resource.plural, sub.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if sub.group != resource.group || sub.version != resource.version {
        value["group"] = sub.group.as_str().into();
        value["version"] = sub.version.as_str().into();
    }
    value
}

/// A short hash of what is stored, as upstream's: clients only compare it.
fn storage_hash(resource: &Resource) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", resource.group, resource.version, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

/// All groups in one document: the core group, or all others.
fn aggregate(shared: &Shared, core: bool) -> Response<Body> {
    let groups = if core { vec![(String::new(), vec!["v1".to_owned()])] } else { groups(shared) };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(|v| aggregated_version(shared, group, v)).collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    tagged(media, &Document::new(list.to_string()))
}

/// One version of a group in the aggregated document.
fn aggregated_version(shared: &Shared, group: &str, version: &str) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut list: Vec<Value> = reviews::kinds(group, version)
        .iter()
        .map(|(plural, name, namespaced)| {
            json!({"resource": plural, "responseKind": kind(group, version, name), "scope": scope(*namespaced),
                "singularResource": name.to_lowercase(), "verbs": ["create"]})
        })
        .collect();
    for resource in shared.registry.in_group_version(group, version) {
        let subresources: Vec<Value> = resource
            .subresources
            .iter()
            .map(|s| json!({"subresource": s.name, "responseKind": kind(&s.group, &s.version, &s.kind), "verbs": s.verbs}))
            .collect();
        let mut value = json!({
            "resource": resource.plural,
            "responseKind": kind(group, version, &resource.kind),
            "scope": scope(resource.namespaced),
            "singularResource": resource.singular,
            "verbs": resource.verbs,
        });
        for (name, texts) in [("shortNames", &resource.short_names), ("categories", &resource.categories)] {
            if !texts.is_empty() {
                value[name] = json!(texts);
            }
        }
        if !subresources.is_empty() {
            value["subresources"] = subresources.into();
        }
        list.push(value);
    }
    json!({"version": version, "freshness": "Current", "resources": list})
}

/// `/openapi/…`
fn openapi_document(shared: &Shared, rest: &[&str], accept: &str, query: &Query) -> Outcome<Option<Response<Body>>> {
    if rest == ["v2"] && openapi::V2_PROTOBUF.iter().any(|media| media::accepts(accept, media, &[])) {
        let document = shared.documents.binary(&shared.registry.snapshot());
        return Ok(document.map(|document| tagged(openapi::V2_PROTOBUF[1], &document)));
    }
    let Some(document) = shared.documents.openapi(&shared.registry.snapshot(), rest) else { return Ok(None) };
    let json_wanted = accept.is_empty() || ["application/json", "*/*"].iter().any(|m| media::accepts(accept, m, &[]));
    if !json_wanted {
        return Err(Box::new(Status::not_acceptable(&["application/json"])));
    }
    let asked = query.text("hash");
    if rest.len() > 1 && !asked.is_empty() && asked != &*document.tag {
        // The address of an older state leads to today's.
        let mut response = respond::text(301, "");
        let place = format!("/openapi/{}?hash={}", rest.join("/"), document.tag);
        if let Ok(place) = HeaderValue::from_str(&place) {
            response.headers_mut().insert(LOCATION, place);
        }
        return Ok(Some(response));
    }
    let mut response = tagged("application/json", &document);
    if rest.len() > 1 && !asked.is_empty() {
        // What lies at an address that names its content never changes.
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let expires = shared.ambient.now() + SignedDuration::from_hours(24 * 365);
        let expires = expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(expires) = HeaderValue::from_str(&expires) {
            response.headers_mut().insert(EXPIRES, expires);
        }
    }
    Ok(Some(response))
}

/// A document that clients may keep, and ask for again by its tag.
fn tagged(media: &'static str, document: &Document) -> Response<Body> {
    let mut response = respond::raw(200, media, document.bytes.clone());
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", document.tag)) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}
