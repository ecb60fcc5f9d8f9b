//! What a container sees as `/`.
//!
//! Built in the container's own mount namespace, in four steps: copies of everything that comes from the machine are
//! taken first (unattached); then a memory file system becomes the new root, with what the kind of root asks for;
//! then it is pivoted into and the machine's root is let go; at last everything else is mounted by plain paths,
//! which can only lead to places inside. So no link in an image or a volume can lead a mount astray.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::mounts::{
    Seal, attach, copy_sealed, copy_tree, copy_tree_in, freeze, is_folder, kernel_fs, make_target, mask, overlay,
    pivot, tmpfs,
};
use super::users::{self, Users};
use super::{During, StartFailure, cgroups, devices, host, image, propagation};
use crate::cgroup::Layout;
use crate::shim::spec::{ContainerSpec, HostRoot, Mount, Propagation, Root, ShimSpec, Source};
use crate::sys;

/// The memory file system that is `/` holds mount points and little files, not data.
const ROOT_SIZE: u64 = 64 << 20;
/// Name of the program in the built-in image.
const PROGRAM: &str = "statefuld";

pub(super) const NO_PROGRAMS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Kernel files that tell or change too much. Source: the OCI runtime specification's usual lists, as containerd has them.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const FROZEN: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything that a root is built from.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    pod: &'a ShimSpec,
    container: &'a ContainerSpec,
    /// Whose root it becomes, where the pod's users are not the machine's.
    users: Option<&'a Users>,
    /// An empty folder that the new root is first mounted on.
    stage: &'a Path,
    /// Number of this start; names the overlays' folders.
    start: u32,
    /// Mounts that programs could write to, `/` first: made read-only at the end, where that is asked for.
    writable: Vec<PathBuf>,
}

