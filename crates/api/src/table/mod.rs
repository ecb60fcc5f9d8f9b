//! Printer columns: objects as the rows that `kubectl get` shows.
//!
//! `columns` says what the columns of a kind are, `cells` fills them; both have to agree, and a test sees to it.
//! Kinds without columns of their own show name and creation time.

mod cells;
mod columns;
mod custom;
mod pod;
mod storage;
mod text;
mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::resource::Resource;
use crate::status::Status;
use crate::status::quote;

pub use columns::columns;
pub use text::human_duration;

/// How much of each object a row carries along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Kind and metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter `includeObject`.
    pub fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                quote(other)
            ))),
        }
    }
}

/// A meta/v1 Table of objects. The caller adds the list's metadata.
pub fn render(resource: &Resource, items: &[&Value], now: Timestamp, include: IncludeObject) -> Value {
    let rows: Vec<Value> = items.iter().map(|item| row(resource, item, now, include)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns(resource),
        "rows": rows,
    })
}

/// One row.
fn row(resource: &Resource, item: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), Value::Array(cells::cells(resource, item, now)));
    if resource.group.is_empty() && resource.kind == "Pod" {
        row.extend(pod::conditions(item).map(|conditions| ("conditions".to_owned(), conditions)));
    }
    row.insert("object".into(), included(resource, item, include));
    Value::Object(row)
}

