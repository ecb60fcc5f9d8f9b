//! Fuzzing of the HTTP surface from our own OpenAPI document: all paths, all methods, parameters and bodies that are
//! nearly right, mutated or hostile, against a server in this process. Nothing panics, nothing hangs, nothing is
//! answered with 5xx (but 503 and 504, which mean what they say), and every refusal is a Status.
//!
//! By default a few hundred requests; `STATEFULD_FUZZ_RUNS` and `STATEFULD_FUZZ_SEED` as in the fuzzing of the pure
//! parts. A failure names its seed, and the request.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::{Map, Value, json};
use statefuld_apiserver::Body;
use tower::ServiceExt;

use crate::support::{Server, admin};

/// How long a request may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the next piece of an answer that streams is waited for.
const STREAMING: Duration = Duration::from_millis(20);
/// Deepest nesting of generated values.
const DEPTH: usize = 8;
/// What a client may ask answers to be written in.
const ACCEPTS: [&str; 9] = [
    "",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf,application/json",
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    "text/html, */*;q=0.1",
    ";;;,q=,/;as=",
];
/// Texts that have caused trouble somewhere.
const HOSTILE: [&str; 16] = [
    "",
    " ",
    "%00",
    "..",
    "%2e%2e%2f",
    "a/b",
    "\u{fc}n\u{ed}",
    "-1",
    "9223372036854775808",
    "NaN",
    "0",
    "true",
    "null",
    "a=b,c in (d)",
    "metadata.name=x",
    "All",
];

/// A source of numbers: the same seed gives the same ones.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn text(&mut self) -> String {
        match self.below(6) {
            0 => (*self.pick(&HOSTILE)).to_owned(),
            1 => self.next().to_string(),
            2 => "x".repeat(self.below(300)),
            _ => (*self.pick(&["a", "b", "web-0", "default", "main", "app", "x.y/z"])).to_owned(),
        }
    }
}

/// The document, and what is made from it.
struct Surface {
    document: Value,
    /// Path, method, operation.
    operations: Vec<(String, String, Value)>,
}

