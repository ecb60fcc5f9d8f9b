//! From a token to the identity behind it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{ISSUER, Issuer, LEGACY_ISSUER, SECRET_TYPE};
use crate::auth::Identity;
use crate::auth::tokens::{Authenticated, TokenAuthenticator};

/// Clocks of issuer and verifier may differ by this much.
const LEEWAY: Duration = Duration::from_secs(10);

/// How long what is being deleted still vouches for its tokens: a stopping pod has things to say.
const DELETION_LEEWAY: Duration = Duration::from_secs(60);

/// What there is now; tokens of what is gone are no longer good.
pub trait Objects: Send + Sync + 'static {
    /// The newest state of an object of the core group; the namespace is empty for nodes.
    fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value>;
}

/// Knows whose token it is, as long as the account and what the token is bound to are there.
pub struct Verifier {
    issuer: Arc<Issuer>,
    objects: Arc<dyn Objects>,
}

impl Verifier {
    /// Tokens of this issuer, about what `objects` knows.
    pub fn new(issuer: Arc<Issuer>, objects: Arc<dyn Objects>) -> Self {
        Self { issuer, objects }
    }

    /// Whether the object is there under this uid, and not long since marked as deleted.
    fn is_there(&self, plural: &str, namespace: &str, name: &str, uid: &str) -> Option<Value> {
        let found = self.objects.find(plural, namespace, name)?;
        let metadata = &found["metadata"];
        let leaves: Option<Timestamp> = metadata["deletionTimestamp"].as_str().and_then(|time| time.parse().ok());
        let gone = leaves.is_some_and(|at| self.issuer.ambient.now().duration_since(at) > signed(DELETION_LEEWAY));
        (metadata["uid"] == uid && !gone).then_some(found)
    }

    fn bound(&self, claims: &Value, audiences: &[String]) -> Option<Authenticated> {
        let now = self.issuer.ambient.now().as_second();
        let in_time = now < claims["exp"].as_i64()? && claims["nbf"].as_i64()? <= now + LEEWAY.as_secs().cast_signed();
        let meant = claims["aud"].as_array()?;
        let audiences: Vec<String> = audiences.iter().filter(|a| meant.iter().any(|m| m == *a)).cloned().collect();
        if !in_time || audiences.is_empty() {
            return None;
        }
        let about = &claims["kubernetes.io"];
        let namespace = about["namespace"].as_str()?;
        let named = |what: &str| -> Option<(&str, &str)> {
            Some((about[what]["name"].as_str()?, about[what]["uid"].as_str().unwrap_or_default()))
        };
        let (name, uid) = named("serviceaccount")?;
        self.is_there("serviceaccounts", namespace, name, uid)?;
        let mut identity = Identity { uid: uid.to_owned(), ..Identity::service_account(namespace, name) };
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                identity.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if let Some(id) = claims["jti"].as_str() {
            add("credential-id", &format!("JTI={id}"));
        }
        if about["secret"].is_object() {
            let (secret, secret_uid) = named("secret")?;
            self.is_there("secrets", namespace, secret, secret_uid)?;
        }
        if about["pod"].is_object() {
            let (pod, pod_uid) = named("pod")?;
            self.is_there("pods", namespace, pod, pod_uid)?;
            add("pod-name", pod);
            add("pod-uid", pod_uid);
        }
        if about["node"].is_object() {
            let (node, node_uid) = named("node")?;
            if !about["pod"].is_object() {
                self.is_there("nodes", "", node, node_uid)?;
            }
            add("node-name", node);
            add("node-uid", node_uid);
        }
        Some(Authenticated { identity, audiences })
    }

    /// A token that lies in a secret; these say nothing of audiences.
    fn of_secret(&self, token: &str, claims: &Value, audiences: &[String]) -> Option<Authenticated> {
        let text = |key: &str| claims[format!("kubernetes.io/serviceaccount/{key}")].as_str();
        let namespace = text("namespace")?;
        let (account, uid) = (text("service-account.name")?, text("service-account.uid")?);
        let name = text("secret.name")?;
        let secret = self.objects.find("secrets", namespace, name)?;
        let held = secret["data"]["token"].as_str().and_then(|data| STANDARD.decode(data).ok())?;
        if secret["type"] != SECRET_TYPE || held != token.as_bytes() {
            return None;
        }
        self.is_there("secrets", namespace, name, secret["metadata"]["uid"].as_str()?)?;
        self.is_there("serviceaccounts", namespace, account, uid)?;
        let identity = Identity { uid: uid.to_owned(), ..Identity::service_account(namespace, account) };
        Authenticated::for_this_server(identity, audiences)
    }
}

impl TokenAuthenticator for Verifier {
    fn review(&self, token: &str, audiences: &[String]) -> Option<Authenticated> {
        let claims = self.issuer.claims(token)?;
        match claims["iss"].as_str()? {
            ISSUER => self.bound(&claims, audiences),
            LEGACY_ISSUER => self.of_secret(token, &claims, audiences),
            _ => None,
        }
    }
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}
