//! The examples in docs/extensions.md are manifests that the server takes, and every key has one.

use statefuld_api::decode::{FieldValidation, MediaType, decode};
use statefuld_api::resource::Registry;
use statefuld_api::{beyond, defaults, validate};

const PAGE: &str = include_str!("../../../docs/extensions.md");

fn examples() -> Vec<&'static str> {
    PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn every_example_is_valid() {
    let sets = Registry::builtin().find("apps", "v1", "statefulsets").expect("is served");
    for example in examples() {
        let decoded = decode(&sets, example.as_bytes(), MediaType::Yaml, FieldValidation::Strict);
        let mut set = decoded.unwrap_or_else(|status| panic!("{}\n{example}", status.message)).object;
        defaults::apply(&sets, &mut set);
        set["metadata"]["namespace"] = "default".into();
        let errors = validate::create(&sets, &set);
        assert!(errors.is_empty(), "{errors:?}\n{example}");
    }
}

#[test]
fn every_key_is_documented_with_an_example() {
    for key in beyond::KEYS {
        assert!(examples().iter().any(|example| example.contains(&format!("{key}:"))), "{key}");
    }
}
