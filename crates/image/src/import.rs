//! Images from files: what `docker save` writes, OCI archives, and OCI layout folders.
//!
//! Archives may be compressed. Nothing in them is unpacked but layers: members are read where they lie. Sources: the OCI
//! image layout specification; Docker's image specification 1.2, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use serde::Deserialize;

use crate::digest::{Digest, DigestError, Hashing};
use crate::layer::compression::{Guarded, Plain};
use crate::manifest::{
    Config, Descriptor, Document, Index, MAX_CONFIG, MAX_INDEX_DEPTH, MAX_MANIFEST, Manifest, ManifestError,
    OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform,
};
use crate::reference::{Reference, ReferenceError};
use crate::store::{Image, Staging, Store, StoreError};
use crate::tar::{Archive, Kind, TarError};
use crate::{Limits, Progress, Step};

/// Most members of an archive, and images in it.
const MAX_MEMBERS: usize = 100_000;
/// Most images of an archive.
const MAX_IMAGES: usize = 1_000;
/// Most links from one member to another that are followed.
const MAX_LINKS: usize = 8;
/// The whole name of an image, in an index.
const NAME: &str = "io.containerd.image.name";
/// Its name or tag, in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Imports all images of an archive or a layout folder, or the one that gets `name`.
pub fn import(
    store: &Store,
    path: &Path,
    name: Option<&Reference>,
    limits: Limits,
    progress: Progress<'_>,
) -> Result<Vec<Image>, ImportError> {
    let source = Source::open(store, path, limits)?;
    let importing = Importing { store, source: &source, limits, progress };
    let found = if source.has("index.json") && source.has("oci-layout") {
        importing.layout()?
    } else if source.has("manifest.json") {
        importing.docker()?
    } else {
        return Err(ImportError::Unknown);
    };
    let named = name_them(found, name)?;
    named.iter().map(|(found, names)| importing.take(found, names)).collect()
}

/// An image of the source.
struct Found {
    /// What it is called there.
    names: Vec<Reference>,
    /// What its names led to.
    target: Digest,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// Members with its layers, the lowest first.
    layers: Vec<String>,
}

/// Every image gets its names; one that has none is passed over, unless it is the only one and is given one.
fn name_them(mut found: Vec<Found>, name: Option<&Reference>) -> Result<Vec<(Found, Vec<Reference>)>, ImportError> {
    if let Some(name) = name {
        return match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(vec![(only, vec![name.clone()])]),
            _ => Err(ImportError::Several),
        };
    }
    let named: Vec<_> = found.into_iter().filter(|f| !f.names.is_empty()).collect();
    if named.is_empty() {
        return Err(ImportError::Nameless);
    }
    Ok(named.into_iter().map(|found| (Found { names: Vec::new(), ..found }, found.names)).collect())
}

struct Importing<'a> {
    store: &'a Store,
    source: &'a Source,
    limits: Limits,
    progress: Progress<'a>,
}

