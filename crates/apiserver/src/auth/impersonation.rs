//! Acting as somebody else: the `Impersonate-*` headers.
//!
//! They are honoured only where the real identity may `impersonate` each part that they name:
//! <https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/>

use std::collections::BTreeMap;

use api::status::Status;
use http::HeaderMap;

use super::{Attributes, Authorizer, Decision, Identity};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// Group of users that are who they say.
const AUTHENTICATED: &str = "system:authenticated";

/// Group of requests without credentials.
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Who the request is made as: the identity itself where no header asks for another.
///
/// Errors: the headers make no sense (answered by upstream as 500 with plain text), or the identity may not (403).
pub fn impersonate(
    headers: &HeaderMap,
    identity: &Identity,
    authorizer: &dyn Authorizer,
) -> Result<Identity, ImpersonationError> {
    let wanted = Wanted::read(headers);
    let Some(user) = wanted.user.clone().filter(|user| !user.is_empty()) else {
        return match wanted.parts() {
            parts if parts.is_empty() => Ok(identity.clone()),
            parts => Err(ImpersonationError::WithoutUser(parts)),
        };
    };
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let request = Attributes {
            identity: identity.clone(),
            verb: "impersonate".to_owned(),
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            path: String::new(),
        };
        match authorizer.authorize(&request) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) => Err(ImpersonationError::Forbidden(Box::new(refusal(&request, &why)))),
        }
    };
    match account {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", &user)?,
    }
    for group in &wanted.groups {
        may("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if let Some(uid) = &wanted.uid {
        may("authentication.k8s.io", "uids", "", "", uid)?;
    }
    let groups = groups(&user, account.map(|(namespace, _)| namespace), wanted.groups);
    Ok(Identity { user, uid: wanted.uid.unwrap_or_default(), groups, extra: wanted.extra })
}

/// The groups that the user is in, besides those asked for.
fn groups(user: &str, account_namespace: Option<&str>, mut groups: Vec<String>) -> Vec<String> {
    if let Some(namespace) = account_namespace
        && groups.is_empty()
    {
        groups.push("system:serviceaccounts".to_owned());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let known = groups.iter().any(|group| group == AUTHENTICATED || group == UNAUTHENTICATED);
    if user == "system:anonymous" {
        if !groups.iter().any(|group| group == UNAUTHENTICATED) {
            groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !known {
        groups.push(AUTHENTICATED.to_owned());
    }
    groups
}

fn refusal(request: &Attributes, why: &str) -> Status {
    let Attributes { identity, group, resource, subresource, namespace, name, .. } = request;
    let what = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place = match namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let user = &identity.user;
    let mut text = format!("User {user:?} cannot impersonate resource {what:?} in API group {group:?} {place}");
    if !why.is_empty() {
        text = format!("{text}: {why}");
    }
    Status::forbidden(group, resource, name, text)
}

/// What the headers ask for.
struct Wanted {
    user: Option<String>,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> Self {
        let one = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let groups = headers.get_all(GROUP).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            if let Some(key) = name.as_str().strip_prefix(EXTRA) {
                let key = percent_decoded(key);
                extra.entry(key).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
            }
        }
        Self { user: one(USER), uid: one(UID).filter(|uid| !uid.is_empty()), groups: groups.collect(), extra }
    }

    /// As kube-apiserver prints object references that nobody is asked for.
    fn parts(&self) -> Vec<String> {
        let mut parts: Vec<String> = self.groups.iter().map(|group| format!("{{Group  {group}    }}")).collect();
        for (key, values) in &self.extra {
            let written = values.iter().map(|value| format!("{{UserExtra  {value}  authentication.k8s.io/v1  {key}}}"));
            parts.extend(written);
        }
        parts.extend(self.uid.iter().map(|uid| format!("{{UID  {uid}  authentication.k8s.io/v1  }}")));
        parts
    }
}

/// Header names hold few characters; the others of an extra's key are written as `%XX`.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%').then(|| tail.get(..2)).flatten();
        let escaped =
            escaped.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Why a request cannot be made as somebody else.
#[derive(Debug, thiserror::Error)]
pub enum ImpersonationError {
    /// Groups, a uid or extras were named, and no user. Send `Impersonate-User` as well.
    /// Upstream's answer is 500, text/plain: `Internal Server Error: "<path>": ` and this message.
    #[error("requested [{}] without impersonating a user", .0.join(" "))]
    WithoutUser(Vec<String>),
    /// The identity lacks the verb `impersonate` on a part; the Status says on which.
    #[error("{}", .0.message)]
    Forbidden(Box<Status>),
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Only(&'static str);

    impl Authorizer for Only {
        fn authorize(&self, request: &Attributes) -> Decision {
            assert_eq!(request.verb, "impersonate");
            if request.resource == self.0 { Decision::Allow } else { Decision::Deny(String::new()) }
        }
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn no_header_changes_nothing() {
        let ann = Identity::user("ann", &[]);
        assert_eq!(impersonate(&HeaderMap::new(), &ann, &Only("")).unwrap(), ann);
    }

    #[test]
    fn a_user_becomes_an_authenticated_one() {
        let seen = impersonate(&headers(&[(USER, "bob")]), &Identity::user("ann", &[]), &Only("users")).unwrap();
        assert_eq!(seen, Identity::user("bob", &[]));
    }

    #[test]
    fn a_service_account_gets_its_groups() {
        let seen = impersonate(
            &headers(&[(USER, "system:serviceaccount:ns:bot")]),
            &Identity::user("ann", &[]),
            &Only("serviceaccounts"),
        );
        assert_eq!(seen.unwrap(), Identity::service_account("ns", "bot"));
    }

    #[test]
    fn every_named_part_is_checked() {
        let ann = Identity::user("ann", &[]);
        let refused = impersonate(&headers(&[(USER, "bob"), (GROUP, "g")]), &ann, &Only("users")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "groups \"g\" is forbidden: User \"ann\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope"
        );
    }

    #[test]
    fn parts_without_a_user_are_refused() {
        let ann = Identity::user("ann", &[]);
        let refused = impersonate(&headers(&[(GROUP, "crew")]), &ann, &Only("groups")).unwrap_err();
        assert_eq!(refused.to_string(), "requested [{Group  crew    }] without impersonating a user");
        let refused =
            impersonate(&headers(&[(USER, ""), ("impersonate-extra-scopes", "x")]), &ann, &Only("")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "requested [{UserExtra  x  authentication.k8s.io/v1  scopes}] without impersonating a user"
        );
    }
}
