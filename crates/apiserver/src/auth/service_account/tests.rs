//! What tokens are good for, and until when.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use ambient::ManualClock;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::auth::Identity;
use crate::auth::tokens::TokenAuthenticator as _;

/// Objects by plural, namespace and name.
#[derive(Default)]
struct Known(Mutex<HashMap<(String, String, String), Value>>);

impl Known {
    fn put(&self, plural: &str, namespace: &str, name: &str, object: Value) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.0.lock().unwrap().insert(key, object);
    }
}

impl Objects for Known {
    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.lock().unwrap().get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }
}

/// Account `ns/bot` has uid `a`; pod `ns/web-0` runs as it on node `n1` and has uid `p`.
struct World {
    issuer: Arc<Issuer>,
    clock: Arc<ManualClock>,
    known: Arc<Known>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 1);
        let known = Arc::new(Known::default());
        known.put("serviceaccounts", "ns", "bot", account());
        let volume = json!({"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}});
        let spec = json!({"nodeName": "n1", "serviceAccountName": "bot", "volumes": [volume]});
        known.put("pods", "ns", "web-0", json!({"metadata": {"uid": "p"}, "spec": spec}));
        known.put("nodes", "", "n1", json!({"metadata": {"uid": "n"}}));
        Self { issuer: Issuer::load_or_create(dir.path(), ambient).unwrap(), clock, known, dir }
    }

    fn who(&self, token: &str) -> Option<Identity> {
        Verifier::new(self.issuer.clone(), self.known.clone()).authenticate(token)
    }

    fn who_granted(&self, grant: &Grant) -> Option<Identity> {
        self.who(&self.issuer.issue(grant).0)
    }

    fn ask(&self, identity: &Identity, spec: Value) -> Result<Value, (u16, String)> {
        let asked = Asked { identity, account: &account(), body: &json!({"spec": spec}) };
        request(&self.issuer, &*self.known, &asked).map_err(|status| (status.code, status.message))
    }
}

fn account() -> Value {
    json!({"metadata": {"namespace": "ns", "name": "bot", "uid": "a"}})
}

fn grant() -> Grant {
    Grant {
        namespace: "ns".into(),
        account: "bot".into(),
        account_uid: "a".into(),
        bound: Some(Bound::Pod { pod: ("web-0".into(), "p".into()), node: Some(("n1".into(), "n".into())) }),
        audiences: Vec::new(),
        life_s: 600,
        warn_after_s: None,
    }
}

fn root() -> Identity {
    Identity::user("root", &["system:masters"])
}

