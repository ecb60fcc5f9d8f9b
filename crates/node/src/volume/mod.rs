//! A pod's volumes: from what its manifest names to paths on the machine that a container can be given.
//!
//! | kind | where it is | lives as long as |
//! |---|---|---|
//! | persistentVolumeClaim | [`local`] folder, or the volume's host path | its claim |
//! | emptyDir | the pod's folder, or a memory file system there | the pod |
//! | configMap, secret, downwardAPI, projected | [`payload`] files in the pod's folder | the pod |
//! | image | its layers, stacked in the pod's folder | the pod |
//! | hostPath | as said | – |

pub mod local;
mod owner;
pub mod payload;
pub(crate) mod sole;
mod subpath;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use image::overlay::Stack;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolumeClaimVolumeSource, Pod, Volume,
};

use crate::agent::quantity;
use crate::agent::sources::{Fetched, ephemeral_claim};
use crate::agent::translate::own_users;
use crate::fault::{self, Point};
use crate::shim::spec::{Mount, Propagation, SPEC_FILE, Source};
pub use local::LocalVolumes;
use owner::own;
use rustix::mount::{MountAttrFlags, MountFlags};

/// Size of a pod's shared memory, bytes. Upstream's.
const SHARED_MEMORY: u64 = 64 << 20;

/// Where a pod's volumes are made.
#[derive(Clone, Debug)]
pub struct Place {
    /// The pod's folder.
    pub pod_dir: PathBuf,
    /// The node's claims.
    pub local: LocalVolumes,
    /// The epoch of the pod's binding.
    pub epoch: u64,
    /// Tells this preparation from the last.
    pub nonce: String,
    /// Layers of the images that are volumes, the lowest first, by the volumes' names.
    pub images: BTreeMap<String, Vec<PathBuf>>,
}

/// A volume that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// On the machine.
    pub path: PathBuf,
    /// Writes are refused whatever the mount says.
    pub read_only: bool,
    /// An image's layers, the lowest first, that are only stacked where they are mounted: for users of the pod's own.
    pub layers: Vec<PathBuf>,
}