/// What a row carries along of its object.
fn included(resource: &Resource, item: &Value, include: IncludeObject) -> Value {
    match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": item["metadata"],
        }),
        IncludeObject::Object => {
            let mut object = item.clone();
            object["kind"] = resource.kind.as_str().into();
            object["apiVersion"] = resource.api_version().into();
            object
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Registry;

    /// The moment that ages are counted to.
    const NOW: &str = "2024-01-01T01:00:00Z";

    fn table(group: &str, plural: &str, item: &Value) -> Value {
        let resource = Registry::builtin().find(group, "v1", plural).expect("is served");
        render(&resource, &[item], NOW.parse().expect("a time"), IncludeObject::None)
    }

    fn cells(group: &str, plural: &str, item: &Value) -> Value {
        table(group, plural, item)["rows"][0]["cells"].clone()
    }

    fn named(name: &str) -> Value {
        json!({"name": name, "namespace": "ns", "creationTimestamp": "2024-01-01T00:55:00Z"})
    }

    #[test]
    fn every_kind_fills_its_columns_even_from_an_empty_object() {
        for resource in Registry::builtin().all() {
            let table = render(&resource, &[&json!({})], NOW.parse().expect("a time"), IncludeObject::Metadata);
            let columns = table["columnDefinitions"].as_array().expect("columns").len();
            assert_eq!(table["rows"][0]["cells"].as_array().expect("cells").len(), columns, "{}", resource.plural);
        }
    }

    #[test]
    fn rows_of_what_storage_drivers_and_policies_bring() {
        let group = "storage.k8s.io";
        let driver = json!({"metadata": named("d"), "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"],
            "tokenRequests": [{"audience": "a"}]}});
        assert_eq!(
            cells(group, "csidrivers", &driver),
            json!(["d", false, false, false, "a", false, "Persistent,Ephemeral", "5m"])
        );
        let node = json!({"metadata": named("n"), "spec": {"drivers": [{"name": "d"}]}});
        assert_eq!(cells(group, "csinodes", &node), json!(["n", 1, "5m"]));
        let attachment = json!({"metadata": named("a"), "spec": {"attacher": "d", "nodeName": "n",
            "source": {"persistentVolumeName": "v"}}, "status": {"attached": true}});
        assert_eq!(cells(group, "volumeattachments", &attachment), json!(["a", "d", "v", "n", true, "5m"]));
        let policy = json!({"metadata": named("p"), "spec": {"podSelector": {"matchLabels": {"a": "b"}}}});
        assert_eq!(cells("networking.k8s.io", "networkpolicies", &policy), json!(["p", "a=b", "5m"]));
        let snapshot = json!({"metadata": named("s"), "spec": {"source": {"persistentVolumeClaimName": "c"}},
            "status": {"readyToUse": true, "restoreSize": "1Gi", "creationTime": "2024-01-01T00:00:00Z"}});
        assert_eq!(
            cells("snapshot.storage.k8s.io", "volumesnapshots", &snapshot),
            json!(["s", true, "c", null, "1Gi", null, null, "60m", "5m"])
        );
    }

    #[test]
    fn a_set_shows_ready_of_desired() {
        let set = json!({"metadata": named("a"), "spec": {"replicas": 3, "template": {"spec": {"containers": [
            {"name": "x", "image": "i:1"}, {"name": "y", "image": "i:2"}]}}}, "status": {"readyReplicas": 2}});
        let table = table("apps", "statefulsets", &set);
        let names: Vec<&str> =
            table["columnDefinitions"].as_array().expect("columns").iter().filter_map(|c| c["name"].as_str()).collect();
        assert_eq!(names, ["Name", "Ready", "Age", "Containers", "Images"]);
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["columnDefinitions"][3]["priority"], 1);
        assert_eq!(table["rows"][0]["cells"], json!(["a", "2/3", "5m", "x,y", "i:1,i:2"]));
        assert_eq!(table["rows"][0]["object"], Value::Null);
    }

    #[test]
    fn recorded_rows_of_other_kinds() {
        let service = json!({"metadata": named("a"), "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"],
            "selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}});
        assert_eq!(
            cells("", "services", &service),
            json!(["a", "ClusterIP", "None", "<none>", "80/TCP,53/UDP", "5m", "a=b"])
        );
        let external = json!({"metadata": named("e"), "spec": {"type": "ExternalName", "externalName": "x.example"}});
        assert_eq!(
            cells("", "services", &external),
            json!(["e", "ExternalName", "<none>", "x.example", "<none>", "5m", "<none>"])
        );
        let claim = json!({"metadata": named("c"), "status": {"phase": "Pending"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "fast", "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            cells("", "persistentvolumeclaims", &claim),
            json!(["c", "Pending", "", "", "", "fast", "<unset>", "5m", "Filesystem"])
        );
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:55:00Z",
            "labels": {"node-role.kubernetes.io/db": ""}}});
        assert_eq!(
            cells("", "nodes", &node),
            json!(["n", "Unknown", "db", "5m", "", "<none>", "<none>", "<unknown>", "<unknown>", "<unknown>"])
        );
        let volume = json!({"metadata": named("v"), "status": {"phase": "Pending"}, "spec": {"capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "ns", "name": "c"}, "volumeMode": "Filesystem"}});
        assert_eq!(
            cells("", "persistentvolumes", &volume),
            json!(["v", "5Gi", "RWO,ROX", "Retain", "Pending", "ns/c", "", "<unset>", "", "5m", "Filesystem"])
        );
        let budget =
            json!({"metadata": named("b"), "spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 0}});
        assert_eq!(cells("policy", "poddisruptionbudgets", &budget), json!(["b", "50%", "N/A", 0, "5m"]));
        let event = json!({"metadata": named("ev"), "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "R",
            "message": " m ", "type": "Warning", "count": 3, "lastTimestamp": "2024-01-01T00:59:00Z"});
        assert_eq!(
            cells("", "events", &event),
            json!(["60s", "Warning", "R", "pod/p", "", "", "m", "<unknown>", 3, "ev"])
        );
        let endpoints =
            json!({"metadata": named("e"), "subsets": [{"addresses": [{"ip": "10.1.1.1"}], "ports": [{"port": 80}]}]});
        assert_eq!(cells("", "endpoints", &endpoints), json!(["e", "10.1.1.1:80", "5m"]));
        let role = json!({"metadata": named("r")});
        assert_eq!(cells("rbac.authorization.k8s.io", "roles", &role), json!(["r", "2024-01-01T00:55:00Z"]));
    }

    #[test]
    fn a_revision_names_its_controller() {
        let revision = json!({"metadata": {"name": "web-1", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true}]}, "revision": 3});
        assert_eq!(
            cells("apps", "controllerrevisions", &revision),
            json!(["web-1", "statefulset.apps/web", 3, "<unknown>"])
        );
    }

    #[test]
    fn an_unknown_include_object_is_refused() {
        assert!(IncludeObject::parse("Some").expect_err("unknown").message.contains("must be 'Metadata'"));
        assert_eq!(IncludeObject::parse("").expect("default"), IncludeObject::Metadata);
    }
}
