//! The images that containers run from: found or fetched before a pod starts, noted as long as it is there.
//!
//! ```text
//!   name ──▶ reference ──▶ in the store? ──▶ policy ──▶ [`Ready`]: layers, configuration, users
//!                             │                 ▲
//!                             └── no: fetched ──┘   a failure: ErrImagePull, then ImagePullBackOff until the next try
//! ```
//!
//! What a pod uses is noted in its folder before its specification is: that keeps the image from being removed
//! ([`in_use`]), and tells the pod's status what runs.

pub mod gc;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::manifest::RunConfig;
use image::registry::Puller;
use image::registry::settings::{self, BackOff};
use image::store::StoreError;
use image::{Digest, Image, Reference, Store, rootfs, user};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use super::status::Hold;
use super::translate::{containers, is_sample, on_host_root};
use super::worker::Worker;
use crate::config::Config;
use crate::shim::file::{self, FileError, Format};
use crate::shim::spec::Root;

/// In a pod's folder: the images that its containers run from.
const NOTE_FILE: &str = "images.json";
const NOTE: Format = Format { magic: "statefuld-pod-images", version: 1 };
/// Longest list of users or groups of an image that is read.
const MAX_ACCOUNTS: u64 = 1 << 20;
/// Pause before a failed image's status turns to waiting for the next try.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// An image that a container can be started from.
#[derive(Clone, Debug, Default)]
pub struct Ready {
    /// What the pod's status says of it.
    pub noted: Noted,
    /// Folders with its layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// How it wants to be run.
    pub run: RunConfig,
    /// Its list of users.
    pub passwd: String,
    /// Its list of groups.
    pub group: String,
}

/// What is noted of an image that a container runs from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Noted {
    /// Its identity in the store, a digest.
    pub id: String,
    /// Its whole name.
    pub image: String,
    /// Its name by digest.
    pub image_id: String,
}

impl Ready {
    /// Reads what is needed of an image that is there. Blocks.
    fn read(store: &Store, image: &Image, name: &Reference) -> Result<Self, StoreError> {
        let layers: Vec<PathBuf> = image.layers.iter().map(|chain| store.layer_folder(chain)).collect();
        let text = |path: &'static str| {
            let read = rootfs::read_file(&layers, path, MAX_ACCOUNTS);
            let read =
                read.map_err(|source| StoreError::Io { doing: "read in the image", path: path.into(), source })?;
            Ok::<_, StoreError>(String::from_utf8_lossy(&read.unwrap_or_default()).into_owned())
        };
        let (passwd, group) = (text("etc/passwd")?, text("etc/group")?);
        let run = store.config(image)?.config.unwrap_or_default();
        let noted = Noted {
            id: image.id.to_string(),
            image: image.tag().filter(|_| name.digest().is_some()).map_or_else(|| name.to_string(), str::to_owned),
            image_id: image.by_digest(name),
        };
        Ok(Self { noted, layers, run, passwd, group })
    }

    /// What a container sees as `/`.
    pub fn root(&self) -> Root {
        let inside = |path: &&String| {
            path.starts_with('/') && !Path::new(path).components().any(|c| c == std::path::Component::ParentDir)
        };
        let volumes = self.run.volumes.keys().filter(inside).map(PathBuf::from).collect();
        Root::Image { layers: self.layers.clone(), volumes }
    }

    /// The image's environment with the container's own on top, and the user's home.
    pub fn environment(&self, own: &[(String, String)], uid: u32) -> Vec<(String, String)> {
        let split = |text: &String| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_owned(), value.to_owned())
        };
        let of_image = self.run.env.iter().map(split).filter(|(name, _)| !own.iter().any(|(have, _)| have == name));
        let mut all: Vec<_> = of_image.chain(own.iter().cloned()).collect();
        if !all.iter().any(|(name, _)| name == "HOME")
            && let Some(home) = user::by_uid(&self.passwd, uid).home
        {
            all.push(("HOME".to_owned(), home));
        }
        all
    }
}

/// Tries to fetch images that failed, by name.
#[derive(Debug, Default)]
pub(super) struct BackOffs {
    failed: BTreeMap<String, Failed>,
}