impl Place {
    /// Makes every volume of the pod. May be called again for the same pod; what is there is kept. Blocks.
    pub fn prepare(&self, pod: &Pod, fetched: &Fetched) -> Result<BTreeMap<String, Ready>, Failed> {
        let mut ready = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let failed = |error| Failed { volume: volume.name.clone(), error };
            ready.insert(volume.name.clone(), self.prepare_one(pod, volume, fetched).map_err(failed)?);
        }
        Ok(ready)
    }

    /// Writes the files of these volumes anew, each volume's all in one step. One that fails does not keep the others from
    /// it; the first failure is answered. Blocks.
    pub fn renew(&self, pod: &Pod, names: &BTreeSet<String>, fetched: &Fetched) -> Result<(), Failed> {
        let mut first = Ok(());
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).filter(|v| names.contains(&v.name)) {
            let failed = |error| Failed { volume: volume.name.clone(), error };
            first = first.and(self.prepare_one(pod, volume, fetched).map(drop).map_err(failed));
        }
        first
    }

    fn prepare_one(&self, pod: &Pod, volume: &Volume, fetched: &Fetched) -> Result<Ready, Error> {
        let group = fs_group(pod);
        let folder = empty_dir(&self.pod_dir, &volume.name);
        if let Some(files) = payload::files(pod, volume, fetched) {
            let files = files.map_err(Error::Payload)?;
            payload::write(&folder, &files, &self.nonce, group).map_err(|e| Error::io("write", &folder, e))?;
            return Ok(Ready { path: folder, read_only: true, layers: Vec::new() });
        }
        if let Some(source) = &volume.empty_dir {
            make_empty_dir(&folder, source)?;
            own(&folder, group, true).map_err(|e| Error::io("change the group of", &folder, e))?;
            return Ok(Ready { path: folder, read_only: false, layers: Vec::new() });
        }
        if volume.image.is_some() {
            let layers = self.images.get(&volume.name).map(Vec::as_slice).unwrap_or_default();
            let empty = self.pod_dir.join("empty");
            if pod.spec.as_ref().is_some_and(own_users) {
                fs::create_dir_all(&empty).map_err(|e| Error::io("make", &empty, e))?;
                let layers = std::iter::once(empty).chain(layers.iter().cloned()).collect();
                return Ok(Ready { path: folder, read_only: true, layers });
            }
            mount_image(&folder, layers, &empty)?;
            return Ok(Ready { path: folder, read_only: true, layers: Vec::new() });
        }
        if let Some(source) = &volume.host_path {
            check_host_path(source)?;
            return Ok(Ready { path: PathBuf::from(&source.path), read_only: false, layers: Vec::new() });
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.attach_claim(pod, source, fetched, group);
        }
        if volume.ephemeral.is_some() {
            let claim_name = ephemeral_claim(pod, volume);
            refuse_foreign(pod, &claim_name, fetched)?;
            let source = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
            return self.attach_claim(pod, &source, fetched, group);
        }
        Err(Error::Unsupported(kind_of(volume)))
    }

    fn attach_claim(
        &self,
        pod: &Pod,
        source: &PersistentVolumeClaimVolumeSource,
        fetched: &Fetched,
        group: Option<u32>,
    ) -> Result<Ready, Error> {
        let name = &source.claim_name;
        let Some((claim, volume)) = fetched.claims.get(name) else {
            return Err(Error::Payload(format!("persistentvolumeclaim \"{name}\" not found")));
        };
        let Some(volume) = volume else {
            return Err(Error::Payload(format!("claim \"{name}\" is not bound to a volume yet")));
        };
        let spec = volume.spec.clone().unwrap_or_default();
        let holder = spec.claim_ref.as_ref().and_then(|c| c.uid.clone());
        if holder.is_some() && holder != claim.metadata.uid {
            let volume = volume.metadata.name.clone().unwrap_or_default();
            return Err(Error::Payload(format!("volume \"{volume}\" belongs to another claim than \"{name}\"")));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if claim.metadata.deletion_timestamp.is_some() {
            // A pod that has it keeps it, as after a restart of its machine; no other may start on data that is to go.
            let has_it = match &spec.local {
                Some(local) => self.local.is_attached_to(Path::new(&local.path), uid)?,
                None => self.pod_dir.join(SPEC_FILE).exists(),
            };
            if !has_it {
                return Err(Error::Payload(format!("persistentvolumeclaim \"{name}\" is being deleted")));
            }
        }
        let modes = spec.access_modes.clone().unwrap_or_default();
        if modes.iter().any(|mode| mode == "ReadWriteOncePod") {
            sole::take(&self.pod_dir, claim.metadata.uid.as_deref().unwrap_or(name))?;
        }
        let only_reading = !modes.is_empty() && modes.iter().all(|m| m == "ReadOnlyMany");
        let read_only = source.read_only == Some(true) || only_reading;
        if let Some(local) = &spec.local {
            let path = self.local.attach(Path::new(&local.path), self.epoch, uid)?;
            let always = change_policy(pod) != Some("OnRootMismatch");
            if always || !has_group(&path, group) {
                own(&path, group, true).map_err(|e| Error::io("change the group of", &path, e))?;
            }
            return Ok(Ready { path, read_only, layers: Vec::new() });
        }
        if let Some(host) = &spec.host_path {
            check_host_path(host)?;
            return Ok(Ready { path: PathBuf::from(&host.path), read_only, layers: Vec::new() });
        }
        Err(Error::Unsupported("a persistent volume that is neither local nor hostPath"))
    }
}

/// A claim that was not made for this pod is not its ephemeral volume. Sentences are upstream's.
fn refuse_foreign(pod: &Pod, claim: &str, fetched: &Fetched) -> Result<(), Error> {
    let Some((found, _)) = fetched.claims.get(claim) else { return Ok(()) };
    let mut owners = found.metadata.owner_references.iter().flatten().filter(|o| o.controller == Some(true));
    if owners.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
        return Ok(());
    }
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    Err(Error::Payload(format!(
        "PVC {namespace}/{claim} was not created for pod {namespace}/{name} (pod is not owner)"
    )))
}

