//! One rule of a role: what it allows, what it covers of other rules, how it is written in messages.
//!
//! Matching follows kube-apiserver: <https://kubernetes.io/docs/reference/access-authn-authz/rbac/>.

use std::fmt;

use serde_json::Value;

use super::Attributes;

/// `PolicyRule` of rbac.authorization.k8s.io/v1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// API groups; `""` is core, `*` all.
    pub groups: Vec<String>,
    /// Plurals, `plural/subresource`, `*/subresource` or `*`.
    pub resources: Vec<String>,
    /// Only these objects; empty means all.
    pub names: Vec<String>,
    /// Paths outside the API, with an optional `*` at the end.
    pub urls: Vec<String>,
    /// Verbs or `*`.
    pub verbs: Vec<String>,
}

impl Rule {
    /// Reads one element of `rules`. Missing lists are empty, as in the API.
    pub fn from_value(value: &Value) -> Self {
        Self {
            groups: strings(&value["apiGroups"]),
            resources: strings(&value["resources"]),
            names: strings(&value["resourceNames"]),
            urls: strings(&value["nonResourceURLs"]),
            verbs: strings(&value["verbs"]),
        }
    }

    /// Reads the `rules` of a role.
    pub fn list(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::from_value).collect()
    }

    /// Whether the rule allows the request.
    pub fn allows(&self, request: &Attributes) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if request.resource.is_empty() {
            return self.urls.iter().any(|url| url_covers(url, &request.path));
        }
        has(&self.groups, &request.group)
            && self.allows_resource(&request.resource, &request.subresource)
            && (self.names.is_empty() || self.names.contains(&request.name))
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if rule == "*" {
                return true;
            }
            match (rule.split_once('/'), subresource.is_empty()) {
                (None, true) => rule == resource,
                (Some((parent, sub)), false) => sub == subresource && (parent == resource || parent == "*"),
                _ => false,
            }
        })
    }

    /// Whether everything that `other` allows is allowed by this rule alone.
    pub fn covers(&self, other: &Self) -> bool {
        let names = if other.names.is_empty() {
            self.names.is_empty()
        } else {
            self.names.is_empty() || other.names.iter().all(|n| self.names.contains(n))
        };
        names
            && other.verbs.iter().all(|v| has(&self.verbs, v))
            && other.groups.iter().all(|g| has(&self.groups, g))
            && other.resources.iter().all(|r| self.covers_resource(r))
            && other.urls.iter().all(|u| self.urls.iter().any(|own| url_covers(own, u)))
    }

    fn covers_resource(&self, resource: &str) -> bool {
        has(&self.resources, resource)
            || resource
                .split_once('/')
                .is_some_and(|(_, sub)| self.resources.iter().any(|own| own.strip_prefix("*/") == Some(sub)))
    }

    /// The same rule as rules of one verb, group, resource and name each.
    pub fn atoms(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let names: Vec<Vec<String>> =
            if self.names.is_empty() { vec![Vec::new()] } else { self.names.iter().map(|n| vec![n.clone()]).collect() };
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    for name in &names {
                        out.push(Self {
                            groups: vec![group.clone()],
                            resources: vec![resource.clone()],
                            names: name.clone(),
                            urls: Vec::new(),
                            verbs: vec![verb.clone()],
                        });
                    }
                }
            }
        }
        for url in &self.urls {
            for verb in &self.verbs {
                out.push(Self { urls: vec![url.clone()], verbs: vec![verb.clone()], ..Self::default() });
            }
        }
        out
    }

    /// Merges the verbs of rules that are otherwise the same, keeping their order.
    pub fn compact(rules: Vec<Self>) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        for rule in rules {
            let same = out.iter_mut().find(|o| {
                o.groups == rule.groups && o.resources == rule.resources && o.names == rule.names && o.urls == rule.urls
            });
            match same {
                Some(same) => {
                    for verb in rule.verbs {
                        if !same.verbs.contains(&verb) {
                            same.verbs.push(verb);
                        }
                    }
                }
                None => out.push(rule),
            }
        }
        out
    }
}

