//! Rules for what a set's annotations ask for beyond Kubernetes, and for what they allow to change.
//!
//! A key is judged when it is written, and never again while it stays as it is: an object that another version
//! stored stays updatable.

use serde_json::Value;

use super::cursor::{At, Errors};
use super::{pod, stateful_set};
use crate::beyond::{self, Asked, OVERRIDES, OWN_KEYS};
use crate::quantity::Quantity;
use crate::status::FieldError;

/// What may change besides what Kubernetes lets change.
pub(super) struct Allowed {
    expansion: bool,
    carry_out: bool,
}

/// Checks the annotations of a set. `old` is what it was, if it was.
pub(super) fn check(set: &At<'_>, old: Option<&Value>, out: &mut Errors) -> Allowed {
    let annotations = &set.value["metadata"]["annotations"];
    let before = |key: &str| old.map_or(&Value::Null, |old| &old["metadata"]["annotations"][key]);
    let (asked, problems) = beyond::read(annotations);
    for problem in problems.iter().filter(|p| *before(&p.key) != annotations[&p.key]) {
        out.push(FieldError::invalid(path(&problem.key), problem.value.as_str(), problem.why.as_str()));
    }
    let template = &set.value["spec"]["template"];
    let same_template = old.is_some_and(|old| old["spec"]["template"] == *template);
    if !(same_template && *before(OVERRIDES) == annotations[OVERRIDES]) {
        check_overrides(set, &asked, out);
    }
    for key in OWN_KEYS.iter().filter(|_| !same_template) {
        if template["metadata"]["annotations"].get(key).is_some() {
            let at = format!("spec.template.metadata.annotations[{key}]");
            out.push(FieldError::forbidden(at, "is written by the system; remove it"));
        }
    }
    Allowed { expansion: asked.expansion, carry_out: asked.carry_out }
}

