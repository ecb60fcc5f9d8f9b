//! What the operator says of registries: `registries.json` in the data directory.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::layer::Limits;
use crate::store::gc::Thresholds;

/// Name of the file in the data directory.
pub const FILE: &str = "registries.json";
/// Where images without a registry's name come from.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Registries, limits and the removal of images. Everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// By name as images have it: `docker.io`, `registry.example:5000`.
    pub registries: BTreeMap<String, Registry>,
    /// When images are removed because the disk fills up.
    pub garbage_collection: Thresholds,
    /// How long the node waits after a failed pull.
    pub pull_back_off: BackOff,
    /// What a layer may be at most.
    pub layer_limits: LayerLimits,
}

/// One registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Registry {
    /// Registries asked before this one, in this order: `host`, `host:port`, with a path in front of all repositories
    /// perhaps. How each is reached is what its own entry says.
    pub mirrors: Vec<String>,
    /// It is reached by HTTP without TLS: passwords and images can be read and changed on the way.
    pub plain_http: bool,
    /// Certificates of authorities (PEM) that are trusted for it beside the machine's.
    pub ca_file: Option<PathBuf>,
    /// Who we are there, where a pod brings no credentials.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
}

/// Pauses between tries, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackOff {
    /// The first; it doubles.
    pub first_seconds: u64,
    /// The longest.
    pub max_seconds: u64,
}

impl Default for BackOff {
    fn default() -> Self {
        Self { first_seconds: 10, max_seconds: 300 }
    }
}

/// What a layer may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LayerLimits {
    /// Bytes, unpacked.
    pub max_bytes: u64,
    /// Entries.
    pub max_entries: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { max_bytes: Limits::default().bytes, max_entries: Limits::default().entries }
    }
}

/// A server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host, and port where it is not the scheme's.
    pub host: String,
    /// What comes before every repository, with a slash at its end, or nothing.
    pub prefix: String,
    /// What is said of it.
    pub registry: Registry,
}

impl Settings {
    /// Reads the file; without one, all is as usual.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let unusable = |what: String| SettingsError { path: path.to_owned(), what };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unusable(error.to_string())),
        };
        // A list would be read as the fields in their order.
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&text).map_err(|e| unusable(e.to_string()))?;
        let settings: Self = serde_json::from_value(fields.into()).map_err(|e| unusable(e.to_string()))?;
        let marks = settings.garbage_collection;
        if marks.low_percent >= marks.high_percent || marks.high_percent > 100 {
            return Err(unusable(
                "garbageCollection: lowPercent must be below highPercent, and that at most 100".to_owned(),
            ));
        }
        Ok(settings)
    }

    /// Whom to ask for images of that registry, in this order: its mirrors, then itself.
    pub fn endpoints(&self, domain: &str) -> Vec<Endpoint> {
        let mirrors = self.registries.get(domain).map(|r| r.mirrors.as_slice()).unwrap_or_default();
        let mut endpoints: Vec<Endpoint> = mirrors.iter().map(|mirror| self.mirror(mirror)).collect();
        let host = if domain == DOCKER_HUB.0 { DOCKER_HUB.1 } else { domain };
        let registry = self.registries.get(domain).cloned().unwrap_or_default();
        endpoints.push(Endpoint { host: host.to_owned(), prefix: String::new(), registry });
        endpoints
    }

    fn mirror(&self, mirror: &str) -> Endpoint {
        let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
        let path = path.trim_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let registry = self.registries.get(host).cloned().unwrap_or_default();
        Endpoint { host: host.to_owned(), prefix, registry }
    }

    /// The limits for layers.
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.layer_limits.max_bytes, entries: self.layer_limits.max_entries, ..Limits::default() }
    }
}

/// The file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct SettingsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(FILE);
        fs::write(&path, text).expect("written");
        Settings::read(&path)
    }

    #[test]
    fn mirrors_are_asked_first_each_as_its_own_entry_says() {
        let settings = read(
            r#"{"registries": {"docker.io": {"mirrors": ["mirror.test:5000", "proxy.test/hub/"]},
                "mirror.test:5000": {"plainHttp": true}}}"#,
        );
        let endpoints = settings.expect("settings").endpoints("docker.io");
        let seen: Vec<_> =
            endpoints.iter().map(|e| (e.host.as_str(), e.prefix.as_str(), e.registry.plain_http)).collect();
        assert_eq!(
            seen,
            [("mirror.test:5000", "", true), ("proxy.test", "hub/", false), ("registry-1.docker.io", "", false)]
        );
        let plain = Settings::read(Path::new("/no/such/file")).expect("the usual").endpoints("quay.io");
        assert_eq!((plain.len(), plain[0].host.as_str()), (1, "quay.io"));
    }

    #[test]
    fn what_is_misspelt_or_makes_no_sense_is_refused() {
        for text in [
            r#"{"registry": {}}"#,
            r#"{"registries": {"a": {"plainHTTP": true}}}"#,
            "[]",
            r#"{"garbageCollection": {"highPercent": 50, "lowPercent": 60}}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
