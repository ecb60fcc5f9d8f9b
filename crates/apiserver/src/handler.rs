//! From a request to its verb, by way of the authorizer.

use std::sync::Arc;

use api::resource::{Resource, Subresource};
use api::status::Status;
use api::table::IncludeObject;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::request::Parts;
use http::{Method, Response};

use crate::annex::AnnexRequest;
use crate::audit::Impersonated;
use crate::auth::{self, Attributes, Decision, Identity, ImpersonationError};
use crate::body::Body;
use crate::errors::Outcome;
use crate::media::{self, Wanted};
use crate::metrics::Asked;
use crate::object::Key;
use crate::query::Query;
use crate::respond::{self, View};
use crate::route::{self, Route, Target};
use crate::server::Shared;
use crate::service::{ApiService, InProcess};
use crate::{discovery, sign_in, sub, verbs};

/// Media type of what a manager wants.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";
/// Longest name of a manager, in characters.
const MANAGER_MAX: usize = 128;

/// A request for objects, taken apart and authorized.
#[derive(Clone)]
pub(crate) struct Call {
    /// The server.
    pub(crate) shared: Arc<Shared>,
    /// Who asks.
    pub(crate) identity: Identity,
    /// The kind that is asked for.
    pub(crate) resource: Arc<Resource>,
    /// Where the path leads.
    pub(crate) target: Target,
    /// The verb, as authorization names it.
    pub(crate) verb: &'static str,
    /// The query.
    pub(crate) query: Query,
    /// The body's media type.
    pub(crate) content_type: String,
    /// What the client calls itself.
    pub(crate) user_agent: String,
    /// The body.
    pub(crate) body: Bytes,
    /// What the client wants to read.
    pub(crate) wanted: Wanted,
}

impl Call {
    /// Where the object lives.
    pub(crate) fn key(&self) -> Key {
        Key::new(&self.target.namespace, &self.target.name)
    }

    /// How the client wants to see objects.
    pub(crate) fn view(&self) -> Outcome<View> {
        let include = match self.query.text("includeObject") {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other => {
                let why = "must be 'Metadata', 'Object', 'None', or empty";
                let text =
                    format!("Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: {why}");
                return Err(Box::new(Status::bad_request(text)));
            }
        };
        Ok(View { resource: self.resource.clone(), wanted: self.wanted, include, now: self.shared.ambient.now() })
    }

    /// Whether the body is what a manager wants (server-side apply).
    pub(crate) fn applies(&self) -> bool {
        self.verb == "patch" && media::bare(&self.content_type) == APPLY
    }

    /// The name under which the client's changes are noted: its own choice, or the program's name.
    pub(crate) fn manager(&self) -> String {
        let chosen = self.query.text("fieldManager");
        let name = if chosen.is_empty() { self.user_agent.split('/').next().unwrap_or_default() } else { chosen };
        let name: String = name.chars().take(MANAGER_MAX).collect();
        if name.is_empty() { "unknown".to_owned() } else { name }
    }

    /// 404 for the object that the path names.
    pub(crate) fn not_found(&self) -> Box<Status> {
        Box::new(Status::not_found(&self.resource.group, &self.resource.plural, &self.target.name))
    }
}

/// Answers a request.
pub(crate) async fn handle(shared: &Arc<Shared>, parts: Parts, body: Bytes) -> Response<Body> {
    let caller = self::caller(&parts);
    let notation = media::notation(&header(&parts, &ACCEPT));
    let route = route::parse(parts.uri.path());
    let asked = Asked::of(shared, &parts.method, &route, is_watch(&parts, &route));
    let begun = shared.metrics.seconds();
    let made_as = auth::impersonate(&parts.headers, &caller, &*shared.authorizer);
    let other = made_as.as_ref().ok().filter(|identity| **identity != caller).cloned();
    let outcome = match made_as {
        Ok(identity) => match route {
            Route::Document(path) => document(shared, &parts, &identity, &path, &body).await,
            Route::Resource(target) => resource(shared, parts, body, identity, target).await,
        },
        Err(ImpersonationError::Forbidden(status)) => Err(status),
        Err(error) => Ok(respond::text(500, format!("Internal Server Error: {:?}: {error}\n", parts.uri.path()))),
    };
    let mut response = respond::outcome(outcome, notation);
    if let Some(other) = other {
        response.extensions_mut().insert(Impersonated(other));
    }
    shared.metrics.answered(asked, response.status().as_u16(), shared.metrics.seconds() - begun);
    response
}

