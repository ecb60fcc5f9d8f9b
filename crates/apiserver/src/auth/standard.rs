//! The authorizer that a server has unless it is given another: nodes' own rules, then RBAC.

use std::sync::Arc;

use serde_json::Value;

use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use super::{Attributes, Authorizer, Decision};

/// Node rules and RBAC, both fed from the watch cache.
///
/// Feed it every change of its [`Self::KINDS`] before the write that made the change is answered: who was just given
/// a right can then use it at once.
#[derive(Debug)]
pub struct Standard {
    rbac: Arc<Rbac>,
    nodes: Arc<NodeAuthorizer>,
}

impl Standard {
    /// Kinds that it wants to be fed with.
    pub const KINDS: [&'static str; 6] =
        ["Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Pod", "PersistentVolume"];

    /// Knows nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { rbac: Rbac::new(), nodes: NodeAuthorizer::new() })
    }

    /// Takes an object's new state; objects of other kinds are ignored.
    pub fn apply(&self, object: &Value) {
        self.rbac.apply(object);
        self.nodes.apply(object);
    }

    /// Forgets an object.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) {
        self.rbac.remove(kind, namespace, name);
        self.nodes.remove(kind, namespace, name);
    }

    /// Roles and bindings, for escalation checks and reviews.
    pub fn rbac(&self) -> &Arc<Rbac> {
        &self.rbac
    }
}

impl Authorizer for Standard {
    fn authorize(&self, request: &Attributes) -> Decision {
        match (self.nodes.authorize(request), self.rbac.authorize(request)) {
            (Decision::Allow, _) | (_, Decision::Allow) => Decision::Allow,
            (Decision::Deny(node), Decision::Deny(rbac)) => {
                let Attributes { identity, verb, group, resource, subresource, namespace, name, path, .. } = request;
                let user = &identity.user;
                tracing::debug!(user, verb, group, resource, subresource, namespace, name, path, "not allowed");
                Decision::Deny(if node.is_empty() { rbac } else { node })
            }
        }
    }
}