/// The last failed try.
#[derive(Debug)]
struct Failed {
    /// When the next one is due, on the monotonic clock.
    until: Duration,
    pause: Duration,
    why: String,
}

/// An image that a pod names.
struct Wanted<'a> {
    image: String,
    policy: Option<&'a str>,
    /// Which container's; empty where it is a volume's.
    container: &'a str,
}

impl<'a> Wanted<'a> {
    fn by(container: &'a Container) -> Self {
        Self {
            image: container.image.clone().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            container: &container.name,
        }
    }
}

/// What the key of a volume's image begins with, among those of containers, whose names have no slash.
const VOLUME: &str = "volume/";

fn of_volume(name: &str) -> String {
    format!("{VOLUME}{name}")
}

/// The layers of images that are volumes, by the volumes' names.
pub(super) fn of_volumes(ready: &BTreeMap<String, Ready>) -> BTreeMap<String, Vec<PathBuf>> {
    let of_volumes = ready.iter().filter_map(|(key, ready)| Some((key.strip_prefix(VOLUME)?, ready)));
    of_volumes.map(|(name, ready)| (name.to_owned(), ready.layers.clone())).collect()
}

impl BackOffs {
    /// Notes a failure; how long until the next try.
    fn failed(&mut self, name: &str, why: String, now: Duration, pauses: BackOff) -> Duration {
        let (first, max) = (Duration::from_secs(pauses.first_seconds), Duration::from_secs(pauses.max_seconds));
        let pause = self.failed.get(name).map_or(first, |f| (f.pause * 2).min(max));
        self.failed.insert(name.to_owned(), Failed { until: now + pause, pause, why });
        pause
    }

    /// How long nothing is to be tried, and why.
    fn waits(&self, name: &str, now: Duration) -> Option<(Duration, &str)> {
        let failed = self.failed.get(name)?;
        let left = failed.until.checked_sub(now).filter(|left| !left.is_zero())?;
        Some((left, &failed.why))
    }

    fn succeeded(&mut self, name: &str) {
        self.failed.remove(name);
    }
}

impl Worker {
    /// The images of a pod's containers and volumes, fetched where they are missing; see [`of_volumes`].
    pub(super) async fn ready_images(&mut self, pod: &Pod) -> Result<BTreeMap<String, Ready>, Hold> {
        let mut ready = BTreeMap::new();
        let Some(spec) = pod.spec.as_ref() else { return Ok(ready) };
        for volume in spec.volumes.iter().flatten() {
            if let Some(source) = &volume.image {
                let wanted = Wanted {
                    image: source.reference.clone().unwrap_or_default(),
                    policy: source.pull_policy.as_deref(),
                    container: "",
                };
                ready.insert(of_volume(&volume.name), self.ready_image(pod, wanted).await?);
            }
        }
        for container in containers(spec).filter(|_| !on_host_root(spec)) {
            if !is_sample(container.image.as_deref().unwrap_or_default()) {
                ready.insert(container.name.clone(), self.ready_image(pod, Wanted::by(container)).await?);
            }
        }
        Ok(ready)
    }