/// As kube-apiserver writes a rule in its messages.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// A list of strings as Go's `%q` writes it: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}

/// Whether the list holds the item or the wildcard.
fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|own| own == "*" || own == item)
}

/// Whether a rule's path covers a request's path, or another rule's.
fn url_covers(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

/// The strings of a JSON list; nothing where it is none.
fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    use crate::auth::Identity;

    fn rule(value: Value) -> Rule {
        Rule::from_value(&value)
    }

    fn request(verb: &str, resource: &str, subresource: &str, name: &str) -> Attributes {
        Attributes {
            identity: Identity::anonymous(),
            verb: verb.into(),
            group: String::new(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "ns".into(),
            name: name.into(),
            path: String::new(),
        }
    }

    #[test]
    fn a_resource_does_not_include_its_subresources() {
        let pods = rule(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}));
        assert!(pods.allows(&request("get", "pods", "", "a")));
        assert!(!pods.allows(&request("get", "pods", "log", "a")));
        assert!(!pods.allows(&request("list", "pods", "", "")));
    }

    #[test]
    fn a_star_resource_includes_all_subresources() {
        let all = rule(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}));
        assert!(all.allows(&request("create", "pods", "exec", "a")));
        let scale = rule(json!({"apiGroups": ["*"], "resources": ["*/scale"], "verbs": ["get"]}));
        assert!(scale.allows(&request("get", "statefulsets", "scale", "a")));
        assert!(!scale.allows(&request("get", "statefulsets", "", "a")));
    }

    #[test]
    fn resource_names_restrict_to_those_objects() {
        let one =
            rule(json!({"apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["get", "list"]}));
        assert!(one.allows(&request("get", "pods", "", "a")));
        assert!(!one.allows(&request("get", "pods", "", "b")));
        assert!(!one.allows(&request("list", "pods", "", "")));
    }

    #[test]
    fn a_path_with_a_star_allows_what_begins_so() {
        let urls = rule(json!({"nonResourceURLs": ["/version", "/healthz/*"], "verbs": ["get"]}));
        let at = |path: &str| Attributes { path: path.into(), ..request("get", "", "", "") };
        assert!(urls.allows(&at("/version")));
        assert!(urls.allows(&at("/healthz/ping")));
        assert!(!urls.allows(&at("/healthz")));
        assert!(!urls.allows(&at("/metrics")));
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let some = |items: &'static [&'static str]| {
            proptest::collection::vec(proptest::sample::select(items), 0..3)
                .prop_map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        (
            some(&["", "apps", "*"]),
            some(&["pods", "pods/log", "*/log", "*"]),
            some(&["a", "b"]),
            some(&["get", "list", "*"]),
        )
            .prop_map(|(groups, resources, names, verbs)| Rule {
                groups,
                resources,
                names,
                urls: Vec::new(),
                verbs,
            })
    }

    proptest! {
        /// What escalation checks rest on: who holds a covering rule can do all that the covered one allows.
        #[test]
        fn a_covering_rule_allows_what_the_covered_allows(
            own in any_rule(),
            other in any_rule(),
            group in proptest::sample::select(vec!["", "apps", "x"]),
            sub in proptest::sample::select(vec!["", "log"]),
            name in proptest::sample::select(vec!["", "a", "c"]),
            verb in proptest::sample::select(vec!["get", "list", "watch"]),
        ) {
            let request = Attributes { group: group.into(), ..request(verb, "pods", sub, name) };
            if own.covers(&other) && other.allows(&request) {
                prop_assert!(own.allows(&request));
            }
        }

        #[test]
        fn a_rule_covers_its_atoms(rule in any_rule()) {
            for atom in rule.atoms() {
                prop_assert!(rule.covers(&atom));
            }
        }
    }
}
