//! The kinds that are served, as data: one [`Resource`] per kind, all in one [`Registry`].
//!
//! A resource says how a kind is addressed (group, version, plural), what clients may call it
//! (singular, short names, categories), and what can be done with it (verbs, subresources), as
//! discovery shows them. Handlers never match on a kind's name where a resource can tell them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use crate::crd::{self, Custom};

/// One kind that is served under one group and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group, such as `v1`.
    pub version: String,
    /// Kind of one object, such as `StatefulSet`.
    pub kind: String,
    /// Kind of a list of them, such as `StatefulSetList`.
    pub list_kind: String,
    /// Name in URLs, such as `statefulsets`.
    pub plural: String,
    /// Lower-case name of one, such as `statefulset`.
    pub singular: String,
    /// Abbreviations that clients expand through discovery, such as `sts`.
    pub short_names: Vec<String>,
    /// Groups of kinds that clients may ask for at once, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Name of the object's type in the schema, such as `apps/v1.StatefulSet`.
    pub type_name: String,
    /// What can be done with the objects, in discovery's order (alphabetical).
    pub verbs: Vec<String>,
    /// Further endpoints below one object, sorted by name.
    pub subresources: Vec<Subresource>,
    /// What is known about a kind that a CustomResourceDefinition declares; `None` for built-in ones.
    pub custom: Option<Custom>,
}

/// An endpoint below one object, such as `status`, `scale` or `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// Last segment of the URL.
    pub name: String,
    /// Group of what it reads and writes.
    pub group: String,
    /// Version of what it reads and writes.
    pub version: String,
    /// Kind of what it reads and writes.
    pub kind: String,
    /// What can be done with it, in discovery's order.
    pub verbs: Vec<String>,
}

impl Resource {
    /// `group/version`, or the version alone for the core group.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `plural.group`, or the plural alone for the core group: how messages name a kind.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The subresource of this name, if there is one.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether status is written apart from the rest of the object.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Whether the number of replicas can be read and written through `scale`.
    pub fn has_scale(&self) -> bool {
        self.subresource("scale").is_some()
    }

    /// Whether `verb` is among the verbs.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Which of two versions clients prefer (the greater one): stable ones over betas over alphas, newer ones over
/// older ones, and any of them over names that are no versions.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    rank(a).cmp(&rank(b)).then_with(|| b.cmp(a))
}

/// Stability, major number and number within the stability of a version such as `v1beta2`.
fn rank(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..end].parse().ok()?;
    match &rest[end..] {
        "" => Some((2, major, 0)),
        rest => {
            let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
                (Some(minor), _) => (1, minor),
                (None, Some(minor)) => (0, minor),
                (None, None) => return None,
            };
            Some((stability, major, minor.parse().ok()?))
        }
    }
}

/// All kinds that are served, found by URL or by kind.
#[derive(Debug, Default, Clone)]
pub struct Registry {
    by_plural: BTreeMap<(String, String, String), Arc<Resource>>,
}

impl Registry {
    /// The built-in kinds.
    pub fn builtin() -> Arc<Registry> {
        static REGISTRY: LazyLock<Arc<Registry>> = LazyLock::new(|| {
            let mut registry = Registry::default();
            BUILTIN.iter().for_each(|row| registry.add(row.resource()));
            Arc::new(registry)
        });
        REGISTRY.clone()
    }

    /// Adds a kind; replaces the one at the same group, version and plural.
    pub fn add(&mut self, resource: Resource) {
        let key = (resource.group.clone(), resource.version.clone(), resource.plural.clone());
        self.by_plural.insert(key, Arc::new(resource));
    }

