//! What a node is called and which names and addresses it uses on its machine: chosen once, then kept.
//!
//! Several nodes run side by side on one machine, so nothing here is a constant. Bridge and control group
//! names come from the data directory's path; the pod address range is picked from private space so that
//! it overlaps nothing that the machine routes, and claimed under `/run/statefuld` so that two nodes that
//! start together, or one that starts while the other is stopped, never get the same. The choice is
//! recorded in `DATA/node/config.json` before anything uses it, together with the directory's own path: a
//! copy of a data directory names the original's bridge and control groups, and must not touch them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::rules::Rules;

/// First bytes of the file, so that nothing else is ever taken for it.
const MAGIC: &str = "statefuld-node-config";
/// Version of the file's shape. Unknown versions are refused.
const VERSION: u32 = 1;
/// Pod ranges come from 10.201.0.0/24 to 10.220.255.0/24: private, and not what docker, podman, k3s, kind
/// or kubeadm take by default.
const RANGE_FIRST: u32 = u32::from_be_bytes([10, 201, 0, 0]);
/// How many /24 ranges there are to pick from.
const RANGE_COUNT: u32 = 20 * 256;
/// What the names of all nodes' bridges begin with.
pub const BRIDGE_PREFIX: &str = "sfd-";
/// Where nodes on one machine tell each other which range is taken.
const CLAIMS: &str = "/run/statefuld/ranges";

/// The recorded choices of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything of this instance lies below it (absolute).
    pub data_dir: PathBuf,
    /// The Node object's name.
    pub node_name: String,
    /// The bridge that pods hang on; at most 15 characters, unique per data directory.
    pub bridge: String,
    /// The range that pod addresses come from.
    pub pod_cidr: Cidr,
    /// The bridge's own address: the pods' gateway and name server.
    pub gateway: Ipv4Addr,
    /// Name of the control group that all pods of this node live below.
    pub cgroup_root: String,
    /// The DNS zone of the cluster.
    pub cluster_domain: String,
    /// What the operator allows and limits; not recorded.
    pub rules: Rules,
    /// How services are served. Not recorded: every start says it anew.
    pub service_mode: ServiceMode,
    /// Whether other machines reach pods and services at their own addresses. Not recorded.
    pub expose_lan: bool,
}

/// How what is sent to services reaches their endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceMode {
    /// By the kernel's packet filter, or by sockets where it takes no rules.
    #[default]
    Auto,
    /// By the kernel's packet filter alone.
    Nftables,
    /// By sockets of the agent.
    Sockets,
}

/// What the caller wants to decide itself; the rest is chosen.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Name of the node; else the machine's host name.
    pub node_name: Option<String>,
    /// DNS zone; else `cluster.local`.
    pub cluster_domain: Option<String>,
    /// What the operator allows and limits.
    pub rules: Rules,
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

/// The file's shape.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recorded {
    magic: String,
    version: u32,
    node_name: String,
    bridge: String,
    pod_cidr: String,
    gateway: Ipv4Addr,
    cgroup_root: String,
    cluster_domain: String,
    /// Where the data directory was when this was written; absent in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_dir: Option<String>,
}

impl Config {
    /// Reads the recorded choice, or makes and records one. A recorded node name is never replaced: pods and volumes
    /// belong to a node by its name.
    ///
    /// A recorded range that has meanwhile been taken by something else on this machine is replaced, as long as
    /// our own bridge is not up (then it is we who use it).
    pub fn choose(data_dir: &Path, wishes: &Wishes) -> Result<Self, Error> {
        fs::create_dir_all(data_dir.join("node")).map_err(|e| Error::io("create", &data_dir.join("node"), e))?;
        let data_dir = data_dir.canonicalize().map_err(|e| Error::io("resolve", data_dir, e))?;
        let _lock = lock_claims()?;
        prune_claims();
        let path = data_dir.join("node/config.json");
        let (recorded, place) = Self::read(&data_dir)?.unzip();
        let mut config = match &recorded {
            Some(config) => config.clone(),
            None => Self::fresh(&data_dir)?,
        };
        if let Some(name) = &wishes.node_name {
            if recorded.is_some() && *name != config.node_name {
                return Err(Error::OtherName { data_dir, recorded: config.node_name, wished: name.clone() });
            }
            config.node_name = name.clone();
        }
        if let Some(domain) = &wishes.cluster_domain {
            config.cluster_domain = domain.trim_matches('.').to_ascii_lowercase();
        }
        if !is_dns1123(&config.node_name) {
            return Err(Error::NodeName(config.node_name));
        }
        let ours_is_up = Path::new("/sys/class/net").join(&config.bridge).exists();
        if recorded.is_none() || !(ours_is_up || claimed_by_nobody_else(config.pod_cidr, &data_dir)) {
            config.pod_cidr = pick_range(&data_dir, &config.bridge)?;
            config.gateway = config.pod_cidr.host(1);
        }
        claim(config.pod_cidr, &data_dir)?;
        if recorded.as_ref() != Some(&config) || place.flatten() != Some(place_of(&config.data_dir)) {
            write_durably(&path, &config.to_json()).map_err(|e| Error::io("write", &path, e))?;
        }
        config.rules.clone_from(&wishes.rules);
        Ok(config)
    }