/// Where the pod's own volume of that name is.
pub(crate) fn empty_dir(pod_dir: &Path, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(volume)
}

/// The mounts of one container. `expand` resolves `subPathExpr`.
pub fn mounts(
    container: &Container,
    ready: &BTreeMap<String, Ready>,
    expand: impl Fn(&str) -> String,
) -> Result<Vec<Mount>, Error> {
    let privileged = container.security_context.as_ref().is_some_and(|s| s.privileged == Some(true));
    let mut mounts = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        if wanted.bind_mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(Error::Unsupported("volumeMounts.bindMountOptions"));
        }
        let Some(volume) = ready.get(&wanted.name) else {
            return Err(Error::Payload(format!("cannot find volume \"{}\" to mount", wanted.name)));
        };
        let sub = match (&wanted.sub_path_expr, &wanted.sub_path) {
            (Some(expr), _) if !expr.is_empty() => Some(expand(expr)),
            (_, Some(path)) if !path.is_empty() => Some(path.clone()),
            _ => None,
        };
        let source = match volume.layers.is_empty() {
            true => {
                let sub = sub.map(|sub| subpath::make(&volume.path, &sub)).transpose()?;
                Source::Bind { path: volume.path.clone(), sub }
            }
            false => {
                let sub = sub.map(|sub| subpath::plain(&sub)).transpose()?;
                Source::Layers { layers: volume.layers.clone(), sub }
            }
        };
        mounts.push(Mount {
            target: PathBuf::from(&wanted.mount_path),
            read_only: volume.read_only || wanted.read_only == Some(true),
            recursive_read_only: matches!(wanted.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            propagation: propagation(wanted.mount_propagation.as_deref(), privileged)?,
            source,
        });
    }
    // Outer before inner, whatever the manifest's order: else the outer would hide the inner.
    mounts.sort_by_key(|m| m.target.components().count());
    Ok(mounts)
}

/// Upstream lets privileged containers alone pass their mounts on to the machine.
fn propagation(wanted: Option<&str>, privileged: bool) -> Result<Propagation, Error> {
    match wanted {
        None | Some("None") => Ok(Propagation::None),
        Some("HostToContainer") => Ok(Propagation::HostToContainer),
        Some("Bidirectional") if privileged => Ok(Propagation::Bidirectional),
        Some("Bidirectional") => Err(Error::Payload(
            "mountPropagation: Bidirectional mount propagation is available only to privileged containers".to_owned(),
        )),
        Some(other) => Err(Error::Payload(format!("mountPropagation: there is no {other:?}"))),
    }
}

/// Unmounts what was mounted below the pod's folder: its volumes in memory, whose content is gone then. Blocks.
pub fn unmount_pod_dir(pod_dir: &Path) -> Result<(), Error> {
    use rustix::mount::{UnmountFlags, unmount};
    for point in mounts_below(pod_dir)? {
        // Nothing of the pod runs any more: whoever is still in there only counts what is used, and lets go.
        let busy = |error| match error {
            rustix::io::Errno::BUSY => unmount(&point, UnmountFlags::DETACH),
            other => Err(other),
        };
        match unmount(&point, UnmountFlags::empty()).or_else(busy) {
            // Not mounted any more: a pod that leaves is cleared away while the node is stopped.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(Error::io("unmount", &point, error.into())),
        }
    }
    Ok(())
}

/// [`unmount_pod_dir`], and removes the folder. Blocks; calling it twice is fine.
pub fn remove_pod_dir(pod_dir: &Path) -> Result<(), Error> {
    unmount_pod_dir(pod_dir)?;
    fault::point(Point::MountsGone);
    match fs::remove_dir_all(pod_dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", pod_dir, e)),
    }
}