    /// The kind that is served at this group, version and plural.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_plural.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The resource of this group, version and kind.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.by_plural.values().find(|r| r.group == group && r.version == version && r.kind == kind).cloned()
    }

    /// All kinds, sorted by group, version and plural.
    pub fn all(&self) -> Vec<Arc<Resource>> {
        self.by_plural.values().cloned().collect()
    }

    /// The kinds of one group and version, sorted by plural.
    pub fn in_group_version(&self, group: &str, version: &str) -> Vec<Arc<Resource>> {
        self.by_plural.values().filter(|r| r.group == group && r.version == version).cloned().collect()
    }

    /// Every group and version that serves a kind, once, sorted.
    pub fn group_versions(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (group, version, _) in self.by_plural.keys() {
            if found.last().is_none_or(|(g, v)| g != group || v != version) {
                found.push((group.clone(), version.clone()));
            }
        }
        found
    }
}

/// A built-in kind in brief; what it does not say follows from the kind.
struct Row {
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
    /// The group's name among the types.
    package: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    /// Subresources as `name`, `name:verbs` or `name:verbs:group/version.Kind`.
    subresources: &'static [&'static str],
}

/// Verbs of a kind whose collections can be deleted.
pub(crate) const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Verbs of subresources that are written like the object.
const WRITTEN: &str = "get,patch,update";

/// Verbs of the proxies that pass any method on.
const PROXY: &str = "proxy:create,delete,get,patch,update";

/// Shorthand for a namespaced kind without extras.
const fn namespaced(group: &'static str, package: &'static str, plural: &'static str, kind: &'static str) -> Row {
    let (version, verbs) = ("v1", &VERBS);
    Row {
        group,
        version,
        plural,
        kind,
        verbs,
        package,
        namespaced: true,
        short_names: &[],
        categories: &[],
        subresources: &[],
    }
}

/// Shorthand for a cluster-wide kind without extras.
const fn cluster(group: &'static str, package: &'static str, plural: &'static str, kind: &'static str) -> Row {
    let (version, verbs) = ("v1", &VERBS);
    Row {
        group,
        version,
        plural,
        kind,
        verbs,
        package,
        namespaced: false,
        short_names: &[],
        categories: &[],
        subresources: &[],
    }
}

/// What can be done with what is computed and not stored.
const READ_ONLY: [&str; 2] = ["get", "list"];

