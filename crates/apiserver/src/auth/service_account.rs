//! Tokens of service accounts: signed, bound to an audience, a pod and a time.
//!
//! ```text
//!  TokenRequest ─▶ request() ─▶ Issuer::issue ─▶ JWT (ES256) ─▶ pod ─▶ Bearer ─▶ Verifier ─▶ Identity
//!                                                                          asks Accounts: still there, same uid?
//! ```
//!
//! The signing key is `sa.key` beside the authority's. Claims are kube-apiserver's, so that clients and libraries
//! that look into a token find what they know. A token ends with its time, its account or its pod.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use api::status::{FieldError, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Identity;
use super::tokens::TokenAuthenticator;
use crate::tls;

/// Who issues, and whom tokens are for unless they are asked for somebody else: the API server's name inside pods.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Shortest and longest life of a token, as upstream's.
const LIFE_S: std::ops::RangeInclusive<i64> = 600..=1 << 32;

/// Life of a token that names none.
const USUAL_LIFE_S: i64 = 3600;

/// Audiences of one token.
const MAX_AUDIENCES: usize = 16;

/// Longer ones are not looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Clocks of issuer and verifier may differ by this much.
const LEEWAY: Duration = Duration::from_secs(10);

/// Signs tokens.
pub struct Issuer {
    key: EcdsaKeyPair,
    /// Names the key in tokens and in the published key set.
    key_id: String,
    ambient: Ambient,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Namespace of the account and of the pod.
    pub namespace: String,
    /// The account.
    pub account: String,
    /// Its uid.
    pub account_uid: String,
    /// Name and uid of the pod that the token ends with.
    pub pod: Option<(String, String)>,
    /// Whom it is good for; empty means this server.
    pub audiences: Vec<String>,
    /// How long.
    pub life_s: i64,
}

/// What there is now; tokens of what is gone are no longer good.
pub trait Accounts: Send + Sync + 'static {
    /// The uid of a service account.
    fn account_uid(&self, namespace: &str, name: &str) -> Option<String>;
    /// The uid of a pod.
    fn pod_uid(&self, namespace: &str, name: &str) -> Option<String>;
}

impl Issuer {
    /// The key below `dir`, made on first use.
    pub fn load_or_create(dir: &Path, ambient: Ambient) -> Result<Arc<Self>, tls::Error> {
        tls::private_dir(dir)?;
        let path = dir.join("sa.key");
        let pem = match tls::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem();
                tls::write_private(&path, pem.as_bytes())?;
                pem
            }
        };
        let damaged = |why: String| tls::Error::Damaged { path: path.clone(), why };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &SystemRandom::new());
        let key = key.map_err(|e| damaged(e.to_string()))?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Arc::new(Self { key, key_id, ambient }))
    }

    /// A token, and when it ends.
    pub fn issue(&self, grant: &Grant) -> (String, Timestamp) {
        let now = self.ambient.now().as_second();
        let end = now.saturating_add(grant.life_s);
        let usual = [ISSUER.to_owned()];
        let audiences = if grant.audiences.is_empty() { &usual[..] } else { &grant.audiences };
        let mut about = json!({
            "namespace": grant.namespace,
            "serviceaccount": {"name": grant.account, "uid": grant.account_uid},
        });
        if let Some((name, uid)) = &grant.pod {
            about["pod"] = json!({"name": name, "uid": uid});
        }
        let claims = json!({
            "aud": audiences,
            "exp": end,
            "iat": now,
            "iss": ISSUER,
            "jti": self.ambient.uid(),
            "kubernetes.io": about,
            "nbf": now,
            "sub": format!("system:serviceaccount:{}:{}", grant.namespace, grant.account),
        });
        let head = json!({"alg": "ES256", "kid": self.key_id});
        let signed = format!("{}.{}", encoded(&head), encoded(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.expect("the kernel gives random bytes once it has booted");
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        (token, Timestamp::from_second(end).unwrap_or(Timestamp::MAX))
    }

    /// The key set with which others check tokens (RFC 7517), served at `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        // Uncompressed point: a tag, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": part(x), "y": part(y),
        }]})
    }

    /// The claims of a token that this key signed for this server and whose time has not ended.
    fn claims(&self, token: &str) -> Option<Value> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let head = decoded(head)?;
        if head["alg"] != "ES256" || head["kid"] != *self.key_id {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        key.verify(signed.as_bytes(), &signature).ok()?;
        let claims = decoded(claims)?;
        let (now, leeway) = (self.ambient.now().as_second(), LEEWAY.as_secs() as i64);
        let in_time = now < claims["exp"].as_i64()? && claims["nbf"].as_i64()? <= now + leeway;
        let for_us = claims["aud"].as_array()?.iter().any(|audience| audience == ISSUER);
        (in_time && for_us && claims["iss"] == ISSUER).then_some(claims)
    }
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Knows whose token it is, as long as account and pod are there.
pub struct Verifier {
    issuer: Arc<Issuer>,
    accounts: Arc<dyn Accounts>,
}

