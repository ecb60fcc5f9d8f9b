//! Manifests, indexes and configurations of images: what is read of them, and what is refused.
//!
//! Sources: the OCI image specification, and Docker's image manifest version 2, schema 2, which differ in little but
//! their media types. Only what is needed is read; unknown fields are let be, as both ask for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Largest manifest or index that is read, bytes. Registries refuse larger ones too.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest configuration that is read, bytes.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of an image. Docker stops at 127.
pub const MAX_LAYERS: usize = 250;
/// How many indexes may point to one another before the manifest comes.
pub const MAX_INDEX_DEPTH: usize = 3;

/// Media type of a manifest, OCI's.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index, OCI's.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest, Docker's.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an index, Docker's.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of a configuration, OCI's.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer, OCI's; a compression may follow.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What of a media type follows where foreign places serve the layer.
const FOREIGN: [&str; 2] = [".nondistributable.", ".rootfs.foreign."];

/// Points to content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// What it is called by.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// What machine it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of some bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// What machine an image is for, in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Platform {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// That of this program, which is this machine's.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// How well what is made for `other` runs here: None where it does not, else the smaller the better.
    fn distance(&self, other: &Self) -> Option<usize> {
        if other.os != self.os || other.architecture != self.architecture {
            return None;
        }
        // The plain variant first. Others (amd64 v2, v3) may ask for more than this machine has.
        match (self.architecture.as_str(), other.variant.as_deref().unwrap_or_default()) {
            (_, "") | ("arm64", "v8") | ("amd64", "v1") => Some(0),
            _ => None,
        }
    }
}

/// A manifest or an index, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Of one image.
    Manifest(Manifest),
    /// Of images for several machines.
    Index(Index),
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it is itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Images for several machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What it is itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Manifests or further indexes.
    pub manifests: Vec<Descriptor>,
}

/// What is looked at to tell documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads one. A document that is both, by its fields or against its media type, is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ManifestError::TooLarge);
        }
        let head: Head = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if head.schema_version == 1 {
            return Err(ManifestError::Schema1);
        }
        let kind = head.media_type.as_str();
        let index = match (head.manifests.is_some(), head.layers.is_some()) {
            (true, false) if kind != OCI_MANIFEST && kind != DOCKER_MANIFEST => true,
            (false, true) if kind != OCI_INDEX && kind != DOCKER_INDEX => false,
            _ => return Err(ManifestError::Ambiguous),
        };
        if index {
            return Ok(Self::Index(serde_json::from_slice(bytes).map_err(ManifestError::Json)?));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        manifest.check()?;
        Ok(Self::Manifest(manifest))
    }
}

impl Manifest {
    fn check(&self) -> Result<(), ManifestError> {
        if self.layers.len() > MAX_LAYERS {
            return Err(ManifestError::Layers(self.layers.len()));
        }
        if self.config.size > MAX_CONFIG {
            return Err(ManifestError::TooLarge);
        }
        let foreign = |layer: &&Descriptor| FOREIGN.iter().any(|word| layer.media_type.contains(word));
        if let Some(layer) = self.layers.iter().find(foreign) {
            return Err(ManifestError::Foreign(layer.media_type.clone()));
        }
        let known = |kind: &str| kind.is_empty() || kind.contains(".layer.v1.tar") || kind.contains(".rootfs.diff.tar");
        if let Some(layer) = self.layers.iter().find(|layer| !known(&layer.media_type)) {
            return Err(ManifestError::Artifact(layer.media_type.clone()));
        }
        Ok(())
    }

    /// Length of all that is fetched, bytes.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|l| l.size).fold(self.config.size, u64::saturating_add)
    }
}

impl Index {
    /// What is for that machine: the first of the best.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let mut best: Option<(usize, &Descriptor)> = None;
        for manifest in &self.manifests {
            // One that does not say is taken where nothing fits better.
            let distance = manifest.platform.as_ref().map_or(Some(usize::MAX), |p| platform.distance(p));
            if let Some(distance) = distance
                && best.is_none_or(|(before, _)| distance < before)
            {
                best = Some((distance, manifest));
            }
        }
        best.map(|(_, manifest)| manifest).ok_or(ManifestError::Platform)
    }
}

/// An image's configuration: how it is run, and what its layers are, uncompressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// What machine it is for.
    #[serde(default)]
    pub architecture: String,
    /// The system that it is for.
    #[serde(default)]
    pub os: String,
    /// How it is run.
    #[serde(default)]
    pub config: Option<RunConfig>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// How an image is run unless somebody says otherwise. Names are capitalised in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User, and group after a colon; names or numbers.
    pub user: String,
    /// Environment, `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program, before its arguments.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program where there is no entrypoint.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// What asks it to end, such as `SIGINT` or `2`.
    pub stop_signal: String,
    /// Folders that it wants to write to.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
}

/// The layers of an image, uncompressed, the lowest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Their digests.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

impl Config {
    /// Reads one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(ManifestError::TooLarge);
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Json)
    }

    /// Whether it fits its manifest and this machine.
    pub fn check(&self, layers: usize, platform: &Platform) -> Result<(), ManifestError> {
        if self.rootfs.diff_ids.len() != layers {
            return Err(ManifestError::Mismatch { layers, diff_ids: self.rootfs.diff_ids.len() });
        }
        let other = |is: &str, wanted: &str| !is.is_empty() && is != wanted;
        if other(&self.os, &platform.os) || other(&self.architecture, &platform.architecture) {
            return Err(ManifestError::Platform);
        }
        Ok(())
    }

    /// The digests of the stacks of layers, from the lowest alone to the whole.
    pub fn chain(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::new();
        for layer in &self.rootfs.diff_ids {
            chain.push(Digest::chain(chain.last(), layer));
        }
        chain
    }
}