/// The built-in kinds.
const BUILTIN: &[Row] = &[
    Row { short_names: &["cm"], ..namespaced("", "core", "configmaps", "ConfigMap") },
    Row { short_names: &["ep"], ..namespaced("", "core", "endpoints", "Endpoints") },
    Row { short_names: &["ev"], ..namespaced("", "core", "events", "Event") },
    Row { short_names: &["limits"], ..namespaced("", "core", "limitranges", "LimitRange") },
    Row {
        short_names: &["ns"],
        subresources: &["finalize:update", "status"],
        ..cluster("", "core", "namespaces", "Namespace")
    },
    Row { short_names: &["no"], subresources: &[PROXY, "status"], ..cluster("", "core", "nodes", "Node") },
    Row {
        short_names: &["pvc"],
        subresources: &["status"],
        ..namespaced("", "core", "persistentvolumeclaims", "PersistentVolumeClaim")
    },
    Row {
        short_names: &["pv"],
        subresources: &["status"],
        ..cluster("", "core", "persistentvolumes", "PersistentVolume")
    },
    Row {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            "attach:create,get:v1.PodAttachOptions",
            "binding:create:v1.Binding",
            "ephemeralcontainers",
            "eviction:create:policy/v1.Eviction",
            "exec:create,get:v1.PodExecOptions",
            "log:get",
            "portforward:create,get:v1.PodPortForwardOptions",
            "proxy:create,delete,get,patch,update:v1.PodProxyOptions",
            "resize",
            "status",
        ],
        ..namespaced("", "core", "pods", "Pod")
    },
    Row {
        short_names: &["quota"],
        subresources: &["status"],
        ..namespaced("", "core", "resourcequotas", "ResourceQuota")
    },
    namespaced("", "core", "secrets", "Secret"),
    Row {
        short_names: &["sa"],
        subresources: &["token:create:authentication.k8s.io/v1.TokenRequest"],
        ..namespaced("", "core", "serviceaccounts", "ServiceAccount")
    },
    Row {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &["proxy:create,delete,get,patch,update:v1.ServiceProxyOptions", "status"],
        ..namespaced("", "core", "services", "Service")
    },
    Row {
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        subresources: &["status"],
        ..cluster(crd::GROUP, "apiextensions", crd::PLURAL, crd::KIND)
    },
    namespaced("apps", "apps", "controllerrevisions", "ControllerRevision"),
    Row {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &["scale:get,patch,update:autoscaling/v1.Scale", "status"],
        ..namespaced("apps", "apps", "deployments", "Deployment")
    },
    Row {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &["scale:get,patch,update:autoscaling/v1.Scale", "status"],
        ..namespaced("apps", "apps", "replicasets", "ReplicaSet")
    },
    Row {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &["scale:get,patch,update:autoscaling/v1.Scale", "status"],
        ..namespaced("apps", "apps", "statefulsets", "StatefulSet")
    },
    Row {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &["status"],
        ..namespaced("batch", "batch", "cronjobs", "CronJob")
    },
    Row { categories: &["all"], subresources: &["status"], ..namespaced("batch", "batch", "jobs", "Job") },
    namespaced("coordination.k8s.io", "coordination", "leases", "Lease"),
    namespaced("discovery.k8s.io", "discovery", "endpointslices", "EndpointSlice"),
    Row { short_names: &["ev"], ..namespaced("events.k8s.io", "events", "events", "Event") },
    Row { version: "v1beta1", verbs: &READ_ONLY, ..cluster("metrics.k8s.io", "metrics", "nodes", "NodeMetrics") },
    Row { version: "v1beta1", verbs: &READ_ONLY, ..namespaced("metrics.k8s.io", "metrics", "pods", "PodMetrics") },
    Row {
        short_names: &["netpol"],
        ..namespaced("networking.k8s.io", "networking", "networkpolicies", "NetworkPolicy")
    },
    cluster("node.k8s.io", "node", "runtimeclasses", "RuntimeClass"),
    Row {
        short_names: &["pdb"],
        subresources: &["status"],
        ..namespaced("policy", "policy", "poddisruptionbudgets", "PodDisruptionBudget")
    },
    cluster("rbac.authorization.k8s.io", "rbac", "clusterrolebindings", "ClusterRoleBinding"),
    cluster("rbac.authorization.k8s.io", "rbac", "clusterroles", "ClusterRole"),
    namespaced("rbac.authorization.k8s.io", "rbac", "rolebindings", "RoleBinding"),
    namespaced("rbac.authorization.k8s.io", "rbac", "roles", "Role"),
    Row { short_names: &["pc"], ..cluster("scheduling.k8s.io", "scheduling", "priorityclasses", "PriorityClass") },
    Row {
        short_names: &["vsclass", "vsclasses"],
        ..cluster("snapshot.storage.k8s.io", "snapshot", "volumesnapshotclasses", "VolumeSnapshotClass")
    },
    Row {
        short_names: &["vsc", "vscs"],
        subresources: &["status"],
        ..cluster("snapshot.storage.k8s.io", "snapshot", "volumesnapshotcontents", "VolumeSnapshotContent")
    },
    Row {
        short_names: &["vs"],
        subresources: &["status"],
        ..namespaced("snapshot.storage.k8s.io", "snapshot", "volumesnapshots", "VolumeSnapshot")
    },
    cluster("storage.k8s.io", "storage", "csidrivers", "CSIDriver"),
    cluster("storage.k8s.io", "storage", "csinodes", "CSINode"),
    namespaced("storage.k8s.io", "storage", "csistoragecapacities", "CSIStorageCapacity"),
    Row { short_names: &["sc"], ..cluster("storage.k8s.io", "storage", "storageclasses", "StorageClass") },
    Row { subresources: &["status"], ..cluster("storage.k8s.io", "storage", "volumeattachments", "VolumeAttachment") },
    Row {
        short_names: &["vac"],
        ..cluster("storage.k8s.io", "storage", "volumeattributesclasses", "VolumeAttributesClass")
    },
];

