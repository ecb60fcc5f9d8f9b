//! What the recordings do not hold: the verbs' rules of the newest Kubernetes, case by case.

mod collector;
mod custom;
mod deletes;
mod lists;
mod namespaces;
mod pods;
mod watches;
mod writes;

use serde_json::{Value, json};

use crate::cluster::Answer;
use crate::runner::{Named, cases};
use crate::target::Running;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    cases! {
        "verbs" on Running::Housekeeping;
        lists:
            versions_that_do_not_go_together_are_refused
            a_version_is_matched_exactly_or_not_older
            pages_are_of_one_state_and_count_what_remains
            a_version_from_the_future_is_a_timeout
            what_is_forgotten_is_expired_and_a_token_goes_on;
        watches:
            a_watch_from_a_version_replays_what_came_after
            a_watch_without_a_version_begins_with_what_is_there
            initial_events_end_with_a_marked_bookmark
            initial_events_can_be_left_out
            options_that_do_not_go_together_are_refused
            a_timeout_ends_the_stream_after_a_bookmark;
        writes:
            a_dry_run_writes_nothing
            an_unknown_dry_run_is_refused
            unknown_fields_are_refused_warned_of_or_ignored
            names_are_generated
            an_update_from_an_older_version_conflicts;
        deletes:
            a_delete_holds_to_its_preconditions
            finalizers_hold_a_deleted_object
            a_period_can_only_be_shortened
            policies_that_do_not_go_together_are_refused
            a_collection_is_deleted_by_selector_and_page_by_page;
        collector:
            an_owner_without_a_solid_reference_takes_its_dependents_along
            foreground_waits_for_those_that_block
            an_orphan_survives_even_if_it_was_made_just_before
            a_circle_is_collected_in_the_foreground
            an_owner_in_another_namespace_is_none
            an_owner_in_a_namespace_has_no_cluster_wide_dependents;
        namespaces:
            a_namespace_that_is_stuck_says_why
            pods_go_before_everything_else
            nothing_is_created_in_a_namespace_that_goes
            a_finalizer_of_its_own_keeps_a_namespace;
        custom:
            rules_are_held_with_their_messages
            rules_compare_with_what_was_before
            a_rule_that_costs_too_much_ends
            rules_that_cannot_be_are_refused
            fields_that_a_kind_names_select
            columns_that_a_kind_names_are_printed
            versions_are_the_same_objects_each_held_to_its_own_schema;
        pods:
            a_container_to_debug_with_is_added_and_stays
            a_pod_is_resized_and_keeps_its_class;
    }
}

/// A config map.
pub(crate) fn config(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"is": name}}, "data": {"k": "v"}})
}

/// A secret: a kind of which nobody makes any by himself.
pub(crate) fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"is": name}}})
}

/// A pod.
pub(crate) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "automountServiceAccountToken": false, "containers": [{"name": "main", "image": "sample:1"}]}})
}

/// A StatefulSet.
fn set(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name}, "spec": {
        "replicas": 1, "serviceName": name, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "main", "image": "sample:1"}]}}}})
}

/// A text at a path of a document.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// An object's resourceVersion.
pub(crate) fn version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

/// The names in a list.
pub(crate) fn names(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.code, 200, "{}", answer.body);
    answer.body["items"].as_array().into_iter().flatten().map(|item| text(item, "/metadata/name")).collect()
}

/// Type and name of events.
pub(crate) fn told(events: &[Value]) -> Vec<(&str, &str)> {
    events.iter().map(|event| (text(event, "/type"), text(event, "/object/metadata/name"))).collect()
}

/// The answer is a failure of this code and reason, and says this.
pub(crate) fn assert_fails(answer: &Answer, code: u16, reason: &str, says: &str) {
    let body = &answer.body;
    assert_eq!((answer.code, text(body, "/reason")), (code, reason), "{body}");
    assert!(text(body, "/message").contains(says), "{says:?} is not in {body}");
}
