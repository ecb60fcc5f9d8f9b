//! Images on this machine's disk, shared by the agent and by commands that run beside it.
//!
//! ```text
//!   images/index.json        which images there are; replaced whole, under the lock
//!   images/blobs/HEX         their manifests and configurations
//!   images/layers/HEX/fs     a layer, unpacked upon those below it; HEX is the digest of the whole stack (ChainID)
//!   images/downloads/HEX     what has arrived of a compressed layer: taken up where it was cut off
//!   images/staging/NONCE     a layer that is being unpacked; its maker holds NONCE.lock
//!   images/trash/NONCE       what is being removed
//! ```
//!
//! Nobody owns the folder: every process takes the lock (`flock` on `.lock`) for the moment of a change. A layer is
//! unpacked in `staging`, written out to the disk, and renamed to its name, so that what has a name is whole whenever
//! the machine stops; an image is listed after its layers are there. Whoever removes looks, under the lock, at what is
//! in use; whoever begins to use an image notes the use first and then looks, under the lock, whether it is still
//! there. So one of the two always sees the other.

mod error;
pub mod file;
pub mod gc;
mod staging;

pub use error::StoreError;
pub use staging::Staging;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hashing};
use crate::layer::apply::ApplyError;
use crate::layer::compression::{Guarded, Plain};
use crate::layer::{Limits, apply};
use crate::manifest::{Config, Document, Manifest, ManifestError, Platform};
use crate::overlay::Stack;
use crate::reference::Reference;
use staging::{discard, lock_path};

/// The list's format.
const INDEX: file::Format = file::Format { magic: "statefuld-images", version: 1 };
/// The format of the note beside a layer.
const LAYER: file::Format = file::Format { magic: "statefuld-layer", version: 1 };
/// A layer that no image lists may belong to a pull that is under way: it is removed only when it is older.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);
/// What has arrived of a layer is kept this long for its download to be taken up.
const DOWNLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// The images of one data directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    ambient: Ambient,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Digest of its manifest, by which it is known here.
    pub id: Digest,
    /// What it is called: `registry/repository:tag` and `registry/repository@digest`.
    pub names: BTreeSet<String>,
    /// Digest of its configuration.
    pub config: Digest,
    /// Its stacks of layers (ChainIDs), the lowest first.
    pub layers: Vec<Digest>,
    /// Bytes as they are fetched, compressed.
    pub size: u64,
    /// When it came.
    pub created: Timestamp,
    /// When it was last asked for.
    pub used: Timestamp,
}

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    images: BTreeMap<Digest, Image>,
}

/// What is noted beside a layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerNote {
    /// Digest of the layer alone, uncompressed.
    diff_id: Digest,
    /// Bytes of its files.
    bytes: u64,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Images, by their names or identity.
    pub images: Vec<String>,
    /// Bytes of the files of layers that went with them.
    pub bytes: u64,
}

