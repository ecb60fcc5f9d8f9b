//! When containers start again, what is run when they begin and end, and what they leave to be said.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod, PodSpec};

use super::{Refusal, config_error};
use crate::agent::{env_file, images};
use crate::probe::run::{path_of, port_of};
use crate::shim::spec::{Asks, ExitCodes, Hook, HttpHook, LastWords, RestartPolicy};

/// Where a container leaves its last words if nothing says otherwise.
const LAST_WORDS: &str = "/dev/termination-log";

/// The pod's restart policy.
pub(super) fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    spec.restart_policy.as_deref().and_then(policy).unwrap_or(RestartPolicy::Always)
}

/// A container's own restart policy, where it has one.
pub(super) fn own_restart_policy(container: &Container) -> Option<RestartPolicy> {
    container.restart_policy.as_deref().and_then(policy)
}

fn policy(name: &str) -> Option<RestartPolicy> {
    match name {
        "Always" => Some(RestartPolicy::Always),
        "OnFailure" => Some(RestartPolicy::OnFailure),
        "Never" => Some(RestartPolicy::Never),
        _ => None,
    }
}

/// Exit codes that are followed by another start. Restarting is all that a rule can ask for.
pub(super) fn restart_on(container: &Container) -> Result<Vec<ExitCodes>, Refusal> {
    let mut all = Vec::new();
    for rule in container.restart_policy_rules.iter().flatten() {
        let refused = |what: String| config_error(&container.name, format!("restartPolicyRules: {what}"));
        if rule.action != "Restart" {
            return Err(refused(format!("action {:?} is not supported by this version of statefuld", rule.action)));
        }
        let codes = rule.exit_codes.clone().ok_or_else(|| refused("a rule has no exitCodes".to_owned()))?;
        let not = match codes.operator.as_str() {
            "In" => false,
            "NotIn" => true,
            other => return Err(refused(format!("there is no operator {other:?}"))),
        };
        all.push(ExitCodes { not, codes: codes.values.unwrap_or_default() });
    }
    Ok(all)
}

/// What is run once its program was executed.
pub(super) fn post_start(pod: &Pod, container: &Container) -> Result<Option<Hook>, Refusal> {
    let handler = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    handler.map(|handler| hook(pod, container, "postStart", handler)).transpose()
}

/// What is run before it is asked to end.
pub(super) fn pre_stop(pod: &Pod, container: &Container) -> Result<Option<Hook>, Refusal> {
    let handler = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    handler.map(|handler| hook(pod, container, "preStop", handler)).transpose()
}

fn hook(pod: &Pod, container: &Container, which: &str, handler: &LifecycleHandler) -> Result<Hook, Refusal> {
    let refused = |what: String| config_error(&container.name, format!("lifecycle.{which}: {what}"));
    if let Some(exec) = &handler.exec {
        return Ok(Hook::Exec { argv: exec.command.clone().unwrap_or_default() });
    }
    if let Some(sleep) = &handler.sleep {
        return Ok(Hook::Sleep { ms: u64::try_from(sleep.seconds).unwrap_or(0).saturating_mul(1000) });
    }
    if let Some(get) = &handler.http_get {
        return http(pod, container, get).map(Hook::Http).map_err(refused);
    }
    // Kubernetes has the field and never carries it out: the hook fails at run time there.
    Err(refused("tcpSocket is not supported as a lifecycle handler".to_owned()))
}

fn http(pod: &Pod, container: &Container, get: &HTTPGetAction) -> Result<HttpHook, String> {
    let own = || pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
    let host: IpAddr = match get.host.as_deref().filter(|host| !host.is_empty()) {
        Some("localhost") => Ipv4Addr::LOCALHOST.into(),
        Some(host) => host.parse().map_err(|_| format!("httpGet.host {host:?} is not an address"))?,
        None => own().ok_or("the pod has no address")?,
    };
    let headers = get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    Ok(HttpHook {
        address: SocketAddr::new(host, port_of(container, &get.port)?),
        tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS")),
        path: path_of(get),
        headers,
    })
}

/// Where it leaves its last words.
pub(super) fn last_words(container: &Container) -> Option<LastWords> {
    let path = container.termination_message_path.as_deref().unwrap_or(LAST_WORDS);
    let or_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    (!path.is_empty()).then(|| LastWords { path: PathBuf::from(path), or_log })
}

/// The signal that asks a container to end: its own, else its image's, else SIGTERM.
pub(super) fn stop_signal(container: &Container, image: Option<&images::Ready>) -> Result<i32, Refusal> {
    let Some(name) = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()) else {
        let of_image = image.map(|image| image.run.stop_signal.as_str()).filter(|name| !name.is_empty());
        let Some(name) = of_image else { return Ok(libc::SIGTERM) };
        return signal_of_image(name)
            .ok_or_else(|| config_error(&container.name, format!("the image's stop signal: there is no {name}")));
    };
    signal(name).ok_or_else(|| config_error(&container.name, format!("lifecycle.stopSignal: there is no {name}")))
}

/// Before which starts it has to be looked what the container is: where its image is pulled for each, or its variables
/// come from a file.
pub(super) fn asks(container: &Container, from_image: bool) -> Asks {
    if env_file::are_used(container) {
        return Asks::Always;
    }
    let pulled = from_image && container.image_pull_policy.as_deref() == Some("Always");
    if pulled { Asks::Again } else { Asks::Never }
}

