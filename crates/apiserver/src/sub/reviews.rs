//! Reviews: who am I, and what may I do. They are computed from the authorizer and never stored.

use api::decode;
use api::resource::Resource;
use api::status::{FieldError, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::auth::service_account::ISSUER;
use crate::auth::{Attributes, Decision, Identity};
use crate::errors::Outcome;
use crate::media;
use crate::route::Target;
use crate::server::Shared;

/// Groups that hold nothing but reviews.
pub(crate) const GROUPS: [&str; 2] = ["authentication.k8s.io", "authorization.k8s.io"];

/// Plural, kind and whether it is namespaced, of every review of a group and version.
pub(crate) fn kinds(group: &str, version: &str) -> &'static [(&'static str, &'static str, bool)] {
    match (group, version) {
        ("authentication.k8s.io", "v1") => {
            &[("selfsubjectreviews", "SelfSubjectReview", false), ("tokenreviews", "TokenReview", false)]
        }
        ("authorization.k8s.io", "v1") => &[
            ("localsubjectaccessreviews", "LocalSubjectAccessReview", true),
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
            ("selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
            ("subjectaccessreviews", "SubjectAccessReview", false),
        ],
        _ => &[],
    }
}

/// All reviews, as documents describe them.
pub(crate) fn resources() -> impl Iterator<Item = Resource> {
    let version = "v1";
    GROUPS.iter().flat_map(move |group| kinds(group, version).iter().map(move |kind| (*group, kind))).map(
        move |(group, (plural, kind, namespaced))| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: (*kind).to_owned(),
            list_kind: format!("{kind}List"),
            plural: (*plural).to_owned(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: *namespaced,
            type_name: format!("{}/{version}.{kind}", group.split('.').next().unwrap_or_default()),
            verbs: vec!["create".to_owned()],
            subresources: Vec::new(),
            custom: None,
        },
    )
}

/// Answers one review with what the body asks.
pub(crate) fn answer(
    shared: &Shared,
    identity: &Identity,
    target: &Target,
    kind: &str,
    content_type: &str,
    body: &Bytes,
) -> Outcome<Value> {
    let package = target.group.split('.').next().unwrap_or_default();
    let mut review: Value = decode::typed(&format!("{package}/v1.{kind}"), body, media::written(content_type)?)
        .map_err(|error| Status::bad_request(format!("the {kind} cannot be read: {error}")))?;
    let given = review.get("kind").and_then(Value::as_str).unwrap_or(kind);
    if !review.is_object() || given != kind {
        return Err(Box::new(Status::bad_request(format!("the body must be a {kind}, not a {given}"))));
    }
    let version = api::resource::api_version(&target.group, &target.version);
    review["kind"] = kind.into();
    review["apiVersion"] = version.into();
    let metadata = review.get("metadata").filter(|m| m.is_object()).cloned().unwrap_or_else(|| json!({}));
    review["metadata"] = metadata;
    check(kind, &review, &target.namespace)?;
    review["status"] = match kind {
        "TokenReview" => token(shared, &review),
        "SelfSubjectReview" => json!({"userInfo": user_info(identity)}),
        "SelfSubjectAccessReview" => access(shared, identity.clone(), &review, None),
        "SelfSubjectRulesReview" => rules(shared, identity, &review),
        "LocalSubjectAccessReview" => access(shared, subject(&review), &review, Some(&target.namespace)),
        _ => access(shared, subject(&review), &review, None),
    };
    Ok(review)
}

/// What a review must and must not say.
fn check(kind: &str, review: &Value, namespace: &str) -> Outcome<()> {
    if kind == "TokenReview" && review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(Box::new(Status::bad_request("token is required for TokenReview in authentication")));
    }
    if !kind.ends_with("AccessReview") {
        return Ok(());
    }
    let at = |path: &str| review.pointer(path).filter(|v| !v.is_null());
    let empty = |path: &str| at(path).and_then(Value::as_str).unwrap_or_default().is_empty();
    let mut errors = Vec::new();
    match (at("/spec/resourceAttributes"), at("/spec/nonResourceAttributes")) {
        (Some(_), Some(both)) => errors.push(FieldError::invalid(
            "spec.nonResourceAttributes",
            both.clone(),
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(FieldError::invalid(
            "spec.resourceAttributes",
            "null",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let no_groups = at("/spec/groups").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if kind != "SelfSubjectAccessReview" && empty("/spec/user") && no_groups {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    let given = at("/spec/resourceAttributes/namespace").and_then(Value::as_str).unwrap_or_default();
    if kind == "LocalSubjectAccessReview" && given != namespace {
        errors.push(FieldError::invalid("spec.resourceAttributes.namespace", given, "must match metadata.namespace"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Box::new(Status::invalid("authorization.k8s.io", "", "", errors)))
}

/// Who somebody is.
fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = identity.uid.as_str().into();
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

/// Whose token it is, for one of the audiences asked about.
fn token(shared: &Shared, review: &Value) -> Value {
    let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
    let asked = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = asked.filter_map(|a| a.as_str().map(str::to_owned)).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    match shared.tokens.review(token, &audiences) {
        Some(known) => {
            json!({"authenticated": true, "user": user_info(&known.identity), "audiences": known.audiences})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

/// Whom a review is about.
fn subject(review: &Value) -> Identity {
    let text = |path: &str| review.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect()
    };
    let extra = review.pointer("/spec/extra").and_then(Value::as_object);
    Identity {
        user: text("/spec/user"),
        uid: text("/spec/uid"),
        groups: review.pointer("/spec/groups").map(list).unwrap_or_default(),
        extra: extra.into_iter().flatten().map(|(k, v)| (k.clone(), list(v))).collect(),
    }
}

/// Whether somebody may do what the review names.
fn access(shared: &Shared, identity: Identity, review: &Value, namespace: Option<&str>) -> Value {
    let resource = review.pointer("/spec/resourceAttributes");
    let path = review.pointer("/spec/nonResourceAttributes");
    let of = |part: Option<&Value>, field: &str| {
        part.and_then(|p| p.get(field)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let attributes = Attributes {
        identity,
        verb: if resource.is_some() { of(resource, "verb") } else { of(path, "verb") },
        group: of(resource, "group"),
        version: of(resource, "version"),
        resource: of(resource, "resource"),
        subresource: of(resource, "subresource"),
        namespace: namespace.map_or_else(|| of(resource, "namespace"), str::to_owned),
        name: of(resource, "name"),
        path: of(path, "path"),
    };
    match shared.authorizer.authorize(&attributes) {
        Decision::Deny(why) if why.is_empty() => json!({"allowed": false}),
        Decision::Deny(why) => json!({"allowed": false, "reason": why}),
        Decision::Allow => {
            let reason = shared.standard.as_ref().and_then(|s| s.rbac().allowed_by(&attributes).ok());
            match reason.filter(|r| !r.is_empty()) {
                Some(reason) => json!({"allowed": true, "reason": reason}),
                None => json!({"allowed": true}),
            }
        }
    }
}

/// All that the asker may do in a namespace.
fn rules(shared: &Shared, identity: &Identity, review: &Value) -> Value {
    let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
    let mut resources = Vec::new();
    let mut paths = Vec::new();
    let masters = identity.groups.iter().any(|g| g == crate::auth::rbac::MASTERS);
    if masters || shared.standard.is_none() {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    let held = shared.standard.as_ref().map(|s| s.rbac().rules_for(identity, namespace)).unwrap_or_default();
    for rule in held {
        if !rule.resources.is_empty() {
            let mut value = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = json!(rule.names);
            }
            resources.push(value);
        }
        if !rule.urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}
