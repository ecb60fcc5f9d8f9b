//! Texts that people write: selectors, quantities, names.

use statefuld_api::names;
use statefuld_api::quantity::Quantity;
use statefuld_api::resource::Registry;
use statefuld_api::selector::{FieldSelector, LabelSelector};

use crate::for_seeds;
use crate::generate::{Rng, any};

/// A text of pieces that selectors are made of.
fn selector(rng: &mut Rng) -> String {
    const PIECES: [&str; 18] = [
        "a", "b.c/d", "=", "==", "!=", "!", " in ", " notin ", "(", ")", ",", " ", "\\", "\\,", ">", "<", "exists", "1",
    ];
    (0..rng.below(12)).map(|_| if rng.one_in(8) { rng.text() } else { (*rng.pick(&PIECES)).to_owned() }).collect()
}

#[test]
fn label_selectors_are_read_or_refused_and_read_back_the_same() {
    for_seeds(3000, |rng| {
        let text = selector(rng);
        let labels: std::collections::BTreeMap<_, _> =
            [("a".to_owned(), "1".to_owned()), ("b.c/d".to_owned(), String::new())].into();
        let Ok(first) = LabelSelector::parse(&text) else { return };
        let again = LabelSelector::parse(&first.to_string()).expect("its own text");
        assert_eq!(again.matches(&labels), first.matches(&labels), "{text:?}");
        assert_eq!(again.to_string(), first.to_string(), "{text:?}");
    });
}

#[test]
fn field_selectors_are_read_or_refused() {
    let pods = Registry::builtin().find("", "v1", "pods").expect("a built-in kind");
    for_seeds(3000, |rng| {
        let _ = FieldSelector::parse(&selector(rng)).and_then(|s| s.check(&pods));
    });
}

#[test]
fn selectors_of_objects_are_read_or_refused() {
    for_seeds(500, |rng| {
        let _ = LabelSelector::from_json(&any(rng, 0));
    });
}

#[test]
fn quantities_are_read_or_refused_and_their_canonical_form_is_canonical() {
    const PIECES: [&str; 20] = [
        "1",
        "0",
        "9",
        "999999999999999999999",
        ".",
        "-",
        "+",
        "e",
        "E",
        "k",
        "K",
        "i",
        "m",
        "n",
        "u",
        "M",
        "G",
        "Ti",
        "Ei",
        "5",
    ];
    for_seeds(5000, |rng| {
        let text: String = (0..rng.below(7)).map(|_| *rng.pick(&PIECES)).collect();
        let Ok(first) = Quantity::parse(&text) else { return };
        let canonical = first.to_string();
        let again = Quantity::parse(&canonical).expect("its own text");
        assert_eq!(again.to_string(), canonical, "{text}");
        assert_eq!(again.cmp(&first), std::cmp::Ordering::Equal, "{text}");
    });
}

#[test]
fn names_are_judged() {
    for_seeds(2000, |rng| {
        let text = rng.text();
        let _ = (names::dns1123_label(&text), names::dns1123_subdomain(&text));
    });
}