/// A mount whose source was copied while the machine's paths could still be seen.
struct Prepared<'a> {
    mount: &'a Mount,
    tree: Option<OwnedFd>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(pod: &'a ShimSpec, container: &'a ContainerSpec, stage: &'a Path, start: u32) -> Self {
        Self { pod, container, users: None, stage, start, writable: vec![PathBuf::from("/")] }
    }

    /// A root for users who are not the machine's.
    pub(super) fn for_users(self, users: &'a Users) -> Self {
        Self { users: Some(users), ..self }
    }

    /// Builds the root and moves into it.
    pub(super) fn build(mut self) -> Result<(), StartFailure> {
        if let Some(users) = self.users {
            users::make_for(users.range()).during("making files for the pod's users")?;
        }
        // Copies of shared mounts are shared with them only if they are taken before the separation.
        let shared = self.prepare_mounts(|p| p == Propagation::Bidirectional)?;
        // What is mounted on the machine is seen here from now on, and nothing of here there.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .during("separating mounts")?;
        let mut mounts = self.prepare_mounts(|p| p != Propagation::Bidirectional)?;
        mounts.extend(shared);
        // One that lies inside another comes after it, however they were listed.
        mounts.sort_by_key(|prepared| prepared.mount.target.components().count());
        let files = self.prepare_files()?;
        let nodes = if self.container.privileged { devices::of_machine() } else { Vec::new() };
        let shm = self.shared_memory()?;
        let hierarchies = Layout::detect().unwrap_or_default();
        match &self.container.root {
            Root::Image { layers, .. } => self.image_root(layers)?,
            kind => {
                tmpfs(self.stage, 0o755, Some(ROOT_SIZE), MountFlags::NODEV).during("mounting the root")?;
                match kind {
                    Root::Sample => self.sample_root()?,
                    _ => self.host_root()?,
                }
            }
        }
        pivot(self.stage).during("pivoting into the root")?;
        if let Root::Image { .. } = &self.container.root {
            image::plain_folders()?;
        }
        // /dev first: masks of files are made of its null device.
        devices::fill(&nodes, shm.as_ref(), self.users)?;
        self.kernel_mounts()?;
        cgroups::show(&hierarchies, self.container.privileged)?;
        if self.container.root == Root::Host {
            hide(&self.pod.host_root)?;
        }
        self.pod_files(files)?;
        for prepared in mounts {
            mount_volume(prepared)?;
        }
        self.working_directory()?;
        if let (Root::Image { volumes, .. }, true) = (&self.container.root, self.container.read_only_root) {
            image::volumes(volumes, &self.container.mounts)?;
        }
        // The built-in image is one that is never written to; what a program needs to write is mounted there.
        let sample = matches!(self.container.root, Root::Sample);
        if self.container.read_only_root || sample {
            let frozen = if self.container.read_only_root { &self.writable[..] } else { &self.writable[..1] };
            for path in frozen {
                sys::read_only_mount(path).during(format!("making {} read-only", path.display()))?;
            }
        }
        Ok(())
    }

    /// Copies of the volumes with such a propagation.
    fn prepare_mounts(&self, which: fn(Propagation) -> bool) -> Result<Vec<Prepared<'a>>, StartFailure> {
        let prepare = |mount: &'a Mount| {
            let seal = Seal {
                read_only: mount.read_only,
                recursive: mount.recursive_read_only,
                propagates: mount.propagation != Propagation::None,
            };
            let tree = match &mount.source {
                Source::Bind { path, sub } => {
                    let doing = format!("volume {}", path.display());
                    propagation::check(path, mount.propagation)?;
                    self.refuse_to_pass_on(mount)?;
                    let tree = match sub {
                        Some(sub) => copy_tree_in(path, sub, seal).during(doing)?,
                        None => copy_sealed(path, seal).during(doing)?,
                    };
                    Some(self.mapped(tree, path)?)
                }
                Source::Layers { layers, sub } => Some(self.image_volume(layers, sub.as_deref())?),
                Source::Tmpfs { .. } => None,
            };
            Ok(Prepared { mount, tree })
        };
        self.container.mounts.iter().filter(|mount| which(mount.propagation)).map(prepare).collect()
    }

    /// The kernel hands no mount out of a namespace whose users are not the machine's.
    fn refuse_to_pass_on(&self, mount: &Mount) -> Result<(), StartFailure> {
        if self.users.is_none() || mount.propagation != Propagation::Bidirectional {
            return Ok(());
        }
        let what = "mountPropagation: Bidirectional cannot be had with hostUsers: false";
        Err(StartFailure { code: 128, message: format!("{what}: mounts do not leave a user namespace") })
    }

    /// A copy of something on disk, as the pod's users are to see it.
    fn mapped(&self, tree: OwnedFd, path: &Path) -> Result<OwnedFd, StartFailure> {
        if let Some(users) = self.users {
            users::map(&tree, users).during(format!("showing {} to the pod's users", path.display()))?;
        }
        Ok(tree)
    }

    /// An image's content, stacked for the pod's users.
    fn image_volume(&self, layers: &[PathBuf], sub: Option<&Path>) -> Result<OwnedFd, StartFailure> {
        let shelf = Shelf::put_up(self.stage)?;
        let lower = self.lower_layers(&shelf, layers)?;
        let tree = image::read_only(&lower)?;
        let Some(sub) = sub else { return shelf.take_down().map(|()| tree) };
        let whole = shelf.place(layers.len(), tree)?;
        let part = copy_tree_in(&whole, sub, Seal::private(true)).during("a volume's image")?;
        shelf.take_down().map(|()| part)
    }

    /// Copies of an image's layers, the lowest first, as the pod's users are to see them.
    fn lower_layers(&self, shelf: &Shelf<'_>, layers: &[PathBuf]) -> Result<Vec<PathBuf>, StartFailure> {
        let place = |(number, layer): (usize, &PathBuf)| {
            let tree = copy_tree(layer, true).during(format!("the image's layer {}", layer.display()))?;
            shelf.place(number, self.mapped(tree, layer)?)
        };
        layers.iter().enumerate().map(place).collect()
    }

    /// The shared memory of the machine, or of the pod.
    fn shared_memory(&self) -> Result<Option<OwnedFd>, StartFailure> {
        let path = match self.pod.sharing.host_ipc {
            true => Some(Path::new("/dev/shm")),
            false => self.pod.shared_memory.as_deref(),
        };
        let copy = |path: &Path| self.mapped(copy_tree(path, false).during("showing /dev/shm")?, path);
        path.map(copy).transpose()
    }

    fn prepare_files(&self) -> Result<Vec<(&'static str, OwnedFd)>, StartFailure> {
        let wanted = [("/etc/hosts", &self.pod.hosts_file), ("/etc/resolv.conf", &self.pod.resolv_conf)];
        let mut files = Vec::new();
        for (target, source) in wanted {
            if let Some(path) = source {
                let tree = copy_tree(path, false).during(format!("{target} from {}", path.display()))?;
                files.push((target, self.mapped(tree, path)?));
            }
        }
        Ok(files)
    }

    /// The machine's programs, and overlays of what programs write.
    fn host_root(&mut self) -> Result<(), StartFailure> {
        for name in host::PROGRAMS {
            let (from, to) = (Path::new("/").join(name), self.stage.join(name));
            let Some(meta) = self.recreate_link(&from, &to)? else { continue };
            if meta.is_dir() {
                let tree = self.mapped(copy_tree(&from, true).during(format!("showing {}", from.display()))?, &from)?;
                fs::create_dir(&to).and_then(|()| attach(&tree, &to)).during(format!("showing {}", from.display()))?;
            }
        }
        let layers = self.layers_folder()?;
        let spare = self.stage.join(".spare");
        fs::create_dir(&spare).during("preparing overlays")?;
        for name in host::OVERLAID {
            let (from, to) = (Path::new("/").join(name), self.stage.join(name));
            if self.recreate_link(&from, &to)?.is_none() {
                continue;
            }
            let lower = self.lower_of_machine(&from, &spare)?;
            let (upper, work) = (layers.join(name), layers.join(format!("{name}.work")));
            let doing = format!("overlaying {}", from.display());
            fs::create_dir(&upper).and_then(|()| fs::create_dir(&work)).during(&doing)?;
            // The upper's own owner and mode are what the container sees.
            let meta = fs::metadata(&lower).during(&doing)?;
            fs::set_permissions(&upper, meta.permissions()).during(&doing)?;
            chown(&upper, Some(meta.uid()), Some(meta.gid())).during(&doing)?;
            let tree = overlay(&lower, &upper, &work, &spare).during(&doing)?;
            fs::create_dir(&to).and_then(|()| attach(&tree, &to)).during(&doing)?;
            if lower != from {
                unmount(&lower, UnmountFlags::DETACH).during(&doing)?;
            }
            self.writable.push(Path::new("/").join(name));
        }
        fs::remove_dir_all(&spare).during("preparing overlays")?;
        let empty: Vec<(&str, PathBuf, u32)> = host::EMPTIED
            .iter()
            .map(|(target, mode)| (*target, layers.join(target.trim_start_matches('/').replace('/', ".")), *mode))
            .collect();
        for (target, source, mode) in empty {
            self.show_empty(target, &source, mode)?;
        }
        for (name, mode) in [("root", 0o700), ("home", 0o755), ("mnt", 0o755)] {
            make_folder(&self.stage.join(name), mode)?;
        }
        Ok(())
    }

    /// A folder of the machine as the pod's users are to see it; below `spare`, where they are not the machine's.
    fn lower_of_machine(&self, from: &Path, spare: &Path) -> Result<PathBuf, StartFailure> {
        if self.users.is_none() {
            return Ok(from.to_owned());
        }
        let doing = format!("overlaying {}", from.display());
        let place = spare.join("lower");
        fs::create_dir_all(&place).during(&doing)?;
        let tree = self.mapped(copy_tree(from, true).during(&doing)?, from)?;
        attach(&tree, &place).during(&doing)?;
        Ok(place)
    }

    /// Puts an empty writable folder over one of the machine's, on disk.
    fn show_empty(&mut self, target: &str, source: &Path, mode: u32) -> Result<(), StartFailure> {
        let to = self.stage.join(target.trim_start_matches('/'));
        if !fs::symlink_metadata(&to).is_ok_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        make_folder(source, mode)?;
        let tree = copy_tree(source, false).during(format!("emptying {target}"))?;
        attach(&tree, &to).during(format!("emptying {target}"))?;
        self.writable.push(PathBuf::from(target));
        Ok(())
    }

    /// Makes a link of the machine's root anew; returns what is there if it is none.
    fn recreate_link(&self, from: &Path, to: &Path) -> Result<Option<fs::Metadata>, StartFailure> {
        let Ok(meta) = fs::symlink_metadata(from) else { return Ok(None) };
        if !meta.is_symlink() {
            return Ok(Some(meta));
        }
        let doing = format!("copying the link {}", from.display());
        let target = fs::read_link(from).during(&doing)?;
        symlink(target, to).during(&doing)?;
        Ok(None)
    }

    /// A fresh folder for the overlays' upper layers. What earlier starts wrote is gone, as in any container that is
    /// started again; it is removed here, where a large tree keeps only this container waiting.
    fn layers_folder(&self) -> Result<PathBuf, StartFailure> {
        let of_container = self.pod.host_root.upper_dir.join(&self.container.name);
        let doing = format!("preparing {}", of_container.display());
        for old in fs::read_dir(&of_container).into_iter().flatten().flatten() {
            fs::remove_dir_all(old.path()).during(&doing)?;
        }
        let layers = of_container.join(self.start.to_string());
        fs::create_dir_all(&layers).during(&doing)?;
        Ok(layers)
    }

    /// The image's layers, under an overlay of this start's own.
    fn image_root(&self, layers: &[PathBuf]) -> Result<(), StartFailure> {
        let folder = self.layers_folder()?;
        if self.users.is_none() {
            return image::mount(layers, &folder, self.stage, || Ok(()));
        }
        let shelf = Shelf::put_up(self.stage)?;
        let lower = self.lower_layers(&shelf, layers)?;
        image::mount(&lower, &folder, self.stage, || shelf.take_down())
    }

    /// One program and the folders that every program expects.
    fn sample_root(&self) -> Result<(), StartFailure> {
        // Everything that is executed here is executed by a process that runs from the sealed copy of it already: the
        // link leads there, and nothing has to be laid out on a disk.
        symlink("/proc/self/exe", self.stage.join(PROGRAM)).during("laying out the built-in image")?;
        for (name, mode) in [("etc", 0o755), ("data", 0o755), ("root", 0o700), ("var", 0o755)] {
            make_folder(&self.stage.join(name), mode)?;
        }
        let passwd = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
        fs::write(self.stage.join("etc/passwd"), passwd).during("laying out the built-in image")?;
        fs::write(self.stage.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").during("laying out the built-in image")
    }

    fn kernel_mounts(&mut self) -> Result<(), StartFailure> {
        kernel_fs("proc", "/proc", NO_PROGRAMS, c"").during("mounting /proc")?;
        let sys_flags = if self.container.privileged { NO_PROGRAMS } else { NO_PROGRAMS | MountFlags::RDONLY };
        kernel_fs("sysfs", "/sys", sys_flags, c"").during("mounting /sys")?;
        if !self.container.privileged && !self.container.unmasked_proc {
            for path in MASKED {
                mask(Path::new(path)).during(format!("masking {path}"))?;
            }
            for path in FROZEN {
                freeze(Path::new(path)).during(format!("freezing {path}"))?;
            }
        }
        if matches!(self.container.root, Root::Image { .. }) {
            // An image has its own, as it wants them.
            return Ok(());
        }
        let mut scratch = vec![("/tmp", 0o1777), ("/run", 0o755)];
        if self.container.root == Root::Sample {
            // Where the journal is written if the pod has no volume for it.
            scratch.push(("/data", 0o755));
        }
        for (path, mode) in scratch {
            make_folder(Path::new(path), mode)?;
            tmpfs(Path::new(path), mode, None, MountFlags::NOSUID | MountFlags::NODEV)
                .during(format!("mounting {path}"))?;
            self.writable.push(PathBuf::from(path));
        }
        make_folder(Path::new("/run/lock"), 0o1777)
    }

    fn pod_files(&self, files: Vec<(&'static str, OwnedFd)>) -> Result<(), StartFailure> {
        let etc = Path::new("/etc");
        if fs::metadata(etc).is_err() {
            make_folder(etc, 0o755)?;
        }
        // Whatever an image has there, a pipe even, is not written to.
        let _ = fs::remove_file("/etc/hostname");
        fs::write("/etc/hostname", format!("{}\n", self.pod.hostname)).during("writing /etc/hostname")?;
        for (target, tree) in files {
            let path = Path::new(target);
            make_target(path, false).and_then(|()| attach(&tree, path)).during(format!("mounting {target}"))?;
        }
        Ok(())
    }

    fn working_directory(&self) -> Result<(), StartFailure> {
        let cwd = &self.container.cwd;
        // As container runtimes do: a missing one is made. Where it cannot be, entering it will say why.
        if !cwd.is_empty() && fs::metadata(cwd).is_err() {
            let _ = fs::create_dir_all(cwd);
        }
        Ok(())
    }
}

/// Where layers hang while they are being stacked: before kernel 6.15 only an attached mount can be one. The stack keeps
/// what it was made of when this is taken down.
struct Shelf<'a> {
    at: &'a Path,
}

