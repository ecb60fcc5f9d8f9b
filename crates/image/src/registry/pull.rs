//! Pulling an image: from its name to its being listed in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambient::Ambient;
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper::StatusCode;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{Semaphore, mpsc};

use super::auth::{Credentials, Keyring};
use super::client::{Client, Fetched};
use super::error::ClientError;
use super::settings::{Endpoint, Settings, SettingsError};
use crate::digest::Digest;
use crate::manifest::{
    Config, Descriptor, Document, MAX_CONFIG, MAX_INDEX_DEPTH, MAX_LAYERS, MAX_MANIFEST, Manifest, ManifestError,
    Platform,
};
use crate::reference::Reference;
use crate::store::{Image, Store, StoreError};
use crate::{Progress, Step};

/// Images that are pulled at a time.
const PULLS: usize = 5;
/// Layers of an image that are downloaded at a time.
const DOWNLOADS: usize = 3;
/// How often an image is begun anew because its layers were removed meanwhile.
const ROUNDS: usize = 3;

/// Pulls images into a store; one image at a time is pulled once, however many ask for it.
#[derive(Debug)]
pub struct Puller {
    store: Arc<Store>,
    settings: PathBuf,
    ambient: Ambient,
    seats: Semaphore,
    under_way: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// An image that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
}

/// What a registry gave for a name.
struct Resolved {
    /// What the name led to.
    target: Digest,
    manifest: Manifest,
    text: Vec<u8>,
    config: Config,
    config_text: Vec<u8>,
}

