//! Amounts of resources: what a pod asks for, what a node has, what is taken of it.
//!
//! Integers in the unit that upstream's scheduler counts in: thousandths of a processor, bytes, pieces.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What a container that asks for no processor weighs when nodes are compared, in thousandths.
const WEIGHT_CPU: i64 = 100;
/// What a container that asks for no memory weighs when nodes are compared, in bytes.
const WEIGHT_MEMORY: i64 = 200 << 20;

/// Amounts of what pods can ask for. What is not mentioned is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a processor.
    pub cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local disk.
    pub ephemeral: i64,
    /// Everything else, by name: huge pages in bytes, extended resources in pieces.
    pub others: BTreeMap<String, i64>,
}

impl Amounts {
    /// Reads a list of quantities. What is malformed is left out; the API lets none of it in.
    pub fn read(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut read = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(quantity) = Quantity::parse(&text.0) else { continue };
            let amount = if name == "cpu" { quantity.millis() } else { quantity.units() };
            // How many pods a node takes is counted in pods.
            if name != "pods" {
                read.set(name, amount);
            }
        }
        read
    }

    /// What a pod with this spec takes at its most: containers and sidecars side by side, or an init container beside
    /// the sidecars that started before it, whichever is more; and what running it takes on top. Amounts for the whole
    /// pod stand in place of those of its containers. A container that is still given more than it asks for now (a
    /// resize under way) counts with what it was given.
    pub fn of_pod(spec: &PodSpec, status: &PodStatus) -> Self {
        let given = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let given: BTreeMap<&str, Self> =
            given.filter_map(|s| Some((s.name.as_str(), Self::read(Some(s.allocated_resources.as_ref()?))))).collect();
        let of = |container: &Container| {
            let resources = container.resources.as_ref();
            let mut own = Self::read(resources.and_then(|r| r.requests.as_ref()));
            if let Some(given) = given.get(container.name.as_str()) {
                own.raise(given);
            }
            own
        };
        let mut total = together(spec, of);
        let whole = Self::read(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
        for name in spec.resources.iter().flat_map(|r| r.requests.iter().flatten()).map(|(name, _)| name) {
            total.set(name, whole.get(name));
        }
        total.add(&Self::read(spec.overhead.as_ref()));
        total
    }

    /// Processor and memory by which a pod weighs on a node: as [`Self::of_pod`], where a container that asks for nothing
    /// still counts for something.
    pub fn weight_of_pod(spec: &PodSpec) -> (i64, i64) {
        let of = |container: &Container| {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let own = Self::read(requests);
            let says = |name: &str| requests.is_some_and(|r| r.contains_key(name));
            Self {
                cpu: if says("cpu") { own.cpu } else { WEIGHT_CPU },
                memory: if says("memory") { own.memory } else { WEIGHT_MEMORY },
                ..Self::default()
            }
        };
        let mut total = together(spec, of);
        let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        let own = Self::read(whole);
        for name in ["cpu", "memory"].into_iter().filter(|name| whole.is_some_and(|r| r.contains_key(*name))) {
            total.set(name, own.get(name));
        }
        total.add(&Self::read(spec.overhead.as_ref()));
        (total.cpu, total.memory)
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral,
            other => self.others.get(other).copied().unwrap_or(0),
        }
    }

    fn set(&mut self, name: &str, amount: i64) {
        match name {
            "cpu" => self.cpu = amount,
            "memory" => self.memory = amount,
            "ephemeral-storage" => self.ephemeral = amount,
            other => _ = self.others.insert(other.to_owned(), amount),
        }
    }

    /// Adds each amount.
    pub fn add(&mut self, more: &Self) {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        self.ephemeral = self.ephemeral.saturating_add(more.ephemeral);
        for (name, amount) in &more.others {
            let sum = self.get(name).saturating_add(*amount);
            self.set(name, sum);
        }
    }

    /// Takes each amount away again.
    pub fn subtract(&mut self, less: &Self) {
        self.cpu = self.cpu.saturating_sub(less.cpu);
        self.memory = self.memory.saturating_sub(less.memory);
        self.ephemeral = self.ephemeral.saturating_sub(less.ephemeral);
        for (name, amount) in &less.others {
            match self.get(name).saturating_sub(*amount) {
                0 => _ = self.others.remove(name),
                left => self.set(name, left),
            }
        }
    }

    /// Makes each amount at least as much as the other.
    fn raise(&mut self, other: &Self) {
        for (name, amount) in other.each() {
            if self.get(name) < amount {
                self.set(name, amount);
            }
        }
    }

    /// Each amount by its name, in the order in which upstream looks at them.
    pub fn each(&self) -> impl Iterator<Item = (&str, i64)> {
        let known = [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral)];
        known.into_iter().chain(self.others.iter().map(|(name, amount)| (name.as_str(), *amount)))
    }
}

