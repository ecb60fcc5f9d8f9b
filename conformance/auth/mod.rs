//! Who may do what: tokens of service accounts, reviews, roles, impersonation, nodes, what nobody in particular gets.

mod nodes;

use serde_json::{Value, json};

use crate::cluster::{Answer, Ask, Case};
use crate::runner::{Named, Verdict};
use crate::target::Running;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    /// A case from an async function.
    macro_rules! case {
        ($name:ident) => {
            Named {
                name: format!("auth::{}", stringify!($name)),
                running: Running::Housekeeping,
                body: Box::new(|case| Box::pin($name(case))),
            }
        };
    }
    vec![
        case!(whoami_names_the_caller),
        case!(a_token_is_its_account_and_ends_with_its_pod),
        case!(a_token_request_is_checked),
        case!(a_token_for_others_is_reviewed_for_them_only),
        case!(a_wrong_token_is_401),
        case!(nobody_in_particular_gets_health_and_version),
        case!(roles_decide_and_reviews_tell_so),
        case!(a_review_is_checked),
        case!(nobody_grants_what_he_does_not_hold),
        case!(impersonation_needs_the_right_to_it),
        case!(keys_are_published),
        nodes::case(),
    ]
}

const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Fails the case with both sides.
fn same(what: &str, is: impl Into<Value>, wanted: impl Into<Value>) -> Verdict {
    let (is, wanted) = (is.into(), wanted.into());
    if is == wanted { Ok(()) } else { Err(format!("{what}: {is}\n  instead of {wanted}")) }
}

fn holds(what: &str, is: bool) -> Verdict {
    if is { Ok(()) } else { Err(what.to_owned()) }
}

async fn post(case: &Case, path: &str, body: &Value) -> Result<Answer, String> {
    case.cluster.send(&Ask::new("POST", path).json(body)).await
}

/// Creates what must be creatable.
async fn create(case: &Case, path: &str, body: &Value) -> Result<Value, String> {
    let answer = post(case, path, body).await?;
    if answer.code == 201 { Ok(answer.body) } else { Err(format!("{path}: {} {}", answer.code, answer.body)) }
}

/// A request as somebody else.
fn acting(ask: Ask, user: &str) -> Ask {
    ask.header("impersonate-user", Some(user))
}

/// A request with a token and nothing else: asked as nobody, the token put in its place.
async fn with_token(case: &Case, token: &str, ask: &Ask) -> Result<Answer, String> {
    case.cluster.send(&ask.clone().token(token)).await
}

fn account_path(case: &Case) -> String {
    format!("/api/v1/namespaces/{}/serviceaccounts/default/token", case.namespace)
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "c", "image": "x"}]}})
}

async fn whoami_names_the_caller(case: Case) -> Verdict {
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let ask = acting(Ask::new("POST", path).json(&body), "ann").header("impersonate-group", Some("crew"));
    let answer = case.cluster.send(&ask).await?;
    same("code", answer.code, 201)?;
    let info = &answer.body["status"]["userInfo"];
    same("name", info["username"].clone(), "ann")?;
    same("groups", info["groups"].clone(), json!(["crew", "system:authenticated"]))
}

async fn a_token_is_its_account_and_ends_with_its_pod(case: Case) -> Verdict {
    let pods = format!("/api/v1/namespaces/{}/pods", case.namespace);
    let made = create(&case, &pods, &pod("holder")).await?;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "holder", "uid": made["metadata"]["uid"]});
    let answer = create(&case, &account_path(&case), &json!({"spec": {"boundObjectRef": bound}})).await?;
    same("life", answer["spec"]["expirationSeconds"].clone(), 3600)?;
    let token = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who =
        Ask::new("POST", path).json(&json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}));
    let answer = with_token(&case, &token, &who).await?;
    let info = &answer.body["status"]["userInfo"];
    let name = format!("system:serviceaccount:{}:default", case.namespace);
    same("name", info["username"].clone(), name)?;
    same("pod", info["extra"]["authentication.kubernetes.io/pod-name"].clone(), json!(["holder"]))?;
    same("pod", info["extra"]["authentication.kubernetes.io/pod-uid"][0].clone(), made["metadata"]["uid"].clone())?;
    case.cluster.send(&Ask::new("DELETE", &format!("{pods}/holder")).query("gracePeriodSeconds", "0")).await?;
    // Upstream remembers good tokens for some seconds.
    for _ in 0..600 {
        if with_token(&case, &token, &who).await?.code == 401 {
            return Ok(());
        }
        crate::cluster::pause().await;
    }
    Err("the token is still good although its pod is gone".to_owned())
}