/// Mount points at and below a folder, innermost first.
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let table = Path::new("/proc/self/mountinfo");
    let bytes = fs::read(table).map_err(|e| Error::io("read", table, e))?;
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let points = lines.filter_map(|line| line.split(|b| *b == b' ').nth(4)).map(unescape);
    let mut points: Vec<PathBuf> = points.filter(|p| p.starts_with(folder)).collect();
    points.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    Ok(points)
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        let code = digits.and_then(|d| d.iter().try_fold(0u8, |n, b| n.checked_mul(8)?.checked_add(b - b'0')));
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(std::ffi::OsString::from_vec(plain))
}

/// The field of a volume that this version does not carry out.
fn kind_of(volume: &Volume) -> &'static str {
    let kinds = [
        (volume.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (volume.azure_disk.is_some(), "azureDisk"),
        (volume.azure_file.is_some(), "azureFile"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.cinder.is_some(), "cinder"),
        (volume.csi.is_some(), "csi"),
        (volume.fc.is_some(), "fc"),
        (volume.flex_volume.is_some(), "flexVolume"),
        (volume.flocker.is_some(), "flocker"),
        (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.nfs.is_some(), "nfs"),
        (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (volume.portworx_volume.is_some(), "portworxVolume"),
        (volume.quobyte.is_some(), "quobyte"),
        (volume.rbd.is_some(), "rbd"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.storageos.is_some(), "storageos"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
    ];
    kinds.iter().find(|(there, _)| *there).map_or("this kind of volume", |(_, name)| name)
}

/// The pod's shared memory, empty: made anew for every sandbox.
pub(crate) fn make_shared_memory(pod_dir: &Path) -> Result<PathBuf, Error> {
    let folder = pod_dir.join("shm");
    fs::create_dir_all(&folder).map_err(|e| Error::io("make", &folder, e))?;
    if mounts_below(&folder)?.contains(&folder) {
        rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH)
            .map_err(|e| Error::io("unmount", &folder, e.into()))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(format!("mode=1777,size={SHARED_MEMORY}")).expect("no zero byte");
    mount_memory(&folder, flags, &options)?;
    Ok(folder)
}

/// Shows an image's files in a folder, read-only, and no program of it can be executed there. `empty` is a folder without
/// anything in it: the kernel stacks two layers at least.
fn mount_image(folder: &Path, layers: &[PathBuf], empty: &Path) -> Result<(), Error> {
    for path in [folder, empty] {
        fs::create_dir_all(path).map_err(|e| Error::io("make", path, e))?;
    }
    if mounts_below(folder)?.iter().any(|p| p == folder) {
        return Ok(());
    }
    let failed = |e| Error::io("mount an image on", folder, e);
    let lower: Vec<&Path> = std::iter::once(empty).chain(layers.iter().map(PathBuf::as_path)).collect();
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let tree = Stack { lower: &lower, upper: None }.mount(attributes).map_err(failed)?;
    let whole = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, folder, whole).map_err(|e| failed(e.into()))
}

fn mount_memory(folder: &Path, flags: MountFlags, options: &std::ffi::CStr) -> Result<(), Error> {
    rustix::mount::mount("tmpfs", folder, "tmpfs", flags, Some(options))
        .map_err(|e| Error::io("mount a memory file system on", folder, e.into()))
}

fn make_empty_dir(folder: &Path, source: &EmptyDirVolumeSource) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
    let memory = match source.medium.as_deref().unwrap_or_default() {
        "" => false,
        "Memory" => true,
        huge if huge.starts_with("HugePages") => return Err(Error::Unsupported("emptyDir.medium HugePages")),
        other => return Err(Error::Payload(format!("emptyDir.medium: there is no {other:?}"))),
    };
    if memory && !mounts_below(folder)?.iter().any(|p| p == folder) {
        let limit = source.size_limit.as_ref().and_then(|q| quantity::bytes(&q.0));
        let options = match limit {
            Some(bytes) if bytes > 0 => format!("mode=0777,size={bytes}"),
            _ => "mode=0777".to_owned(),
        };
        let options = std::ffi::CString::new(options).expect("digits and letters contain no zero byte");
        mount_memory(folder, MountFlags::NOSUID | MountFlags::NODEV, &options)?;
        fault::point(Point::MemoryMounted);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).map_err(|e| Error::io("open up", folder, e))
}