/// Go writes an empty list as null.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A document that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no JSON, or not of the expected shape.
    #[error("it is not a manifest, index or configuration: {0}")]
    Json(serde_json::Error),
    /// It is larger than any real one.
    #[error("it is larger than {} MiB", MAX_CONFIG >> 20)]
    TooLarge,
    /// It is Docker's first format, which registries have not taken for years.
    #[error("it is of Docker's schema 1, which is not understood; push the image again with a newer tool")]
    Schema1,
    /// It can be read as one and as the other.
    #[error("it is neither clearly a manifest nor clearly an index")]
    Ambiguous,
    /// Nothing in it is for this machine. In containerd's words.
    #[error("no match for platform in manifest: not found")]
    Platform,
    /// More layers than the kernel stacks.
    #[error("it has {0} layers; at most {MAX_LAYERS} are taken")]
    Layers(usize),
    /// A layer that its registry does not serve.
    #[error("a layer of type {0} is served elsewhere, which is not supported")]
    Foreign(String),
    /// It is something else than a container's image.
    #[error("a layer is of type {0}: it is no image of a container")]
    Artifact(String),
    /// Manifest and configuration do not belong together.
    #[error("its manifest has {layers} layers, its configuration {diff_ids}")]
    Mismatch {
        /// Of the manifest.
        layers: usize,
        /// Of the configuration.
        diff_ids: usize,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptor(platform: Option<(&str, &str)>) -> serde_json::Value {
        let mut value = json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b"x"), "size": 1});
        if let Some((architecture, variant)) = platform {
            value["platform"] = json!({"architecture": architecture, "os": "linux", "variant": variant});
        }
        value
    }

    #[test]
    fn of_an_index_what_is_for_this_machine_is_chosen() {
        let amd64 = Platform { architecture: "amd64".into(), os: "linux".into(), variant: None };
        let index = |platforms: &[Option<(&str, &str)>]| -> Index {
            let manifests: Vec<_> = platforms.iter().map(|p| descriptor(*p)).collect();
            let text = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
            match Document::parse(text.as_bytes()) {
                Ok(Document::Index(index)) => index,
                other => panic!("{other:?}"),
            }
        };
        let chosen = |index: &Index| {
            let found = index.choose(&amd64).ok()?;
            index.manifests.iter().position(|m| std::ptr::eq(m, found))
        };
        assert_eq!(chosen(&index(&[Some(("arm64", "v8")), Some(("amd64", "")), Some(("unknown", ""))])), Some(1));
        assert_eq!(chosen(&index(&[Some(("amd64", "v3")), Some(("amd64", ""))])), Some(1));
        assert_eq!(chosen(&index(&[None, Some(("amd64", ""))])), Some(1));
        assert_eq!(chosen(&index(&[None])), Some(0));
        assert_eq!(chosen(&index(&[Some(("arm64", ""))])), None);
        let arm64 = Platform { architecture: "arm64".into(), ..amd64.clone() };
        assert!(index(&[Some(("arm64", "v8"))]).choose(&arm64).is_ok());
    }

    #[test]
    fn a_document_that_is_both_or_neither_is_refused() {
        let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": descriptor(None)});
        let lying = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "layers": [], "config": descriptor(None)});
        for text in [both, lying, json!({"schemaVersion": 2})] {
            let parsed = Document::parse(text.to_string().as_bytes());
            assert!(matches!(parsed, Err(ManifestError::Ambiguous)), "{text}");
        }
        let old = json!({"schemaVersion": 1, "fsLayers": []}).to_string();
        assert!(matches!(Document::parse(old.as_bytes()), Err(ManifestError::Schema1)));
    }

    #[test]
    fn layers_that_are_none_are_refused() {
        let with = |kind: &str, count: usize| {
            let layer = json!({"mediaType": kind, "digest": Digest::of(b"x"), "size": 1});
            let text =
                json!({"schemaVersion": 2, "config": descriptor(None), "layers": vec![layer; count]}).to_string();
            Document::parse(text.as_bytes())
        };
        assert!(with("application/vnd.oci.image.layer.v1.tar+zstd", 2).is_ok());
        assert!(with("application/vnd.docker.image.rootfs.diff.tar.gzip", 2).is_ok());
        assert!(matches!(
            with("application/vnd.cncf.helm.chart.content.v1.tar+gzip", 1),
            Err(ManifestError::Artifact(_))
        ));
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(matches!(with(foreign, 1), Err(ManifestError::Foreign(_))));
        assert!(matches!(with(OCI_LAYER, MAX_LAYERS + 1), Err(ManifestError::Layers(_))));
    }

    #[test]
    fn a_configuration_with_nulls_is_read_and_must_fit() {
        let text = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"a")]},
            "config": {"User": "postgres:postgres", "Env": ["A=b"], "Entrypoint": null, "Cmd": ["x"], "Volumes": null}});
        let config = Config::parse(text.to_string().as_bytes()).expect("a configuration");
        let run = config.config.clone().expect("how it is run");
        assert_eq!((run.entrypoint.len(), run.cmd, run.user.as_str()), (0, vec!["x".to_owned()], "postgres:postgres"));
        let amd64 = Platform { architecture: "amd64".into(), os: "linux".into(), variant: None };
        assert!(config.check(1, &amd64).is_ok());
        assert!(matches!(config.check(2, &amd64), Err(ManifestError::Mismatch { .. })));
        let arm64 = Platform { architecture: "arm64".into(), ..amd64 };
        assert!(matches!(config.check(1, &arm64), Err(ManifestError::Platform)));
    }
}