impl<'a> Shelf<'a> {
    fn put_up(at: &'a Path) -> Result<Self, StartFailure> {
        tmpfs(at, 0o700, Some(0), NO_PROGRAMS).during("stacking layers")?;
        Ok(Self { at })
    }

    fn place(&self, number: usize, tree: OwnedFd) -> Result<PathBuf, StartFailure> {
        let place = self.at.join(number.to_string());
        fs::create_dir(&place).and_then(|()| attach(&tree, &place)).during("stacking layers")?;
        Ok(place)
    }

    fn take_down(self) -> Result<(), StartFailure> {
        unmount(self.at, UnmountFlags::DETACH).during("stacking layers")
    }
}

/// Hides what a host root must not show; paths that are not visible anyway are skipped.
fn hide(host_root: &HostRoot) -> Result<(), StartFailure> {
    for path in host::masked(&host_root.masked) {
        mask(&path).during(format!("masking {}", path.display()))?;
    }
    Ok(())
}

fn mount_volume(prepared: Prepared<'_>) -> Result<(), StartFailure> {
    let Prepared { mount, tree } = prepared;
    let doing = format!("mounting {}", mount.target.display());
    match (&mount.source, tree) {
        (Source::Bind { .. } | Source::Layers { .. }, Some(tree)) => {
            let folder = is_folder(&tree).during(&doing)?;
            make_target(&mount.target, folder).during(&doing)?;
            attach(&tree, &mount.target).during(&doing)
        }
        (Source::Tmpfs { size_bytes, mode }, _) => {
            make_target(&mount.target, true).during(&doing)?;
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            flags.set(MountFlags::RDONLY, mount.read_only);
            tmpfs(&mount.target, mode.unwrap_or(0o1777), *size_bytes, flags).during(&doing)
        }
        (Source::Bind { .. } | Source::Layers { .. }, None) => {
            unreachable!("every bind was copied while its source could be seen")
        }
    }
}

pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), StartFailure> {
    let doing = format!("making {}", path.display());
    if fs::metadata(path).is_err() {
        fs::create_dir_all(path).during(&doing)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).during(&doing)
}