async fn a_token_request_is_checked(case: Case) -> Verdict {
    for (spec, code) in [
        (json!({"expirationSeconds": 599}), 422),
        (json!({"expirationSeconds": 4_294_967_297i64}), 422),
        (json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "none"}}), 404),
        (json!({"boundObjectRef": {"kind": "Service", "apiVersion": "v1", "name": "none"}}), 400),
    ] {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let answer = post(&case, &account_path(&case), &body).await?;
        same(&format!("{spec}"), answer.code, code)?;
    }
    let pods = format!("/api/v1/namespaces/{}/pods", case.namespace);
    create(&case, &pods, &pod("other")).await?;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "other", "uid": "another"});
    let answer = post(&case, &account_path(&case), &json!({"spec": {"boundObjectRef": bound}})).await?;
    same("another pod", answer.code, 409)
}

async fn a_token_for_others_is_reviewed_for_them_only(case: Case) -> Verdict {
    let answer = create(&case, &account_path(&case), &json!({"spec": {"audiences": ["vault"]}})).await?;
    let token = answer["status"]["token"].clone();
    let review = async |audiences: Value| {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences}});
        create(&case, TOKEN_REVIEWS, &body).await
    };
    let status = review(json!(["vault", "bank"])).await?["status"].clone();
    same("vault", status["authenticated"].clone(), true)?;
    same("vault", status["audiences"].clone(), json!(["vault"]))?;
    let status = review(json!([])).await?["status"].clone();
    same("this server", status["authenticated"].clone(), Value::Null)?;
    holds("an error is told", status["error"].is_string())?;
    let answer = with_token(&case, token.as_str().unwrap_or_default(), &Ask::new("GET", "/api")).await?;
    same("as bearer", answer.code, 401)
}

async fn a_wrong_token_is_401(case: Case) -> Verdict {
    let answer = with_token(&case, "nonsense", &Ask::new("GET", "/version")).await?;
    same("code", answer.code, 401)?;
    same("reason", answer.body["reason"].clone(), "Unauthorized")
}

async fn nobody_in_particular_gets_health_and_version(case: Case) -> Verdict {
    for (path, code) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/version", 200),
        ("/api", 403),
        ("/apis", 403),
        ("/metrics", 403),
        ("/openapi/v2", 403),
        ("/api/v1/namespaces", 403),
    ] {
        let answer = case.cluster.send(&Ask::new("GET", path).header("authorization", None)).await?;
        same(path, answer.code, code)?;
    }
    Ok(())
}

/// A user of this case alone.
fn user(case: &Case, name: &str) -> String {
    format!("{name}-of-{}", case.namespace)
}

/// Gives a user a role in the case's namespace.
async fn give(case: &Case, user: &str, rules: &Value) -> Verdict {
    let roles = format!("{RBAC}/namespaces/{}/roles", case.namespace);
    let bindings = format!("{RBAC}/namespaces/{}/rolebindings", case.namespace);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": user}, "rules": rules});
    create(case, &roles, &role).await?;
    let group = "rbac.authorization.k8s.io";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": user},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}]});
    create(case, &bindings, &binding).await?;
    Ok(())
}

async fn roles_decide_and_reviews_tell_so(case: Case) -> Verdict {
    let ann = user(&case, "ann");
    give(&case, &ann, &json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}])).await?;
    let maps = format!("/api/v1/namespaces/{}/configmaps", case.namespace);
    let answer = case.cluster.send(&acting(Ask::new("GET", &maps), &ann)).await?;
    same("list", answer.code, 200)?;
    let answer = case.cluster.send(&acting(Ask::new("DELETE", &maps), &ann)).await?;
    same("delete", answer.code, 403)?;
    let why = format!(
        "configmaps is forbidden: User {ann:?} cannot deletecollection resource \"configmaps\" in API group \"\" in the namespace {:?}",
        &*case.namespace
    );
    same("message", answer.body["message"].clone(), why)?;
    let about = |verb: &str| json!({"namespace": &*case.namespace, "verb": verb, "resource": "configmaps"});
    for (verb, allowed) in [("list", true), ("delete", false)] {
        let local = format!("/apis/authorization.k8s.io/v1/namespaces/{}/localsubjectaccessreviews", case.namespace);
        for path in [ACCESS, &local] {
            let kind = if path == ACCESS { "SubjectAccessReview" } else { "LocalSubjectAccessReview" };
            let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind,
                "metadata": {"namespace": if path == ACCESS { "" } else { &*case.namespace }},
                "spec": {"user": ann, "resourceAttributes": about(verb)}});
            let status = create(&case, path, &review).await?["status"].clone();
            same(&format!("{kind} {verb}"), status["allowed"].clone(), allowed)?;
            if allowed {
                let binding = format!("RoleBinding \"{ann}/{}\"", case.namespace);
                let why = status["reason"].as_str().unwrap_or_default();
                same("reason", why, format!("RBAC: allowed by {binding} of Role {ann:?} to User {ann:?}"))?;
            }
        }
        let own = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": about(verb)}});
        let ask = Ask::new("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews").json(&own);
        let answer = case.cluster.send(&acting(ask, &ann)).await?;
        same(&format!("own {verb}"), answer.body["status"]["allowed"].clone(), allowed)?;
    }
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": &*case.namespace}});
    let ask = Ask::new("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews").json(&rules);
    let answer = case.cluster.send(&acting(ask, &ann)).await?;
    let held = answer.body["status"]["resourceRules"].as_array().cloned().unwrap_or_default();
    let wanted = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]});
    holds(&format!("{wanted} among {held:?}"), held.contains(&wanted))
}