/// Who sent the request.
pub(crate) fn caller(parts: &Parts) -> Identity {
    parts.extensions.get::<Identity>().cloned().unwrap_or_else(Identity::anonymous)
}

/// Whether a request asks for a watch.
fn is_watch(parts: &Parts, route: &Route) -> bool {
    let Route::Resource(target) = route else { return false };
    target.watch || (parts.method == Method::GET && Query::parse(parts.uri.query().unwrap_or_default()).flag("watch"))
}

/// A document outside the objects.
async fn document(
    shared: &Arc<Shared>,
    parts: &Parts,
    identity: &Identity,
    path: &str,
    body: &Bytes,
) -> Outcome<Response<Body>> {
    let accept = header(parts, &ACCEPT);
    if let Some(annex) = &shared.annex
        && path.is_empty()
        && accept.contains("text/html")
    {
        return Ok(respond::see_other(annex.home()));
    }
    let verb = parts.method.as_str().to_ascii_lowercase();
    let attributes = Attributes {
        identity: identity.clone(),
        verb: verb.clone(),
        group: String::new(),
        version: String::new(),
        resource: String::new(),
        subresource: String::new(),
        namespace: String::new(),
        name: String::new(),
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
    };
    if let Decision::Deny(why) = shared.authorizer.authorize(&attributes) {
        let why = reasoned(format!("User {:?} cannot {verb} path {:?}", identity.user, attributes.path), &why);
        return Err(Box::new(Status::forbidden("", "", "", why)));
    }
    if let Some(answer) = sign_in::answer(shared, &parts.method, path, identity, body) {
        return answer;
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if let Some(annex) = &shared.annex {
        let client = InProcess::new(ApiService::new(shared.clone()), identity.clone());
        let (method, path) = (parts.method.clone(), path.to_owned());
        let asked = AnnexRequest { method, path, identity: identity.clone(), client, query: query.clone() };
        if let Some(answer) = annex.answer(asked).await {
            return Ok(answer);
        }
    }
    discovery::document(shared, &parts.method, path, &accept, &query)
}

/// Objects of a kind.
async fn resource(
    shared: &Arc<Shared>,
    parts: Parts,
    body: Bytes,
    identity: Identity,
    mut target: Target,
) -> Outcome<Response<Body>> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    if sub::is_holders(&target) {
        return sub::holders(shared, &identity, &target, &parts.method, &query).await;
    }
    let watch = target.watch || (query.flag("watch") && parts.method == Method::GET);
    if target.name.is_empty()
        && parts.method == Method::GET
        && let Some(name) = query.text("fieldSelector").strip_prefix("metadata.name=")
        && !name.contains([',', '='])
    {
        // Known to the authorizer as well: a role may allow one name.
        target.name = name.to_owned();
        let verb = if watch { "watch" } else { "list" };
        authorize(shared, &identity, verb, &target)?;
        target.name.clear();
    } else {
        let Some(verb) = verb_of(&parts.method, &target, watch) else {
            return Err(Box::new(Status::method_not_allowed()));
        };
        authorize(shared, &identity, verb, &target)?;
    }
    let Some(verb) = verb_of(&parts.method, &target, watch) else {
        return Err(Box::new(Status::method_not_allowed()));
    };
    own_pods_only(&identity, verb, &target, &query)?;
    if target.plural == "tokenreviews" {
        // A token ends with what it is bound to, also for who asks right after that went.
        shared.cache.catch_up().await?;
    }
    if let Some(answer) = sub::review(shared, &identity, &target, &parts, &body) {
        return answer;
    }
    if target.group.is_empty() && target.plural == "bindings" && verb == "create" {
        // The old place of bindings; the pod is named in the body.
        target.name = sub::binding::pod_of(&header(&parts, &CONTENT_TYPE), &body)?;
        target.plural = "pods".to_owned();
        target.subresource = "binding".to_owned();
    }
    if sub::is_node_metrics(&target) && verb == "get" {
        return sub::node_metrics(shared, &target).await;
    }
    if sub::summary::is_meant(&target) && verb == "get" {
        return sub::summary::answer(shared, &target).await;
    }
    if is_nowhere(shared, &target) {
        return Ok(respond::text(404, "404 page not found\n"));
    }
    let resource = find(shared, &target)?;
    allowed(&resource, &target, verb, &parts.method)?;
    if sub::is_stream(&resource, &target) {
        return sub::stream(shared, &resource, &target, parts).await;
    }
    let wanted = media::wanted(&header(&parts, &ACCEPT), api::protobuf::has_form(&resource.type_name))?;
    let call = Call {
        shared: shared.clone(),
        identity,
        resource,
        target,
        verb,
        query,
        content_type: header(&parts, &CONTENT_TYPE),
        user_agent: header(&parts, &USER_AGENT),
        body,
        wanted,
    };
    call.wanted.check(&call.resource, verb == "list")?;
    dispatch(call).await
}