    /// The recorded choice, if there is one. Refused for a copy of a data directory that is still there.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, Error> {
        Ok(Self::read(data_dir)?.map(|(config, _)| config))
    }

    /// The recorded choice, and the place of the data directory as it was recorded.
    fn read(data_dir: &Path) -> Result<Option<(Self, Option<String>)>, Error> {
        let path = data_dir.join("node/config.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let unreadable = |what: String| Error::Unreadable { path: path.clone(), what };
        let recorded: Recorded = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if recorded.magic != MAGIC || recorded.version != VERSION {
            return Err(unreadable(format!("it says {:?} version {}", recorded.magic, recorded.version)));
        }
        if let Some(place) = &recorded.data_dir {
            refuse_copy(data_dir, Path::new(place))?;
        }
        let pod_cidr = recorded.pod_cidr.parse().map_err(unreadable)?;
        let config = Self {
            data_dir: data_dir.to_path_buf(),
            node_name: recorded.node_name,
            bridge: recorded.bridge,
            pod_cidr,
            gateway: recorded.gateway,
            cgroup_root: recorded.cgroup_root,
            cluster_domain: recorded.cluster_domain,
            service_mode: ServiceMode::default(),
            expose_lan: false,
            rules: Rules::default(),
        };
        Ok(Some((config, recorded.data_dir)))
    }

    /// Names derived from the data directory; the range is still to be picked.
    fn fresh(data_dir: &Path) -> Result<Self, Error> {
        let tag = tag_of(data_dir);
        let host = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let name: String =
            host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' }).collect();
        let name = name.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
        let pod_cidr = Cidr { base: Ipv4Addr::from(RANGE_FIRST), prefix: 24 };
        Ok(Self {
            data_dir: data_dir.to_path_buf(),
            node_name: if is_dns1123(&name) { name } else { "localhost".to_owned() },
            bridge: format!("{BRIDGE_PREFIX}{tag}"),
            pod_cidr,
            gateway: pod_cidr.host(1),
            cgroup_root: format!("statefuld-{tag}"),
            cluster_domain: "cluster.local".to_owned(),
            service_mode: ServiceMode::default(),
            expose_lan: false,
            rules: Rules::default(),
        })
    }

    fn to_json(&self) -> Vec<u8> {
        let recorded = Recorded {
            magic: MAGIC.to_owned(),
            version: VERSION,
            node_name: self.node_name.clone(),
            bridge: self.bridge.clone(),
            pod_cidr: self.pod_cidr.to_string(),
            gateway: self.gateway,
            cgroup_root: self.cgroup_root.clone(),
            cluster_domain: self.cluster_domain.clone(),
            data_dir: Some(place_of(&self.data_dir)),
        };
        serde_json::to_vec_pretty(&recorded).expect("a struct of strings always becomes JSON")
    }

    /// `DATA/node`.
    pub fn node_dir(&self) -> PathBuf {
        self.data_dir.join("node")
    }

    /// `DATA/node/pods`: one directory per pod uid.
    pub fn pods_dir(&self) -> PathBuf {
        self.node_dir().join("pods")
    }

    /// `DATA/node/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    /// `DATA/node/logs/<namespace>_<pod>_<uid>`.
    pub fn pod_logs(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.node_dir().join("logs").join(format!("{namespace}_{pod}_{uid}"))
    }

    /// `DATA/node/dns`: the name server's snapshot and socket.
    pub fn dns_dir(&self) -> PathBuf {
        self.node_dir().join("dns")
    }

    /// `DATA/node/images`: the images of this machine; shared with the commands that manage them.
    pub fn images_dir(&self) -> PathBuf {
        self.node_dir().join("images")
    }

    /// `DATA/node/seccomp`: where profiles of system calls are looked for.
    pub fn seccomp_dir(&self) -> PathBuf {
        self.node_dir().join("seccomp")
    }

    /// `DATA/volumes`: what claims of class `local` hold.
    pub fn volumes_dir(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }

    /// Eight hex digits that tell this data directory from others on the machine.
    pub fn tag(&self) -> String {
        tag_of(&self.data_dir)
    }
}