    async fn ready_image(&mut self, pod: &Pod, wanted: Wanted<'_>) -> Result<Ready, Hold> {
        let Wanted { image: text, policy, container } = wanted;
        let hold = |reason: &str, message: String| Hold {
            container: container.to_owned(),
            reason: reason.to_owned(),
            message,
        };
        let events = self.shared.events.clone();
        let whose = (!container.is_empty()).then_some(container);
        let warn = |reason: &str, message: &str| events.warning(pod, whose, reason, message);
        let say = |reason: &str, message: &str| events.normal(pod, whose, reason, message);
        let reference = Reference::parse(&text).map_err(|error| {
            let message =
                format!("Failed to apply default image tag {text:?}: couldn't parse image name {text:?}: {error}");
            warn("InspectFailed", &message);
            hold("InvalidImageName", message)
        })?;
        let inspect = |error: StoreError| {
            warn("InspectFailed", &format!("Failed to inspect image {text:?}: {error}"));
            hold("ImageInspectError", error.to_string())
        };
        let present = self.find_image(&reference).await.map_err(inspect)?;
        match (present, policy) {
            (Some(ready), Some("IfNotPresent" | "Never")) => {
                say(
                    "Pulled",
                    &format!("Container image {text:?} already present on machine and can be accessed by the pod"),
                );
                return Ok(ready);
            }
            (None, Some("Never")) => {
                let message = format!("Container image {text:?} is not present with pull policy of Never");
                warn("ErrImageNeverPull", &message);
                return Err(hold("ErrImageNeverPull", message));
            }
            _ => {}
        }
        if let Some((left, why)) = self.pulls.waits(&text, self.shared.ambient.boottime()) {
            say("BackOff", &format!("Back-off pulling image {text:?}"));
            self.pause = Some(left);
            return Err(hold("ImagePullBackOff", format!("Back-off pulling image {text:?}: ErrImagePull: {why}")));
        }
        say("Pulling", &format!("Pulling image {text:?}"));
        let began = self.shared.ambient.boottime();
        match self.fetch_image(pod, &reference).await {
            Ok((ready, size)) => {
                self.pulls.succeeded(&text);
                let took = self.shared.ambient.boottime().saturating_sub(began);
                let took = format!("{}ms", took.as_millis());
                let message = format!(
                    "Successfully pulled image {text:?} in {took} ({took} including waiting). Image size: {size} bytes."
                );
                say("Pulled", &message);
                Ok(ready)
            }
            Err(why) if self.must_leave() || self.shared.term.is_cancelled() => Err(hold("ContainerCreating", why)),
            Err(why) => {
                warn("Failed", &format!("Failed to pull image {text:?}: {why}"));
                let pauses = self.shared.puller.settings().unwrap_or_default().pull_back_off;
                let pause = self.pulls.failed(&text, why.clone(), self.shared.ambient.boottime(), pauses);
                self.pause = Some(FAILED_PAUSE.min(pause / 2));
                Err(hold("ErrImagePull", why))
            }
        }
    }

    /// An image of the store.
    async fn find_image(&self, reference: &Reference) -> Result<Option<Ready>, StoreError> {
        let (store, reference) = (self.shared.images.clone(), reference.clone());
        let job = move || {
            let Some(image) = store.find(&reference)? else { return Ok(None) };
            store.touch(&image.id)?;
            Ready::read(&store, &image, &reference).map(Some)
        };
        tokio::task::spawn_blocking(job).await.expect("looking for an image does not panic")
    }

    /// An image of a registry, and its size. Ends early where the pod is to go.
    async fn fetch_image(&self, pod: &Pod, reference: &Reference) -> Result<(Ready, u64), String> {
        let keyring = secrets::keyring(&self.shared, pod).await?;
        let mut watched = self.pod.clone();
        let leaves = async {
            let gone = |p: &Option<Arc<Pod>>| p.as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some());
            let _ = watched.wait_for(gone).await.map(drop);
        };
        let pulled = tokio::select! {
            pulled = self.shared.puller.pull(reference, &keyring, &|_| {}) => pulled,
            () = leaves => return Err("the pod is deleted".to_owned()),
            () = self.shared.term.cancelled() => return Err("the agent ends".to_owned()),
        };
        let pulled = pulled.map_err(|error| {
            if error.is_full() {
                self.shared.disk_full.notify_one();
            }
            format!("failed to pull and unpack image \"{reference}\": {error}")
        })?;
        let (store, reference, size) = (self.shared.images.clone(), reference.clone(), pulled.image.size);
        let job = move || Ready::read(&store, &pulled.image, &reference);
        let ready = tokio::task::spawn_blocking(job).await.expect("looking into an image does not panic");
        Ok((ready.map_err(|e| e.to_string())?, size))
    }
}

/// Notes what a pod's containers run from, in addition to what is noted already.
pub(super) fn note(dir: &Path, ready: &BTreeMap<String, Ready>) -> Result<(), FileError> {
    if ready.is_empty() {
        return Ok(());
    }
    let mut notes = noted(dir);
    notes.extend(ready.iter().map(|(name, ready)| (name.clone(), ready.noted.clone())));
    file::write(&dir.join(NOTE_FILE), NOTE, &notes)
}

