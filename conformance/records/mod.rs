//! What is noted down: events, in both versions of their API, and the audit log.

mod audit;
mod events;

use crate::runner::{Named, cases};
use crate::target::Running;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    let mut all = cases! {
        "records" on Running::Housekeeping;
        events:
            an_event_is_one_in_both_versions
            new_events_of_the_newer_version_are_held_to_its_rules
            events_are_selected_and_printed_in_both_versions;
    };
    all.extend(cases! {
        "records" on Running::Sets;
        events:
            what_happens_again_is_counted_and_not_told_again;
    });
    all.extend(cases! {
        "records" on Running::Small;
        events:
            events_are_forgotten_after_their_time_and_watchers_are_told;
        audit:
            every_request_is_a_line_of_who_what_and_what_came_of_it
            no_secret_is_in_the_log;
    });
    all
}
