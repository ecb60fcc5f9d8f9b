//! What pods ask for: requests and limits of all their containers together.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by the name of what they are of.
pub type Amounts = BTreeMap<String, Quantity>;

/// Which of the two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What a container is given at least.
    Requests,
    /// What it may take at most.
    Limits,
}

impl Side {
    /// The field's name.
    fn field(self) -> &'static str {
        match self {
            Side::Requests => "requests",
            Side::Limits => "limits",
        }
    }
}

/// Reads a map of amounts; what is malformed is left out, validation speaks of it.
pub fn read(map: &Value) -> Amounts {
    let members = map.as_object().into_iter().flatten();
    members.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?))).collect()
}

/// What a pod with this spec takes at its most: containers and sidecars side by side, or an init container beside
/// the sidecars that started before it, whichever is more; and what running it takes on top. Amounts for the whole
/// pod stand in place of those of its containers.
pub fn of_pod(spec: &Value, side: Side) -> Amounts {
    let of = |container: &Value| read(&container["resources"][side.field()]);
    let list = |name: &str| spec[name].as_array().map_or(&[][..], Vec::as_slice);
    let mut total = Amounts::new();
    for container in list("containers") {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in list("initContainers") {
        let mut own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut starting, &own);
    }
    raise(&mut total, &starting);
    for (name, amount) in read(&spec["resources"][side.field()]) {
        total.insert(name, amount);
    }
    for (name, amount) in read(&spec["overhead"]) {
        match (total.get(&name), side) {
            (Some(sum), _) => drop(total.insert(name, sum.add(&amount))),
            (None, Side::Requests) => drop(total.insert(name, amount)),
            // Without a limit there is none to widen.
            (None, Side::Limits) => {}
        }
    }
    total
}

/// Adds amounts.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or_else(|| amount.clone(), |have| have.add(amount));
        to.insert(name.clone(), sum);
    }
}

/// Makes every amount at least as much as the other.
fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if to.get(name).is_none_or(|have| have < amount) {
            to.insert(name.clone(), amount.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cpu(spec: &Value, side: Side) -> String {
        of_pod(spec, side).get("cpu").map_or_else(|| "none".to_owned(), ToString::to_string)
    }

    fn container(cpu: &str) -> Value {
        json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}})
    }

    #[test]
    fn containers_add_up_and_the_largest_start_counts() {
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = json!({"containers": [container("1"), container("500m")]});
        assert_eq!(cpu(&spec, Side::Requests), "1500m");
        let spec = json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]});
        assert_eq!(cpu(&spec, Side::Requests), "3");
        let spec = json!({"containers": [container("1")], "initContainers": [sidecar, container("2")]});
        assert_eq!(cpu(&spec, Side::Requests), "2100m");
    }

    #[test]
    fn overhead_comes_on_top_and_the_pods_own_amounts_win() {
        let spec = json!({"containers": [container("1")], "overhead": {"cpu": "250m", "memory": "1Mi"}});
        assert_eq!(cpu(&spec, Side::Limits), "1250m");
        assert!(of_pod(&spec, Side::Requests).contains_key("memory"));
        assert!(!of_pod(&spec, Side::Limits).contains_key("memory"));
        let spec = json!({"containers": [container("1")], "resources": {"requests": {"cpu": "4"}}});
        assert_eq!(cpu(&spec, Side::Requests), "4");
    }
}
