//! The path of a request, taken apart as Kubernetes lays paths out.

use crate::query::decode;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Objects of a kind, one object, or something below it.
    Resource(Target),
    /// A document: discovery, health, version …; the path without a slash at the end.
    Document(String),
}

/// Objects of a kind, one object, or something below it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Target {
    /// Group; empty for core.
    pub(crate) group: String,
    /// Version.
    pub(crate) version: String,
    /// Plural, as the path says.
    pub(crate) plural: String,
    /// Namespace; empty for cluster-wide paths.
    pub(crate) namespace: String,
    /// Name; empty for collections.
    pub(crate) name: String,
    /// Subresource; empty for the object itself.
    pub(crate) subresource: String,
    /// What follows the subresource (of proxies); more than that is known nowhere.
    pub(crate) rest: String,
    /// The old way to ask for a watch, `/watch/` in the path.
    pub(crate) watch: bool,
}

/// Takes a path apart.
pub(crate) fn parse(path: &str) -> Route {
    let document = || Route::Document(path.trim_end_matches('/').to_owned());
    let segments: Vec<&str> = path.trim_start_matches('/').trim_end_matches('/').split('/').collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return document(),
    };
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        _ => (false, rest),
    };
    let mut target = Target { group: group.to_owned(), version: version.to_owned(), watch, ..Target::default() };
    let rest = match rest {
        // Namespaces are objects, and the place of others.
        ["namespaces", name, sub @ ("status" | "finalize"), more @ ..] => {
            target.set("namespaces", "", name, sub, more);
            return Route::Resource(target);
        }
        ["namespaces", namespace, plural, rest @ ..] => {
            target.namespace = decode(namespace, false);
            target.plural = decode(plural, false);
            rest
        }
        [plural, rest @ ..] => {
            target.plural = decode(plural, false);
            rest
        }
        [] => return document(),
    };
    if let Some((name, rest)) = rest.split_first() {
        target.name = decode(name, false);
        if let Some((sub, more)) = rest.split_first() {
            target.subresource = decode(sub, false);
            target.rest = more.join("/");
        }
    }
    Route::Resource(target)
}

impl Target {
    /// Sets all that follows group and version.
    fn set(&mut self, plural: &str, namespace: &str, name: &str, subresource: &str, rest: &[&str]) {
        self.plural = plural.to_owned();
        self.namespace = decode(namespace, false);
        self.name = decode(name, false);
        self.subresource = decode(subresource, false);
        self.rest = rest.join("/");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(path: &str) -> String {
        match parse(path) {
            Route::Document(path) => format!("doc {path}"),
            Route::Resource(t) => format!(
                "{}|{}|{}|{}|{}|{}{}",
                t.group,
                t.version,
                t.plural,
                t.namespace,
                t.name,
                t.subresource,
                if t.watch { "|watch" } else { "" }
            ),
        }
    }

    #[test]
    fn paths_are_taken_apart() {
        for (path, expected) in [
            ("/api/v1/pods", "|v1|pods|||"),
            ("/api/v1/namespaces/a/pods/b/log", "|v1|pods|a|b|log"),
            ("/api/v1/namespaces/a", "|v1|namespaces||a|"),
            ("/api/v1/namespaces/a/status", "|v1|namespaces||a|status"),
            ("/api/v1/namespaces/a/finalize", "|v1|namespaces||a|finalize"),
            ("/apis/apps/v1/namespaces/a/statefulsets/b/scale", "apps|v1|statefulsets|a|b|scale"),
            ("/api/v1/watch/namespaces/a/pods", "|v1|pods|a|||watch"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io|v1|clusterroles||system:node|",
            ),
            ("/api", "doc /api"),
            ("/apis/apps/v1/", "doc /apis/apps/v1"),
            ("/healthz/etcd", "doc /healthz/etcd"),
            ("/", "doc "),
        ] {
            assert_eq!(flat(path), expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "\\PC*") {
            let _ = parse(&path);
        }
    }
}