/// An entry of Docker's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Importing<'_> {
    fn layout(&self) -> Result<Vec<Found>, ImportError> {
        let text = self.source.read("index.json", MAX_MANIFEST)?;
        let Document::Index(index) = Document::parse(&text)? else { return Err(ImportError::Unknown) };
        let mut found = Vec::new();
        for descriptor in index.manifests.iter().take(MAX_IMAGES) {
            if let Some(name) = name_of(descriptor)? {
                let at = found.iter().position(|f: &Found| f.target == descriptor.digest);
                match at {
                    Some(at) => found[at].names.push(name),
                    None => found.push(self.of_layout(descriptor, vec![name])?),
                }
            }
        }
        if found.is_empty() && !index.manifests.is_empty() {
            found.push(self.of_layout(index.choose(&Platform::here())?, Vec::new())?);
        }
        Ok(found)
    }

    /// Follows a descriptor to the manifest for this machine.
    fn of_layout(&self, descriptor: &Descriptor, names: Vec<Reference>) -> Result<Found, ImportError> {
        let target = descriptor.digest;
        let mut descriptor = descriptor.clone();
        for _ in 0..=MAX_INDEX_DEPTH {
            let text = self.blob(&descriptor, MAX_MANIFEST)?;
            match Document::parse(&text)? {
                Document::Index(index) => descriptor = Index::choose(&index, &Platform::here())?.clone(),
                Document::Manifest(manifest) => {
                    let config = self.blob(&manifest.config, MAX_CONFIG)?;
                    let layers = manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
                    return Ok(Found { names, target, manifest: text, config, layers });
                }
            }
        }
        Err(ImportError::Unknown)
    }

    fn blob(&self, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>, ImportError> {
        let bytes = self.source.read(&blob_path(&descriptor.digest), max)?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(ImportError::Store(StoreError::Digest { wanted: descriptor.digest, found }));
        }
        Ok(bytes)
    }

    /// Docker's archives have no manifest in the sense of a registry: one is made, always the same for the same image.
    fn docker(&self) -> Result<Vec<Found>, ImportError> {
        let text = self.source.read("manifest.json", MAX_MANIFEST)?;
        let images: Vec<DockerImage> = serde_json::from_slice(&text).map_err(ManifestError::Json)?;
        images.into_iter().take(MAX_IMAGES).map(|image| self.of_docker(image)).collect()
    }

    fn of_docker(&self, image: DockerImage) -> Result<Found, ImportError> {
        let config = self.source.read(&image.config, MAX_CONFIG)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let mut hashing = Hashing::new(self.source.member(layer)?.1);
            io::copy(&mut hashing, &mut io::sink())?;
            let (digest, size) = hashing.finish();
            layers.push(Descriptor { digest, size, ..Descriptor::of(OCI_LAYER, &[]) });
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::of(OCI_CONFIG, &config),
            layers,
        };
        let manifest = serde_json::to_vec(&manifest).expect("plain data always becomes JSON");
        let names = image.repo_tags.unwrap_or_default();
        let names = names.iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
        Ok(Found { names, target: Digest::of(&manifest), manifest, config, layers: image.layers })
    }

    /// Unpacks the layers that are missing, and lists the image.
    fn take(&self, found: &Found, names: &[Reference]) -> Result<Image, ImportError> {
        let config = Config::parse(&found.config)?;
        config.check(found.layers.len(), &Platform::here())?;
        let chain = config.chain();
        for (at, (diff_id, member)) in config.rootfs.diff_ids.iter().zip(&found.layers).enumerate() {
            if self.store.has_layer(&chain[at]) {
                (self.progress)(&Step::Present(*diff_id));
                continue;
            }
            (self.progress)(&Step::Unpacking(*diff_id));
            let (size, reader) = self.source.member(member)?;
            self.store.unpack(&chain[..at], diff_id, reader, size, self.limits)?;
            (self.progress)(&Step::Unpacked(*diff_id));
        }
        Ok(self.store.add(names, found.target, &found.manifest, &found.config)?)
    }
}

/// What an index calls an image. A bare tag, which the specification permits, names none.
fn name_of(descriptor: &Descriptor) -> Result<Option<Reference>, ImportError> {
    if let Some(name) = descriptor.annotations.get(NAME) {
        return parse(name).map(Some);
    }
    match descriptor.annotations.get(REF_NAME) {
        Some(name) if name.contains(['/', ':']) => parse(name).map(Some),
        _ => Ok(None),
    }
}