impl Store {
    /// Opens the folder, which is made where missing, for its owner alone: layers hold programs that change their user.
    pub fn open(dir: &Path, ambient: Ambient) -> Result<Self, StoreError> {
        let store = Self { dir: dir.to_owned(), ambient };
        for name in ["", "blobs", "layers", "downloads", "staging", "trash"] {
            let path = if name.is_empty() { dir.to_owned() } else { dir.join(name) };
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(StoreError::io("make", &path))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(StoreError::io("protect", dir))?;
        Ok(store)
    }

    /// Removes what processes left that ended in the middle of something.
    pub fn clear_leftovers(&self) -> Result<(), StoreError> {
        for name in ["staging", "trash"] {
            let dir = self.dir.join(name);
            for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))?.flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "lock") {
                    continue;
                }
                let mark = lock_path(&path);
                let Ok(lock) = fs::OpenOptions::new().create(true).append(true).open(&mark) else { continue };
                if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    discard(&path);
                    let _ = fs::remove_file(&mark);
                }
            }
        }
        let downloads = self.dir.join("downloads");
        for entry in fs::read_dir(&downloads).map_err(StoreError::io("read", &downloads))?.flatten() {
            if self.is_older(&entry.path(), DOWNLOAD_AGE) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// All images, by their first names.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let mut images: Vec<Image> = self.shared(|index| index.images.values().cloned().collect())?;
        images.sort_by(|a, b| a.names.first().cmp(&b.names.first()).then(a.id.cmp(&b.id)));
        Ok(images)
    }

    /// The image of that name, whole. A digest may be that of a manifest or of an index that led to it.
    pub fn find(&self, name: &Reference) -> Result<Option<Image>, StoreError> {
        let wanted = match name.digest() {
            Some(digest) => name.by_digest(*digest).to_string(),
            None => name.to_string(),
        };
        let image = self.shared(|index| index.images.values().find(|i| i.names.contains(&wanted)).cloned())?;
        Ok(image.filter(|image| self.is_whole(image)))
    }

    /// Whether an image is still listed and all of its layers are there.
    pub fn is_there(&self, id: &Digest) -> Result<bool, StoreError> {
        self.shared(|index| index.images.get(id).is_some_and(|image| self.is_whole(image)))
    }

    /// Notes that an image was asked for.
    pub fn touch(&self, id: &Digest) -> Result<(), StoreError> {
        let now = self.ambient.now();
        self.change(|index| {
            // Not for every start of a pod: the list is written out to the disk each time.
            if let Some(image) = index.images.get_mut(id)
                && now.duration_since(image.used) >= jiff::SignedDuration::from_secs(60)
            {
                image.used = now;
            }
        })
    }

    /// Whether that stack of layers is there.
    pub fn has_layer(&self, chain: &Digest) -> bool {
        self.layer_folder(chain).is_dir()
    }

    /// Where the top layer of a stack lies.
    pub fn layer_folder(&self, chain: &Digest) -> PathBuf {
        self.dir.join("layers").join(chain.hex()).join("fs")
    }

    /// Where what arrives of a compressed layer is put.
    pub fn download(&self, digest: &Digest) -> PathBuf {
        self.dir.join("downloads").join(digest.hex())
    }

    /// The folder of the store, on whose file system everything lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration of an image that is there.
    pub fn config(&self, image: &Image) -> Result<Config, StoreError> {
        Ok(Config::parse(&self.blob(&image.config)?)?)
    }

    /// Unpacks a layer, `compressed` bytes long, upon those below it (the lowest first). Nothing happens where it is there.
    pub fn unpack(
        &self,
        below: &[Digest],
        diff_id: &Digest,
        layer: impl Read,
        compressed: u64,
        limits: Limits,
    ) -> Result<(), StoreError> {
        let chain = Digest::chain(below.last(), diff_id);
        if self.has_layer(&chain) {
            return Ok(());
        }
        let staging = self.staging()?;
        let fs_dir = staging.path.join("fs");
        fs::DirBuilder::new().mode(0o755).create(&fs_dir).map_err(StoreError::io("make", &fs_dir))?;
        let root = self.unpacking_root(below, &fs_dir, &staging.path.join("work"))?;
        let plain = Plain::new(layer).map_err(|e| StoreError::Layer(ApplyError::Archive(e.into())))?;
        let mut hashing = Hashing::new(Guarded::new(plain, limits, compressed));
        let bytes = apply(root.as_fd(), &mut hashing, &limits)?;
        let (found, _) = hashing.finish();
        if found != *diff_id {
            return Err(StoreError::Digest { wanted: *diff_id, found });
        }
        // Unmounts what was only for unpacking.
        drop(root);
        let folder = open_folder(&fs_dir)?;
        rustix::fs::syncfs(&folder).map_err(|e| StoreError::io("write out", &fs_dir)(e.into()))?;
        let _ = fs::remove_dir_all(staging.path.join("work"));
        file::write(&staging.path.join("layer.json"), LAYER, &LayerNote { diff_id: *diff_id, bytes })?;
        let layers = self.dir.join("layers");
        match fs::rename(&staging.path, layers.join(chain.hex())) {
            // Somebody else was faster; theirs is the same.
            Err(_) if self.has_layer(&chain) => Ok(()),
            result => {
                result.and_then(|()| fs::File::open(&layers)?.sync_all()).map_err(StoreError::io("write", &layers))
            }
        }
    }

    /// Lists an image whose layers are all there, under these names, which other images lose. The digest is what the
    /// names led to: the manifest's own or that of an index. [`StoreError::Gone`] where a layer was removed meanwhile.
    pub fn add(
        &self,
        names: &[Reference],
        target: Digest,
        manifest: &[u8],
        config: &[u8],
    ) -> Result<Image, StoreError> {
        let Document::Manifest(parsed) = Document::parse(manifest)? else {
            return Err(ManifestError::Ambiguous.into());
        };
        let settings = Config::parse(config)?;
        settings.check(parsed.layers.len(), &Platform::here())?;
        let layers = settings.chain();
        let id = Digest::of(manifest);
        let now = self.ambient.now();
        self.put_blob(&id, manifest)?;
        self.put_blob(&Digest::of(config), config)?;
        let change = |index: &mut Index| {
            if let Some(gone) = layers.iter().find(|chain| !self.has_layer(chain)) {
                return Err(StoreError::Gone(*gone));
            }
            Ok(index.insert(names, target, &parsed, id, layers.clone(), now))
        };
        self.change(change)?
    }

    /// Takes a name from its image, and removes the image with its last tag, or at once where it is named by digest;
    /// unless it is in use. None where nothing is called so.
    pub fn remove(
        &self,
        name: &Reference,
        in_use: impl FnOnce() -> Result<BTreeSet<Digest>, StoreError>,
    ) -> Result<Option<Removed>, StoreError> {
        let wanted = name.digest().map_or_else(|| name.to_string(), |digest| name.by_digest(*digest).to_string());
        self.change_and_clear(|index| {
            let Some(image) = index.images.values_mut().find(|i| i.names.contains(&wanted)) else { return Ok(None) };
            let tags = image.names.iter().filter(|n| !n.contains('@')).count();
            if !wanted.contains('@') && tags > 1 {
                image.names.remove(&wanted);
                return Ok(Some((vec![wanted], Vec::new())));
            }
            let id = image.id;
            if in_use()?.contains(&id) {
                return Err(StoreError::InUse(name.to_string()));
            }
            Ok(Some((vec![wanted], index.images.remove(&id).into_iter().collect())))
        })
    }

    /// Removes the images that `choose` names, from all and from those that are in use; and whatever no image lists and no
    /// pull can be about to list.
    pub fn prune(
        &self,
        in_use: impl FnOnce() -> Result<BTreeSet<Digest>, StoreError>,
        choose: impl FnOnce(&[Image], &BTreeSet<Digest>) -> Vec<Digest>,
    ) -> Result<Removed, StoreError> {
        let removed = self.change_and_clear(|index| {
            let used = in_use()?;
            let all: Vec<Image> = index.images.values().cloned().collect();
            let chosen: Vec<Image> = choose(&all, &used)
                .iter()
                .filter(|id| !used.contains(id))
                .filter_map(|id| index.images.remove(id))
                .collect();
            let called = |image: &Image| image.names.first().cloned().unwrap_or_else(|| image.id.to_string());
            Ok(Some((chosen.iter().map(called).collect(), chosen)))
        })?;
        let mut removed = removed.unwrap_or_default();
        removed.bytes += self.clear_orphans()?;
        Ok(removed)
    }

    /// Bytes of the files of a layer.
    pub fn layer_bytes(&self, chain: &Digest) -> u64 {
        let note = self.dir.join("layers").join(chain.hex()).join("layer.json");
        file::read::<LayerNote>(&note, LAYER).map_or(0, |note| note.bytes)
    }

    /// Changes the list, then removes the layers and blobs that only the images taken out had.
    fn change_and_clear(
        &self,
        change: impl FnOnce(&mut Index) -> Result<Option<(Vec<String>, Vec<Image>)>, StoreError>,
    ) -> Result<Option<Removed>, StoreError> {
        let (removed, trash) = self.change(|index| {
            let Some((names, images)) = change(index)? else { return Ok((None, Vec::new())) };
            let kept = index.kept();
            let gone: BTreeSet<Digest> = images.iter().flat_map(Image::parts).filter(|d| !kept.contains(d)).collect();
            let bytes = gone.iter().map(|digest| self.layer_bytes(digest)).sum();
            Ok::<_, StoreError>((Some(Removed { images: names, bytes }), gone.into_iter().collect::<Vec<_>>()))
        })??;
        // The list no longer names them; what a crash leaves here is an orphan. A pull that lists one of them again
        // meanwhile is protected: it is looked for once more under the lock.
        self.throw_away(&trash)?;
        Ok(removed)
    }

    /// Moves layers and blobs out of the way under the lock, as long as no image lists them, and removes them.
    fn throw_away(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let mut held = Vec::new();
        self.shared_exclusively(|index| {
            let kept = index.kept();
            for digest in digests.iter().filter(|d| !kept.contains(d)) {
                let _ = fs::remove_file(self.dir.join("blobs").join(digest.hex()));
                let layer = self.dir.join("layers").join(digest.hex());
                if layer.exists() {
                    let place = Staging::new(self.dir.join("trash"), &self.ambient)?;
                    fs::rename(&layer, place.path.join("layer")).map_err(StoreError::io("move", &layer))?;
                    held.push(place);
                }
            }
            Ok(())
        })?;
        // Dropping them removes them, without the lock: that takes a while.
        drop(held);
        Ok(())
    }

    /// Layers and blobs that no image lists and that are old.
    fn clear_orphans(&self) -> Result<u64, StoreError> {
        let kept = self.shared(Index::kept)?;
        let mut orphans = Vec::new();
        for name in ["layers", "blobs"] {
            let dir = self.dir.join(name);
            for entry in fs::read_dir(&dir).map_err(StoreError::io("read", &dir))?.flatten() {
                let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
                if let Some(digest) = digest
                    && !kept.contains(&digest)
                    && self.is_older(&entry.path(), ORPHAN_AGE)
                {
                    orphans.push(digest);
                }
            }
        }
        let bytes = orphans.iter().map(|digest| self.layer_bytes(digest)).sum();
        self.throw_away(&orphans)?;
        Ok(bytes)
    }

    /// What a layer is unpacked into: the folder itself, or an overlay of it over the layers below.
    fn unpacking_root(&self, below: &[Digest], upper: &Path, work: &Path) -> Result<OwnedFd, StoreError> {
        let Some(top) = below.last() else { return open_folder(upper) };
        let lower: Vec<PathBuf> = below.iter().map(|chain| self.layer_folder(chain)).collect();
        let of_root = fs::metadata(self.layer_folder(top)).map_err(StoreError::io("look at", upper))?;
        // The upper's own owner and mode are those of the root.
        std::os::unix::fs::chown(upper, Some(of_root.uid()), Some(of_root.gid()))
            .and_then(|()| fs::set_permissions(upper, of_root.permissions()))
            .and_then(|()| fs::create_dir(work))
            .map_err(StoreError::io("prepare", upper))?;
        Stack { lower: &lower, upper: Some((upper, work)) }
            .mount(MountAttrFlags::MOUNT_ATTR_NODEV)
            .map_err(StoreError::io("overlay", upper))
    }

    fn staging(&self) -> Result<Staging, StoreError> {
        Staging::new(self.dir.join("staging"), &self.ambient)
    }

    /// A folder of one's own in the store, removed in the end.
    pub fn scratch(&self) -> Result<Staging, StoreError> {
        self.staging()
    }

    fn is_whole(&self, image: &Image) -> bool {
        image.layers.iter().all(|chain| self.has_layer(chain))
            && self.dir.join("blobs").join(image.config.hex()).exists()
    }

    fn is_older(&self, path: &Path, age: Duration) -> bool {
        let Ok(changed) = fs::metadata(path).and_then(|m| m.modified()) else { return false };
        let Ok(changed) = Timestamp::try_from(changed) else { return false };
        self.ambient.now().duration_since(changed).unsigned_abs() > age && self.ambient.now() > changed
    }

    fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.dir.join("blobs").join(digest.hex());
        file::write_durably(&path, bytes, &self.ambient).map_err(StoreError::io("write", &path))
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.dir.join("blobs").join(digest.hex());
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let found = Digest::of(&bytes);
        if found == *digest { Ok(bytes) } else { Err(StoreError::Digest { wanted: *digest, found }) }
    }

    fn shared<T>(&self, look: impl FnOnce(&Index) -> T) -> Result<T, StoreError> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        Ok(look(&self.read()?))
    }

    fn shared_exclusively<T>(&self, look: impl FnOnce(&Index) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        look(&self.read()?)
    }

    /// Changes the list; it is written only where something changed.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, StoreError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let before = self.read()?;
        let mut index = before.clone();
        let result = change(&mut index);
        if index != before {
            file::write(&self.dir.join("index.json"), INDEX, &index)?;
        }
        Ok(result)
    }

    fn read(&self) -> Result<Index, StoreError> {
        let path = self.dir.join("index.json");
        match file::read(&path, INDEX) {
            Err(file::FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
            result => Ok(result?),
        }
    }

    fn lock(&self, how: FlockOperation) -> Result<fs::File, StoreError> {
        let path = self.dir.join(".lock");
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        let file = open.map_err(StoreError::io("open", &path))?;
        flock(&file, how).map_err(|e| StoreError::io("lock", &path)(e.into()))?;
        Ok(file)
    }
}

