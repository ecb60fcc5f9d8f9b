//! Volumes whose files come from the API: configMap, secret, downwardAPI and projected.
//!
//! What the files are is decided without I/O ([`files`]); [`write`] then lays them down as a kubelet does:
//! in a folder of their own behind the link `..data`, so that a change can replace all of them in one step.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Secret, SecretVolumeSource, ServiceAccountTokenProjection, Volume,
};

use super::owner::own;
use crate::agent::fields;
use crate::agent::sources::Fetched;
use crate::agent::tokens::Wish;
use crate::fault::{self, Point};

/// Mode of a file where nothing says otherwise.
const DEFAULT_MODE: i32 = 0o644;

/// A file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// The files of a volume by relative path, or none where the volume is of another kind. Errors are upstream's sentences.
pub fn files(pod: &Pod, volume: &Volume, fetched: &Fetched) -> Option<Result<BTreeMap<String, File>, String>> {
    if let Some(source) = &volume.config_map {
        Some(of_config_map(source, fetched))
    } else if let Some(source) = &volume.secret {
        Some(of_secret(source, fetched))
    } else if let Some(source) = &volume.downward_api {
        Some(of_downward(pod, source))
    } else {
        volume.projected.as_ref().map(|source| of_projected(pod, source, fetched))
    }
}

fn of_config_map(source: &ConfigMapVolumeSource, fetched: &Fetched) -> Result<BTreeMap<String, File>, String> {
    let Some(map) = fetched.config_maps.get(&source.name) else {
        return missing(source.optional, || format!("configmap \"{}\" not found", source.name));
    };
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let what = format!("configmap references non-existent config key: {}", source.name);
    select(&data_of_config_map(map), source.items.as_deref(), mode, source.optional, &what)
}

fn of_secret(source: &SecretVolumeSource, fetched: &Fetched) -> Result<BTreeMap<String, File>, String> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let Some(secret) = fetched.secrets.get(name) else {
        return missing(source.optional, || format!("secret \"{name}\" not found"));
    };
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let what = format!("references non-existent secret key: {name}");
    select(&data_of_secret(secret), source.items.as_deref(), mode, source.optional, &what)
}

fn of_downward(pod: &Pod, source: &DownwardAPIVolumeSource) -> Result<BTreeMap<String, File>, String> {
    downward(pod, source.items.iter().flatten(), source.default_mode.unwrap_or(DEFAULT_MODE))
}

fn of_projected(
    pod: &Pod,
    source: &ProjectedVolumeSource,
    fetched: &Fetched,
) -> Result<BTreeMap<String, File>, String> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut all = BTreeMap::new();
    for part in source.sources.iter().flatten() {
        let found = if let Some(map) = &part.config_map {
            let as_volume = ConfigMapVolumeSource {
                name: map.name.clone(),
                items: map.items.clone(),
                optional: map.optional,
                default_mode: Some(mode),
                ..ConfigMapVolumeSource::default()
            };
            of_config_map(&as_volume, fetched)?
        } else if let Some(secret) = &part.secret {
            let as_volume = SecretVolumeSource {
                secret_name: Some(secret.name.clone()),
                items: secret.items.clone(),
                optional: secret.optional,
                default_mode: Some(mode),
                ..SecretVolumeSource::default()
            };
            of_secret(&as_volume, fetched)?
        } else if let Some(api) = &part.downward_api {
            downward(pod, api.items.iter().flatten(), mode)?
        } else if let Some(token) = &part.service_account_token {
            token_file(pod, token, fetched, mode)?
        } else {
            let kind = match (&part.cluster_trust_bundle, &part.pod_certificate) {
                (Some(_), _) => "projected.sources.clusterTrustBundle",
                (_, Some(_)) => "projected.sources.podCertificate",
                _ => "a projected source without a kind",
            };
            return Err(format!("{kind} is not supported by this version of statefuld"));
        };
        all.extend(found);
    }
    Ok(all)
}

fn token_file(
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    fetched: &Fetched,
    default_mode: i32,
) -> Result<BTreeMap<String, File>, String> {
    let token = match fetched.tokens.get(&Wish::of(source)) {
        Some(Ok(token)) => token,
        Some(Err(why)) => return Err(why.clone()),
        None => return Err("failed to fetch token: it was not asked for".to_owned()),
    };
    // As a kubelet: where the pod has a group of its own, only that may read it.
    let has_group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).is_some_and(|c| c.fs_group.is_some());
    let mut files = BTreeMap::new();
    let mode = if has_group { 0o600 } else { default_mode };
    insert(&mut files, &source.path, token.text.clone().into_bytes(), mode)?;
    Ok(files)
}

