//! What the server counts, in Prometheus' text format, under the names that monitoring of Kubernetes knows.

use std::fmt::Write as _;
use std::sync::atomic::AtomicI64;

use ambient::Ambient;
use http::Method;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::route::Route;
use crate::server::Shared;

/// Bounds of durations, in seconds.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Media type of the classic text form.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Media type of its successor.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counters of a server.
pub(crate) struct Metrics {
    registry: Registry,
    ambient: Ambient,
    started: f64,
    requests: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
    in_flight: Family<Gate, Gauge<i64, AtomicI64>>,
    /// Requests that panicked.
    pub(crate) panics: Counter,
    watchers: Gauge<i64, AtomicI64>,
    commits: Family<Commit, Counter>,
    commit_durations: Histogram,
    objects: Family<Stored, Gauge<i64, AtomicI64>>,
    memory: Gauge<i64, AtomicI64>,
}

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Asked {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
}

/// What answers are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    code: u16,
}

/// Which limit a request counts against.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gate {
    request_kind: &'static str,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Commit {
    outcome: &'static str,
}

/// A kind of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stored {
    resource: String,
}

/// Something that is under way; counted as long as it lives.
pub(crate) struct UnderWay(Gauge<i64, AtomicI64>);

impl UnderWay {
    fn begin(gauge: Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Asked {
    /// What a request asks for, in words of a bounded number: kinds that are not served have no name here.
    pub(crate) fn of(shared: &Shared, method: &Method, route: &Route, watch: bool) -> Self {
        let verb = match *method {
            Method::GET if watch => "WATCH",
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "OTHER",
        };
        let Route::Resource(target) = route else { return Self { verb: verb.to_owned(), ..Self::default() } };
        let Some(resource) = shared.registry.find(&target.group, &target.version, &target.plural) else {
            return Self { verb: verb.to_owned(), ..Self::default() };
        };
        let scope = match (target.name.is_empty(), target.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        let verb = match (verb, target.name.is_empty()) {
            ("GET", true) => "LIST",
            ("DELETE", true) => "DELETECOLLECTION",
            (verb, _) => verb,
        };
        let known = resource.subresource(&target.subresource).map_or("", |sub| sub.name.as_str());
        Self {
            verb: verb.to_owned(),
            group: resource.group.clone(),
            version: resource.version.clone(),
            resource: resource.plural.clone(),
            subresource: known.to_owned(),
            scope: scope.to_owned(),
        }
    }
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(ambient: &Ambient) -> Self {
        let mut registry = Registry::default();
        let durations = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let metrics = Self {
            ambient: ambient.clone(),
            started: ambient.now().as_millisecond() as f64 / 1000.0,
            requests: Family::default(),
            durations,
            in_flight: Family::default(),
            panics: Counter::default(),
            watchers: Gauge::default(),
            commits: Family::default(),
            commit_durations: Histogram::new(SECONDS),
            objects: Family::default(),
            memory: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("apiserver_request", "Answered requests", metrics.requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request's arrival to its answer, without watches",
            metrics.durations.clone(),
        );
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests under way, by the limit that they count against",
            metrics.in_flight.clone(),
        );
        registry.register("apiserver_request_panic", "Requests that panicked", metrics.panics.clone());
        registry.register("apiserver_longrunning_requests", "Open watches", metrics.watchers.clone());
        registry.register("statefuld_store_transactions", "Transactions by how they ended", metrics.commits.clone());
        registry.register(
            "statefuld_store_transaction_duration_seconds",
            "Time from a transaction's start until it is durable",
            metrics.commit_durations.clone(),
        );
        registry.register("apiserver_storage_objects", "Stored objects by kind", metrics.objects.clone());
        registry.register("process_resident_memory_bytes", "Resident memory", metrics.memory.clone());
        Self { registry, ..metrics }
    }

    /// Counts a watch while it is open.
    pub(crate) fn watching(&self) -> UnderWay {
        UnderWay::begin(self.watchers.clone())
    }

    /// Counts a request while it is under way.
    pub(crate) fn request(&self, reads: bool) -> UnderWay {
        let request_kind = if reads { "readOnly" } else { "mutating" };
        UnderWay::begin(self.in_flight.get_or_create(&Gate { request_kind }).clone())
    }

    /// Counts an answer; `seconds` is how long it took.
    pub(crate) fn answered(&self, asked: Asked, code: u16, seconds: f64) {
        if asked.verb != "WATCH" {
            self.durations.get_or_create(&asked).observe(seconds);
        }
        let Asked { verb, group, version, resource, subresource, scope } = asked;
        self.requests.get_or_create(&Answered { verb, group, version, resource, subresource, scope, code }).inc();
    }

    /// Counts a transaction.
    pub(crate) fn committed(&self, outcome: &'static str, seconds: f64) {
        self.commits.get_or_create(&Commit { outcome }).inc();
        self.commit_durations.observe(seconds);
    }

    /// Seconds since some moment, that never go backwards.
    pub(crate) fn seconds(&self) -> f64 {
        self.ambient.boottime().as_secs_f64()
    }

    /// All counters as text; `counts` are the numbers of stored objects.
    pub(crate) fn text(&self, counts: Vec<(String, usize)>, open_metrics: bool) -> String {
        for (resource, count) in counts {
            self.objects.get_or_create(&Stored { resource }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.memory.set(resident_bytes().unwrap_or_default());
        let mut out = String::new();
        if encode(&mut out, &self.registry).is_err() {
            out.clear();
        }
        let head = "# HELP process_start_time_seconds Start of the server, in seconds since 1970.\n\
                    # TYPE process_start_time_seconds gauge\n";
        let mut text = String::with_capacity(out.len() + 200);
        let _ = writeln!(text, "{head}process_start_time_seconds {}", self.started);
        if open_metrics {
            text.push_str(&out);
            return text;
        }
        // The older form names counters in full where it tells their type, and has no mark at its end.
        let counters: Vec<&str> = out.lines().filter_map(counter_name).collect();
        for line in out.lines().filter(|line| *line != "# EOF") {
            let named = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            match named.and_then(|rest| rest.split_once(' ')) {
                Some((name, rest)) if counters.contains(&name) => {
                    let _ = writeln!(text, "{} {name}_total {rest}", &line[..6]);
                }
                _ => {
                    let _ = writeln!(text, "{line}");
                }
            }
        }
        text
    }
}

/// The name in a line that declares a counter.
fn counter_name(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.strip_suffix(" counter")
}

/// Resident memory of this process.
fn resident_bytes() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_form_names_counters_in_full() {
        let metrics = Metrics::new(&Ambient::system());
        metrics.answered(Asked { verb: "GET".to_owned(), ..Asked::default() }, 200, 0.003);
        metrics.committed("committed", 0.001);
        let text = metrics.text(vec![("pods".to_owned(), 3)], false);
        assert!(text.contains("# TYPE apiserver_request_total counter\n"), "{text}");
        assert!(text.contains("verb=\"GET\"") && text.contains("code=\"200\"} 1"), "{text}");
        assert!(text.contains("apiserver_storage_objects{resource=\"pods\"} 3\n"), "{text}");
        assert!(text.contains("apiserver_request_duration_seconds_bucket{"), "{text}");
        assert!(text.contains("statefuld_store_transactions_total{outcome=\"committed\"} 1\n"), "{text}");
        assert!(!text.contains("EOF"));
        assert!(metrics.text(Vec::new(), true).ends_with("# EOF\n"));
    }
}
