//! Everything that a pod's shim needs, on disk: volumes, files, specification.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP};

use super::Shared;
use super::held;
use super::images;
use super::status::Hold;
use super::translate::{self, Inputs, Refusal};
use super::worker::{Identity, hold};
use crate::fault::{self, Point};
use crate::network::files::{self, NameSettings};
use crate::shim::spec::UserRange;
use crate::volume::{self, Place};

/// The part of bringing up that blocks: files and fsyncs.
pub(super) struct Preparation {
    pub(super) shared: Arc<Shared>,
    pub(super) id: Identity,
    pub(super) dir: PathBuf,
    pub(super) pod: Pod,
    pub(super) address: Ipv4Addr,
    pub(super) users: Option<UserRange>,
    pub(super) fetched: super::sources::Fetched,
    pub(super) images: BTreeMap<String, images::Ready>,
    pub(super) incarnation: u64,
    pub(super) restarts: BTreeMap<String, u32>,
}

impl Preparation {
    /// Makes it all. Blocks.
    pub(super) fn run(self) -> Result<(), Hold> {
        let failed = |e: std::io::Error| hold("FailedCreatePodSandBox", format!("cannot write the pod's folder: {e}"));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        held::sign(&self.dir, &self.id).map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))?;
        fault::point(Point::FolderSigned);
        images::note(&self.dir, &self.images).map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))?;
        images::are_there(&self.shared.images, &self.images).map_err(|e| hold("ErrImagePull", e))?;
        let epoch = epoch_of(&self.pod);
        let place = place(&self.shared, &self.dir, &self.pod, &self.images);
        let volumes = place.prepare(&self.pod, &self.fetched).map_err(|e| hold("FailedMount", e.to_string()))?;
        let own_memory = self.pod.spec.as_ref().is_some_and(|spec| spec.host_ipc != Some(true));
        let shared_memory = own_memory.then(|| volume::make_shared_memory(&self.dir)).transpose();
        let shared_memory = shared_memory.map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))?;
        fault::point(Point::VolumesMade);
        let config = &self.shared.config;
        let host_resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let settings =
            NameSettings { server: config.gateway, domain: &config.cluster_domain, host_resolv: &host_resolv };
        let machine = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let hosts = files::hosts(&self.pod, self.address, &config.cluster_domain, &machine);
        std::fs::write(self.dir.join("hosts"), hosts).map_err(failed)?;
        std::fs::write(self.dir.join("resolv.conf"), files::resolv_conf(&self.pod, &settings)).map_err(failed)?;
        let spec = translate::shim_spec(&Inputs {
            pod: &self.pod,
            config,
            fetched: &self.fetched,
            volumes: &volumes,
            shared_memory,
            users: self.users,
            images: &self.images,
            epoch,
            incarnation: self.incarnation,
            restarts: &self.restarts,
        });
        let spec = spec.map_err(|Refusal { container, reason, message }| Hold {
            container,
            reason: reason.to_owned(),
            message,
        })?;
        spec.write(&self.dir).map_err(|e| hold("FailedCreatePodSandBox", e.to_string()))?;
        fault::point(Point::SpecWritten);
        let _ = std::fs::remove_file(self.dir.join(super::stop::MARK));
        Ok(())
    }
}

/// Where the pod's volumes are made, from these images among others.
pub(super) fn place(
    shared: &Shared,
    dir: &std::path::Path,
    pod: &Pod,
    images: &BTreeMap<String, images::Ready>,
) -> Place {
    Place {
        pod_dir: dir.to_owned(),
        local: shared.local.clone(),
        epoch: epoch_of(pod),
        nonce: shared.ambient.suffix(10),
        images: images::of_volumes(images),
    }
}

/// The epoch that the binding gave the pod; 0 where an older server did not.
pub(super) fn epoch_of(pod: &Pod) -> u64 {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get("statefuld.io/epoch"));
    annotation.and_then(|e| e.parse().ok()).unwrap_or(0)
}

/// The pod as its own environment sees it.
pub(super) fn with_addresses(pod: &Pod, address: Ipv4Addr, host: Ipv4Addr) -> Pod {
    let mut pod = pod.clone();
    let status = pod.status.get_or_insert_default();
    status.pod_ip = Some(address.to_string());
    status.pod_ips = Some(vec![PodIP { ip: address.to_string() }]);
    status.host_ip = Some(host.to_string());
    status.host_ips = Some(vec![HostIP { ip: host.to_string() }]);
    pod
}
