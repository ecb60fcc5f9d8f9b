//! Who we are at a registry: Docker's credential files, and what registries ask for. Pure.
//!
//! Sources: Docker's `config.json`; how the kubelet matches its keys (<https://kubernetes.io/docs/concepts/containers/images/>);
//! RFC 9110, "Authentication"; distribution's token authentication specification.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Longest credential file.
const MAX_FILE: usize = 1 << 20;

/// A name and a password, or a token in place of both.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Credentials {
    /// As a header's value.
    pub fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

/// Credentials by the places that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    entries: Vec<(Place, Credentials)>,
}

/// Where credentials are for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// Host and port; `*` in a label stands for anything.
    host: String,
    /// Beginning of the repository's path.
    path: String,
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Keyring {
    /// Adds what a `config.json` holds.
    pub fn add_config_json(&mut self, text: &[u8]) -> Result<(), CredentialsError> {
        check_length(text)?;
        // A list would be read as the fields in their order.
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(text).map_err(|e| CredentialsError(e.to_string()))?;
        let config: ConfigJson = serde_json::from_value(fields.into()).map_err(|e| CredentialsError(e.to_string()))?;
        self.add(config.auths)
    }

    /// Adds what a file of the older form, `.dockercfg`, holds.
    pub fn add_dockercfg(&mut self, text: &[u8]) -> Result<(), CredentialsError> {
        check_length(text)?;
        self.add(serde_json::from_slice(text).map_err(|e| CredentialsError(e.to_string()))?)
    }

    fn add(&mut self, auths: BTreeMap<String, Entry>) -> Result<(), CredentialsError> {
        for (key, entry) in auths {
            if let Some(credentials) = entry.credentials()? {
                self.entries.push((Place::parse(&key), credentials));
            }
        }
        // The more is said of a place the earlier it is tried.
        self.entries.sort_by_key(|entry| std::cmp::Reverse((entry.0.path.len(), entry.0.host.len())));
        Ok(())
    }

    /// Credentials for a repository, the ones to try first first.
    pub fn find(&self, domain: &str, path: &str) -> Vec<Credentials> {
        let mut found: Vec<Credentials> = Vec::new();
        for (place, credentials) in &self.entries {
            if place.is_for(domain, path) && !found.contains(credentials) {
                found.push(credentials.clone());
            }
        }
        found
    }
}

impl Entry {
    fn credentials(self) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(auth) = self.auth.filter(|a| !a.is_empty()) {
            let wrong = || CredentialsError("auth is not base64 of name:password".to_owned());
            let trimmed = auth.trim().trim_end_matches('=');
            let bytes = STANDARD_NO_PAD.decode(trimmed).map_err(|_| wrong())?;
            let text = String::from_utf8(bytes).map_err(|_| wrong())?;
            let (username, password) = text.split_once(':').ok_or_else(wrong)?;
            // Docker pads with zeros.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credentials { username: username.to_owned(), password: password.to_owned() }));
        }
        let (username, password) = (self.username.unwrap_or_default(), self.password.unwrap_or_default());
        Ok((!username.is_empty() || !password.is_empty()).then_some(Credentials { username, password }))
    }
}

impl Place {
    /// `https://host:port/path/`, or less; Docker Hub goes by many names.
    fn parse(key: &str) -> Self {
        let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
        Self { host: host.to_owned(), path: path.to_owned() }
    }

    fn is_for(&self, domain: &str, path: &str) -> bool {
        let split = |host: &str| {
            host.split_once(':').map_or((host.to_owned(), None), |(h, p)| (h.to_owned(), Some(p.to_owned())))
        };
        let ((host, port), (wanted, wanted_port)) = (split(&self.host), split(domain));
        let labels = (host.split('.').collect::<Vec<_>>(), wanted.split('.').collect::<Vec<_>>());
        port == wanted_port
            && labels.0.len() == labels.1.len()
            && labels.0.iter().zip(&labels.1).all(|(pattern, label)| matches_label(pattern, label))
            && (self.path.is_empty()
                || path == self.path
                || path.strip_prefix(&self.path).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// One `*` in a label stands for anything.
fn matches_label(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            label.len() >= start.len() + end.len() && label.starts_with(start) && label.ends_with(end)
        }
        None => pattern == label,
    }
}

fn check_length(text: &[u8]) -> Result<(), CredentialsError> {
    if text.len() > MAX_FILE { Err(CredentialsError("it is too long".to_owned())) } else { Ok(()) }
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password.
    Basic,
    /// A token of this server, for this service and scope.
    Bearer {
        /// The server's URL.
        realm: String,
        /// Whose tokens.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header; the first that is understood counts.
    pub fn parse(header: &str) -> Option<Self> {
        let header = header.trim();
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |name: &str| parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        Some(Self::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
    }
}

/// `name="value", name=value`; values may contain commas, and quotes after a backslash.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while let Some((name, after)) = rest.split_once('=') {
        let mut value = String::new();
        let after = after.trim_start();
        rest = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut characters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, character)) = characters.next() {
                    match character {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(characters.next().map(|(_, c)| c)),
                        other => value.push(other),
                    }
                }
                &quoted[end..]
            }
            None => {
                let end = after.find(',').unwrap_or(after.len());
                value.push_str(after[..end].trim());
                &after[end..]
            }
        };
        found.push((name.trim().to_owned(), value));
        rest = rest.trim_start().trim_start_matches(',').trim_start();
    }
    found
}

/// A credential file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credentials cannot be read: {0}")]
pub struct CredentialsError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ring: &Keyring, domain: &str, path: &str) -> Vec<String> {
        ring.find(domain, path).into_iter().map(|c| c.username).collect()
    }

    #[test]
    fn credentials_are_found_by_host_port_path_and_wildcard() {
        let mut ring = Keyring::default();
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
            "registry.test:5000": {"username": "port", "password": "p"},
            "registry.test/team/app": {"username": "app", "password": "p"},
            "registry.test": {"username": "all", "password": "p"},
            "*.cloud.test": {"username": "cloud", "password": "p"},
            "empty.test": {}}}"#;
        ring.add_config_json(text.as_bytes()).expect("credentials");
        assert_eq!(
            ring.find("docker.io", "library/nginx"),
            [Credentials { username: "hub".into(), password: "secret".into() }]
        );
        assert_eq!(names(&ring, "registry.test:5000", "x"), ["port"]);
        assert_eq!(names(&ring, "registry.test", "team/app"), ["app", "all"]);
        assert_eq!(names(&ring, "registry.test", "team/apple"), ["all"]);
        assert_eq!(names(&ring, "eu.cloud.test", "x"), ["cloud"]);
        assert_eq!(names(&ring, "a.eu.cloud.test", "x"), Vec::<String>::new());
        assert_eq!(names(&ring, "empty.test", "x"), Vec::<String>::new());
        let mut old = Keyring::default();
        old.add_dockercfg(br#"{"old.test": {"username": "old", "password": "p"}}"#).expect("credentials");
        assert_eq!(names(&old, "old.test", "x"), ["old"]);
        assert!(old.add_config_json(br#"{"auths": {"a": {"auth": "%%%"}}}"#).is_err());
        assert!(!format!("{ring:?}").contains("secret"), "no password is ever printed");
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let header =
            r#"Bearer realm="https://auth.test/token?a=b",service="registry.test",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(header),
            Some(Challenge::Bearer {
                realm: "https://auth.test/token?a=b".into(),
                service: Some("registry.test".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("bearer service=x"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "[Bb]earer [a-z=\", \\\\é]{0,40}") {
            let _ = Challenge::parse(&text);
        }
    }
}