/// The most that containers take at one time, by what each takes.
fn together(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let mut own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            total.add(&own);
            sidecars.add(&own);
            own = sidecars.clone();
        } else {
            own.add(&sidecars);
        }
        starting.raise(&own);
    }
    total.raise(&starting);
    total
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: &Value) -> PodSpec {
        serde_json::from_value(value.clone()).expect("a spec")
    }

    fn container(name: &str, requests: &[(&str, u16)], sidecar: bool) -> Value {
        let list: BTreeMap<&str, String> = requests.iter().map(|(name, n)| (*name, n.to_string())).collect();
        let mut made = json!({"name": name, "resources": {"requests": list}});
        if sidecar {
            made["restartPolicy"] = json!("Always");
        }
        made
    }

    #[test]
    fn a_resize_under_way_counts_with_the_larger_amount() {
        let asked = spec(&json!({"containers": [container("c", &[("cpu", 1)], false)]}));
        let status = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "allocatedResources": {"cpu": "3"}}]});
        let status: PodStatus = serde_json::from_value(status).expect("a status");
        assert_eq!(Amounts::of_pod(&asked, &status).cpu, 3000);
        assert_eq!(Amounts::of_pod(&asked, &PodStatus::default()).cpu, 1000);
    }

    #[test]
    fn a_container_that_asks_for_nothing_weighs_something() {
        let asked = spec(&json!({"containers": [{"name": "a"}, {"name": "b"}], "overhead": {"cpu": "50m"}}));
        assert_eq!(Amounts::weight_of_pod(&asked), (250, 400 << 20));
        let none =
            spec(&json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "0", "memory": "1"}}}]}));
        assert_eq!(Amounts::weight_of_pod(&none), (0, 1));
    }

    fn requests() -> impl Strategy<Value = Vec<(&'static str, u16)>> {
        let name = proptest::sample::select(vec!["cpu", "memory", "ephemeral-storage", "example.com/gpu"]);
        proptest::collection::btree_map(name, 0..50u16, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        /// Quotas and the scheduler count alike.
        #[test]
        fn requests_are_those_that_quotas_charge(
            containers in proptest::collection::vec(requests(), 1..4),
            inits in proptest::collection::vec((requests(), any::<bool>()), 0..4),
            whole in proptest::option::of(requests()),
            overhead in requests(),
        ) {
            let list = |(name, n): &(&str, u16)| ((*name).to_owned(), json!(n.to_string()));
            let names = ["a", "b", "c", "d"];
            let mut value = json!({
                "containers": containers.iter().zip(names).map(|(r, n)| container(n, r, false)).collect::<Vec<_>>(),
                "initContainers": inits.iter().zip(names).map(|((r, s), n)| container(n, r, *s)).collect::<Vec<_>>(),
                "overhead": overhead.iter().map(list).collect::<serde_json::Map<_, _>>(),
            });
            if let Some(whole) = &whole {
                value["resources"] = json!({"requests": whole.iter().map(list).collect::<serde_json::Map<_, _>>()});
            }
            let ours = Amounts::of_pod(&spec(&value), &PodStatus::default());
            let theirs = api::amounts::of_pod(&value, api::amounts::Side::Requests);
            for name in ["cpu", "memory", "ephemeral-storage", "example.com/gpu"] {
                let charged = theirs.get(name).map_or(0, |q| if name == "cpu" { q.millis() } else { q.units() });
                prop_assert_eq!(ours.get(name), charged, "{}", name);
            }
        }

        #[test]
        fn what_is_added_can_be_taken_away(a in requests(), b in requests()) {
            let of = |list: &[(&str, u16)]| {
                let list = list.iter().map(|(n, v)| ((*n).to_owned(), Text(v.to_string()))).collect();
                Amounts::read(Some(&list))
            };
            let (a, b) = (of(&a), of(&b));
            let mut sum = a.clone();
            sum.add(&b);
            sum.subtract(&b);
            for name in ["cpu", "memory", "ephemeral-storage", "example.com/gpu"] {
                prop_assert_eq!(sum.get(name), a.get(name));
            }
        }
    }
}