impl Verifier {
    /// Tokens of this issuer, about what `accounts` knows.
    pub fn new(issuer: Arc<Issuer>, accounts: Arc<dyn Accounts>) -> Self {
        Self { issuer, accounts }
    }
}

impl TokenAuthenticator for Verifier {
    fn authenticate(&self, token: &str) -> Option<Identity> {
        let claims = self.issuer.claims(token)?;
        let about = &claims["kubernetes.io"];
        let namespace = about["namespace"].as_str()?;
        let (name, uid) = (about["serviceaccount"]["name"].as_str()?, about["serviceaccount"]["uid"].as_str()?);
        if self.accounts.account_uid(namespace, name).as_deref() != Some(uid) {
            return None;
        }
        let mut identity = Identity { uid: uid.to_owned(), ..Identity::service_account(namespace, name) };
        let mut add = |key: &str, value: String| {
            identity.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        };
        if let Some(id) = claims["jti"].as_str() {
            add("credential-id", format!("JTI={id}"));
        }
        if about["pod"].is_object() {
            let (pod, pod_uid) = (about["pod"]["name"].as_str()?, about["pod"]["uid"].as_str()?);
            if self.accounts.pod_uid(namespace, pod).as_deref() != Some(pod_uid) {
                return None;
            }
            add("pod-name", pod.to_owned());
            add("pod-uid", pod_uid.to_owned());
        }
        Some(identity)
    }
}

/// Answers a TokenRequest (`serviceaccounts/NAME/token`) for a stored account.
pub fn request(issuer: &Issuer, accounts: &dyn Accounts, account: &Value, body: &Value) -> Result<Value, Box<Status>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (spec, metadata) = (&body["spec"], &account["metadata"]);
    let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
    let life_s = spec["expirationSeconds"].as_i64().unwrap_or(USUAL_LIFE_S);
    let audiences: Vec<String> = spec["audiences"].as_array().into_iter().flatten().map(&text).collect();
    let mut errors = Vec::new();
    if life_s < *LIFE_S.start() {
        let why = "may not specify a duration less than 10 minutes";
        errors.push(FieldError::invalid("spec.expirationSeconds", life_s, why));
    } else if life_s > *LIFE_S.end() {
        let why = "may not specify a duration larger than 2^32 seconds";
        errors.push(FieldError::invalid("spec.expirationSeconds", life_s, why));
    }
    if audiences.len() > MAX_AUDIENCES {
        errors.push(FieldError::too_many("spec.audiences", audiences.len(), MAX_AUDIENCES));
    }
    let bound = &spec["boundObjectRef"];
    if !bound.is_null() && bound["kind"] != "Pod" {
        errors.push(FieldError::not_supported("spec.boundObjectRef.kind", bound["kind"].clone(), &["Pod"]));
    }
    if !errors.is_empty() {
        return Err(Box::new(Status::invalid("authentication.k8s.io", "TokenRequest", "", errors)));
    }
    let pod = if bound.is_null() { None } else { Some(bound_pod(accounts, &namespace, bound)?) };
    let grant = Grant { namespace, account: name, account_uid: text(&metadata["uid"]), pod, audiences, life_s };
    let (token, end) = issuer.issue(&grant);
    let mut answer = body.clone();
    answer["apiVersion"] = json!("authentication.k8s.io/v1");
    answer["kind"] = json!("TokenRequest");
    answer["metadata"] = json!({"name": grant.account, "namespace": grant.namespace});
    answer["spec"]["expirationSeconds"] = json!(life_s);
    if grant.audiences.is_empty() {
        answer["spec"]["audiences"] = json!([ISSUER]);
    }
    answer["status"] = json!({"token": token, "expirationTimestamp": end.to_string()});
    Ok(answer)
}