impl Surface {
    /// From what the server says about itself.
    async fn of(server: &Server) -> Self {
        let document = server.ask(Method::GET, "/openapi/v2", None).await.body;
        let mut operations = Vec::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("an object").iter().filter(|(m, _)| *m != "parameters") {
                operations.push((path.clone(), method.to_uppercase(), operation.clone()));
            }
        }
        assert!(operations.len() > 200, "{}", operations.len());
        Self { document, operations }
    }

    /// A request; its text is shown when it fails.
    fn request(&self, rng: &mut Rng) -> (String, Request<Full<Bytes>>) {
        let (path, method, operation) = rng.pick(&self.operations).clone();
        let mut uri = String::new();
        for part in path.split('/').skip(1) {
            let part = match part {
                "{namespace}" if !rng.one_in(10) => "default".to_owned(),
                "{name}" if !rng.one_in(10) => (*rng.pick(&["a", "b", "web-0"])).to_owned(),
                "{namespace}" | "{name}" => escape(&rng.text()),
                fixed if rng.one_in(100) => format!("{fixed}x"),
                fixed => fixed.to_owned(),
            };
            uri.push('/');
            uri.push_str(&part);
        }
        // The first of a name counts: nothing that takes long to come to its end.
        let mut query = vec!["timeoutSeconds=1".to_owned()];
        for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|p| p["in"] == "query") {
            if rng.one_in(4) {
                let name = parameter["name"].as_str().unwrap_or_default();
                query.push(format!("{name}={}", escape(&self.parameter(name, rng))));
            }
        }
        let method = if rng.one_in(40) {
            (*rng.pick(&["HEAD", "OPTIONS", "PUT", "POST", "DELETE", "BREW"])).to_owned()
        } else {
            method
        };
        let mut request = Request::builder().method(method.as_str()).uri(format!("{uri}?{}", query.join("&")));
        request = request.header("accept", *rng.pick(&ACCEPTS));
        let (media, body) = self.body(&operation, &method, rng);
        if let Some(media) = &media {
            request = request.header("content-type", media);
        }
        let shown = format!("{method} {uri}?{} {media:?} {}", query.join("&"), String::from_utf8_lossy(&body));
        (shown, request.body(Full::new(body.into())).expect("escaped"))
    }

    /// A value of a query parameter.
    fn parameter(&self, name: &str, rng: &mut Rng) -> String {
        let usual: &[&str] = match name {
            "dryRun" => &["All"],
            "fieldValidation" => &["Strict", "Warn", "Ignore"],
            "propagationPolicy" => &["Foreground", "Background", "Orphan"],
            "resourceVersionMatch" => &["Exact", "NotOlderThan"],
            "resourceVersion" => &["0", "1", "999999999"],
            "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" | "orphanDependents" => &["true", "false"],
            "limit" | "gracePeriodSeconds" => &["0", "1", "2", "-1"],
            "labelSelector" => &["app=a", "app in (a,b)", "!app"],
            "fieldSelector" => &["metadata.name=a", "metadata.namespace!=b", "status.phase=Running"],
            _ => &["fuzz"],
        };
        if rng.one_in(4) { rng.text() } else { (*rng.pick(usual)).to_owned() }
    }

    /// A body of a media type.
    fn body(&self, operation: &Value, method: &str, rng: &mut Rng) -> (Option<String>, Vec<u8>) {
        let described = operation["parameters"].as_array().into_iter().flatten().find(|p| p["in"] == "body");
        let Some(schema) = described.map(|p| &p["schema"]).filter(|_| !rng.one_in(20)) else {
            return (None, Vec::new());
        };
        let kind = &operation["x-kubernetes-group-version-kind"];
        let is_patch = method == "PATCH";
        let subject = if is_patch { self.definition_of(kind) } else { Some(schema.clone()) };
        let mut value = subject.map_or(json!({}), |subject| self.value(&subject, rng, 0));
        self.complete(&mut value, kind, rng);
        let media = match (is_patch, rng.below(5)) {
            (true, 0) => {
                value = patch_operations(&value, rng);
                "application/json-patch+json"
            }
            (true, 1) => "application/merge-patch+json",
            (true, 2) => "application/apply-patch+yaml",
            (true, _) => "application/strategic-merge-patch+json",
            (false, 0) => "application/yaml",
            (false, _) => "application/json",
        };
        for _ in 0..rng.below(4) {
            mutate(&mut value, rng);
        }
        let mut bytes = value.to_string().into_bytes();
        if rng.one_in(10) {
            let at = rng.below(bytes.len() + 1);
            bytes.truncate(at);
        }
        let media = if rng.one_in(20) { "application/vnd.kubernetes.protobuf" } else { media };
        (Some(media.to_owned()), bytes)
    }

    /// Makes it likely that the object is taken: kind, name, and what every object of its kind needs.
    fn complete(&self, value: &mut Value, kind: &Value, rng: &mut Rng) {
        let Some(object) = value.as_object_mut().filter(|_| !rng.one_in(10)) else { return };
        let group = kind["group"].as_str().unwrap_or_default();
        let version = kind["version"].as_str().unwrap_or_default();
        let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        object.insert("apiVersion".to_owned(), version.into());
        object.insert("kind".to_owned(), kind["kind"].clone());
        object.insert("metadata".to_owned(), json!({"name": rng.pick(&["a", "b"]), "labels": {"app": "a"}}));
        if rng.one_in(2) {
            let pod = json!({"containers": [{"name": "main", "image": "sample:1"}]});
            match kind["kind"].as_str() {
                Some("Pod") => drop(object.insert("spec".to_owned(), pod)),
                Some("StatefulSet") => {
                    let spec = json!({"serviceName": "a", "selector": {"matchLabels": {"app": "a"}},
                        "template": {"metadata": {"labels": {"app": "a"}}, "spec": pod}});
                    object.insert("spec".to_owned(), spec);
                }
                Some("Service") => drop(object.insert("spec".to_owned(), json!({"ports": [{"port": 80}]}))),
                _ => {}
            }
        }
    }

    /// The description of a kind's objects.
    fn definition_of(&self, kind: &Value) -> Option<Value> {
        let definitions = self.document["definitions"].as_object()?;
        let (name, _) = definitions
            .iter()
            .find(|(_, d)| d["x-kubernetes-group-version-kind"].as_array().into_iter().flatten().any(|k| k == kind))?;
        Some(json!({"$ref": format!("#/definitions/{name}")}))
    }

    /// A value that fits a description.
    fn value(&self, schema: &Value, rng: &mut Rng, depth: usize) -> Value {
        if let Some(reference) = schema["$ref"].as_str() {
            let found = self.document.pointer(reference.trim_start_matches('#')).cloned().unwrap_or_default();
            return self.value(&found, rng, depth + 1);
        }
        if let Some(values) = schema["enum"].as_array().filter(|_| !rng.one_in(10)) {
            return rng.pick(values).clone();
        }
        match schema["type"].as_str() {
            Some("string") if schema["format"] == "date-time" => "2024-01-01T00:00:00Z".into(),
            Some("string") if schema["format"] == "int-or-string" => rng.below(70_000).into(),
            Some("string") => rng.text().into(),
            Some("boolean") => rng.one_in(2).into(),
            Some("integer") => (rng.next() as i32 >> rng.below(31)).into(),
            Some("number") => (rng.next() as i32).into(),
            Some("array") if depth < DEPTH => {
                (0..rng.below(3)).map(|_| self.value(&schema["items"], rng, depth + 1)).collect::<Vec<_>>().into()
            }
            Some("array") => json!([]),
            _ => {
                let mut object = Map::new();
                for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                    if depth < DEPTH && rng.one_in(3) {
                        object.insert(name.clone(), self.value(field, rng, depth + 1));
                    }
                }
                if schema["additionalProperties"].is_object() && depth < DEPTH {
                    for _ in 0..rng.below(3) {
                        object.insert(rng.text(), self.value(&schema["additionalProperties"], rng, depth + 1));
                    }
                }
                Value::Object(object)
            }
        }
    }
}