impl Cidr {
    /// The n-th address of the network.
    pub fn host(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).wrapping_add(n))
    }

    /// How many addresses it spans.
    pub fn size(&self) -> u64 {
        1u64 << (32 - u32::from(self.prefix.min(32)))
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let first = u64::from(u32::from(self.base));
        let at = u64::from(u32::from(address));
        at >= first && at < first + self.size()
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an address range like 10.201.3.0/24");
        let (base, prefix) = text.split_once('/').ok_or_else(bad)?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        if prefix > 32 {
            return Err(bad());
        }
        Ok(Self { base: base.parse().map_err(|_| bad())?, prefix })
    }
}

/// Writes a file so that it is whole after a power loss: a neighbour, fsync, rename, fsync of the folder.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut neighbour = path.as_os_str().to_owned();
    neighbour.push(".new");
    let neighbour = PathBuf::from(neighbour);
    let mut file = fs::File::create(&neighbour)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&neighbour, path)?;
    fs::File::open(folder)?.sync_all()
}

/// Lower-case DNS-1123 subdomain, as object names are.
fn is_dns1123(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn tag_of(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}

/// A data directory's path as it is recorded.
fn place_of(data_dir: &Path) -> String {
    data_dir.to_string_lossy().into_owned()
}

/// Refuses where the record was written for another directory that is still there. One that is gone was moved here.
fn refuse_copy(data_dir: &Path, recorded: &Path) -> Result<(), Error> {
    let ours = fs::metadata(data_dir).map_err(|e| Error::io("look at", data_dir, e))?;
    match fs::metadata(recorded) {
        Ok(theirs) if theirs.is_dir() && (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) => {
            Err(Error::Copy { data_dir: data_dir.to_path_buf(), original: recorded.to_path_buf() })
        }
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(Error::io("look at", recorded, e)),
    }
}

/// Held while a range is picked and claimed. Released with the file.
fn lock_claims() -> Result<fs::File, Error> {
    let folder = Path::new(CLAIMS);
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let path = folder.join(".lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| Error::io("lock", &path, e.into()))?;
    Ok(file)
}

/// The claim file of a range; its content is the claimant's data directory.
fn claim_path(range: Cidr) -> PathBuf {
    Path::new(CLAIMS).join(range.to_string().replace('/', "-"))
}

fn claim(range: Cidr, data_dir: &Path) -> Result<(), Error> {
    let path = claim_path(range);
    fs::write(&path, data_dir.as_os_str().as_encoded_bytes()).map_err(|e| Error::io("write", &path, e))
}

/// A claim counts for as long as its claimant's own record names the range.
fn claimed_by_nobody_else(range: Cidr, data_dir: &Path) -> bool {
    let path = claim_path(range);
    claimant(&path).is_none_or(|holder| holder == data_dir) || !is_live(&path)
}

/// The data directory that a claim file names.
fn claimant(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    fs::read(path).ok().map(|text| PathBuf::from(std::ffi::OsString::from_vec(text)))
}

/// Whether the claimant of that file still records that very range.
fn is_live(path: &Path) -> bool {
    let Some(holder) = claimant(path) else { return false };
    matches!(Config::load(&holder), Ok(Some(config)) if claim_path(config.pod_cidr) == path)
}

/// Claims of data directories that are gone, or have moved to another range, are removed.
fn prune_claims() {
    for entry in fs::read_dir(CLAIMS).into_iter().flatten().flatten() {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && !is_live(&path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// The first free range, looking from a place that the data directory's path decides.
fn pick_range(data_dir: &Path, own_bridge: &str) -> Result<Cidr, Error> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let trie = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let taken = networks_in_use(&routes, &trie, own_bridge);
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let start = u32::from_be_bytes([digest[4], digest[5], digest[6], digest[7]]) % RANGE_COUNT;
    (0..RANGE_COUNT)
        .map(|i| Cidr { base: Ipv4Addr::from(RANGE_FIRST + ((start + i) % RANGE_COUNT) * 256), prefix: 24 })
        .find(|range| !taken.iter().any(|t| t.overlaps(range)) && claimed_by_nobody_else(*range, data_dir))
        .ok_or(Error::NoFreeRange)
}

/// Networks that the machine routes or has an address in, from the text of `/proc/net/route` and
/// `/proc/net/fib_trie`. Our own bridge's route does not count, nor does the default route.
fn networks_in_use(routes: &str, trie: &str, own_bridge: &str) -> Vec<Cidr> {
    let mut found = Vec::new();
    let hex = |s: &str| u32::from_str_radix(s, 16).ok().map(u32::swap_bytes);
    for line in routes.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (Some(dev), Some(dest), Some(mask)) = (columns.first(), columns.get(1), columns.get(7)) else { continue };
        let (Some(dest), Some(mask)) = (hex(dest), hex(mask)) else { continue };
        if mask != 0 && *dev != own_bridge {
            let prefix = u8::try_from(mask.count_ones()).unwrap_or(32);
            found.push(Cidr { base: Ipv4Addr::from(dest), prefix });
        }
    }
    let mut leaves = BTreeSet::new();
    let mut last = None;
    for line in trie.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL") {
            leaves.extend(last);
        }
    }
    if !Path::new("/sys/class/net").join(own_bridge).exists() {
        found.extend(leaves.into_iter().map(|base| Cidr { base, prefix: 32 }));
    }
    found
}

/// What keeps a node from getting its names and addresses.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the node could not be used. Check owner, space and that the disk is writable.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The recorded choice is damaged or from another version. Move the file away to have a new choice made
    /// (pods then get new addresses).
    #[error("{} is not a node configuration that this version can read: {what}; move it away to choose anew", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The asked-for node name cannot be an object name. Use lower-case letters, digits, `-` and `.`.
    #[error("{0:?} cannot name a node: use lower-case letters, digits, '-' and '.'")]
    NodeName(String),
    /// The node has another name already, which its pods and volumes belong to. Start it under that name, or use
    /// another data directory.
    #[error(
        "the node in {} is called {recorded:?}, not {wished:?}: start it without --node-name, or give another --data-dir",
        data_dir.display()
    )]
    OtherName {
        /// The data directory.
        data_dir: PathBuf,
        /// The name it has.
        recorded: String,
        /// The name that was asked for.
        wished: String,
    },
    /// The data directory is a copy, and the names recorded in it are those of the original. Use the original, or stop
    /// it and move it away first.
    #[error(
        "{} is a copy of {}, whose pods it would take for its own: use the original, or stop it and move it away first",
        data_dir.display(),
        original.display()
    )]
    Copy {
        /// The copy.
        data_dir: PathBuf,
        /// The directory that the record was written for.
        original: PathBuf,
    },
    /// Every range is in use. Remove stopped instances' claims below /run/statefuld/ranges.
    #[error("no free /24 between 10.201.0.0 and 10.220.255.255; remove stale claims below /run/statefuld/ranges")]
    NoFreeRange,
}

