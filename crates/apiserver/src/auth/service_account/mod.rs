//! Tokens of service accounts: signed, bound to an audience, an object and a time.
//!
//! ```text
//!  TokenRequest ─▶ request() ─▶ Issuer::issue ─▶ JWT (ES256) ─▶ pod ─▶ Bearer ─▶ Verifier ─▶ Identity
//!                                                                          asks Objects: still there, same uid?
//! ```
//!
//! The signing key is `sa.key` beside the authority's. Claims are kube-apiserver's, so that clients and libraries
//! that look into a token find what they know. A token ends with its time, its account or the object it is bound to.
//!
//! Besides these there are the old tokens without an end, which lie in secrets of the type [`SECRET_TYPE`]: they are
//! good as long as the secret holds them.

mod request;
#[cfg(test)]
mod tests;
mod verify;

use std::path::Path;
use std::sync::Arc;

use ambient::Ambient;
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

pub(crate) use request::POD_LIFE_S;
pub use request::{Asked, request};
pub use verify::{Objects, Verifier};

use crate::tls;

/// Who issues, and whom tokens are for unless they are asked for somebody else: the API server's name inside pods.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Who issued the tokens in secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The type of secrets that hold a token.
pub const SECRET_TYPE: &str = "kubernetes.io/service-account-token";

/// Longer ones are not looked at.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

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
    /// The object that the token ends with.
    pub bound: Option<Bound>,
    /// Whom it is good for; empty means this server.
    pub audiences: Vec<String>,
    /// How long.
    pub life_s: i64,
    /// After how long its holder should have come for another; the token is good for longer, for programs that
    /// read it only once.
    pub warn_after_s: Option<i64>,
}

/// An object that a token ends with: its name and its uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A pod, with the node that it is bound to, and that node's uid where it is known.
    Pod {
        /// Name and uid.
        pod: (String, String),
        /// Name and uid.
        node: Option<(String, String)>,
    },
    /// A secret.
    Secret((String, String)),
    /// A node.
    Node((String, String)),
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
        Self::from_pem(&pem, ambient).map_err(|why| tls::Error::Damaged { path, why })
    }

    /// A key that ends with the process, and its tokens with it.
    pub fn ephemeral(ambient: Ambient) -> Result<Arc<Self>, tls::Error> {
        let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem();
        Self::from_pem(&pem, ambient).map_err(|why| tls::Error::Damaged { path: "(a new key)".into(), why })
    }

    fn from_pem(pem: &str, ambient: Ambient) -> Result<Arc<Self>, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &SystemRandom::new());
        let key = key.map_err(|e| e.to_string())?;
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
        let named = |(name, uid): &(String, String)| {
            if uid.is_empty() { json!({"name": name}) } else { json!({"name": name, "uid": uid}) }
        };
        match &grant.bound {
            Some(Bound::Pod { pod, node }) => {
                about["pod"] = named(pod);
                if let Some(node) = node {
                    about["node"] = named(node);
                }
            }
            Some(Bound::Secret(secret)) => about["secret"] = named(secret),
            Some(Bound::Node(node)) => about["node"] = named(node),
            None => {}
        }
        if let Some(after) = grant.warn_after_s {
            about["warnafter"] = json!(now.saturating_add(after));
        }
        let token = self.signed(&json!({
            "aud": audiences,
            "exp": end,
            "iat": now,
            "iss": ISSUER,
            "jti": self.ambient.uid(),
            "kubernetes.io": about,
            "nbf": now,
            "sub": subject(&grant.namespace, &grant.account),
        }));
        (token, Timestamp::from_second(end).unwrap_or(Timestamp::MAX))
    }

    /// The token of a secret: without an end of its own, good while the secret holds it.
    pub fn issue_for_secret(&self, namespace: &str, account: &str, account_uid: &str, secret: &str) -> String {
        self.signed(&json!({
            "iss": LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": account_uid,
            "sub": subject(namespace, account),
        }))
    }

    fn signed(&self, claims: &Value) -> String {
        let head = json!({"alg": "ES256", "kid": self.key_id});
        let signed = format!("{}.{}", encoded(&head), encoded(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.expect("the kernel gives random bytes once it has booted");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
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

    /// Where others find what they need to check tokens (OpenID Connect discovery), served at
    /// `/.well-known/openid-configuration`.
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The claims of a token that this key signed.
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
        decoded(claims)
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.key_id)
    }
}

/// An account's user name.
fn subject(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}
