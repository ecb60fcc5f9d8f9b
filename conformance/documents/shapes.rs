//! The shapes of answers: tables, the binary form, compression.

use std::io::Read as _;

use serde_json::{Value, json};

use super::{accepting, list};
use crate::cluster::{Ask, Case};
use crate::verbs::{config, text};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const BINARY: &str = "application/vnd.kubernetes.protobuf";

/// A kind's columns; those in brackets are shown by `-o wide` alone.
const COLUMNS: &[(&str, &str)] = &[
    ("/api/v1/configmaps", "Name, Data, Age"),
    ("/api/v1/endpoints", "Name, Endpoints, Age"),
    (
        "/api/v1/events",
        "Last Seen, Type, Reason, Object, [Subobject], [Source], Message, [First Seen], [Count], [Name]",
    ),
    ("/api/v1/limitranges", "Name, Created At"),
    ("/api/v1/namespaces", "Name, Status, Age"),
    (
        "/api/v1/nodes",
        "Name, Status, Roles, Age, Version, [Internal-IP], [External-IP], [OS-Image], [Kernel-Version], [Container-Runtime]",
    ),
    (
        "/api/v1/persistentvolumeclaims",
        "Name, Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, [VolumeMode]",
    ),
    (
        "/api/v1/persistentvolumes",
        "Name, Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason, Age, [VolumeMode]",
    ),
    ("/api/v1/pods", "Name, Ready, Status, Restarts, Age, [IP], [Node], [Nominated Node], [Readiness Gates]"),
    ("/api/v1/resourcequotas", "Name, Request, Limit, Age"),
    ("/api/v1/secrets", "Name, Type, Data, Age"),
    ("/api/v1/serviceaccounts", "Name, Secrets, Age"),
    ("/api/v1/services", "Name, Type, Cluster-IP, External-IP, Port(s), Age, [Selector]"),
    ("/apis/apps/v1/controllerrevisions", "Name, Controller, Revision, Age"),
    ("/apis/apps/v1/deployments", "Name, Ready, Up-to-date, Available, Age, [Containers], [Images], [Selector]"),
    ("/apis/apps/v1/replicasets", "Name, Desired, Current, Ready, Age, [Containers], [Images], [Selector]"),
    ("/apis/apps/v1/statefulsets", "Name, Ready, Age, [Containers], [Images]"),
    (
        "/apis/batch/v1/cronjobs",
        "Name, Schedule, Timezone, Suspend, Active, Last Schedule, Age, [Containers], [Images], [Selector]",
    ),
    ("/apis/batch/v1/jobs", "Name, Status, Completions, Duration, Age, [Containers], [Images], [Selector]"),
    ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "Name, Created At"),
    ("/apis/coordination.k8s.io/v1/leases", "Name, Holder, Age"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "Name, AddressType, Ports, Endpoints, Age"),
    ("/apis/networking.k8s.io/v1/networkpolicies", "Name, Pod-Selector, Age"),
    ("/apis/node.k8s.io/v1/runtimeclasses", "Name, Handler, Age"),
    ("/apis/policy/v1/poddisruptionbudgets", "Name, Min Available, Max Unavailable, Allowed Disruptions, Age"),
    ("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "Name, Role, Age, [Users], [Groups], [ServiceAccounts]"),
    ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "Name, Created At"),
    ("/apis/rbac.authorization.k8s.io/v1/rolebindings", "Name, Role, Age, [Users], [Groups], [ServiceAccounts]"),
    ("/apis/rbac.authorization.k8s.io/v1/roles", "Name, Created At"),
    ("/apis/scheduling.k8s.io/v1/priorityclasses", "Name, Value, Global-Default, Age, PreemptionPolicy"),
    (
        "/apis/storage.k8s.io/v1/csidrivers",
        "Name, AttachRequired, PodInfoOnMount, StorageCapacity, TokenRequests, RequiresRepublish, Modes, Age",
    ),
    ("/apis/storage.k8s.io/v1/csinodes", "Name, Drivers, Age"),
    ("/apis/storage.k8s.io/v1/csistoragecapacities", "Name, StorageClassName, Capacity"),
    (
        "/apis/storage.k8s.io/v1/storageclasses",
        "Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age",
    ),
    ("/apis/storage.k8s.io/v1/volumeattachments", "Name, Attacher, PV, Node, Attached, Age"),
    ("/apis/storage.k8s.io/v1/volumeattributesclasses", "Name, DriverName, Age"),
];

