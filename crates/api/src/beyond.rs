//! What a StatefulSet's annotations ask for beyond Kubernetes: their keys, their values, what is wrong with them.
//!
//! One reading for all: validation refuses by it, the controller acts by it. docs/extensions.md tells users.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::resource::Registry;
use crate::schema::merge_schema;

/// What all keys begin with.
pub const PREFIX: &str = "statefuld.io/";
/// `parallel` (as Kubernetes) or `ordered`.
pub const DELETION: &str = "statefuld.io/deletion";
/// `wait` (as Kubernetes) or `replace-broken`.
pub const ROLLOUT_RECOVERY: &str = "statefuld.io/rollout-recovery";
/// Seconds without progress after which a rollout counts as failed.
pub const PROGRESS_DEADLINE: &str = "statefuld.io/progress-deadline-seconds";
/// `never` (as Kubernetes) or `auto`.
pub const ROLLBACK: &str = "statefuld.io/rollback";
/// Any new value tries a held revision again.
pub const RETRY: &str = "statefuld.io/retry";
/// `manual` (as Kubernetes) or `fenced`.
pub const FAILOVER: &str = "statefuld.io/failover";
/// Ordinals that are left out: `1,3-5`.
pub const RESERVE_ORDINALS: &str = "statefuld.io/reserve-ordinals";
/// YAML: ordinal to patch of the pod template.
pub const OVERRIDES: &str = "statefuld.io/overrides";
/// `never` (as Kubernetes) or `online`.
pub const VOLUME_EXPANSION: &str = "statefuld.io/volume-expansion";
/// `refuse` (as Kubernetes) or `carry-out`.
pub const IMMUTABLE_FIELDS: &str = "statefuld.io/immutable-fields";
/// `false` (as Kubernetes) or `true`; on claims too.
pub const PROTECT: &str = "statefuld.io/protect";
/// Every key that a set may have.
pub const KEYS: [&str; 11] = [
    DELETION,
    ROLLOUT_RECOVERY,
    PROGRESS_DEADLINE,
    ROLLBACK,
    RETRY,
    FAILOVER,
    RESERVE_ORDINALS,
    OVERRIDES,
    VOLUME_EXPANSION,
    IMMUTABLE_FIELDS,
    PROTECT,
];

/// Finalizer of a set whose pods go one after another.
pub const ORDERED_DELETION: &str = "statefuld.io/ordered-deletion";
/// On a pod, by its node: when it was first ready.
pub const FIRST_READY: &str = "statefuld.io/first-ready";
/// On a pod, by the controller: which override it was made with.
pub const OVERRIDE_HASH: &str = "statefuld.io/override-hash";
/// On a claim, by the controller: since when its ordinal is reserved.
pub const RESERVED_SINCE: &str = "statefuld.io/reserved-since";
/// On a claim, by a person: `true` lets a kept claim be used again.
pub const REUSE: &str = "statefuld.io/reuse";
/// On a revision, by the controller: the set's `retry` when the rollout to it failed.
pub const HELD: &str = "statefuld.io/held";
/// Keys that nobody but the system may set, on pods and on claims.
pub const OWN_KEYS: [&str; 3] = [FIRST_READY, OVERRIDE_HASH, RESERVED_SINCE];

/// Ranges in `reserve-ordinals`.
const RANGES_LIMIT: usize = 256;
/// Ordinals in `overrides`.
const OVERRIDES_LIMIT: usize = 256;
/// Labels that the controller owns.
const OWN_LABELS: [&str; 3] =
    ["controller-revision-hash", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"];

/// What is asked for; the default is Kubernetes' own behaviour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// `deletion: ordered`.
    pub ordered_deletion: bool,
    /// `rollout-recovery: replace-broken`.
    pub replace_broken: bool,
    /// `progress-deadline-seconds`.
    pub deadline_seconds: Option<i32>,
    /// `rollback: auto`.
    pub rollback: bool,
    /// `retry`.
    pub retry: String,
    /// `reserve-ordinals`: inclusive ranges as written.
    pub reserved: Vec<(i32, i32)>,
    /// `overrides`.
    pub overrides: BTreeMap<i32, Override>,
    /// `volume-expansion: online`.
    pub expansion: bool,
    /// `immutable-fields: carry-out`.
    pub carry_out: bool,
    /// `protect`, if it is said.
    pub protect: Option<bool>,
}

/// How one ordinal differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// A strategic merge patch of the pod template.
    pub patch: Value,
    /// What its pod carries to tell which patch it was made with.
    pub hash: String,
}

/// An annotation that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

