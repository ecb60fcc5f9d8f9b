//! Who asks, and what they may do.
//!
//! Every request that reaches the verbs carries an [`Identity`] as an http extension, put there by the code
//! that accepted it: the TLS listener after checking a certificate or token, or whoever wires an in-process client.
//! No header can name an identity. An [`Authorizer`] then decides on the request's [`Attributes`].

pub mod bootstrap;
pub mod escalation;
pub mod impersonation;
pub mod node;
pub mod rbac;
pub mod rules;
pub mod service_account;
pub mod sessions;
mod standard;
pub mod tokens;
mod union;

use std::collections::BTreeMap;

pub use impersonation::{ImpersonationError, impersonate};
pub use standard::Standard;
pub use union::Union;

/// An authenticated user, as Kubernetes describes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `system:anonymous` where nothing was presented.
    pub user: String,
    /// The user's uid; empty where it has none.
    pub uid: String,
    /// Groups; `system:authenticated` or `system:unauthenticated` is among them.
    pub groups: Vec<String>,
    /// What the authenticator adds.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user that presented credentials, in these groups and `system:authenticated`.
    pub fn user(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { user: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            user: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
            extra: BTreeMap::new(),
        }
    }

    /// A service account, as its tokens and the in-process controllers are known.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::user(
            format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
        )
    }

    /// A node's agent.
    pub fn node(name: &str) -> Self {
        Self::user(format!("system:node:{name}"), &["system:nodes"])
    }
}

/// What a request is about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Who asks.
    pub identity: Identity,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or for paths outside
    /// the API the HTTP method in lower case.
    pub verb: String,
    /// Empty for the core group.
    pub group: String,
    /// `v1` and so on.
    pub version: String,
    /// The plural; empty for paths outside the API.
    pub resource: String,
    /// `status`, `log`, `exec` …; empty for the object itself.
    pub subresource: String,
    /// Empty for cluster-wide requests.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// The path, for requests outside the API.
    pub path: String,
}

/// Allowed, or not and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refused; the reason is appended to the Status message, empty where there is none.
    Deny(String),
}

/// Decides who may do what.
pub trait Authorizer: Send + Sync + 'static {
    /// Pure and quick: reads caches, waits for nothing.
    fn authorize(&self, attributes: &Attributes) -> Decision;
}