impl Index {
    fn insert(
        &mut self,
        names: &[Reference],
        target: Digest,
        manifest: &Manifest,
        id: Digest,
        layers: Vec<Digest>,
        now: Timestamp,
    ) -> Image {
        let mut called: BTreeSet<String> = BTreeSet::new();
        for name in names {
            called.insert(name.by_digest(target).to_string());
            if name.digest().is_none() {
                called.insert(name.to_string());
            }
        }
        for other in self.images.values_mut().filter(|i| i.id != id) {
            other.names.retain(|name| !called.contains(name));
        }
        let (config, size) = (manifest.config.digest, manifest.size());
        let fresh = Image { id, names: BTreeSet::new(), config, layers, size, created: now, used: now };
        let image = self.images.entry(id).or_insert(fresh);
        image.names.append(&mut called);
        image.used = now;
        image.clone()
    }

    /// Everything that some image is made of.
    fn kept(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(Image::parts).collect()
    }
}

impl Image {
    /// What it is made of: layers and blobs.
    fn parts(&self) -> impl Iterator<Item = Digest> {
        self.layers.iter().copied().chain([self.id, self.config])
    }

    /// Its name by digest in that repository, as statuses show it; some other one where there is none.
    pub fn by_digest(&self, name: &Reference) -> String {
        let prefix = format!("{}@", name.repository());
        let own = self.names.iter().find(|n| n.starts_with(&prefix));
        let any = self.names.iter().find(|n| n.contains('@'));
        own.or(any).cloned().unwrap_or_else(|| self.id.to_string())
    }

    /// Its first tag.
    pub fn tag(&self) -> Option<&str> {
        self.names.iter().find(|n| !n.contains('@')).map(String::as_str)
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| StoreError::io("open", path)(e.into()))
}
