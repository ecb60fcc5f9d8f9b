//! The objects of a volume that is taken over, and where its folder lies. No I/O.

use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::{Value, json};

/// More volumes than anybody takes over for claims of one name.
const VOLUMES_OF_A_CLAIM: u32 = 100;
/// Label of nodes that volumes are tied to.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// What is taken over, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Namespace of the claim.
    pub namespace: &'a str,
    /// Name of the claim.
    pub claim: &'a str,
    /// The folder on the node.
    pub folder: &'a str,
    /// The node.
    pub node: &'a str,
    /// How much the claim asks for.
    pub size: &'a str,
    /// How it may be mounted.
    pub access_mode: &'a str,
    /// Its class.
    pub class: &'a str,
}

/// Namespace and name of `NAMESPACE/CLAIM`.
pub fn split_claim(text: &str) -> Option<(&str, &str)> {
    let (namespace, claim) = text.split_once('/')?;
    let plain = |name: &str, dots: bool| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || dots && b == b'.';
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        name.bytes().all(good) && ends(name.as_bytes().first()) && ends(name.as_bytes().last()) && name.len() <= 253
    };
    (plain(namespace, false) && plain(claim, true)).then_some((namespace, claim))
}

/// What the folder is best called: `postgres-0-data` for the claim `data-postgres-0`, as if the set had made it.
pub fn folder_name(claim: &str) -> String {
    let of_set = claim.split_once('-').and_then(|(template, pod)| {
        let (set, ordinal) = pod.rsplit_once('-')?;
        let is_ordinal = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
        (is_ordinal && !set.is_empty()).then(|| format!("{pod}-{template}"))
    });
    of_set.unwrap_or_else(|| claim.to_owned())
}

/// The volume. It is kept when its claim is deleted: what was taken over is never deleted by an object's end.
pub fn volume(wanted: &Wanted<'_>, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": [wanted.access_mode],
            "capacity": {"storage": wanted.size},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": wanted.namespace, "name": wanted.claim},
            "local": {"path": wanted.folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [wanted.node]}]},
            ]}},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": wanted.class,
            "volumeMode": "Filesystem",
        },
    })
}

/// The claim, of the volume with that name.
pub fn claim(wanted: &Wanted<'_>, volume: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": wanted.namespace, "name": wanted.claim},
        "spec": {
            "accessModes": [wanted.access_mode],
            "resources": {"requests": {"storage": wanted.size}},
            "storageClassName": wanted.class,
            "volumeName": volume,
        },
    })
}

/// What the volume is called, best first: a volume outlives its claim, so that the first name may be an earlier one's.
pub fn volume_names(wanted: &Wanted<'_>) -> impl Iterator<Item = String> {
    let first = format!("imported-{}-{}", wanted.namespace, wanted.claim);
    (1..=VOLUMES_OF_A_CLAIM).map(move |n| if n == 1 { first.clone() } else { format!("{first}-{n}") })
}

/// Whether a volume is the one that is wanted, made by an earlier try that did not get to its claim.
pub fn is_begun(volume: &PersistentVolume, wanted: &Wanted<'_>) -> bool {
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    local.is_some_and(|local| local.path == wanted.folder) && !matches!(phase, Some("Released" | "Failed"))
}

/// A size that holds so many bytes twice, in whole gibibytes: room to grow that a person would ask for.
pub fn size_for(bytes: u64) -> String {
    format!("{}Gi", (bytes.saturating_mul(2) >> 30) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_called_as_a_set_would_call_them() {
        for (claim, folder) in [
            ("data-postgres-0", "postgres-0-data"),
            ("data-my-redis-12", "my-redis-12-data"),
            ("backup", "backup"),
            ("data-0", "data-0"),
            ("data-postgres-x", "data-postgres-x"),
        ] {
            assert_eq!(folder_name(claim), folder, "{claim}");
        }
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_no_claims() {
        assert_eq!(split_claim("prod/data-web-0"), Some(("prod", "data-web-0")));
        for wrong in ["data-web-0", "prod/", "/x", "prod/../x", "prod/a/b", "Prod/x", "pr.od/x", "prod/.hidden"] {
            assert_eq!(split_claim(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_claim_asks_for_twice_what_is_there() {
        assert_eq!(size_for(0), "1Gi");
        assert_eq!(size_for(3 << 30), "7Gi");
    }

    #[test]
    fn volume_and_claim_name_each_other() {
        let wanted = Wanted {
            namespace: "prod",
            claim: "data-web-0",
            folder: "/v/prod/web-0-data",
            node: "box",
            size: "1Gi",
            access_mode: "ReadWriteOnce",
            class: "local",
        };
        let names: Vec<String> = volume_names(&wanted).take(2).collect();
        assert_eq!(names, ["imported-prod-data-web-0", "imported-prod-data-web-0-2"]);
        let (volume, claim) = (volume(&wanted, &names[0]), claim(&wanted, &names[0]));
        assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
        assert_eq!(volume["spec"]["claimRef"]["name"], claim["metadata"]["name"]);
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        let mut made: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        assert!(is_begun(&made, &wanted), "an earlier try came this far");
        assert!(!is_begun(&made, &Wanted { folder: "/v/prod/data-web-0", ..wanted }), "it has other data");
        made.status.get_or_insert_default().phase = Some("Released".into());
        assert!(!is_begun(&made, &wanted), "its claim is gone");
    }
}