/// Reads `metadata.annotations` of a set. What is wrong is left at its default.
pub fn read(annotations: &Value) -> (Asked, Vec<Problem>) {
    let (mut asked, mut problems) = (Asked::default(), Vec::new());
    for (key, value) in annotations.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with(PREFIX)) {
        let value = value.as_str().unwrap_or_default();
        if let Err(why) = take(&mut asked, key, value) {
            problems.push(Problem { key: key.clone(), value: value.to_owned(), why });
        }
    }
    (asked, problems)
}

fn take(asked: &mut Asked, key: &str, value: &str) -> Result<(), String> {
    match key {
        DELETION => asked.ordered_deletion = choice(value, "parallel", "ordered")?,
        ROLLOUT_RECOVERY => asked.replace_broken = choice(value, "wait", "replace-broken")?,
        PROGRESS_DEADLINE => {
            let seconds = value.parse().ok().filter(|s: &i32| *s > 0);
            asked.deadline_seconds = Some(seconds.ok_or("must be a number of seconds, 1 or more")?);
        }
        ROLLBACK => asked.rollback = choice(value, "never", "auto")?,
        RETRY => value.clone_into(&mut asked.retry),
        FAILOVER => {
            if choice(value, "manual", "fenced")? {
                return Err("fenced is not on this server yet; leave it at manual".into());
            }
        }
        RESERVE_ORDINALS => asked.reserved = ordinals(value)?,
        OVERRIDES => asked.overrides = overrides(value)?,
        VOLUME_EXPANSION => asked.expansion = choice(value, "never", "online")?,
        IMMUTABLE_FIELDS => asked.carry_out = choice(value, "refuse", "carry-out")?,
        PROTECT => asked.protect = Some(choice(value, "false", "true")?),
        _ => {
            let nearest = KEYS.iter().min_by_key(|known| distance(known, key)).expect("there are keys");
            return Err(format!("is not known; did you mean {nearest}?"));
        }
    }
    Ok(())
}

/// One of two words; true for the second.
fn choice(value: &str, default: &str, other: &str) -> Result<bool, String> {
    match value {
        _ if value == default => Ok(false),
        _ if value == other => Ok(true),
        _ => Err(format!("must be \"{default}\" or \"{other}\"")),
    }
}

/// `1,3-5` as ranges; empty for an empty text.
fn ordinals(text: &str) -> Result<Vec<(i32, i32)>, String> {
    let wrong = |part: &str| format!("{part:?} is no ordinal or range of ordinals; write them as in \"1,3-5\"");
    let number = |text: &str| text.trim().parse::<i32>().ok().filter(|n| *n >= 0);
    let mut ranges = Vec::new();
    for part in text.split(',').map(str::trim) {
        if part.is_empty() && text.trim().is_empty() {
            break;
        }
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last && last < i32::MAX => ranges.push((first, last)),
            _ => return Err(wrong(part)),
        }
    }
    if ranges.len() > RANGES_LIMIT {
        return Err(format!("has {} ranges; at most {RANGES_LIMIT} are possible", ranges.len()));
    }
    Ok(ranges)
}

/// YAML of ordinals and patches.
fn overrides(text: &str) -> Result<BTreeMap<i32, Override>, String> {
    let options = crate::decode::yaml_options();
    let parsed: Result<Option<BTreeMap<i32, Value>>, _> = serde_saphyr::from_str_with_options(text, options);
    let parsed =
        parsed.map_err(|e| format!("must be YAML that maps an ordinal to a patch of the pod template: {e}"))?;
    let parsed = parsed.unwrap_or_default();
    if parsed.len() > OVERRIDES_LIMIT {
        return Err(format!("names {} ordinals; at most {OVERRIDES_LIMIT} are possible", parsed.len()));
    }
    let mut out = BTreeMap::new();
    for (ordinal, patch) in parsed {
        if ordinal < 0 || !patch.is_object() {
            return Err(format!("{ordinal}: must map an ordinal, 0 or more, to a patch of the pod template"));
        }
        let hash = format!("{:016x}", fnv1a(patch.to_string().as_bytes()));
        out.insert(ordinal, Override { patch, hash });
    }
    Ok(out)
}