impl Puller {
    /// Into that store, as that file says.
    pub fn new(store: Arc<Store>, settings: &Path, ambient: Ambient) -> Self {
        Self {
            store,
            settings: settings.to_owned(),
            ambient,
            seats: Semaphore::new(PULLS),
            under_way: Mutex::default(),
        }
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Result<Settings, PullError> {
        Ok(Settings::read(&self.settings)?)
    }

    /// Pulls an image. What is there of it already is not fetched again; its registry is asked all the same.
    pub fn pull<'a>(
        &'a self,
        name: &'a Reference,
        keyring: &'a Keyring,
        progress: Progress<'a>,
    ) -> BoxFuture<'a, Result<Pulled, PullError>> {
        Box::pin(self.pull_in_turn(name, keyring, progress))
    }

    async fn pull_in_turn(
        &self,
        name: &Reference,
        keyring: &Keyring,
        progress: Progress<'_>,
    ) -> Result<Pulled, PullError> {
        let one = self.turns().entry(name.to_string()).or_default().clone();
        let result = {
            let _alone = one.lock().await;
            let _seat = self.seats.acquire().await.expect("nobody closes it");
            self.fetch_somewhere(name, keyring, progress).await
        };
        drop(one);
        // Turns that nobody waits for any more, those of pulls that were given up among them.
        self.turns().retain(|_, turn| Arc::strong_count(turn) > 1);
        Ok(Pulled { image: result? })
    }

    fn turns(&self) -> MutexGuard<'_, BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the first endpoint that has it; otherwise what the last one, the registry itself, said.
    async fn fetch_somewhere(
        &self,
        name: &Reference,
        keyring: &Keyring,
        progress: Progress<'_>,
    ) -> Result<Image, PullError> {
        let settings = self.settings()?;
        let mut last = None;
        for endpoint in settings.endpoints(name.domain()) {
            match self.fetch_at(name, &endpoint, keyring, &settings, progress).await {
                Ok(image) => return Ok(image),
                Err(error) => {
                    tracing::debug!(image = %name, host = endpoint.host, %error, "the image did not come from there");
                    last = Some(error);
                }
            }
        }
        Err(last.expect("every registry has itself as an endpoint"))
    }

    /// With each of the credentials that are for it, or as nobody.
    async fn fetch_at(
        &self,
        name: &Reference,
        endpoint: &Endpoint,
        keyring: &Keyring,
        settings: &Settings,
        progress: Progress<'_>,
    ) -> Result<Image, PullError> {
        let path = format!("{}{}", endpoint.prefix, name.path());
        let host =
            if settings.endpoints(name.domain()).last() == Some(endpoint) { name.domain() } else { &endpoint.host };
        let mut all: Vec<Option<Credentials>> = keyring.find(host, &path).into_iter().map(Some).collect();
        all.extend(own_credentials(endpoint)?.map(Some));
        if all.is_empty() {
            all.push(None);
        }
        let mut denied = None;
        for credentials in all {
            let client = Client::new(endpoint.clone(), name.path(), credentials, self.ambient.clone());
            let client = client.map_err(|source| PullError::Resolve { name: name.to_string(), source })?;
            match self.with(name, &client, settings, progress).await {
                Err(PullError::Resolve { source, .. }) if source.is_denied() => denied = Some(source),
                result => return result,
            }
        }
        let source = denied.expect("at least one was tried, and every other end has returned");
        Err(PullError::Denied { name: name.to_string(), source })
    }

    async fn with(
        &self,
        name: &Reference,
        client: &Client,
        settings: &Settings,
        progress: Progress<'_>,
    ) -> Result<Image, PullError> {
        let resolved = self.resolve(name, client).await?;
        let mut round = 0;
        loop {
            self.layers(&resolved, client, settings, progress).await?;
            let added =
                self.store.add(std::slice::from_ref(name), resolved.target, &resolved.text, &resolved.config_text);
            round += 1;
            match added {
                Err(StoreError::Gone(_)) if round < ROUNDS => {}
                result => return Ok(result?),
            }
        }
    }

    /// Manifest and configuration for this machine, verified.
    async fn resolve(&self, name: &Reference, client: &Client) -> Result<Resolved, PullError> {
        let failed = |source| match source {
            ClientError::Status { status: StatusCode::NOT_FOUND, .. } => PullError::NotFound { name: name.to_string() },
            source => PullError::Resolve { name: name.to_string(), source },
        };
        let Fetched { bytes, digest: target } = client.manifest(&name.version()).await.map_err(failed)?;
        if let Some(wanted) = name.digest().filter(|wanted| **wanted != target) {
            return Err(failed(ClientError::Digest { wanted: *wanted, found: target }));
        }
        let mut text = bytes;
        for _ in 0..=MAX_INDEX_DEPTH {
            match Document::parse(&text)? {
                Document::Index(index) => {
                    let chosen = index.choose(&Platform::here())?;
                    text = client.known("manifests", chosen, MAX_MANIFEST).await.map_err(failed)?;
                }
                Document::Manifest(manifest) => {
                    let config_text = client.known("blobs", &manifest.config, MAX_CONFIG).await.map_err(failed)?;
                    let config = Config::parse(&config_text)?;
                    config.check(manifest.layers.len(), &Platform::here())?;
                    return Ok(Resolved { target, manifest, text, config, config_text });
                }
            }
        }
        Err(ManifestError::Ambiguous.into())
    }

    /// Fetches and unpacks the layers that are missing: fetched several at a time, unpacked from the lowest up.
    async fn layers(
        &self,
        resolved: &Resolved,
        client: &Client,
        settings: &Settings,
        progress: Progress<'_>,
    ) -> Result<(), PullError> {
        let chain = resolved.config.chain();
        let mut missing = Vec::new();
        for (at, layer) in resolved.manifest.layers.iter().enumerate() {
            if self.store.has_layer(&chain[at]) {
                progress(&Step::Present(layer.digest));
            } else {
                missing.push((at, layer.clone()));
            }
        }
        let downloads = missing.into_iter().map(|(at, layer): (usize, Descriptor)| async move {
            let file = self.download(&layer, client, progress).await?;
            Ok::<_, PullError>((at, layer, file))
        });
        let (hand_on, mut arrived) = mpsc::channel(MAX_LAYERS);
        let fetching = async move {
            let mut arriving = std::pin::pin!(futures::stream::iter(downloads).buffered(DOWNLOADS));
            while let Some(layer) = arriving.try_next().await? {
                if hand_on.send(layer).await.is_err() {
                    break;
                }
            }
            Ok::<_, PullError>(())
        };
        // Beside the downloads, which go on while a layer is unpacked.
        let unpacking = async {
            while let Some((at, layer, file)) = arrived.recv().await {
                progress(&Step::Unpacking(layer.digest));
                let (store, below) = (self.store.clone(), chain[..at].to_vec());
                let (diff_id, size, limits) = (resolved.config.rootfs.diff_ids[at], layer.size, settings.limits());
                let job = move || store.unpack(&below, &diff_id, file, size, limits);
                let unpacked = tokio::task::spawn_blocking(job).await.expect("unpacking does not panic");
                // It will not be needed again: it is unpacked, or it cannot be.
                let _ = std::fs::remove_file(self.store.download(&layer.digest));
                unpacked?;
                progress(&Step::Unpacked(layer.digest));
            }
            Ok(())
        };
        futures::try_join!(fetching, unpacking).map(drop)
    }

    /// Downloads a layer, and opens it: whoever else wants it may take the file away afterwards.
    async fn download(
        &self,
        layer: &Descriptor,
        client: &Client,
        progress: Progress<'_>,
    ) -> Result<std::fs::File, PullError> {
        let path = self.store.download(&layer.digest);
        let mark = path.with_extension("lock");
        let about = |source| StoreError::Io { doing: "lock", path: mark.clone(), source };
        let file = std::fs::File::options().create(true).append(true).open(&mark).map_err(about)?;
        let taken =
            tokio::task::spawn_blocking(move || flock(&file, FlockOperation::LockExclusive).map(|()| file)).await;
        // Held until it is there, and no longer: whoever waits for one layer never holds up others.
        let _lock = taken.expect("locking does not panic").map_err(|e| about(e.into()))?;
        let arrived = |bytes| progress(&Step::Fetched { layer: layer.digest, bytes, total: layer.size });
        client.blob(layer, &path, &arrived).await.map_err(PullError::Copy)?;
        std::fs::File::open(&path).map_err(|source| StoreError::Io { doing: "open", path: path.clone(), source }.into())
    }
}

/// The operator's own.
fn own_credentials(endpoint: &Endpoint) -> Result<Option<Credentials>, PullError> {
    let Some(username) = endpoint.registry.username.clone() else { return Ok(None) };
    let password = match &endpoint.registry.password_file {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|e| SettingsError { path: path.clone(), what: format!("passwordFile: {e}") })?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
    };
    Ok(Some(Credentials { username, password }))
}

/// An image that was not pulled. In containerd's words, where it has some.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The registry does not have it.
    #[error("failed to resolve reference \"{name}\": {name}: not found")]
    NotFound {
        /// The image.
        name: String,
    },
    /// The registry lets nobody of us in.
    #[error(
        "failed to resolve reference \"{name}\": pull access denied, repository does not exist or may require \
         authorization: {source}"
    )]
    Denied {
        /// The image.
        name: String,
        /// Its answer.
        source: ClientError,
    },
    /// The registry could not be asked.
    #[error("failed to resolve reference \"{name}\": {source}")]
    Resolve {
        /// The image.
        name: String,
        /// Why not.
        source: ClientError,
    },
    /// A layer did not come.
    #[error("failed to copy: {0}")]
    Copy(#[source] ClientError),
    /// A document is not taken.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => error.is_full(),
            Self::Copy(ClientError::Disk { source, .. }) => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}