/// What the containers of a pod run from, as far as it is noted.
pub(super) fn noted(dir: &Path) -> BTreeMap<String, Noted> {
    read_note(&dir.join(NOTE_FILE)).unwrap_or_default()
}

/// After the note: whether all of it is still there. Whoever removes an image looks at the notes first, so that what is
/// there now stays.
pub(super) fn are_there(store: &Store, ready: &BTreeMap<String, Ready>) -> Result<(), String> {
    for ready in ready.values() {
        let id: Digest = ready.noted.id.parse().map_err(|e| format!("{e}"))?;
        if !store.is_there(&id).map_err(|e| e.to_string())? {
            return Err(format!("image {} was removed meanwhile", ready.noted.image));
        }
    }
    Ok(())
}

/// The images that pods use whose folders lie in this one.
pub fn in_use(pods_dir: &Path) -> Result<BTreeSet<Digest>, StoreError> {
    let usage = |error: &dyn std::fmt::Display| StoreError::Usage(error.to_string());
    let mut used = BTreeSet::new();
    let pods = match std::fs::read_dir(pods_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(used),
        result => result.map_err(|e| usage(&e))?,
    };
    for entry in pods {
        let path = entry.map_err(|e| usage(&e))?.path().join(NOTE_FILE);
        for noted in read_note(&path).map_err(|e| usage(&e))?.values() {
            used.insert(noted.id.parse().map_err(|e| usage(&e))?);
        }
    }
    Ok(used)
}

fn read_note(path: &Path) -> Result<BTreeMap<String, Noted>, FileError> {
    match file::read(path, NOTE) {
        Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        result => result,
    }
}

/// The store of a node's images.
pub(super) fn open(config: &Config, ambient: &ambient::Ambient) -> Result<Arc<Store>, StoreError> {
    let store = Store::open(&config.images_dir(), ambient.clone())?;
    store.clear_leftovers()?;
    Ok(Arc::new(store))
}

/// Brings images of registries into it, as `registries.json` in the data directory says.
pub(super) fn puller(store: &Arc<Store>, config: &Config, ambient: &ambient::Ambient) -> Puller {
    Puller::new(store.clone(), &config.data_dir.join(settings::FILE), ambient.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_variables_win_and_a_home_comes_from_the_images_users() {
        let own = [("LANG".to_owned(), "de".to_owned()), ("A".to_owned(), "1".to_owned())];
        let env = vec!["PATH=/usr/bin:/opt/bin".to_owned(), "LANG=C".to_owned(), "EMPTY".to_owned()];
        let passwd = "postgres:x:999:998::/var/lib/postgresql:/bin/sh\n".to_owned();
        let ready = Ready { run: RunConfig { env, ..RunConfig::default() }, passwd, ..Ready::default() };
        let text = |uid| {
            let all = ready.environment(&own, uid);
            all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(999), "PATH=/usr/bin:/opt/bin EMPTY= LANG=de A=1 HOME=/var/lib/postgresql");
        assert_eq!(text(1), "PATH=/usr/bin:/opt/bin EMPTY= LANG=de A=1");
    }

    #[test]
    fn pauses_between_tries_double_up_to_five_minutes() {
        let mut pulls = BackOffs::default();
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            assert_eq!(pulls.waits("x", now), None);
            pulls.failed("x", "no".to_owned(), now, BackOff::default());
            let (left, why) = pulls.waits("x", now).expect("it waits");
            assert_eq!(why, "no");
            pauses.push(left.as_secs());
            now += left;
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        pulls.succeeded("x");
        pulls.failed("x", "no".to_owned(), now, BackOff::default());
        assert_eq!(pulls.waits("x", now).map(|(left, _)| left.as_secs()), Some(10));
    }

    #[test]
    fn volumes_of_an_image_that_lead_out_are_none() {
        let volumes = ["/data", "relative", "/a/../../etc"].map(|v| (v.to_owned(), serde_json::json!({})));
        let run = RunConfig { volumes: volumes.into(), ..RunConfig::default() };
        let root = Ready { run, ..Ready::default() }.root();
        assert_eq!(root, Root::Image { layers: vec![], volumes: vec!["/data".into()] });
    }
}