fn downward<'a>(
    pod: &Pod,
    items: impl Iterator<Item = &'a DownwardAPIVolumeFile>,
    default_mode: i32,
) -> Result<BTreeMap<String, File>, String> {
    let mut files = BTreeMap::new();
    for item in items {
        let content = if let Some(field) = &item.field_ref {
            fields::value(pod, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(pod, resource.container_name.as_deref().unwrap_or_default(), resource)?
        } else {
            return Err(format!("{}: neither fieldRef nor resourceFieldRef", item.path));
        };
        insert(&mut files, &item.path, content.into_bytes(), item.mode.unwrap_or(default_mode))?;
    }
    Ok(files)
}

/// What a config map holds, text and bytes alike.
pub fn data_of_config_map(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let bytes = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(bytes).collect()
}

/// What a secret holds.
pub fn data_of_secret(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

fn missing(optional: Option<bool>, message: impl FnOnce() -> String) -> Result<BTreeMap<String, File>, String> {
    if optional == Some(true) { Ok(BTreeMap::new()) } else { Err(message()) }
}

/// All keys, or the chosen ones under their chosen paths.
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: Option<bool>,
    missing_key: &str,
) -> Result<BTreeMap<String, File>, String> {
    let mut files = BTreeMap::new();
    match items.filter(|items| !items.is_empty()) {
        None => {
            for (key, content) in data {
                insert(&mut files, key, content.clone(), default_mode)?;
            }
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(content) => {
                        insert(&mut files, &item.path, content.clone(), item.mode.unwrap_or(default_mode))?;
                    }
                    None if optional == Some(true) => {}
                    None => return Err(format!("{missing_key} ({})", item.key)),
                }
            }
        }
    }
    Ok(files)
}

fn insert(files: &mut BTreeMap<String, File>, path: &str, content: Vec<u8>, mode: i32) -> Result<(), String> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || path.starts_with("..") || !plain {
        return Err(format!("{path:?} is not a path inside of the volume"));
    }
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o7777;
    files.insert(path.to_owned(), File { content, mode });
    Ok(())
}

/// Replaces the volume's content in one step, if it differs. `nonce` tells this version of the files from the last;
/// `group` is the pod's own, which then may read them.
pub fn write(folder: &Path, files: &BTreeMap<String, File>, nonce: &str, group: Option<u32>) -> io::Result<()> {
    if is_current(folder, files) {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let version = format!("..{nonce}");
    let fresh = folder.join(&version);
    fs::create_dir_all(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    own(&fresh, group, false)?;
    fault::point(Point::FilesWritten);
    let next = folder.join("..data_next");
    let _ = fs::remove_file(&next);
    symlink(&version, &next)?;
    fs::rename(&next, folder.join("..data"))?;
    let tops: std::collections::BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for top in &tops {
        let link = folder.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/{top}"), &link)?;
        }
    }
    fault::point(Point::FilesShown);
    // What is no longer named goes, and so do earlier versions.
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(old) = name.strip_prefix("..") {
            if name != version && !old.starts_with("data") {
                fs::remove_dir_all(entry.path())?;
            }
        } else if !tops.contains(name) {
            fs::remove_file(entry.path())?;
        }
    }
    own(folder, group, false)
}

/// Whether a volume holds these files and no others, whole: an earlier writer may have died half-way.
fn is_current(folder: &Path, files: &BTreeMap<String, File>) -> bool {
    let data = folder.join("..data");
    let same = |(path, file): (&String, &File)| fs::read(data.join(path)).is_ok_and(|content| content == file.content);
    if !data.exists() || !files.iter().all(same) {
        return false;
    }
    let tops: std::collections::BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    let shown = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
    let shown: std::collections::BTreeSet<String> = shown.filter(|name| !name.starts_with("..")).collect();
    shown.iter().map(String::as_str).eq(tops) && count_files(&data) == files.len()
}