impl Error {
    fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.to_path_buf(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_is_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = Config::choose(dir.path(), &Wishes::default()).expect("a choice");
        let again = Config::choose(dir.path(), &Wishes::default()).expect("the same choice");
        assert_eq!(first, again);
        assert!(first.bridge.len() <= 15);
        assert_eq!(first.gateway, first.pod_cidr.host(1));
        let _ = fs::remove_file(claim_path(first.pod_cidr));
    }

    #[test]
    fn two_data_directories_never_share() {
        let dirs: Vec<_> = (0..8).map(|_| tempfile::tempdir().expect("a temporary folder")).collect();
        let configs: Vec<_> =
            dirs.iter().map(|d| Config::choose(d.path(), &Wishes::default()).expect("a choice")).collect();
        for (i, a) in configs.iter().enumerate() {
            for b in &configs[..i] {
                assert!(!a.pod_cidr.overlaps(&b.pod_cidr), "{a:?} {b:?}");
                assert_ne!(a.bridge, b.bridge);
                assert_ne!(a.cgroup_root, b.cgroup_root);
            }
        }
        for config in &configs {
            let _ = fs::remove_file(claim_path(config.pod_cidr));
        }
    }

    #[test]
    fn range_taken_by_another_node_is_given_up() {
        let (one, two) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let mine = Config::choose(one.path(), &Wishes::default()).expect("a choice");
        let mut other = Config::choose(two.path(), &Wishes::default()).expect("a choice");
        let _ = fs::remove_file(claim_path(other.pod_cidr));
        other.pod_cidr = mine.pod_cidr;
        write_durably(&other.data_dir.join("node/config.json"), &other.to_json()).expect("recorded");
        let moved = Config::choose(two.path(), &Wishes::default()).expect("another choice");
        assert!(!moved.pod_cidr.overlaps(&mine.pod_cidr));
        let _ = (fs::remove_file(claim_path(mine.pod_cidr)), fs::remove_file(claim_path(moved.pod_cidr)));
    }