async fn a_review_is_checked(case: Case) -> Verdict {
    let review =
        |spec: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
    let resource = json!({"verb": "get", "resource": "pods"});
    for spec in [
        json!({"user": "ann"}),
        json!({"resourceAttributes": resource}),
        json!({"user": "ann", "resourceAttributes": resource, "nonResourceAttributes": {"verb": "get", "path": "/"}}),
    ] {
        same(&format!("{spec}"), post(&case, ACCESS, &review(spec.clone())).await?.code, 422)?;
    }
    let answer = post(
        &case,
        TOKEN_REVIEWS,
        &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}}),
    )
    .await?;
    same("no token", answer.code, 400)
}

async fn nobody_grants_what_he_does_not_hold(case: Case) -> Verdict {
    let keeper = user(&case, "keeper");
    let group = "rbac.authorization.k8s.io";
    let own = json!([
        {"apiGroups": [group], "resources": ["roles", "rolebindings"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    ]);
    give(&case, &keeper, &own).await?;
    let roles = format!("{RBAC}/namespaces/{}/roles", case.namespace);
    let make = async |name: &str, resource: &str| {
        let rules = json!([{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]);
        let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules});
        case.cluster.send(&acting(Ask::new("POST", &roles).json(&role), &keeper)).await
    };
    same("what he holds", make("pods", "pods").await?.code, 201)?;
    let refused = make("secrets", "secrets").await?;
    same("what he does not hold", refused.code, 403)?;
    let message = refused.body["message"].as_str().unwrap_or_default().to_owned();
    let lacking = "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\"]}";
    holds(
        &message,
        message.contains("is attempting to grant RBAC permissions not currently held:") && message.contains(lacking),
    )?;
    let bindings = format!("{RBAC}/namespaces/{}/rolebindings", case.namespace);
    let bind = async |name: &str, kind: &str, role: &str| {
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": kind, "name": role}, "subjects": []});
        case.cluster.send(&acting(Ask::new("POST", &bindings).json(&binding), &keeper)).await
    };
    same("own role", bind("own", "Role", "pods").await?.code, 201)?;
    same("stronger role", bind("stronger", "ClusterRole", "cluster-admin").await?.code, 403)?;
    same("role that is not there", bind("none", "Role", "none").await?.code, 404)
}

async fn impersonation_needs_the_right_to_it(case: Case) -> Verdict {
    let answer = create(&case, &account_path(&case), &json!({"spec": {}})).await?;
    let token = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
    let answer = with_token(&case, &token, &acting(Ask::new("GET", "/api"), "root")).await?;
    same("code", answer.code, 403)?;
    let name = format!("system:serviceaccount:{}:default", case.namespace);
    let why = format!(
        "users \"root\" is forbidden: User {name:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
    same("message", answer.body["message"].clone(), why)
}

async fn keys_are_published(case: Case) -> Verdict {
    let found = case.cluster.send(&Ask::new("GET", "/.well-known/openid-configuration")).await?;
    same("code", found.code, 200)?;
    holds("the issuer is told", found.body["issuer"].is_string() && found.body["jwks_uri"].is_string())?;
    let keys = case.cluster.send(&Ask::new("GET", "/openid/v1/jwks").header("accept", Some("*/*"))).await?;
    same("media type", keys.headers.get("content-type").cloned().unwrap_or_default(), "application/jwk-set+json")?;
    holds("there is a key", keys.body["keys"][0]["kid"].is_string())
}