impl Row {
    /// The full description.
    fn resource(&self) -> Resource {
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            // Metrics have no name of one.
            singular: if self.group == "metrics.k8s.io" { String::new() } else { self.kind.to_lowercase() },
            short_names: owned(self.short_names),
            categories: owned(self.categories),
            namespaced: self.namespaced,
            type_name: format!("{}/{}.{}", self.package, self.version, self.kind),
            // A namespace takes its content along: deleting all of them at once is not offered.
            verbs: owned(self.verbs)
                .into_iter()
                .filter(|v| self.plural != "namespaces" || v != "deletecollection")
                .collect(),
            subresources: self.subresources.iter().map(|text| self.subresource(text)).collect(),
            custom: None,
        }
    }

    /// One subresource from its brief text.
    fn subresource(&self, text: &str) -> Subresource {
        let mut parts = text.splitn(3, ':');
        let name = parts.next().unwrap_or_default().to_owned();
        let verbs = parts.next().unwrap_or(WRITTEN).split(',').map(str::to_owned).collect();
        let (group, version, kind) = match parts.next().and_then(|gvk| gvk.rsplit_once('.')) {
            Some((gv, kind)) => {
                let (group, version) = gv.split_once('/').unwrap_or(("", gv));
                (group.to_owned(), version.to_owned(), kind.to_owned())
            }
            None if name == "proxy" => (self.group.to_owned(), "v1".to_owned(), format!("{}ProxyOptions", self.kind)),
            None => (self.group.to_owned(), "v1".to_owned(), self.kind.to_owned()),
        };
        Subresource { name, group, version, kind, verbs }
    }
}

/// Owned copies of a list of words.
fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statefulsets_are_found_by_url_and_by_kind() {
        let registry = Registry::builtin();
        let by_url = registry.find("apps", "v1", "statefulsets").unwrap();
        let by_kind = registry.find_kind("apps", "v1", "StatefulSet").unwrap();
        assert_eq!(by_url, by_kind);
        assert_eq!(by_url.api_version(), "apps/v1");
        assert_eq!(by_url.list_kind, "StatefulSetList");
        assert_eq!(by_url.short_names, ["sts"]);
        assert!(by_url.has_status() && by_url.has_scale());
        let scale = by_url.subresource("scale").unwrap();
        assert_eq!((scale.group.as_str(), scale.version.as_str(), scale.kind.as_str()), ("autoscaling", "v1", "Scale"));
    }

    #[test]
    fn stable_versions_come_before_betas_and_newer_before_older() {
        let mut versions = ["foo", "v1alpha1", "v2", "v1", "v2beta1", "v10", "v1beta2", "bar"];
        versions.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "bar", "foo"]);
    }

    #[test]
    fn core_kinds_have_no_group() {
        let pods = Registry::builtin().find("", "v1", "pods").unwrap();
        assert_eq!(pods.api_version(), "v1");
        assert_eq!(pods.group_resource(), "pods");
        assert_eq!(pods.subresource("binding").unwrap().kind, "Binding");
        assert_eq!(pods.subresource("log").unwrap().kind, "Pod");
    }

    #[test]
    fn namespaces_are_not_deleted_as_a_collection() {
        let registry = Registry::builtin();
        assert!(!registry.find("", "v1", "namespaces").unwrap().allows("deletecollection"));
        assert!(registry.find("", "v1", "pods").unwrap().allows("deletecollection"));
    }

    #[test]
    fn every_kind_and_group_is_listed_once() {
        let registry = Registry::builtin();
        assert_eq!(registry.all().len(), BUILTIN.len());
        let groups = registry.group_versions();
        assert_eq!(groups.first(), Some(&(String::new(), "v1".to_owned())));
        assert_eq!(groups.len(), 15);
        let listed: usize = groups.iter().map(|(g, v)| registry.in_group_version(g, v).len()).sum();
        assert_eq!(listed, BUILTIN.len());
    }

    #[test]
    fn subresources_are_sorted_as_discovery_lists_them() {
        for resource in Registry::builtin().all() {
            assert!(resource.subresources.is_sorted_by_key(|s| s.name.clone()), "{}", resource.plural);
            assert!(resource.verbs.is_sorted(), "{}", resource.plural);
        }
    }
}
