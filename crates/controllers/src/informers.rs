//! The informers that scheduler, volumes, endpoints and nodes have in common: one per kind and process.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambient::Ambient;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client};

use crate::Term;
use crate::informer::{Informer, Key};
use crate::scheduler::needs::Needs;

/// The namespace of the nodes' leases.
pub const NODE_LEASES: &str = "kube-node-lease";

/// Local copies of what several controllers look at. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    /// All pods, reduced; indexed, see [`PodView`].
    pub pods: Informer<PodView>,
    /// All nodes.
    pub nodes: Informer<Node>,
    /// The nodes' leases.
    pub leases: Informer<Lease>,
    /// All claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// All volumes.
    pub volumes: Informer<PersistentVolume>,
    /// All storage classes.
    pub classes: Informer<StorageClass>,
    /// All services.
    pub services: Informer<Service>,
    /// All endpoint slices, indexed by `<namespace>/<service>`.
    pub slices: Informer<EndpointSlice>,
    /// The old endpoints objects.
    pub endpoints: Informer<Endpoints>,
    /// All namespaces.
    pub namespaces: Informer<Namespace>,
    /// The service accounts called `default`.
    pub accounts: Informer<ServiceAccount>,
    /// All disruption budgets.
    pub budgets: Informer<PodDisruptionBudget>,
}

impl Informers {
    /// Starts all of them; they run until the term ends.
    pub fn start(client: &Client, term: &Term, ambient: &Ambient) -> Self {
        let slice_keys = |slice: &EndpointSlice| {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            service.map(|service| format!("{namespace}/{service}")).into_iter().collect()
        };
        Self {
            pods: Informer::builder(Api::all(client.clone()), PodView::of)
                .index(PodView::index_keys)
                .start(term, ambient),
            nodes: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            leases: Informer::builder(Api::namespaced(client.clone(), NODE_LEASES), Some).start(term, ambient),
            claims: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            volumes: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            classes: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            services: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            slices: Informer::builder(Api::all(client.clone()), Some).index(slice_keys).start(term, ambient),
            endpoints: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            namespaces: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
            accounts: Informer::builder(Api::all(client.clone()), Some)
                .fields("metadata.name=default")
                .start(term, ambient),
            budgets: Informer::builder(Api::all(client.clone()), Some).start(term, ambient),
        }
    }
}

/// What the controllers here need of a pod.
///
/// Index keys: `node:<name>` for a pod that takes room on a node, `claim:<namespace>/<claim>` for each claim
/// of a pod that has not ended, `unscheduled` for a pod that waits for a node, and `unscheduled:looking` where its place
/// depends on where others are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The owner that controls it.
    pub controller: Option<OwnerReference>,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Where it is bound to.
    pub node: Option<String>,
    /// Who is to schedule it; empty for the default.
    pub scheduler: String,
    /// It has scheduling gates.
    pub gated: bool,
    /// What it asks of its node.
    pub needs: Arc<Needs>,
    /// The claims that it mounts.
    pub claims: Vec<String>,
    /// Some of them are made from templates in it.
    pub ephemeral: bool,
    /// `spec.hostname`.
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: String,
    /// Its containers' named ports: name, protocol, number.
    pub ports: Vec<(String, String, i32)>,
    /// `Pending`, `Running` …
    pub phase: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// Its condition Ready is True.
    pub ready: bool,
    /// Since when its condition DisruptionTarget is True.
    pub targeted: Option<jiff::Timestamp>,
    /// Its condition PodScheduled: status, reason and message.
    pub scheduled: Option<(String, String, String)>,
}

impl PodView {
    pub(crate) fn of(pod: Pod) -> Option<Self> {
        let (meta, spec, status) = (pod.metadata, pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let labels = meta.labels.unwrap_or_default();
        let namespace = meta.namespace.unwrap_or_default();
        let needs = Arc::new(Needs::of(&namespace, &labels, &spec, &status));
        let conditions = status.conditions.unwrap_or_default();
        let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
        let name = meta.name.unwrap_or_default();
        let claims = spec.volumes.iter().flatten().filter_map(|volume| {
            let ephemeral = volume.ephemeral.is_some().then(|| format!("{name}-{}", volume.name));
            volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone()).or(ephemeral)
        });
        let ephemeral = spec.volumes.iter().flatten().any(|volume| volume.ephemeral.is_some());
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|c| c.ports.iter().flatten()).filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((port.name.clone()?, protocol, port.container_port))
        });
        let mut ips: Vec<String> = status.pod_ips.into_iter().flatten().map(|ip| ip.ip).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.filter(|ip| !ip.is_empty()));
        }
        Some(Self {
            claims: claims.collect(),
            ephemeral,
            ports: ports.collect(),
            controller: meta.owner_references.into_iter().flatten().find(|o| o.controller == Some(true)),
            ready: condition("Ready").is_some_and(|c| c.status == "True"),
            targeted: condition("DisruptionTarget")
                .filter(|c| c.status == "True")
                .map(|c| c.last_transition_time.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0)),
            scheduled: condition("PodScheduled").map(|c| {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                (c.status.clone(), text(&c.reason), text(&c.message))
            }),
            namespace,
            uid: meta.uid.unwrap_or_default(),
            labels,
            deleting: meta.deletion_timestamp.is_some(),
            node: spec.node_name.filter(|node| !node.is_empty()),
            scheduler: spec.scheduler_name.unwrap_or_default(),
            gated: spec.scheduling_gates.is_some_and(|gates| !gates.is_empty()),
            needs,
            hostname: spec.hostname.unwrap_or_default(),
            subdomain: spec.subdomain.unwrap_or_default(),
            phase: status.phase.unwrap_or_default(),
            ips,
            name,
        })
    }

    /// It has ended, and will not run again.
    pub fn is_over(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// It waits for the default scheduler to find it a node.
    pub fn wants_node(&self) -> bool {
        self.is_homeless() && !self.gated
    }

    /// It waits until the default scheduler may look for a node.
    pub fn is_gated(&self) -> bool {
        self.is_homeless() && self.gated
    }

    fn is_homeless(&self) -> bool {
        let ours = self.scheduler.is_empty() || self.scheduler == "default-scheduler";
        ours && self.node.is_none() && !self.deleting && !self.is_over()
    }

    /// Namespace and name.
    pub fn key(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }

    /// How events name it.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }

    fn index_keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.is_over() {
            return keys;
        }
        keys.extend(self.node.as_ref().map(|node| format!("node:{node}")));
        keys.extend(self.claims.iter().map(|claim| format!("claim:{}/{claim}", self.namespace)));
        if self.wants_node() {
            keys.push("unscheduled".to_owned());
            if self.needs.looks_at_others() {
                keys.push("unscheduled:looking".to_owned());
            }
        }
        keys
    }
}