fn bound_pod(accounts: &dyn Accounts, namespace: &str, bound: &Value) -> Result<(String, String), Box<Status>> {
    let name = bound["name"].as_str().unwrap_or_default();
    let uid = accounts.pod_uid(namespace, name).ok_or_else(|| Box::new(Status::not_found("", "pods", name)))?;
    match bound["uid"].as_str().filter(|asked| !asked.is_empty() && *asked != uid) {
        None => Ok((name.to_owned(), uid)),
        Some(asked) => {
            let why = format!(
                "the UID in the bound object reference ({asked}) does not match the UID in record. The object might \
                 have been deleted and then recreated"
            );
            Err(Box::new(Status::conflict("", "pods", name, why)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambient::ManualClock;

    /// Account `ns/bot` has uid `a`, pod `ns/web-0` has uid `p`.
    struct Known;

    impl Accounts for Known {
        fn account_uid(&self, namespace: &str, name: &str) -> Option<String> {
            (namespace == "ns" && name == "bot").then(|| "a".to_owned())
        }

        fn pod_uid(&self, namespace: &str, name: &str) -> Option<String> {
            (namespace == "ns" && name == "web-0").then(|| "p".to_owned())
        }
    }

    fn issuer() -> (Arc<Issuer>, Arc<ManualClock>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 1);
        (Issuer::load_or_create(dir.path(), ambient).unwrap(), clock, dir)
    }

    fn grant() -> Grant {
        Grant {
            namespace: "ns".into(),
            account: "bot".into(),
            account_uid: "a".into(),
            pod: Some(("web-0".into(), "p".into())),
            audiences: Vec::new(),
            life_s: 600,
        }
    }

    fn who(issuer: &Arc<Issuer>, grant: &Grant) -> Option<Identity> {
        Verifier::new(issuer.clone(), Arc::new(Known)).authenticate(&issuer.issue(grant).0)
    }

    #[test]
    fn a_token_is_the_account_and_names_its_pod() {
        let (issuer, ..) = issuer();
        let identity = who(&issuer, &grant()).expect("good");
        assert_eq!(identity.user, "system:serviceaccount:ns:bot");
        assert!(identity.groups.contains(&"system:serviceaccounts:ns".to_owned()));
        assert_eq!(identity.extra["authentication.kubernetes.io/pod-name"], ["web-0"]);
    }

    #[test]
    fn a_token_ends_with_its_time_its_account_and_its_pod() {
        let (issuer, clock, _dir) = issuer();
        let verifier = Verifier::new(issuer.clone(), Arc::new(Known));
        let (token, _) = issuer.issue(&grant());
        clock.advance(Duration::from_secs(599));
        assert!(verifier.authenticate(&token).is_some());
        clock.advance(Duration::from_secs(1));
        assert!(verifier.authenticate(&token).is_none());
        assert!(who(&issuer, &Grant { account_uid: "older".into(), ..grant() }).is_none());
        assert!(who(&issuer, &Grant { pod: Some(("web-0".into(), "older".into())), ..grant() }).is_none());
        assert!(who(&issuer, &Grant { pod: None, ..grant() }).is_some());
    }

    #[test]
    fn a_token_for_others_is_not_for_us() {
        let (issuer, ..) = issuer();
        assert!(who(&issuer, &Grant { audiences: vec!["vault".into()], ..grant() }).is_none());
        assert!(who(&issuer, &Grant { audiences: vec!["vault".into(), ISSUER.into()], ..grant() }).is_some());
    }

    #[test]
    fn what_was_changed_or_signed_elsewhere_is_refused() {
        let (issuer, ..) = issuer();
        let (other, ..) = self::issuer();
        let verifier = Verifier::new(issuer.clone(), Arc::new(Known));
        assert!(verifier.authenticate(&other.issue(&grant()).0).is_none());
        let (token, _) = issuer.issue(&grant());
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims = decoded(parts[1]).unwrap();
        claims["exp"] = json!(i64::MAX);
        assert!(verifier.authenticate(&format!("{}.{}.{}", parts[0], encoded(&claims), parts[2])).is_none());
        let none = encoded(&json!({"alg": "none", "kid": issuer.key_id}));
        assert!(verifier.authenticate(&format!("{none}.{}.", parts[1])).is_none());
        for garbage in ["", ".", "..", "a.b.c", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(verifier.authenticate(garbage).is_none());
        }
    }

    #[test]
    fn the_key_lasts_and_a_request_is_answered() {
        let (issuer, _, dir) = issuer();
        let (ambient, _) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 2);
        let again = Issuer::load_or_create(dir.path(), ambient).unwrap();
        assert_eq!(issuer.key_set(), again.key_set());
        let account = json!({"metadata": {"namespace": "ns", "name": "bot", "uid": "a"}});
        let bound = json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": "p"}}});
        let answer = request(&issuer, &Known, &account, &bound).unwrap();
        let verifier = Verifier::new(again, Arc::new(Known));
        assert!(verifier.authenticate(answer["status"]["token"].as_str().unwrap()).is_some());
        let stale = json!({"spec": {"boundObjectRef": {"kind": "Pod", "name": "web-0", "uid": "q"}}});
        assert_eq!(request(&issuer, &Known, &account, &stale).unwrap_err().code, 409);
        let short = json!({"spec": {"expirationSeconds": 60}});
        assert_eq!(request(&issuer, &Known, &account, &short).unwrap_err().code, 422);
    }
}