fn parse(name: &str) -> Result<Reference, ImportError> {
    Reference::parse(name).map_err(|source| ImportError::Name { name: name.to_owned(), source })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Where members are read from.
enum Source {
    Folder(OwnedFd),
    Archive {
        file: Arc<File>,
        /// Where each member begins and how long it is.
        members: HashMap<PathBuf, (u64, u64)>,
        links: HashMap<PathBuf, PathBuf>,
        /// Holds the file where it had to be uncompressed.
        _scratch: Option<Staging>,
    },
}

impl Source {
    fn open(store: &Store, path: &Path, limits: Limits) -> Result<Self, ImportError> {
        let unreadable = |source| ImportError::Open { path: path.to_owned(), source };
        let meta = fs::metadata(path).map_err(unreadable)?;
        if meta.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            return Ok(Self::Folder(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| unreadable(e.into()))?));
        }
        let file = File::open(path).map_err(unreadable)?;
        let (file, scratch) = match Plain::new(&file).map_err(unreadable)? {
            Plain::Stored(_) if meta.is_file() => (file, None),
            // Members are read more than once, so it has to be a file.
            plain => {
                let scratch = store.scratch()?;
                let spool = scratch.path.join("archive");
                let mut copy = File::options().read(true).write(true).create_new(true).open(&spool)?;
                io::copy(&mut Guarded::new(plain, limits, meta.len().max(1)), &mut copy).map_err(unreadable)?;
                (copy, Some(scratch))
            }
        };
        let file = Arc::new(file);
        let whole = Slice { file: file.clone(), at: 0, left: u64::MAX };
        let mut archive = Archive::new(BufReader::with_capacity(256 << 10, whole));
        let (mut members, mut links) = (HashMap::new(), HashMap::new());
        while let Some(entry) = archive.next_entry()? {
            if members.len() + links.len() >= MAX_MEMBERS {
                return Err(ImportError::Members);
            }
            let path = plain_path(&entry.path);
            match &entry.kind {
                Kind::File => _ = members.insert(path, (archive.position(), entry.size)),
                Kind::HardLink(target) => _ = links.insert(path, plain_path(target)),
                // Older versions of Docker write layers that are there twice so.
                Kind::Symlink(target) => {
                    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
                    links.insert(path, resolve(&folder, &plain_path(target)));
                }
                _ => {}
            }
        }
        Ok(Self::Archive { file, members, links, _scratch: scratch })
    }

    fn has(&self, name: &str) -> bool {
        self.member(name).is_ok()
    }

    /// A member's length and content.
    fn member(&self, name: &str) -> Result<(u64, Box<dyn Read>), ImportError> {
        let missing = || ImportError::Missing(name.to_owned());
        match self {
            Self::Folder(folder) => {
                let look = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = openat2(folder, name, flags, Mode::empty(), look).map_err(|_| missing())?;
                let stat = fstat(&file).map_err(io::Error::from)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(missing());
                }
                Ok((u64::try_from(stat.st_size).unwrap_or(0), Box::new(File::from(file))))
            }
            Self::Archive { file, members, links, .. } => {
                let mut path = plain_path(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    if let Some((at, left)) = members.get(&path) {
                        return Ok((*left, Box::new(Slice { file: file.clone(), at: *at, left: *left })));
                    }
                    path = links.get(&path).ok_or_else(missing)?.clone();
                }
                Err(missing())
            }
        }
    }

    fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, ImportError> {
        let (size, reader) = self.member(name)?;
        if size > max {
            return Err(ImportError::Manifest(ManifestError::TooLarge));
        }
        let mut bytes = Vec::new();
        reader.take(max).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// A name of an archive without dots and slashes in front; only a key, never opened.
fn plain_path(name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    path.components().filter(|c| !matches!(c, std::path::Component::CurDir | std::path::Component::RootDir)).collect()
}

/// Where a link in a folder leads, by its text alone.
fn resolve(folder: &Path, target: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for component in target.components() {
        match component {
            std::path::Component::ParentDir => _ = path.pop(),
            other => path.push(other),
        }
    }
    path
}

/// A part of a file.
struct Slice {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// An import that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither what `docker save` writes nor an OCI layout.
    #[error(
        "it holds no images: neither an OCI layout (oci-layout, index.json) nor what `docker save` writes (manifest.json)"
    )]
    Unknown,
    /// A part of it is not there.
    #[error("{0} is missing in it")]
    Missing(String),
    /// More members than any real archive has.
    #[error("it has more than {MAX_MEMBERS} members")]
    Members,
    /// An image is called something that is no name.
    #[error("couldn't parse image name {name:?}: {source}")]
    Name {
        /// What it is called.
        name: String,
        /// What is wrong with that.
        source: ReferenceError,
    },
    /// Nothing in it has a name.
    #[error("the image in it has no name; give it one with --name")]
    Nameless,
    /// A name was given, and there are several images to give it to.
    #[error("--name is for an archive with one image")]
    Several,
    /// It cannot be read to its end.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no archive, or one that is not taken.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// A digest is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A document is not taken.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