/// Carries out the verb.
async fn dispatch(call: Call) -> Outcome<Response<Body>> {
    if call.resource.group == sub::usage::GROUP {
        return sub::usage::answer(call).await;
    }
    if !matches!(call.target.subresource.as_str(), "" | "status") {
        return sub::dispatch(call).await;
    }
    match call.verb {
        "get" => verbs::read::get(call).await,
        "list" => verbs::read::list(call).await,
        "watch" => verbs::watch::watch(call).await,
        "create" => verbs::create::create(call).await,
        "update" => verbs::update::update(call).await,
        "patch" => verbs::patch::patch(call).await,
        "delete" => verbs::delete::delete(call).await,
        _ => verbs::delete::collection(call).await,
    }
}

/// The resource of a path. 404 if there is none, or if it does not live where the path says.
fn find(shared: &Shared, target: &Target) -> Outcome<Arc<Resource>> {
    let none = || Box::new(Status::path_not_found());
    let resource =
        shared.registry.find(&target.group, &target.version, &target.plural).ok_or_else(|| unserved(target))?;
    let named = !target.name.is_empty();
    // A namespace can be left out only where all namespaces are meant.
    let well_placed =
        if resource.namespaced { !(named && target.namespace.is_empty()) } else { target.namespace.is_empty() };
    if !well_placed || !target.rest.is_empty() {
        return Err(none());
    }
    if !target.subresource.is_empty() && resource.subresource(&target.subresource).is_none() {
        if resource.custom.is_some() {
            return Err(Box::new(Status::not_found(&target.group, &target.plural, &target.name)));
        }
        return Err(none());
    }
    Ok(resource)
}

/// Whether the path is one at which no objects of a custom kind are, although its group and version exist.
fn is_nowhere(shared: &Shared, target: &Target) -> bool {
    let Some(resource) = shared.registry.find(&target.group, &target.version, &target.plural) else { return false };
    let named = !target.name.is_empty();
    resource.custom.is_some()
        && if resource.namespaced { named && target.namespace.is_empty() } else { !target.namespace.is_empty() }
}

/// 404 for a kind that is not served; for the well-known ones with what to use instead.
fn unserved(target: &Target) -> Box<Status> {
    let remedy = match (target.group.as_str(), target.plural.as_str()) {
        ("apps", "daemonsets") | ("", "replicationcontrollers") => "use a StatefulSet or Deployment (apps/v1) instead",
        ("networking.k8s.io", "ingresses") => "reach pods by their address, or with port-forward",
        _ => return Box::new(Status::path_not_found()),
    };
    let mut status = Status::path_not_found();
    status.message = format!("{} are not served: statefuld runs StatefulSets; {remedy}", target.plural);
    Box::new(status)
}

