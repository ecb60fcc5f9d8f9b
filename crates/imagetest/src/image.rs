//! Images: layers and a configuration, written in every form that images come in.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::layer::{Compression, Entry, Layer};
use crate::{digest, hex};

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Image {
    layers: Vec<Layer>,
    config: Value,
    architecture: String,
}

impl Image {
    /// Of these layers, the lowest first, for this machine, without any configuration.
    pub fn new(layers: impl IntoIterator<Item = Layer>) -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { layers: layers.into_iter().collect(), config: json!({}), architecture: architecture.to_owned() }
    }

    /// For another machine.
    pub fn architecture(self, architecture: &str) -> Self {
        Self { architecture: architecture.to_owned(), ..self }
    }

    /// A field of the configuration's `config`.
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// The program with its arguments (`Cmd`).
    pub fn command<const N: usize>(self, words: [&str; N]) -> Self {
        self.set("Cmd", json!(words.to_vec()))
    }

    /// The program before its arguments (`Entrypoint`).
    pub fn entrypoint<const N: usize>(self, words: [&str; N]) -> Self {
        self.set("Entrypoint", json!(words.to_vec()))
    }

    /// One variable more.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let variable = json!(format!("{name}={value}"));
        match self.config["Env"].as_array_mut() {
            Some(list) => list.push(variable),
            None => self.config["Env"] = json!([variable]),
        }
        self
    }

    /// Whom it runs as.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// The image, whole.
    pub fn built(&self) -> Built {
        let diff_ids: Vec<String> = self.layers.iter().map(|l| digest(&l.tar())).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        for layer in &self.layers {
            let blob = layer.blob();
            layers.push(json!({"mediaType": layer.media_type(), "digest": digest(&blob), "size": blob.len()}));
            blobs.insert(digest(&blob), blob);
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        });
        let manifest = manifest.to_string().into_bytes();
        blobs.insert(digest(&config), config.clone());
        blobs.insert(digest(&manifest), manifest.clone());
        Built {
            digest: digest(&manifest),
            media_type: MANIFEST.to_owned(),
            manifest,
            config,
            layers: self.layers.clone(),
            architecture: self.architecture.clone(),
            blobs,
        }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image, whole. Tests may spoil it before it is written or served.
#[derive(Clone, Debug)]
pub struct Built {
    /// Digest of the manifest.
    pub digest: String,
    /// What the manifest is.
    pub media_type: String,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The configuration.
    pub config: Vec<u8>,
    /// The layers.
    pub layers: Vec<Layer>,
    /// What machine it is for.
    pub architecture: String,
    /// Everything by its digest, manifest and configuration included.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// An index of several images.
pub fn index(images: &[&Built]) -> Built {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({"mediaType": image.media_type, "digest": image.digest, "size": image.manifest.len(),
                "platform": {"architecture": image.architecture, "os": "linux"}})
        })
        .collect();
    let text = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes();
    let mut blobs: BTreeMap<String, Vec<u8>> = images.iter().flat_map(|i| i.blobs.clone()).collect();
    blobs.insert(digest(&text), text.clone());
    Built {
        digest: digest(&text),
        media_type: INDEX.to_owned(),
        manifest: text,
        config: Vec::new(),
        layers: Vec::new(),
        architecture: String::new(),
        blobs,
    }
}

impl Built {
    /// Digests of the layers as they are fetched, the lowest first.
    pub fn layer_digests(&self) -> Vec<String> {
        self.layers.iter().map(|layer| digest(&layer.blob())).collect()
    }

    /// The files of a layout, by their paths. An empty name gives the image none.
    fn layout(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": self.digest, "size": self.manifest.len()});
        if !name.is_empty() {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        let mut files = BTreeMap::from([
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ]);
        for (digest, bytes) in &self.blobs {
            files.insert(format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), bytes.clone());
        }
        files
    }

    /// As an OCI layout folder.
    pub fn write_layout(&self, folder: &Path, name: &str) {
        fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
        for (path, bytes) in self.layout(name) {
            fs::write(folder.join(path), bytes).expect("written");
        }
    }

    /// As an OCI archive.
    pub fn write_archive(&self, file: &Path, name: &str) {
        let mut tar = Layer::new().compressed(Compression::None);
        for (path, bytes) in self.layout(name) {
            tar = tar.file(&path, 0o644, bytes);
        }
        fs::write(file, tar.blob()).expect("written");
    }

    /// As `docker save` writes it, compressed or not.
    pub fn write_docker_archive(&self, file: &Path, names: &[&str], compression: Compression) {
        let config = format!("{}.json", hex(&self.config));
        let mut tar = Layer::new().compressed(compression);
        let mut layers = Vec::new();
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let bytes = layer.tar();
            let path = format!("{number}/layer.tar");
            match known.get(&digest(&bytes)) {
                // As older versions do with a layer that is there twice.
                Some(first) => {
                    tar = tar.entry(&Entry { link: format!("../{first}").into(), ..Entry::new(b'2', &path) });
                }
                None => {
                    known.insert(digest(&bytes), path.clone());
                    tar = tar.file(&path, 0o644, bytes);
                }
            }
            layers.push(path);
        }
        let list = json!([{"Config": config, "RepoTags": names, "Layers": layers}]);
        tar = tar.file(&config, 0o644, &self.config).file("manifest.json", 0o644, list.to_string());
        fs::write(file, tar.blob()).expect("written");
    }
}
