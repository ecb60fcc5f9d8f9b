//! What the server says about itself, and the shapes in which it answers.

mod discovery;
mod openapi;
mod shapes;

use serde_json::Value;

use crate::cluster::{Ask, Case};
use crate::runner::{Named, cases};
use crate::target::Running;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    cases! {
        "documents" on Running::Housekeeping;
        discovery:
            kinds_are_named_as_in_the_newest_kubernetes
            the_aggregated_form_agrees_with_the_single_lists
            health_version_and_metrics_are_told;
        openapi:
            every_kind_is_described_in_version_three
            an_address_of_version_three_names_its_content
            version_two_is_one_document_as_text_and_in_binary
            what_a_client_keeps_is_not_sent_again;
        shapes:
            columns_are_those_of_the_newest_kubernetes
            built_in_kinds_have_a_binary_form
            a_watch_in_binary_is_framed
            large_answers_are_compressed;
    }
}

/// The members of a list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The texts in a list.
fn texts(value: &Value) -> Vec<&str> {
    list(value).filter_map(Value::as_str).collect()
}

/// Every group and version that is served: its path.
async fn group_versions(case: &Case) -> Vec<String> {
    let groups = case.get("/apis").await.body;
    let versions = list(&groups["groups"]).flat_map(|group| list(&group["versions"]));
    let mut paths: Vec<String> =
        versions.filter_map(|v| v["groupVersion"].as_str()).map(|v| format!("/apis/{v}")).collect();
    paths.push("/api/v1".to_owned());
    paths
}

/// A request for one shape of what is there.
fn accepting(path: &str, accept: &str) -> Ask {
    Ask::new("GET", path).header("accept", Some(accept))
}