/// 405 unless the kind, or its subresource, offers the verb.
fn allowed(resource: &Resource, target: &Target, verb: &str, method: &Method) -> Outcome<()> {
    let no = || Box::new(Status::method_not_allowed());
    if target.subresource.is_empty() {
        let everywhere = resource.namespaced && target.namespace.is_empty();
        let offered = resource.allows(verb) && !is_fixed(resource, verb);
        return if offered && !(everywhere && matches!(verb, "create" | "deletecollection")) {
            Ok(())
        } else {
            Err(no())
        };
    }
    let offered = |s: &Subresource| s.verbs.iter().any(|v| v == verb);
    match resource.subresource(&target.subresource) {
        // Collections have no subresources.
        Some(sub) if offered(sub) && !target.name.is_empty() => Ok(()),
        Some(sub) if *method == Method::GET && offered(sub) => Ok(()),
        _ => Err(no()),
    }
}

/// Collections that can only be deleted object by object. (Services were among them before Kubernetes 1.23.)
fn is_fixed(resource: &Resource, verb: &str) -> bool {
    verb == "deletecollection" && resource.group.is_empty() && resource.plural == "namespaces"
}

/// The verb of a method, or `None` if there is none there.
pub(crate) fn verb_of(method: &Method, target: &Target, watch: bool) -> Option<&'static str> {
    let named = !target.name.is_empty();
    Some(match *method {
        Method::GET | Method::HEAD if watch && target.subresource.is_empty() => "watch",
        Method::GET | Method::HEAD => {
            if named {
                "get"
            } else {
                "list"
            }
        }
        Method::POST if !named || !target.subresource.is_empty() => "create",
        Method::PUT if named => "update",
        Method::PATCH if named => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => return None,
    })
}

/// 403 unless the authorizer allows it.
fn authorize(shared: &Shared, identity: &Identity, verb: &str, target: &Target) -> Outcome<()> {
    let attributes = attributes(identity, verb, target);
    match shared.authorizer.authorize(&attributes) {
        Decision::Allow => Ok(()),
        Decision::Deny(why) => Err(Box::new(denied(&attributes, &why))),
    }
}

/// A node's agent reads the pods of its node, and says so: which pods come back is for the selector to say.
fn own_pods_only(identity: &Identity, verb: &str, target: &Target, query: &Query) -> Outcome<()> {
    let Some(node) = auth::node::node_of(identity) else { return Ok(()) };
    let pods = target.group.is_empty() && target.plural == "pods" && target.name.is_empty();
    if !pods || !matches!(verb, "list" | "watch") {
        return Ok(());
    }
    let selects = |clause: &str| {
        clause.strip_prefix("spec.nodeName=").is_some_and(|rest| rest.strip_prefix('=').unwrap_or(rest) == node)
    };
    if query.text("fieldSelector").split(',').any(selects) {
        return Ok(());
    }
    let why = "can only list/watch pods with spec.nodeName field selector";
    Err(Box::new(denied(&attributes(identity, verb, target), why)))
}

/// What the authorizer is asked.
pub(crate) fn attributes(identity: &Identity, verb: &str, target: &Target) -> Attributes {
    // A namespace lies in itself, as far as roles go.
    let own = target.group.is_empty() && target.plural == "namespaces";
    Attributes {
        identity: identity.clone(),
        verb: verb.to_owned(),
        group: target.group.clone(),
        version: target.version.clone(),
        resource: target.plural.clone(),
        subresource: target.subresource.clone(),
        namespace: if own { target.name.clone() } else { target.namespace.clone() },
        name: target.name.clone(),
        path: String::new(),
    }
}

/// 403 in upstream's words.
pub(crate) fn denied(a: &Attributes, why: &str) -> Status {
    let resource =
        if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
    let place = if a.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", a.namespace)
    };
    let sentence = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {place}",
        a.identity.user, a.verb, a.group
    );
    Status::forbidden(&a.group, &a.resource, &a.name, reasoned(sentence, why))
}

/// A sentence with the authorizer's reason, if it gave one.
fn reasoned(sentence: String, why: &str) -> String {
    if why.is_empty() { sentence } else { format!("{sentence}: {why}") }
}

/// A header as text; all its values, as one list.
pub(crate) fn header(parts: &Parts, name: &http::HeaderName) -> String {
    let values: Vec<&str> = parts.headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).collect();
    values.join(",")
}