/// The ordinals that a set wants: the first `replicas` from its start that are not reserved.
pub fn ordinals_of(spec: &Value, asked: &Asked) -> impl Iterator<Item = i32> {
    let start = spec["ordinals"]["start"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let replicas = spec["replicas"].as_i64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let reserved = asked.reserved.clone();
    let is_free = move |n: &i32| !reserved.iter().any(|(first, last)| (*first..=*last).contains(n));
    (start..i32::MAX).filter(is_free).take(replicas)
}

/// The template with an ordinal's patch applied. Fails where the patch is no patch.
pub fn patched(template: &Value, patch: &Value) -> Result<Value, String> {
    let registry = Registry::builtin();
    let sets = registry.find("apps", "v1", "statefulsets").expect("StatefulSets are built in");
    let mut set = json!({"spec": {"template": template}});
    let patch = json!({"spec": {"template": patch}});
    patch::strategic::apply(&mut set, &patch, &merge_schema(&sets)).map_err(|e| e.to_string())?;
    Ok(set["spec"]["template"].take())
}

/// What an ordinal's patch changes and may not: path and reason. `spec` is the set's.
pub fn untouchable(spec: &Value, patched: &Value) -> Option<(String, &'static str)> {
    let template = &spec["template"];
    for field in ["hostname", "subdomain", "restartPolicy"] {
        if template["spec"][field] != patched["spec"][field] {
            return Some((format!("spec.{field}"), "is the set's, the same for all its pods"));
        }
    }
    let label = |template: &Value, key: &str| template["metadata"]["labels"][key].clone();
    let selector = &spec["selector"];
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    let selected = selector["matchLabels"].as_object().into_iter().flat_map(|labels| labels.keys());
    let selected = selected.map(String::as_str).chain(expressions.filter_map(|e| e["key"].as_str()));
    for key in selected.chain(OWN_LABELS) {
        if label(template, key) != label(patched, key) {
            return Some((format!("metadata.labels[{key}]"), "is selected by, or owned by, the controller"));
        }
    }
    let volume = |template: &Value, name: &str| {
        let volumes = template["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.clone().find(|v| v["name"] == name).cloned()
    };
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    for name in claims.filter_map(|c| c["metadata"]["name"].as_str()) {
        if volume(template, name) != volume(patched, name) {
            return Some((format!("spec.volumes[{name}]"), "is the volume of a claim template"));
        }
    }
    None
}

/// FNV-1a, 64 bits: a change of a patch is to be noticed, nobody is to be fooled by it.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Edits that lead from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(key: &str, value: &str) -> String {
        let problems = read(&json!({ key: value })).1;
        problems.first().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_right_name() {
        let nearest = |key: &str| problem(&format!("statefuld.io/{key}"), "x");
        assert!(nearest("rolback").ends_with("did you mean statefuld.io/rollback?"), "{}", nearest("rolback"));
        assert!(nearest("reserved-ordinals").ends_with("did you mean statefuld.io/reserve-ordinals?"));
        assert_eq!(problem("example.com/rolback", "x"), "", "keys of others are theirs");
    }

    #[test]
    fn values_are_read_and_wrong_ones_told_with_what_is_right() {
        assert!(problem(DELETION, "orderly").contains("must be \"parallel\" or \"ordered\""));
        for bad in ["0", "-1", "5s", ""] {
            assert!(problem(PROGRESS_DEADLINE, bad).contains("1 or more"), "{bad}");
        }
        for bad in ["1,", "3-1", "a", "-1", "1--2"] {
            assert!(problem(RESERVE_ORDINALS, bad).contains("1,3-5"), "{bad}");
        }
        assert!(problem(FAILOVER, "fenced").contains("not on this server yet"));
        assert!(problem(OVERRIDES, "0: text").contains("patch"));
        assert!(problem(OVERRIDES, "{").contains("YAML"));
        let (asked, problems) = read(&json!({
            DELETION: "ordered", PROGRESS_DEADLINE: "60", RESERVE_ORDINALS: "1, 3-5", PROTECT: "false",
            OVERRIDES: "0:\n  spec: {priorityClassName: high}\n",
        }));
        assert_eq!(problems, []);
        assert!(asked.ordered_deletion && asked.deadline_seconds == Some(60) && asked.protect == Some(false));
        assert_eq!(asked.reserved, [(1, 1), (3, 5)]);
        assert_eq!(asked.overrides[&0].patch, json!({"spec": {"priorityClassName": "high"}}));
        assert_eq!(asked.overrides[&0].hash.len(), 16);
    }

    #[test]
    fn a_patch_merges_by_name_and_may_not_touch_what_identity_rests_on() {
        let spec = json!({
            "selector": {"matchLabels": {"app": "web"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}},
        });
        let with = |patch: Value| patched(&spec["template"], &patch).expect("a patch");
        let memory = with(json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}]}}));
        assert_eq!(memory["spec"]["containers"][0]["image"], "x");
        assert_eq!(untouchable(&spec, &memory), None);
        for (patch, path) in [
            (json!({"metadata": {"labels": {"app": "other"}}}), "metadata.labels[app]"),
            (
                json!({"metadata": {"labels": {"controller-revision-hash": "x"}}}),
                "metadata.labels[controller-revision-hash]",
            ),
            (json!({"spec": {"hostname": "x"}}), "spec.hostname"),
            (json!({"spec": {"volumes": [{"name": "data", "emptyDir": {}}]}}), "spec.volumes[data]"),
        ] {
            assert_eq!(untouchable(&spec, &with(patch)).map(|(path, _)| path).as_deref(), Some(path));
        }
    }
}