/// Operations of a JSON patch.
fn patch_operations(value: &Value, rng: &mut Rng) -> Value {
    const PATHS: [&str; 9] = [
        "",
        "/",
        "/metadata/labels/app",
        "/metadata/name",
        "/spec",
        "/spec/replicas",
        "/status",
        "/metadata/finalizers/-",
        "/a~1b~0",
    ];
    (0..rng.below(4))
        .map(|_| {
            let verb = *rng.pick(&["add", "remove", "replace", "move", "copy", "test", "odd"]);
            let given = value["spec"].clone();
            json!({"op": verb, "path": rng.pick(&PATHS), "from": rng.pick(&PATHS), "value": given})
        })
        .collect()
}

/// Changes a value somewhere.
fn mutate(value: &mut Value, rng: &mut Rng) {
    let odd = |rng: &mut Rng| match rng.below(7) {
        0 => Value::Null,
        1 => json!([]),
        2 => json!({}),
        3 => json!(1.5),
        4 => json!(i64::MIN),
        5 => json!({"$patch": "delete", "name": "a"}),
        _ => rng.text().into(),
    };
    match value {
        Value::Object(object) if !object.is_empty() && !rng.one_in(5) => {
            let at = rng.below(object.len());
            let name = object.keys().nth(at).cloned().expect("within the length");
            match rng.below(8) {
                0 => drop(object.remove(&name)),
                1 => drop(object.insert(rng.text(), odd(rng))),
                _ => mutate(object.get_mut(&name).expect("it is there"), rng),
            }
        }
        Value::Array(items) if !items.is_empty() && !rng.one_in(5) => {
            let at = rng.below(items.len());
            match rng.below(5) {
                0 => items.push(items[at].clone()),
                _ => mutate(&mut items[at], rng),
            }
        }
        _ => *value = odd(rng),
    }
}

/// A text as part of an address; what stands for a byte already stays.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'%' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// What is wrong with an answer.
async fn judge(response: Response<Body>) -> Result<(), String> {
    let (parts, body) = response.into_parts();
    let media = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let code = parts.status.as_u16();
    loop {
        let next = chunks.next();
        let chunk = match tokio::time::timeout(if code < 300 { STREAMING } else { PATIENCE }, next).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // A watch that waits for something to happen.
            Err(_) => return Ok(()),
        };
        bytes.extend_from_slice(&chunk.map_err(|error| format!("the body broke: {error}"))?);
    }
    if code >= 500 && !matches!(code, 503 | 504) {
        return Err(format!("{code}: {}", String::from_utf8_lossy(&bytes)));
    }
    if code < 400 || bytes.is_empty() {
        return Ok(());
    }
    let status = match media.as_str() {
        "application/json" => serde_json::from_slice(&bytes).map_err(|error| error.to_string())?,
        "application/vnd.kubernetes.protobuf" => {
            api::protobuf::decode("meta/v1.Status", &bytes).map_err(|error| error.to_string())?
        }
        "application/yaml" => serde_saphyr::from_slice::<Value>(&bytes).map_err(|error| error.to_string())?,
        // A path outside of the API.
        _ if code == 404 => return Ok(()),
        other => return Err(format!("{code} is told in {other}: {}", String::from_utf8_lossy(&bytes))),
    };
    let is_root = code == 404 && status.get("paths").is_some();
    if status["kind"] != "Status" && !is_root {
        return Err(format!("{code} is no Status: {status}"));
    }
    if !is_root && (status["code"] != code || status["message"].as_str().unwrap_or_default().is_empty()) {
        return Err(format!("{code} is told by a Status that does not fit: {status}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_server() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("STATEFULD_FUZZ_SEED").unwrap_or(0);
    let runs = number("STATEFULD_FUZZ_RUNS").unwrap_or(600);
    let server = Server::start().await;
    let surface = Surface::of(&server).await;
    let mut codes = std::collections::BTreeMap::<u16, u64>::new();
    for seed in first..first + runs {
        let (shown, request) = surface.request(&mut Rng(seed));
        let exchange = async {
            let response = server.api.client(admin()).oneshot(request).await.expect("infallible");
            *codes.entry(response.status().as_u16()).or_default() += 1;
            judge(response).await
        };
        let outcome = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("it hangs".to_owned()));
        if let Err(why) = outcome {
            panic!("{why}\nSTATEFULD_FUZZ_SEED={seed} STATEFULD_FUZZ_RUNS=1\n{shown}");
        }
    }
    let metrics = server.ask(Method::GET, "/metrics", None).await;
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    assert!(text.contains("apiserver_request_panic_total 0\n"), "a request panicked");
    assert!(runs < 500 || (codes.contains_key(&200) && codes.contains_key(&201)), "nothing got through: {codes:?}");
    eprintln!("answers: {codes:?}");
}