/// The check, or the making, that a hostPath's type asks for; messages are upstream's.
fn check_host_path(source: &HostPathVolumeSource) -> Result<(), Error> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(Error::Payload(format!("hostPath {:?} is not an absolute path without '..'", source.path)));
    }
    let kind = source.type_.as_deref().unwrap_or_default();
    let failed = |e| Error::io("make", path, e);
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
        "FileOrCreate" if !path.exists() => {
            fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|m| m.file_type());
    let fits = match (kind, &found) {
        ("", _) => true,
        ("Directory" | "DirectoryOrCreate", Ok(t)) => t.is_dir(),
        ("File" | "FileOrCreate", Ok(t)) => t.is_file(),
        ("Socket", Ok(t)) => t.is_socket(),
        ("CharDevice", Ok(t)) => t.is_char_device(),
        ("BlockDevice", Ok(t)) => t.is_block_device(),
        _ => false,
    };
    if kind.is_empty() && found.is_err() {
        // As container runtimes do where no type is given.
        fs::create_dir_all(path).map_err(failed)?;
    }
    let words = match kind {
        "Directory" | "DirectoryOrCreate" => "a directory",
        "File" | "FileOrCreate" => "a file",
        "Socket" => "a socket file",
        "CharDevice" => "a character device",
        _ => "a block device",
    };
    if fits {
        Ok(())
    } else {
        Err(Error::Payload(format!("hostPath type check failed: {} is not {words}", source.path)))
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn change_policy(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group_change_policy.as_deref()
}

fn has_group(path: &Path, group: Option<u32>) -> bool {
    group.is_none_or(|group| fs::metadata(path).is_ok_and(|m| m.gid() == group && m.mode() & 0o2070 == 0o2070))
}

/// A volume that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {error}")]
pub struct Failed {
    /// Its name in the pod.
    pub volume: String,
    /// Why.
    #[source]
    pub error: Error,
}

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be used. Check the disk.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something that the manifest names is missing or does not fit; the sentence says what.
    #[error("{0}")]
    Payload(String),
    /// The path of a local volume does not lie in this node's volumes folder.
    #[error("{} is not a folder of a namespace below {}", path.display(), root.display())]
    Outside {
        /// What was asked for.
        path: PathBuf,
        /// Where it should lie.
        root: PathBuf,
    },
    /// The pod's binding is older than the one that attached the volume last: it has been replaced.
    #[error("{} was attached with epoch {last}; this pod's epoch {epoch} is older, so it has been replaced", path.display())]
    OldEpoch {
        /// The volume.
        path: PathBuf,
        /// The pod's.
        epoch: u64,
        /// On record.
        last: u64,
    },
    /// The record beside a volume is damaged. Make sure that no other pod uses the volume, then remove the record.
    #[error("the epoch record {} is damaged; if nothing else uses the volume, remove it", path.display())]
    Mark {
        /// The record.
        path: PathBuf,
    },
    /// Something is mounted in a volume that is to be removed. Unmount it; the removal is then tried again.
    #[error("{} is not removed: {} is mounted in it; unmount that", path.display(), point.display())]
    Mounted {
        /// The volume's folder.
        path: PathBuf,
        /// Where.
        point: PathBuf,
    },
    /// A subPath leads out of its volume.
    #[error("subPath {sub:?} leads out of the volume")]
    Escape {
        /// As written.
        sub: String,
    },
    /// A kind of volume, or a field of a mount, that this version does not carry out.
    #[error("{0} is not supported by this version of statefuld")]
    Unsupported(&'static str),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_path_buf(), source }
    }
}

#[cfg(test)]
mod tests;
