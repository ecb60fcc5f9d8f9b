//! The name files of a pod: `/etc/hosts` and `/etc/resolv.conf`, as text.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// How names inside the pod are looked up.
#[derive(Clone, Debug)]
pub struct NameSettings<'a> {
    /// The cluster's name server.
    pub server: Ipv4Addr,
    /// The cluster's zone.
    pub domain: &'a str,
    /// The machine's own resolv.conf.
    pub host_resolv: &'a str,
}

/// The longest host name of a kernel.
const HOST_NAME_MAX: usize = 64;

/// The host name that a pod's programs are told by the kernel; the machine's own on the machine's network.
pub fn kernel_hostname(pod: &Pod, domain: &str) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    if spec.is_some_and(|s| s.host_network == Some(true)) {
        return Ok(rustix::system::uname().nodename().to_string_lossy().into_owned());
    }
    let whole = spec.is_some_and(|s| s.set_hostname_as_fqdn == Some(true));
    match fqdn(pod, domain).filter(|_| whole) {
        Some(fqdn) if fqdn.len() > HOST_NAME_MAX => Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({HOST_NAME_MAX} \
             characters is the max, {} characters requested)",
            fqdn.len()
        )),
        Some(fqdn) => Ok(fqdn),
        None => Ok(hostname(pod)),
    }
}

/// The pod's host name: `spec.hostnameOverride`, else `spec.hostname`, else its name, cut to what a kernel takes.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()).filter(|name| !name.is_empty()) {
        return name;
    }
    let name = spec
        .and_then(|s| s.hostname.clone())
        .filter(|h| !h.is_empty())
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `hostname.subdomain.namespace.svc.zone`, where the pod has a subdomain, and no host name in place of both.
pub fn fqdn(pod: &Pod, domain: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.hostname_override.as_ref().is_some_and(|name| !name.is_empty()) {
        return None;
    }
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref()?;
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// `/etc/hosts` of a pod with this address. On the machine's network it is the machine's, which is `machine`.
pub fn hosts(pod: &Pod, address: Ipv4Addr, domain: &str, machine: &str) -> String {
    if pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true)) {
        let mut text = machine.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        aliases(pod, &mut text);
        return text;
    }
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod);
    match fqdn(pod, domain) {
        Some(fqdn) => _ = writeln!(text, "{address}\t{fqdn}\t{host}"),
        None => _ = writeln!(text, "{address}\t{host}"),
    }
    aliases(pod, &mut text);
    text
}

