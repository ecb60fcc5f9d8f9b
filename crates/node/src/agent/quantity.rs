//! Kubernetes quantities as the numbers that limits are made of. What does not parse counts as not said:
//! the API has refused it long before.

use api::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Whole units, rounded up: bytes of a memory quantity.
pub fn bytes(text: &str) -> Option<u64> {
    u64::try_from(Quantity::parse(text).ok()?.units()).ok()
}

/// Thousandths, rounded up: millicores of a cpu quantity.
pub fn millis(text: &str) -> Option<u64> {
    u64::try_from(Quantity::parse(text).ok()?.millis()).ok()
}

/// A named entry of a resource list.
pub fn of<'a>(list: Option<&'a std::collections::BTreeMap<String, Text>>, name: &str) -> Option<&'a str> {
    list?.get(name).map(|q| q.0.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_thousandths() {
        assert_eq!(bytes("1Mi"), Some(1 << 20));
        assert_eq!(bytes("1500m"), Some(2));
        assert_eq!(millis("0.25"), Some(250));
        assert_eq!(millis("2"), Some(2000));
        assert_eq!((bytes("-1"), bytes("much")), (None, None));
    }
}