fn count_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count_files(&e.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::tokens::Token;

    fn volume(value: serde_json::Value) -> Volume {
        serde_json::from_value(value).expect("a volume")
    }

    fn fetched() -> Fetched {
        let map = json!({"metadata": {"name": "conf"}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "AAE="}});
        let secret = json!({"metadata": {"name": "pass"}, "data": {"password": "c2VjcmV0"}});
        let mut fetched = Fetched::default();
        fetched.config_maps.insert("conf".into(), serde_json::from_value(map).expect("a config map"));
        fetched.secrets.insert("pass".into(), serde_json::from_value(secret).expect("a secret"));
        fetched
    }

    #[test]
    fn a_token_is_a_file_that_only_the_pods_group_may_read_where_it_has_one() {
        let mut fetched = fetched();
        let wish = |audience: &str| Wish { audience: audience.to_owned(), life_s: 3600 };
        let token = Token {
            text: "good".to_owned(),
            renew_at: crate::agent::tokens::Due { boot: std::time::Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH },
        };
        fetched.tokens.insert(wish(""), Ok(token));
        fetched.tokens.insert(wish("vault"), Err("failed to fetch token: no".to_owned()));
        let read = |spec: serde_json::Value, audience: &str| {
            let pod = json!({"metadata": {"name": "web-0"}, "spec": spec});
            let source = json!({"serviceAccountToken": {"path": "token", "audience": audience}});
            let volume = volume(json!({"name": "v", "projected": {"sources": [source]}}));
            files(&serde_json::from_value(pod).expect("a pod"), &volume, &fetched).expect("a payload volume")
        };
        let file = |mode| Ok(BTreeMap::from([("token".to_owned(), File { content: b"good".to_vec(), mode })]));
        assert_eq!(read(json!({"containers": []}), ""), file(0o644));
        assert_eq!(read(json!({"containers": [], "securityContext": {"fsGroup": 5}}), ""), file(0o600));
        assert_eq!(read(json!({"containers": []}), "vault"), Err("failed to fetch token: no".to_owned()));
    }

    fn read(value: serde_json::Value) -> Result<BTreeMap<String, File>, String> {
        let pod = json!({"metadata": {"name": "web-0", "labels": {"app": "web"}}, "spec": {"containers": []}});
        files(&serde_json::from_value(pod).expect("a pod"), &volume(value), &fetched()).expect("a payload volume")
    }

    #[test]
    fn all_keys_or_the_chosen_ones() {
        let all = read(json!({"name": "v", "configMap": {"name": "conf"}})).expect("files");
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(all["c"].content, [0, 1]);
        let items = json!([{"key": "a", "path": "etc/a.conf", "mode": 0o600}]);
        let chosen = read(json!({"name": "v", "configMap": {"name": "conf", "defaultMode": 0o444, "items": items}}));
        let file = File { content: b"1".to_vec(), mode: 0o600 };
        assert_eq!(chosen, Ok(BTreeMap::from([("etc/a.conf".to_owned(), file)])));
    }

    #[test]
    fn missing_is_an_error_unless_optional() {
        let error = read(json!({"name": "v", "secret": {"secretName": "none"}})).expect_err("missing");
        assert_eq!(error, "secret \"none\" not found");
        assert_eq!(read(json!({"name": "v", "secret": {"secretName": "none", "optional": true}})), Ok(BTreeMap::new()));
        let items = json!([{"key": "z", "path": "z"}]);
        assert!(read(json!({"name": "v", "configMap": {"name": "conf", "items": items}})).is_err());
    }

    #[test]
    fn path_that_leaves_the_volume_is_refused() {
        for path in ["../x", "/x", "..data", "a/../../b", ""] {
            let items = json!([{"key": "a", "path": path}]);
            assert!(read(json!({"name": "v", "configMap": {"name": "conf", "items": items}})).is_err(), "{path}");
        }
    }

    #[test]
    fn projected_joins_its_sources() {
        let field = json!({"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}});
        let sources = json!([{"configMap": {"name": "conf"}}, {"secret": {"name": "pass"}},
            {"downwardAPI": {"items": [field]}}]);
        let all = read(json!({"name": "v", "projected": {"sources": sources}})).expect("files");
        assert_eq!(all["password"].content, b"secret");
        assert_eq!(all["labels"].content, b"app=\"web\"");
    }

    #[test]
    fn replaced_in_one_step_and_old_names_go() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = |text: &str| File { content: text.into(), mode: 0o640 };
        let first = BTreeMap::from([("a".to_owned(), file("1")), ("sub/b".to_owned(), file("2"))]);
        write(dir.path(), &first, "n1", None).expect("written");
        assert_eq!(fs::read_to_string(dir.path().join("sub/b")).expect("read"), "2");
        write(dir.path(), &BTreeMap::from([("a".to_owned(), file("3"))]), "n2", None).expect("written");
        assert_eq!(fs::read_to_string(dir.path().join("a")).expect("read"), "3");
        assert!(fs::symlink_metadata(dir.path().join("sub")).is_err());
        assert!(!dir.path().join("..n1").exists());
        write(dir.path(), &BTreeMap::from([("a".to_owned(), file("3"))]), "n3", None).expect("written");
        assert!(!dir.path().join("..n3").exists(), "nothing differs, so nothing is replaced");
        let mode = fs::metadata(dir.path().join("a")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }
}
