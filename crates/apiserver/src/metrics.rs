//! Counters in Prometheus' text format.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All counters of a server.
pub(crate) struct Metrics {
    registry: Registry,
    /// Answers by status code.
    pub(crate) requests: Family<Answer, Counter>,
    /// Requests that panicked.
    pub(crate) panics: Counter,
    watchers: Gauge<i64, AtomicI64>,
}

/// What answers are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answer {
    /// HTTP status code.
    pub(crate) code: u16,
}

/// An open watch, as long as it lives.
pub(crate) struct Watching(Gauge<i64, AtomicI64>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let panics = Counter::default();
        let watchers = Gauge::default();
        registry.register("apiserver_request", "Answered requests by status code", requests.clone());
        registry.register("apiserver_request_panic", "Requests that panicked", panics.clone());
        registry.register("apiserver_longrunning_requests", "Open watches", watchers.clone());
        Self { registry, requests, panics, watchers }
    }

    /// Counts a watch while it is open.
    pub(crate) fn watching(&self) -> Watching {
        self.watchers.inc();
        Watching(self.watchers.clone())
    }

    /// All counters as text.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        if encode(&mut out, &self.registry).is_err() {
            out.clear();
        }
        out
    }
}