pub(super) async fn columns_are_those_of_the_newest_kubernetes(case: Case) {
    let mut wrong = Vec::new();
    for (path, wanted) in COLUMNS {
        let table = case.ask(accepting(path, TABLE)).await.body;
        let shown = list(&table["columnDefinitions"]).map(|column| match column["priority"].as_i64() {
            Some(0) => text(column, "/name").to_owned(),
            _ => format!("[{}]", text(column, "/name")),
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        if shown != *wanted {
            wrong.push(format!("{path}: {shown}\n  instead of {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub(super) async fn built_in_kinds_have_a_binary_form(case: Case) {
    let path = case.core("configmaps");
    let both = format!("{BINARY},application/json");
    let created = Ask::new("POST", &path).json(&config("a")).header("accept", Some(&both));
    let created = case.ask(created).await;
    let media = |answer: &crate::cluster::Answer| answer.headers.get("content-type").cloned().unwrap_or_default();
    assert_eq!((created.code, media(&created).as_str()), (201, BINARY));
    assert!(created.bytes.starts_with(b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap"), "{:?}", created.bytes);
    // What was read is written back as it is.
    let one = format!("{path}/a");
    let back = Ask::new("PUT", &one).raw(created.bytes.to_vec()).header("content-type", Some(BINARY));
    let back = case.ask(back.header("accept", Some(BINARY))).await;
    assert_eq!((back.code, &back.bytes), (200, &created.bytes));
    let list = case.ask(accepting(&path, &both)).await;
    assert_eq!((list.code, media(&list).as_str()), (200, BINARY));
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definitions = case.ask(accepting(definitions, &both)).await;
    assert_eq!((definitions.code, media(&definitions).as_str()), (200, BINARY));
    let none = case.ask(accepting(&format!("{path}/none"), BINARY)).await;
    assert_eq!((none.code, media(&none).as_str()), (404, BINARY));
    // A table is JSON, whatever else would be taken.
    let table = format!("{BINARY};as=Table;v=v1;g=meta.k8s.io,{TABLE}");
    let table = case.ask(accepting(&path, &table)).await;
    assert_eq!((table.code, text(&table.body, "/kind")), (200, "Table"));
}

pub(super) async fn a_watch_in_binary_is_framed(case: Case) {
    let path = case.core("secrets");
    let object = case.create(&path, crate::verbs::secret("a")).await;
    let ask = accepting(&path, BINARY).query("watch", "1").query("timeoutSeconds", "1");
    let answer = case.ask(ask.query("resourceVersion", "0").query("fieldSelector", "metadata.name=a")).await;
    let media = answer.headers.get("content-type").map(String::as_str);
    assert_eq!((answer.code, media), (200, Some("application/vnd.kubernetes.protobuf;stream=watch")));
    // Four bytes of length, then the event with the object inside.
    let length = answer.bytes.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize).expect("a frame");
    let frame = answer.bytes.get(4..4 + length).expect("a whole frame");
    let uid = text(&object, "/metadata/uid").as_bytes();
    for part in [&b"ADDED"[..], &b"k8s\0"[..], uid] {
        assert!(frame.windows(part.len()).any(|window| window == part), "{part:?} is not in {frame:?}");
    }
}

pub(super) async fn large_answers_are_compressed(case: Case) {
    let path = case.core("configmaps");
    let mut map = config("large");
    map["data"]["k"] = Value::from("x".repeat(300_000));
    case.create(&path, map).await;
    let plain = case.get(&format!("{path}/large")).await;
    let packed = case.ask(Ask::new("GET", &format!("{path}/large")).header("accept-encoding", Some("gzip"))).await;
    assert_eq!(packed.headers.get("content-encoding").map(String::as_str), Some("gzip"));
    assert!(packed.bytes.len() < 10_000, "{}", packed.bytes.len());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.bytes[..]).read_to_string(&mut text).expect("gzip");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), plain.body);
    let small = case.ask(Ask::new("GET", "/version").header("accept-encoding", Some("gzip"))).await;
    assert_eq!((small.code, small.headers.get("content-encoding")), (200, None));
    assert_ne!(small.body, json!(null));
}
