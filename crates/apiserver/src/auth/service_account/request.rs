//! TokenRequest: who gets which token.

use api::status::{FieldError, Status};
use serde_json::{Value, json};

use super::{Bound, Grant, ISSUER, Issuer, Objects};
use crate::auth::{Identity, node};

/// Shortest and longest life of a token, as upstream's.
const LIFE_S: std::ops::RangeInclusive<i64> = 600..=1 << 32;

/// Life of a token that names none.
const USUAL_LIFE_S: i64 = 3600;

/// The life that admission writes into pods (an hour and a little, to be recognized): programs in pods may not know
/// that tokens are replaced, so such a token is good for longer than it says.
pub(crate) const POD_LIFE_S: i64 = 3607;

/// How long such a token is good.
const EXTENDED_LIFE_S: i64 = 365 * 24 * 3600;

/// Audiences of one token.
const MAX_AUDIENCES: usize = 16;

/// A request for a token.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Who asks.
    pub identity: &'a Identity,
    /// The stored account.
    pub account: &'a Value,
    /// The TokenRequest.
    pub body: &'a Value,
}

/// Answers a TokenRequest (`serviceaccounts/NAME/token`).
pub fn request(issuer: &Issuer, objects: &dyn Objects, asked: &Asked<'_>) -> Result<Value, Box<Status>> {
    let (spec, metadata) = (&asked.body["spec"], &asked.account["metadata"]);
    let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
    let life_s = spec["expirationSeconds"].as_i64().unwrap_or(USUAL_LIFE_S);
    let mut audiences: Vec<String> = spec["audiences"].as_array().into_iter().flatten().map(text).collect();
    check(asked, &namespace, &name, life_s, audiences.len())?;
    let bound = &spec["boundObjectRef"];
    let bound = if bound.is_null() { None } else { Some(find(objects, &namespace, &name, bound)?) };
    node_may(objects, asked, &namespace, bound.as_ref())?;
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let patient = life_s == POD_LIFE_S && audiences == [ISSUER] && matches!(bound, Some(Bound::Pod { .. }));
    let grant = Grant {
        namespace,
        account: name,
        account_uid: text(&metadata["uid"]),
        bound,
        audiences,
        life_s: if patient { EXTENDED_LIFE_S } else { life_s },
        warn_after_s: patient.then_some(life_s),
    };
    let (token, _) = issuer.issue(&grant);
    let now = issuer.ambient.now();
    let end = jiff::Timestamp::from_second(now.as_second().saturating_add(life_s)).unwrap_or(jiff::Timestamp::MAX);
    let mut answer = asked.body.clone();
    answer["apiVersion"] = json!("authentication.k8s.io/v1");
    answer["kind"] = json!("TokenRequest");
    answer["metadata"] = json!({
        "name": grant.account, "namespace": grant.namespace, "creationTimestamp": crate::verbs::create::seconds(now),
    });
    answer["spec"]["expirationSeconds"] = json!(life_s);
    answer["spec"]["audiences"] = json!(grant.audiences);
    answer["status"] = json!({"token": token, "expirationTimestamp": crate::verbs::create::seconds(end)});
    Ok(answer)
}

/// What is wrong with the request by itself.
fn check(asked: &Asked<'_>, namespace: &str, name: &str, life_s: i64, audiences: usize) -> Result<(), Box<Status>> {
    let mut errors = Vec::new();
    for (field, is, what) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
        let given = text(&asked.body["metadata"][field]);
        if !given.is_empty() && given != is {
            let why = format!("must match the service account {what} if specified");
            errors.push(FieldError::invalid(format!("metadata.{field}"), given, why));
        }
    }
    if life_s < *LIFE_S.start() {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid("spec.expirationSeconds", life_s, why));
    } else if life_s > *LIFE_S.end() {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid("spec.expirationSeconds", life_s, why));
    }
    if audiences > MAX_AUDIENCES {
        errors.push(FieldError::too_many("spec.audiences", audiences, MAX_AUDIENCES));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Box::new(Status::invalid("authentication.k8s.io", "TokenRequest", "", errors)))
}

/// The object that the token is to end with.
fn find(objects: &dyn Objects, namespace: &str, account: &str, bound: &Value) -> Result<Bound, Box<Status>> {
    let (kind, name) = (text(&bound["kind"]), text(&bound["name"]));
    let (plural, space) = match (text(&bound["apiVersion"]).as_str(), kind.as_str()) {
        ("v1" | "", "Pod") => ("pods", namespace),
        ("v1" | "", "Secret") => ("secrets", namespace),
        ("v1" | "", "Node") => ("nodes", ""),
        (version, _) => {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Box::new(Status::bad_request(why)));
        }
    };
    let found = objects.find(plural, space, &name).ok_or_else(|| Box::new(Status::not_found("", plural, &name)))?;
    let uid = text(&found["metadata"]["uid"]);
    if plural == "pods" && text(&found["spec"]["serviceAccountName"]) != account {
        let why = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(Box::new(Status::bad_request(why)));
    }
    if let Some(asked) = bound["uid"].as_str().filter(|asked| !asked.is_empty() && *asked != uid) {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(Box::new(Status::conflict("", &kind, &name, why)));
    }
    Ok(match plural {
        "pods" => {
            let node = Some(text(&found["spec"]["nodeName"])).filter(|node| !node.is_empty());
            let node = node.map(|node| {
                let uid = objects.find("nodes", "", &node).map(|n| text(&n["metadata"]["uid"]));
                (node, uid.unwrap_or_default())
            });
            Bound::Pod { pod: (name, uid), node }
        }
        "secrets" => Bound::Secret((name, uid)),
        _ => Bound::Node((name, uid)),
    })
}

/// A node's agent gets tokens for the pods that are bound to it, and only such as these pods ask for.
fn node_may(
    objects: &dyn Objects,
    asked: &Asked<'_>,
    namespace: &str,
    bound: Option<&Bound>,
) -> Result<(), Box<Status>> {
    let Some(own) = node::node_of(asked.identity) else { return Ok(()) };
    let account = text(&asked.account["metadata"]["name"]);
    let no = |why: String| Err(Box::new(Status::forbidden("", "serviceaccounts", &account, why)));
    let Some(Bound::Pod { pod: (pod, _), node }) = bound else {
        return no("node requested token not bound to a pod".to_owned());
    };
    if text(&asked.body["spec"]["boundObjectRef"]["uid"]).is_empty() {
        return no("node requested token with a pod binding without a uid".to_owned());
    }
    if node.as_ref().is_none_or(|(node, _)| node != own) {
        return no("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    let pod = objects.find("pods", namespace, pod).unwrap_or_default();
    for audience in asked.body["spec"]["audiences"].as_array().into_iter().flatten().map(text) {
        if !audience.is_empty() && audience != ISSUER && !wants(&pod, &audience) {
            return no(format!(
                "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this \
                 audience",
                asked.identity.user
            ));
        }
    }
    Ok(())
}

/// Whether one of the pod's volumes holds a token for this audience.
fn wants(pod: &Value, audience: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    sources.into_iter().any(|source| source["serviceAccountToken"]["audience"] == audience)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
