//! Several authorizers as one.

use std::sync::Arc;

use super::{Attributes, Authorizer, Decision};

/// Allows what any of its members allows; asks them in order.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize(&self, request: &Attributes) -> Decision {
        let mut reasons = Vec::new();
        for member in &self.0 {
            match member.authorize(request) {
                Decision::Allow => return Decision::Allow,
                Decision::Deny(why) if why.is_empty() => {}
                Decision::Deny(why) => reasons.push(why),
            }
        }
        Decision::Deny(reasons.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Identity;

    struct Says(Decision);

    impl Authorizer for Says {
        fn authorize(&self, _: &Attributes) -> Decision {
            self.0.clone()
        }
    }

    fn ask(members: &[Decision]) -> Decision {
        let members = members.iter().map(|d| Arc::new(Says(d.clone())) as Arc<dyn Authorizer>).collect();
        Union(members).authorize(&Attributes {
            identity: Identity::anonymous(),
            verb: String::new(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            path: String::new(),
        })
    }

    #[test]
    fn one_that_allows_is_enough() {
        assert_eq!(ask(&[Decision::Deny("no".into()), Decision::Allow]), Decision::Allow);
    }

    #[test]
    fn all_reasons_are_told() {
        let told = ask(&[Decision::Deny("a".into()), Decision::Deny(String::new()), Decision::Deny("b".into())]);
        assert_eq!(told, Decision::Deny("a, b".into()));
    }
}
