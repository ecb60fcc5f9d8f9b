//! Whether a pod may run on this node at all. One that may not has failed; nothing of it is made.
//!
//! Reasons and sentences are a kubelet's.

use std::time::Duration;

use k8s_openapi::api::core::v1::{AppArmorProfile, Node, Pod, PodSpec};
use kube::Api;

use super::fits;
use super::ledger::{self, Share};
use super::limits;
use super::status::{Hold, Verdict};
use super::translate::all_security_contexts;
use super::worker::{Worker, hold};
use crate::rules::Rules;
use crate::sysctl;

/// A kubelet's word on a pod that it does not take.
fn rejected(reason: &str, why: &str) -> Verdict {
    let message = format!("Pod was rejected: {why}");
    Verdict { reason: reason.to_owned(), message, evicted: false, grace: None }
}

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Its kernel confines by AppArmor.
    pub app_armor: bool,
}

impl Machine {
    /// Looks.
    pub fn look() -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        Self { app_armor: enabled.trim() == "Y" }
    }
}

impl Worker {
    /// Why a pod without a sandbox does not get one; or why that cannot be said.
    pub(super) async fn not_admitted(&self, fresh: bool) -> Result<Option<Verdict>, Hold> {
        let Some(pod) = self.object() else { return Ok(None) };
        if self.beginning.left(&pod, &self.shared.ambient) == Some(Duration::ZERO) {
            return Ok(Some(limits::deadline_verdict()));
        }
        if !fresh {
            return Ok(None);
        }
        let verdict = match self.refuse(&pod).err() {
            None => self.does_not_fit(&pod).await?,
            refused => refused,
        };
        if let Some(verdict) = &verdict {
            self.shared.ledger.release(&self.id.uid);
            self.shared.events.warning(&pod, None, &verdict.reason, &verdict.message);
        }
        Ok(verdict)
    }

    /// Refuses a pod whose own word excludes this node, as its labels are now.
    async fn does_not_fit(&self, pod: &Pod) -> Result<Option<Verdict>, Hold> {
        let Some(spec) = pod.spec.as_ref().filter(|spec| fits::asks(spec)) else { return Ok(None) };
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let node = tokio::select! {
            node = nodes.get(&self.shared.config.node_name) => node,
            () = self.shared.term.cancelled() => return Err(hold("ContainerCreating", "the agent ends".to_owned())),
        };
        let node =
            node.map_err(|e| hold("ContainerCreating", format!("cannot read the node that the pod asks for: {e}")))?;
        Ok((!fits::fits(spec, &node)).then(|| rejected(fits::REASON, fits::SENTENCE)))
    }

    /// Refuses a pod that is new on the node, or gives it its share.
    fn refuse(&self, pod: &Pod) -> Result<(), Verdict> {
        let (ledger, config) = (&self.shared.ledger, &self.shared.config);
        admit(pod, &config.rules, Machine::look(), ledger.others(&self.id.uid))?;
        let share = pod.spec.as_ref().map(Share::of).unwrap_or_default();
        ledger.fit(&self.id.uid, share, ledger::capacity(config)).map_err(|short| {
            let reason = short.resource.map_or_else(|| "NodePorts".to_owned(), |what| format!("OutOf{what}"));
            rejected(&reason, &short.sentence)
        })
    }
}

/// Decides about a pod that is new on the node, which has so many others.
pub fn admit(pod: &Pod, rules: &Rules, machine: Machine, others: usize) -> Result<(), Verdict> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(rejected("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    let most = rules.max_pods;
    if others >= most as usize {
        let why = format!("Node didn't have enough resource: pods, requested: 1, used: {others}, capacity: {most}");
        return Err(rejected("OutOfpods", &why));
    }
    sysctls(spec, rules)?;
    app_armor(spec, machine)
}

fn sysctls(spec: &PodSpec, rules: &Rules) -> Result<(), Verdict> {
    for wanted in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = sysctl::dotted(&wanted.name);
        let (network, ipc) = (spec.host_network == Some(true), spec.host_ipc == Some(true));
        sysctl::permit(&name, &rules.unsafe_sysctls, network, ipc).map_err(|why| rejected("SysctlForbidden", &why))?;
    }
    Ok(())
}

fn app_armor(spec: &PodSpec, machine: Machine) -> Result<(), Verdict> {
    let own = |profile: &Option<AppArmorProfile>| profile.as_ref().is_some_and(|p| p.type_ != "Unconfined");
    let asked = spec.security_context.as_ref().is_some_and(|s| own(&s.app_armor_profile))
        || all_security_contexts(spec).any(|s| own(&s.app_armor_profile));
    let why = match (asked, machine.app_armor) {
        (false, _) => return Ok(()),
        (true, false) => "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        (true, true) => "Cannot enforce AppArmor: appArmorProfile is not supported by this version of statefuld",
    };
    Err(rejected("AppArmor", why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(spec: serde_json::Value) -> Option<(String, String)> {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a pod");
        let rules = Rules { unsafe_sysctls: vec!["kernel.msg*".to_owned()], ..Rules::default() };
        admit(&pod, &rules, Machine { app_armor: false }, 109).err().map(|v| (v.reason, v.message))
    }

    fn said(reason: &str, message: &str) -> Option<(String, String)> {
        Some((reason.to_owned(), message.to_owned()))
    }

    #[test]
    fn forbidden_sysctls_fail_the_pod() {
        let with =
            |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        assert_eq!(refused(with("kernel.msgmax")), None);
        assert_eq!(refused(with("net/ipv4/tcp_syncookies")), None);
        let sentence = "Pod was rejected: forbidden sysctl: \"kernel.shmmax\" not allowlisted";
        assert_eq!(refused(with("kernel.shmmax")), said("SysctlForbidden", sentence));
    }

    #[test]
    fn confinement_that_the_machine_lacks_fails_the_pod() {
        let with =
            |kind: &str| json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": kind}}}]});
        let sentence = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(refused(with("RuntimeDefault")), said("AppArmor", sentence));
        assert_eq!(refused(with("Unconfined")), None);
    }

    #[test]
    fn a_full_node_takes_no_more() {
        let machine = Machine { app_armor: false };
        let full = admit(&Pod { spec: Some(PodSpec::default()), ..Pod::default() }, &Rules::default(), machine, 110);
        let why = "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 110, capacity: 110";
        assert_eq!(full.map_err(|v| (v.reason, v.message)), Err(("OutOfpods".to_owned(), why.to_owned())));
    }

    #[test]
    fn another_operating_system_fails_the_pod() {
        let spec = |os: &str| json!({"containers": [], "os": {"name": os}});
        let sentence = "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS";
        assert_eq!(refused(spec("windows")), said("PodOSNotSupported", sentence));
        assert_eq!(refused(spec("linux")), None);
    }
}
