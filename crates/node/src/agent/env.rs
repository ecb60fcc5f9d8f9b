//! A container's environment, and `$(NAME)` in its command.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, FileKeySelector, Pod};

use super::api_server::ApiServer;
use super::fields;
use super::services;
use super::sources::Fetched;
use crate::volume::payload::{data_of_config_map, data_of_secret};

/// The variables of a container in their order. Errors are upstream's sentences.
///
/// Where the API server and the namespace's services are comes first, then `envFrom`, then `env` one by one; a later one replaces an earlier of the
/// same name, and a value may name what stands before it.
pub fn variables(pod: &Pod, container: &Container, fetched: &Fetched) -> Result<Vec<(String, String)>, String> {
    let mut list = List::default();
    // The server's last: in the machine's own network it is not where its service is.
    let server = fetched.api_server.iter().flat_map(ApiServer::variables);
    for (name, value) in services::variables(&fetched.services).into_iter().chain(server) {
        list.set(name, value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let data = if let Some(map) = &source.config_map_ref {
            match fetched.config_maps.get(&map.name) {
                Some(found) => found.data.clone().unwrap_or_default(),
                None if map.optional == Some(true) => BTreeMap::new(),
                None => return Err(format!("configmap \"{}\" not found", map.name)),
            }
        } else if let Some(secret) = &source.secret_ref {
            match fetched.secrets.get(&secret.name) {
                Some(found) => texts(data_of_secret(found)),
                None if secret.optional == Some(true) => BTreeMap::new(),
                None => return Err(format!("secret \"{}\" not found", secret.name)),
            }
        } else {
            continue;
        };
        for (key, value) in data {
            // Keys that cannot be variables are left out, as upstream leaves them out.
            if !key.is_empty() && !key.contains('=') {
                list.set(format!("{prefix}{key}"), value);
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value_from, &variable.value) {
            (Some(source), _) => match from_source(pod, container, source, fetched)? {
                Some(value) => value,
                None => continue,
            },
            (None, value) => expand(value.as_deref().unwrap_or_default(), |name| list.get(name)),
        };
        list.set(variable.name.clone(), value);
    }
    Ok(list.items)
}

/// Replaces `$(NAME)` by what is known under that name; unknown names stay as they are, `$$` is one `$`.
pub fn expand<'a>(text: &str, known: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match known(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The value that a source names; none where it is optional and missing.
fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    fetched: &Fetched,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return fields::value(pod, &field.field_path).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return fields::resource(pod, &container.name, resource).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = fetched.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap \"{}\" not found", key.name)) };
        };
        return match texts(data_of_config_map(map)).remove(&key.key) {
            None if !optional => Err(format!("couldn't find key {} in ConfigMap {}", key.key, scoped(pod, &key.name))),
            found => Ok(found),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = fetched.secrets.get(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("secret \"{}\" not found", key.name)) };
        };
        return match texts(data_of_secret(secret)).remove(&key.key) {
            None if !optional => Err(format!("couldn't find key {} in Secret {}", key.key, scoped(pod, &key.name))),
            found => Ok(found),
        };
    }
    if let Some(key) = &source.file_key_ref {
        return from_file(key, fetched);
    }
    Err("a valueFrom without a source is not supported by this version of statefuld".to_owned())
}

/// A variable of a file that another container wrote; none, too, as long as it is too early to look.
fn from_file(key: &FileKeySelector, fetched: &Fetched) -> Result<Option<String>, String> {
    let Some(file) = fetched.files.get(&(key.volume_name.clone(), key.path.clone())) else { return Ok(None) };
    let value = file.clone()?.and_then(|mut variables| variables.remove(&key.key));
    if value.is_none() && key.optional != Some(true) {
        return Err(format!("couldn't find key {} in file {} of volume {}", key.key, key.path, key.volume_name));
    }
    Ok(value)
}

fn scoped(pod: &Pod, name: &str) -> String {
    format!("{}/{name}", pod.metadata.namespace.as_deref().unwrap_or("default"))
}

fn texts(data: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v).into_owned())).collect()
}

/// Variables in the order in which they were first named.
#[derive(Default)]
struct List {
    items: Vec<(String, String)>,
}

impl List {
    fn set(&mut self, name: String, value: String) {
        match self.items.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.items.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.items.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn known(name: &str) -> Option<&'static str> {
        (name == "A").then_some("1")
    }

    #[test]
    fn expansion_is_upstreams() {
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, known), expected, "{text}");
        }
    }

    fn vars(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod = json!({"metadata": {"name": "web-0", "namespace": "prod"}, "spec": {"containers": []}});
        let mut fetched = Fetched::default();
        let map = json!({"data": {"HOST": "db", "bad=key": "x"}});
        fetched.config_maps.insert("conf".into(), serde_json::from_value(map).expect("a config map"));
        let secret = json!({"data": {"word": "c2VjcmV0"}});
        fetched.secrets.insert("pass".into(), serde_json::from_value(secret).expect("a secret"));
        let pod = serde_json::from_value(pod).expect("a pod");
        variables(&pod, &serde_json::from_value(container).expect("a container"), &fetched)
    }

    #[test]
    fn sources_come_in_order_and_later_ones_win() {
        let found = vars(json!({"name": "c",
        "envFrom": [{"configMapRef": {"name": "conf"}}, {"prefix": "S_", "secretRef": {"name": "pass"}}],
        "env": [
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "URL", "value": "$(HOST)/$(NAME)/$(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "HOST", "value": "other"},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "pass", "key": "no", "optional": true}}}
        ]}));
        let pairs =
            [("HOST", "other"), ("S_word", "secret"), ("NAME", "web-0"), ("URL", "db/web-0/$(LATER)"), ("LATER", "x")];
        assert_eq!(found, Ok(pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec()));
    }

    #[test]
    fn the_api_server_is_where_the_pod_reaches_it_and_services_may_be_named() {
        let services = json!([{"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}},
            {"metadata": {"name": "db"}, "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 5432}]}}]);
        let fetched = Fetched {
            services: serde_json::from_value(services).expect("services"),
            api_server: Some(ApiServer { host: "192.0.2.1".to_owned(), port: 6443 }),
            ..Fetched::default()
        };
        let container = json!({"name": "c", "env": [{"name": "DB", "value": "$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)"}]});
        let found = variables(&Pod::default(), &serde_json::from_value(container).expect("a container"), &fetched);
        let found = found.expect("variables");
        let of = |name: &str| found.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(of("KUBERNETES_SERVICE_HOST"), Some("192.0.2.1"));
        assert_eq!(of("DB"), Some("10.96.0.7:5432"));
    }

    #[test]
    fn missing_things_are_named() {
        let error = vars(json!({"name": "c", "envFrom": [{"secretRef": {"name": "none"}}]}));
        assert_eq!(error, Err("secret \"none\" not found".to_owned()));
        let key = json!({"name": "K", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "z"}}});
        let error = vars(json!({"name": "c", "env": [key]}));
        assert_eq!(error, Err("couldn't find key z in ConfigMap prod/conf".to_owned()));
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_untouched_and_any_text_is_taken(text in ".{0,40}") {
            let out = expand(&text, known);
            if !text.contains('$') {
                prop_assert_eq!(out, text);
            }
        }
    }
}
