//! The API objects that a pod's environment and volumes are made of, read before it starts.

use std::collections::{BTreeMap, BTreeSet};

use ambient::Ambient;
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, Volume,
};
use kube::{Api, Client};

use super::api_server::{self, ApiServer};
use super::env_file;
use super::services;
use super::tokens::{self, Holder, Token, Wish};

/// What a pod names, as found. What was not found is absent.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// By name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name.
    pub secrets: BTreeMap<String, Secret>,
    /// Claims by name, with the volume that each is bound to.
    pub claims: BTreeMap<String, (PersistentVolumeClaim, Option<PersistentVolume>)>,
    /// Tokens of the pod's service account, or why there is none.
    pub tokens: BTreeMap<Wish, Result<Token, String>>,
    /// Where the pod reaches the API server, if it is published.
    pub api_server: Option<ApiServer>,
    /// The services of its namespace that it is told of.
    pub services: Vec<Service>,
    /// Files of its volumes that variables come from. What is not among them is not looked for yet.
    pub files: env_file::Files,
}

/// An object that files may be made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// By name.
    ConfigMap(String),
    /// By name.
    Secret(String),
}

/// Names of what a pod needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
    claims: BTreeSet<String>,
    tokens: BTreeSet<Wish>,
    /// Whose tokens, and for which pod.
    holder: Holder,
    host_network: bool,
    services: bool,
}

impl Needs {
    /// Everything that environment and volumes of the pod name.
    pub fn of(pod: &Pod) -> Self {
        let mut needs = Self::default();
        let Some(spec) = &pod.spec else { return needs };
        needs.holder = Holder::of(pod);
        needs.host_network = spec.host_network == Some(true);
        let any = spec.init_containers.iter().flatten().chain(&spec.containers).next().is_some();
        needs.services = any && spec.enable_service_links != Some(false);
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            needs.add_environment(container);
        }
        for volume in spec.volumes.iter().flatten() {
            needs.config_maps.extend(volume.config_map.iter().map(|c| c.name.clone()));
            needs.secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
            needs.claims.extend(volume.persistent_volume_claim.iter().map(|c| c.claim_name.clone()));
            needs.claims.extend(volume.ephemeral.iter().map(|_| ephemeral_claim(pod, volume)));
            for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                needs.config_maps.extend(source.config_map.iter().map(|c| c.name.clone()));
                needs.secrets.extend(source.secret.iter().map(|s| s.name.clone()));
                needs.tokens.extend(source.service_account_token.iter().map(Wish::of));
            }
        }
        needs
    }

    /// The config maps and secrets among them.
    pub fn objects(&self) -> Vec<Object> {
        let maps = self.config_maps.iter().cloned().map(Object::ConfigMap);
        maps.chain(self.secrets.iter().cloned().map(Object::Secret)).collect()
    }

    fn add_environment(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            self.config_maps.extend(source.config_map_ref.iter().map(|c| c.name.clone()));
            self.secrets.extend(source.secret_ref.iter().map(|s| s.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.iter().map(|c| c.name.clone()));
            self.secrets.extend(source.secret_key_ref.iter().map(|s| s.name.clone()));
        }
    }

    /// Reads all of it, side by side.
    pub async fn fetch(&self, client: &Client, ambient: &Ambient, namespace: &str) -> Result<Fetched, kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let maps = try_join_all(self.config_maps.iter().map(|name| maps.get_opt(name)));
        let secrets = try_join_all(self.secrets.iter().map(|name| secrets.get_opt(name)));
        let claims = try_join_all(self.claims.iter().map(|name| fetch_claim(client, namespace, name)));
        let tokens = join_all(self.tokens.iter().map(|wish| tokens::request(client, ambient, &self.holder, wish)));
        let tokens = async { Ok(tokens.await) };
        let server = api_server::find(client, self.host_network);
        let services = services::of_namespace(client, namespace, self.services);
        let (maps, secrets, claims, tokens, api_server, services) =
            futures::try_join!(maps, secrets, claims, tokens, server, services)?;
        Ok(Fetched {
            tokens: self.tokens.iter().cloned().zip(tokens).collect(),
            api_server,
            services,
            config_maps: found(&self.config_maps, maps),
            secrets: found(&self.secrets, secrets),
            claims: found(&self.claims, claims),
            files: env_file::Files::new(),
        })
    }
}

/// The claim that is made for a volume with a claim template.
pub(crate) fn ephemeral_claim(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)
}

fn found<T>(names: &BTreeSet<String>, values: Vec<Option<T>>) -> BTreeMap<String, T> {
    names.iter().cloned().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
}

async fn fetch_claim(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<(PersistentVolumeClaim, Option<PersistentVolume>)>, kube::Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let Some(claim) = claims.get_opt(name).await? else { return Ok(None) };
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| bound && !v.is_empty());
    let volume = match volume {
        Some(volume) => Api::<PersistentVolume>::all(client.clone()).get_opt(&volume).await?,
        None => None,
    };
    Ok(Some((claim, volume)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_is_named_is_needed() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "m1"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}}]}],
            "volumes": [
                {"name": "1", "configMap": {"name": "m3"}},
                {"name": "2", "secret": {"secretName": "s2"}},
                {"name": "3", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "4", "projected": {"sources": [{"secret": {"name": "s3"}}, {"configMap": {"name": "m4"}},
                    {"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}}]}}]
        }});
        let needs = Needs::of(&serde_json::from_value(pod).expect("a pod"));
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let expected = Needs {
            config_maps: set(&["m1", "m2", "m3", "m4"]),
            secrets: set(&["s1", "s2", "s3"]),
            claims: set(&["data"]),
            tokens: [Wish { audience: "vault".into(), life_s: 600 }].into(),
            // Pods that name no account run as the namespace's own.
            holder: Holder { account: "default".into(), ..Holder::default() },
            services: true,
            ..Needs::default()
        };
        assert_eq!(needs, expected);
    }
}