    #[test]
    fn a_recorded_name_is_kept_and_another_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let named = |name: &str| Wishes { node_name: Some(name.to_owned()), ..Wishes::default() };
        let first = Config::choose(dir.path(), &named("one")).expect("a choice");
        assert_eq!(Config::choose(dir.path(), &named("one")).expect("the same choice"), first);
        assert_eq!(Config::choose(dir.path(), &Wishes::default()).expect("the same choice"), first);
        let error = Config::choose(dir.path(), &named("two")).expect_err("refused").to_string();
        for part in ["\"one\"", "\"two\"", &first.data_dir.display().to_string(), "--node-name"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert_eq!(Config::load(&first.data_dir).expect("a record").expect("there").node_name, "one");
        let _ = fs::remove_file(claim_path(first.pod_cidr));
    }

    #[test]
    fn a_copy_is_refused_and_a_moved_directory_is_not() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (original, copy) = (dir.path().join("original"), dir.path().join("copy"));
        let first = Config::choose(&original, &Wishes::default()).expect("a choice");
        fs::create_dir_all(copy.join("node")).expect("a folder");
        fs::copy(original.join("node/config.json"), copy.join("node/config.json")).expect("copied");
        let refused = |result: Result<(), Error>| {
            let error = result.expect_err("refused").to_string();
            assert!(error.contains("/original") && error.contains("/copy"), "{error}");
        };
        refused(Config::choose(&copy, &Wishes::default()).map(drop));
        refused(Config::load(&copy).map(drop));
        fs::remove_dir_all(&copy).expect("removed");
        fs::rename(&original, &copy).expect("moved");
        let moved = Config::choose(&copy, &Wishes::default()).expect("the same choice");
        assert_eq!((&moved.node_name, &moved.bridge), (&first.node_name, &first.bridge));
        // The record names the new place now: what comes to lie at the old one does not matter.
        fs::create_dir(&original).expect("a folder");
        Config::load(&copy).expect("a record").expect("there");
        let _ = (fs::remove_file(claim_path(first.pod_cidr)), fs::remove_file(claim_path(moved.pod_cidr)));
    }

    #[test]
    fn a_record_without_place_is_completed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = Config::choose(dir.path(), &Wishes::default()).expect("a choice");
        let path = first.data_dir.join("node/config.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        record.as_object_mut().expect("an object").remove("dataDir").expect("it was recorded");
        fs::write(&path, record.to_string()).expect("written");
        assert_eq!(Config::choose(dir.path(), &Wishes::default()).expect("the same choice"), first);
        let (_, place) = Config::read(&first.data_dir).expect("a record").expect("there");
        assert_eq!(place, Some(place_of(&first.data_dir)));
        let _ = fs::remove_file(claim_path(first.pod_cidr));
    }

    #[test]
    fn unknown_version_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(dir.path().join("node")).expect("folder");
        let text = r#"{"magic":"statefuld-node-config","version":99,"nodeName":"n","bridge":"b","podCidr":"10.0.0.0/24","gateway":"10.0.0.1","cgroupRoot":"c","clusterDomain":"d"}"#;
        fs::write(dir.path().join("node/config.json"), text).expect("file");
        assert!(matches!(Config::choose(dir.path(), &Wishes::default()), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn routes_and_addresses_are_avoided() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000C90A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.210.3.9\n        /32 host LOCAL\n     |-- 10.211.0.0\n        /24 link UNICAST\n";
        let found = networks_in_use(routes, trie, "sfd-none");
        assert_eq!(found, vec!["10.201.0.0/16".parse().expect("range"), "10.210.3.9/32".parse().expect("range")]);
    }

    #[test]
    fn upper_case_and_empty_names_are_refused() {
        assert!(is_dns1123("node-1.example"));
        for bad in ["", "Node", "-a", "a-", "a..b", "a_b"] {
            assert!(!is_dns1123(bad), "{bad}");
        }
    }
}