/// Images write signals with and without `SIG`, and as numbers.
fn signal_of_image(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    match upper.parse::<i32>() {
        Ok(number) => Some(number).filter(|n| (1..=64).contains(n)),
        Err(_) if upper.starts_with("SIG") => signal(&upper),
        Err(_) => signal(&format!("SIG{upper}")),
    }
}

/// A signal's number on Linux, by its name there.
fn signal(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    const ALIASES: [(&str, &str); 4] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO"), ("UNUSED", "SYS")];
    /// First and last of those that have no meaning of their own, as programs count them.
    const REAL_TIME: (i32, i32) = (34, 64);
    let bare = name.strip_prefix("SIG")?;
    let bare = ALIASES.iter().find(|(alias, _)| *alias == bare).map_or(bare, |(_, name)| name);
    if let Some(at) = NAMES.iter().position(|known| *known == bare) {
        return i32::try_from(at + 1).ok();
    }
    let number = if let Some(more) = bare.strip_prefix("RTMIN") {
        REAL_TIME.0 + if more.is_empty() { 0 } else { more.strip_prefix('+')?.parse::<u8>().ok()?.into() }
    } else {
        let less = bare.strip_prefix("RTMAX")?;
        REAL_TIME.1 - if less.is_empty() { 0 } else { i32::from(less.strip_prefix('-')?.parse::<u8>().ok()?) }
    };
    (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(value: serde_json::Value) -> Container {
        let mut whole = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        whole.as_object_mut().expect("a map").extend(value.as_object().expect("a map").clone());
        serde_json::from_value(whole).expect("a container")
    }

    fn pre(handler: serde_json::Value) -> Result<Option<Hook>, Refusal> {
        let pod = serde_json::from_value(json!({"status": {"podIP": "10.0.0.2"}})).expect("a pod");
        pre_stop(&pod, &container(json!({"lifecycle": {"preStop": handler}})))
    }

    #[test]
    fn hooks_of_every_kind_but_tcp_are_carried_over() {
        assert_eq!(pre(json!({"sleep": {"seconds": 2}})), Ok(Some(Hook::Sleep { ms: 2000 })));
        assert_eq!(pre(json!({"exec": {"command": ["a"]}})), Ok(Some(Hook::Exec { argv: vec!["a".into()] })));
        let get = pre(json!({"httpGet": {"port": "web", "path": "bye", "scheme": "HTTPS",
            "httpHeaders": [{"name": "X", "value": "y"}]}}));
        let expected = HttpHook {
            address: "10.0.0.2:8080".parse().expect("an address"),
            tls: true,
            path: "/bye".into(),
            headers: vec![("X".into(), "y".into())],
        };
        assert_eq!(get, Ok(Some(Hook::Http(expected))));
        let refused = pre(json!({"tcpSocket": {"port": 1}})).expect_err("refused");
        assert!(refused.message.starts_with("lifecycle.preStop: tcpSocket"), "{}", refused.message);
        let refused = pre(json!({"httpGet": {"port": 1, "host": "example.org"}})).expect_err("refused");
        assert!(refused.message.contains("httpGet.host"), "{}", refused.message);
    }

    #[test]
    fn signals_have_their_numbers_and_strangers_are_refused() {
        let known = [("SIGTERM", 15), ("SIGHUP", 1), ("SIGSYS", 31), ("SIGIOT", 6), ("SIGWINCH", 28), ("SIGRTMIN", 34)];
        for (name, number) in known.into_iter().chain([("SIGRTMIN+15", 49), ("SIGRTMAX-14", 50), ("SIGRTMAX", 64)]) {
            assert_eq!(signal(name), Some(number), "{name}");
        }
        for name in ["TERM", "SIGNAL", "SIGRTMIN+31", "SIGRTMAX-31", "SIGRTMIN15", ""] {
            assert_eq!(signal(name), None, "{name}");
        }
    }

    #[test]
    fn images_write_signals_in_several_ways() {
        for (text, number) in [("SIGINT", 2), ("quit", 3), ("15", 15), ("SIGRTMIN+3", 37)] {
            assert_eq!(signal_of_image(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-1", "SIGFOO"] {
            assert_eq!(signal_of_image(text), None, "{text}");
        }
    }

    #[test]
    fn rules_name_exit_codes() {
        let rules = |action: &str, operator: &str| {
            let codes = json!({"operator": operator, "values": [3]});
            restart_on(&container(json!({"restartPolicy": "Never",
                "restartPolicyRules": [{"action": action, "exitCodes": codes}]})))
        };
        assert_eq!(rules("Restart", "NotIn"), Ok(vec![ExitCodes { not: true, codes: vec![3] }]));
        assert!(rules("RestartAllContainers", "In").is_err());
        assert!(rules("Restart", "Among").is_err());
    }

    #[test]
    fn last_words_go_where_upstream_has_them() {
        let words = last_words(&container(json!({}))).expect("by default");
        assert_eq!(words, LastWords { path: LAST_WORDS.into(), or_log: false });
        let asked = json!({"terminationMessagePath": "/x", "terminationMessagePolicy": "FallbackToLogsOnError"});
        assert_eq!(last_words(&container(asked)), Some(LastWords { path: "/x".into(), or_log: true }));
    }
}