#[test]
fn a_token_is_the_account_and_names_its_pod_and_node() {
    let identity = World::new().who_granted(&grant()).expect("good");
    assert_eq!((identity.user.as_str(), identity.uid.as_str()), ("system:serviceaccount:ns:bot", "a"));
    assert!(identity.groups.contains(&"system:serviceaccounts:ns".to_owned()));
    for (key, value) in [("pod-name", "web-0"), ("pod-uid", "p"), ("node-name", "n1"), ("node-uid", "n")] {
        assert_eq!(identity.extra[&format!("authentication.kubernetes.io/{key}")], [value]);
    }
    assert!(identity.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
}

#[test]
fn a_token_ends_with_its_time_its_account_and_its_pod() {
    let world = World::new();
    let (token, _) = world.issuer.issue(&grant());
    world.clock.advance(Duration::from_secs(599));
    assert!(world.who(&token).is_some());
    world.clock.advance(Duration::from_secs(1));
    assert!(world.who(&token).is_none());
    let pod = |uid: &str| Bound::Pod { pod: ("web-0".into(), uid.into()), node: None };
    assert!(world.who_granted(&Grant { account_uid: "older".into(), ..grant() }).is_none());
    assert!(world.who_granted(&Grant { bound: Some(pod("older")), ..grant() }).is_none());
    assert!(world.who_granted(&Grant { bound: Some(pod("p")), ..grant() }).is_some());
    assert!(world.who_granted(&Grant { bound: None, ..grant() }).is_some());
}

#[test]
fn what_is_being_deleted_vouches_for_a_minute() {
    let world = World::new();
    let metadata = json!({"uid": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    world.known.put("pods", "ns", "web-0", json!({"metadata": metadata}));
    let (token, _) = world.issuer.issue(&grant());
    world.clock.advance(Duration::from_secs(60));
    assert!(world.who(&token).is_some());
    world.clock.advance(Duration::from_secs(1));
    assert!(world.who(&token).is_none());
}

#[test]
fn a_token_for_others_is_not_for_us() {
    let world = World::new();
    let vault = Grant { audiences: vec!["vault".into()], ..grant() };
    assert!(world.who_granted(&vault).is_none());
    assert!(world.who_granted(&Grant { audiences: vec!["vault".into(), ISSUER.into()], ..grant() }).is_some());
    let verifier = Verifier::new(world.issuer.clone(), world.known.clone());
    let asked = ["x".to_owned(), "vault".to_owned()];
    let reviewed = verifier.review(&world.issuer.issue(&vault).0, &asked).expect("it is for vault");
    assert_eq!(reviewed.audiences, ["vault"]);
}

#[test]
fn what_was_changed_or_signed_elsewhere_is_refused() {
    let world = World::new();
    assert!(world.who(&World::new().issuer.issue(&grant()).0).is_none());
    let (token, _) = world.issuer.issue(&grant());
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims = decoded(parts[1]).unwrap();
    claims["exp"] = json!(i64::MAX);
    assert!(world.who(&format!("{}.{}.{}", parts[0], encoded(&claims), parts[2])).is_none());
    let none = encoded(&json!({"alg": "none", "kid": world.issuer.key_id}));
    assert!(world.who(&format!("{none}.{}.", parts[1])).is_none());
    for garbage in ["", ".", "..", "a.b.c", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert!(world.who(garbage).is_none());
    }
}

#[test]
fn the_token_of_a_secret_is_good_while_the_secret_holds_it() {
    let world = World::new();
    let token = world.issuer.issue_for_secret("ns", "bot", "a", "old");
    assert!(world.who(&token).is_none());
    let secret = |token: &str| {
        let data = json!({"token": STANDARD.encode(token)});
        json!({"metadata": {"uid": "s"}, "type": SECRET_TYPE, "data": data})
    };
    world.known.put("secrets", "ns", "old", secret(&token));
    assert_eq!(world.who(&token).expect("good").user, "system:serviceaccount:ns:bot");
    world.known.put("secrets", "ns", "old", secret("another"));
    assert!(world.who(&token).is_none());
}

#[test]
fn the_key_lasts_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let (ambient, _) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 2);
    let again = Issuer::load_or_create(world.dir.path(), ambient).unwrap();
    assert_eq!(world.issuer.key_set(), again.key_set());
    let mode = std::fs::metadata(world.dir.path().join("sa.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_request_is_answered_with_a_token_for_what_it_is_bound_to() {
    let world = World::new();
    for (kind, name, uid) in [("Pod", "web-0", "p"), ("Node", "n1", "n")] {
        let bound = json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
        let answer = world.ask(&root(), bound).unwrap();
        assert_eq!(answer["spec"]["expirationSeconds"], 3600);
        assert_eq!(answer["spec"]["audiences"], json!([ISSUER]));
        assert_eq!(answer["status"]["expirationTimestamp"], "2026-01-01T01:00:00Z");
        assert!(world.who(answer["status"]["token"].as_str().unwrap()).is_some(), "{kind}");
    }
    let refused = |spec: Value| world.ask(&root(), spec).unwrap_err();
    let bound = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "name": name, "uid": uid}});
    assert_eq!(refused(bound("Pod", "web-0", "q")).0, 409);
    assert_eq!(refused(bound("Pod", "web-9", "")).0, 404);
    assert_eq!(refused(bound("ConfigMap", "x", "")).0, 400);
    assert_eq!(refused(json!({"expirationSeconds": 599})).0, 422);
    assert_eq!(refused(json!({"expirationSeconds": (1i64 << 32) + 1})).0, 422);
    world.known.put(
        "pods",
        "ns",
        "other",
        json!({"metadata": {"uid": "o"}, "spec": {"serviceAccountName": "default"}}),
    );
    assert_eq!(
        refused(bound("Pod", "other", "")),
        (400, "cannot bind token for serviceaccount \"bot\" to pod running with different serviceaccount name.".into())
    );
}

#[test]
fn the_token_that_admission_asks_for_is_good_for_longer_than_it_says() {
    let world = World::new();
    let spec = json!({"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": "p"}});
    let answer = world.ask(&root(), spec).unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2026-01-01T01:00:07Z");
    world.clock.advance(Duration::from_secs(30 * 24 * 3600));
    assert!(world.who(answer["status"]["token"].as_str().unwrap()).is_some());
}

#[test]
fn a_node_gets_tokens_for_its_own_pods_and_their_audiences_only() {
    let world = World::new();
    let bound = json!({"kind": "Pod", "name": "web-0", "uid": "p"});
    let ask = |node: &str, spec: Value| world.ask(&Identity::node(node), spec);
    assert!(ask("n1", json!({"boundObjectRef": bound})).is_ok());
    assert!(ask("n1", json!({"boundObjectRef": bound, "audiences": ["vault"]})).is_ok());
    let refused = |node: &str, spec: Value| {
        let (code, message) = ask(node, spec).unwrap_err();
        assert_eq!(code, 403, "{message}");
        message
    };
    assert!(refused("n1", json!({"boundObjectRef": bound, "audiences": ["bank"]})).contains("audience \"bank\" not"));
    assert!(refused("n2", json!({"boundObjectRef": bound})).contains("scheduled on a different node"));
    assert!(refused("n1", json!({})).contains("not bound to a pod"));
    assert!(refused("n1", json!({"boundObjectRef": {"kind": "Pod", "name": "web-0"}})).contains("without a uid"));
}