/// The pod's own lines.
fn aliases(pod: &Pod, text: &mut String) {
    for alias in pod.spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        let names = alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t");
        if !names.is_empty() {
            _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
}

/// `/etc/resolv.conf` by the pod's DNS policy and config.
pub fn resolv_conf(pod: &Pod, settings: &NameSettings<'_>) -> String {
    let fallback = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&fallback);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    // ClusterFirst means Default for a pod on the machine's own network, unless it asks for the other.
    let default = policy == "Default" || (policy == "ClusterFirst" && spec.host_network == Some(true));
    let host = Resolv::parse(settings.host_resolv);
    let mut resolv = if policy == "None" {
        Resolv::default()
    } else if default {
        let own_loopback = spec.host_network != Some(true);
        Resolv { servers: reachable(host.servers, settings.server, own_loopback), ..host }
    } else {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let domain = settings.domain;
        let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        search.extend(host.search);
        Resolv { servers: vec![settings.server.to_string()], search, options: vec!["ndots:5".to_owned()] }
    };
    if let Some(config) = &spec.dns_config {
        resolv.servers.extend(config.nameservers.iter().flatten().cloned());
        resolv.search.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolv.options.retain(|o| o.split(':').next() != Some(name));
            resolv.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    resolv.render()
}

/// The machine's name servers as a pod reaches them. One that listens on the machine's loopback, as systemd-resolved does, is
/// another one's there: the node's own server, which asks it, stands in.
fn reachable(servers: Vec<String>, own: Ipv4Addr, own_loopback: bool) -> Vec<String> {
    let is_loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let mut found: Vec<String> = Vec::new();
    for server in servers {
        let server = if own_loopback && is_loopback(&server) { own.to_string() } else { server };
        if !found.contains(&server) {
            found.push(server);
        }
    }
    found
}

/// The parts of a resolv.conf.
#[derive(Default)]
struct Resolv {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolv {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }

    fn render(self) -> String {
        let mut text = String::new();
        let mut seen = std::collections::BTreeSet::new();
        let search: Vec<_> = self.search.into_iter().filter(|s| seen.insert(s.clone())).collect();
        if !search.is_empty() {
            _ = writeln!(text, "search {}", search.join(" "));
        }
        for server in self.servers {
            _ = writeln!(text, "nameserver {server}");
        }
        if !self.options.is_empty() {
            _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        let object = json!({"metadata": {"name": "web-1", "namespace": "prod"}, "spec": spec});
        serde_json::from_value(object).expect("a pod")
    }

    const SETTINGS: NameSettings<'static> = NameSettings {
        server: Ipv4Addr::new(10, 201, 7, 1),
        domain: "cluster.local",
        host_resolv: "# comment\nsearch example.org\nnameserver 192.0.2.53\noptions edns0\n",
    };

    #[test]
    fn member_of_a_set_knows_its_own_full_name() {
        let pod = pod(json!({"containers": [], "hostname": "web-1", "subdomain": "web",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, Ipv4Addr::new(10, 201, 7, 5), "cluster.local", "");
        assert!(text.contains("10.201.7.5\tweb-1.web.prod.svc.cluster.local\tweb-1\n"), "{text}");
        assert!(text.ends_with("192.0.2.9\ta\tb\n"), "{text}");
    }

    #[test]
    fn on_the_machines_network_names_are_the_machines() {
        let pod = pod(json!({"containers": [], "hostNetwork": true,
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a"]}]}));
        let text = hosts(&pod, Ipv4Addr::new(192, 0, 2, 2), "cluster.local", "127.0.0.1 localhost\n192.0.2.2 machine");
        assert_eq!(text, "127.0.0.1 localhost\n192.0.2.2 machine\n192.0.2.9\ta\n");
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert_eq!(kernel_hostname(&pod, "cluster.local"), Ok(machine));
    }

    #[test]
    fn the_full_name_is_the_host_name_where_asked_for_and_short_enough() {
        let named = |extra: serde_json::Value| {
            let mut spec = json!({"containers": [], "subdomain": "web", "setHostnameAsFQDN": true});
            spec.as_object_mut().expect("a map").extend(extra.as_object().expect("a map").clone());
            kernel_hostname(&pod(spec), "cluster.local")
        };
        assert_eq!(named(json!({})).as_deref(), Ok("web-1.web.prod.svc.cluster.local"));
        assert_eq!(named(json!({"setHostnameAsFQDN": false})).as_deref(), Ok("web-1"));
        assert_eq!(named(json!({"hostnameOverride": "other.example"})).as_deref(), Ok("other.example"));
        let long = named(json!({"subdomain": "x".repeat(40)})).expect_err("too long");
        assert!(long.contains("is too long (64 characters is the max, 69 characters requested)"), "{long}");
    }

    #[test]
    fn cluster_first_searches_the_namespace_first() {
        assert_eq!(
            resolv_conf(&pod(json!({"containers": []})), &SETTINGS),
            "search prod.svc.cluster.local svc.cluster.local cluster.local example.org\n\
             nameserver 10.201.7.1\noptions ndots:5\n"
        );
    }

    #[test]
    fn default_policy_is_the_machines_and_none_only_the_pods_own() {
        let default = resolv_conf(&pod(json!({"containers": [], "dnsPolicy": "Default"})), &SETTINGS);
        assert_eq!(default, "search example.org\nnameserver 192.0.2.53\noptions edns0\n");
        let host_network = resolv_conf(&pod(json!({"containers": [], "hostNetwork": true})), &SETTINGS);
        assert_eq!(host_network, default);
        let none = json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["192.0.2.1"], "options": [{"name": "ndots", "value": "1"}]}});
        assert_eq!(resolv_conf(&pod(none), &SETTINGS), "nameserver 192.0.2.1\noptions ndots:1\n");
    }

    #[test]
    fn a_name_server_on_the_machines_loopback_is_stood_in_for() {
        let settings = NameSettings { host_resolv: "nameserver 127.0.0.53\nnameserver 127.0.0.1\n", ..SETTINGS };
        let of = |spec| resolv_conf(&pod(spec), &settings);
        assert_eq!(of(json!({"containers": [], "dnsPolicy": "Default"})), "nameserver 10.201.7.1\n");
        let host_network = of(json!({"containers": [], "hostNetwork": true}));
        assert_eq!(host_network, "nameserver 127.0.0.53\nnameserver 127.0.0.1\n");
    }

    #[test]
    fn pods_options_replace_those_of_the_policy() {
        let spec = json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}});
        assert!(resolv_conf(&pod(spec), &SETTINGS).ends_with("options ndots:2\n"));
    }
}