fn path(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// Every override makes a valid template, and leaves alone what identity rests on.
fn check_overrides(set: &At<'_>, asked: &Asked, out: &mut Errors) {
    let spec = set.field("spec");
    for (ordinal, wanted) in &asked.overrides {
        let at = format!("{}[{ordinal}]", path(OVERRIDES));
        let patched = match beyond::patched(&spec.value["template"], &wanted.patch) {
            Ok(patched) => patched,
            Err(why) => {
                out.push(FieldError::invalid(at, wanted.patch.to_string(), why));
                continue;
            }
        };
        if let Some((field, why)) = beyond::untouchable(spec.value, &patched) {
            out.push(FieldError::forbidden(format!("{at}.{field}"), why));
            continue;
        }
        // What is wrong with the template itself is told as the template's.
        let mut plain = Errors::new();
        pod::template(&spec.field("template").named(at.clone()), &stateful_set::claim_names(&spec), &mut plain);
        let mut found = Errors::new();
        pod::template(&At { value: &patched, path: at }, &stateful_set::claim_names(&spec), &mut found);
        out.extend(found.into_iter().filter(|error| !plain.contains(error)));
    }
}

impl Allowed {
    /// Fields of the spec that may change too.
    pub(super) fn also_mutable(&self) -> &'static [&'static str] {
        match (self.carry_out, self.expansion) {
            (true, _) => &["podManagementPolicy", "serviceName", "volumeClaimTemplates"],
            (false, true) => &["volumeClaimTemplates"],
            (false, false) => &[],
        }
    }

    /// Checks what changed about the claim templates. That a smaller size is one that the claims have is for the
    /// server to say, which knows them.
    pub(super) fn claim_changes(&self, spec: &At<'_>, old: &Value, out: &mut Errors) {
        let templates = spec.field("volumeClaimTemplates");
        let before = old["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        let name = |template: &Value| template["metadata"]["name"].clone();
        let mut kept = 0;
        for template in templates.items() {
            let Some(was) = before.iter().find(|t| name(t) == name(template.value)) else {
                if !self.carry_out {
                    out.push(template.forbidden(NEEDS_CARRY_OUT));
                }
                continue;
            };
            kept += 1;
            let (request, plain) = split(template.value);
            let (request_before, plain_before) = split(was);
            if plain != plain_before {
                out.push(template.forbidden(ONLY_SIZE));
            }
            if request != request_before && !self.expansion {
                let at = template.field("spec").field("resources").field("requests").field("storage");
                out.push(at.forbidden("may change only with the annotation statefuld.io/volume-expansion: online"));
            }
        }
        if kept < before.len() && !self.carry_out {
            out.push(templates.forbidden(NEEDS_CARRY_OUT));
        }
    }
}

/// Said of claim templates that come or go.
const NEEDS_CARRY_OUT: &str =
    "claim templates may be added and removed only with the annotation statefuld.io/immutable-fields: carry-out";
/// Said of any other change to a claim template.
const ONLY_SIZE: &str = "only resources.requests.storage of a claim template may change";

/// A claim template's size, and the template without it.
fn split(template: &Value) -> (Option<Quantity>, Value) {
    let mut rest = template.clone();
    let requests = rest.pointer_mut("/spec/resources/requests").and_then(Value::as_object_mut);
    let size = requests.and_then(|requests| requests.remove("storage"));
    (size.and_then(|size| Quantity::parse(size.as_str()?).ok()), rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Registry;
    use crate::{defaults, validate};

    fn set(annotations: Value) -> Value {
        let sets = Registry::builtin().find("apps", "v1", "statefulsets").expect("is served");
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}}, "serviceName": "web",
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                    {"name": "a", "image": "x"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}],
            },
        });
        defaults::apply(&sets, &mut set);
        set
    }

    fn created(set: &Value) -> Vec<String> {
        let sets = Registry::builtin().find("apps", "v1", "statefulsets").expect("is served");
        validate::create(&sets, set).iter().map(ToString::to_string).collect()
    }

    fn updated(old: &Value, change: impl FnOnce(&mut Value)) -> Vec<String> {
        let sets = Registry::builtin().find("apps", "v1", "statefulsets").expect("is served");
        let mut new = old.clone();
        change(&mut new);
        validate::update(&sets, &new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wrong_annotation_is_refused_when_it_is_written_and_never_while_it_stays() {
        let wrong = set(json!({"statefuld.io/rolback": "auto"}));
        assert!(created(&wrong)[0].contains("did you mean statefuld.io/rollback?"), "{:?}", created(&wrong));
        assert_eq!(updated(&wrong, |new| new["spec"]["replicas"] = 3.into()), Vec::<String>::new());
        let again = updated(&wrong, |new| new["metadata"]["annotations"]["statefuld.io/rolback"] = "never".into());
        assert_eq!(again.len(), 1);
    }

    #[test]
    fn an_override_is_refused_with_ordinal_and_path_also_when_the_template_changes() {
        let at = "metadata.annotations[statefuld.io/overrides][1]";
        let touching = set(json!({"statefuld.io/overrides": "1: {spec: {subdomain: other}}"}));
        assert!(
            created(&touching)[0].starts_with(&format!("{at}.spec.subdomain: Forbidden")),
            "{:?}",
            created(&touching)
        );
        let invalid = set(json!({"statefuld.io/overrides": "1: {spec: {containers: [{name: b}]}}"}));
        assert!(created(&invalid)[0].starts_with(&format!("{at}.spec.containers[")), "{:?}", created(&invalid));
        let right = set(
            json!({"statefuld.io/overrides": "1: {spec: {containers: [{name: a, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}}"}),
        );
        assert_eq!(created(&right), Vec::<String>::new());
        let clash = json!([{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}]);
        let found = updated(&right, |new| new["spec"]["template"]["spec"]["volumes"] = clash);
        assert!(found.iter().any(|e| e.starts_with(at)), "{found:?}");
    }

    #[test]
    fn claim_templates_grow_and_come_and_go_only_where_it_is_asked_for() {
        let grow = |new: &mut Value| {
            new["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
        };
        let access = |new: &mut Value| {
            new["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        };
        let drop = |new: &mut Value| new["spec"]["volumeClaimTemplates"] = json!([]);
        let plain = set(json!({}));
        for change in [grow as fn(&mut Value), access, drop] {
            assert!(updated(&plain, change)[0].contains("are forbidden"), "as upstream");
        }
        let online = set(json!({"statefuld.io/volume-expansion": "online"}));
        assert_eq!(updated(&online, grow), Vec::<String>::new());
        assert!(updated(&online, access)[0].contains("only resources.requests.storage"));
        assert!(updated(&online, drop)[0].contains("carry-out"));
        let carried = set(json!({"statefuld.io/immutable-fields": "carry-out"}));
        assert_eq!(updated(&carried, drop), Vec::<String>::new());
        assert!(updated(&carried, grow)[0].contains("volume-expansion: online"));
        assert!(updated(&carried, access)[0].contains("only resources.requests.storage"));
        assert_eq!(
            updated(&carried, |new| new["spec"]["podManagementPolicy"] = "Parallel".into()),
            Vec::<String>::new()
        );
        assert_eq!(updated(&carried, |new| new["spec"]["serviceName"] = "other".into()), Vec::<String>::new());
        let selector = |new: &mut Value| new["spec"]["selector"]["matchLabels"]["app"] = "x".into();
        assert!(!updated(&carried, selector).is_empty(), "the selector never");
    }

    #[test]
    fn recreate_is_a_strategy_without_parameters() {
        let mut recreate = set(json!({}));
        recreate["spec"]["updateStrategy"] = json!({"type": "Recreate"});
        assert_eq!(created(&recreate), Vec::<String>::new());
        recreate["spec"]["updateStrategy"]["rollingUpdate"] = json!({"partition": 1});
        assert!(created(&recreate)[0].contains("only allowed for updateStrategy 'RollingUpdate'"));
    }
}
