//! How much one request may bring.

use super::large;
use crate::cluster::{Ask, Case};
use crate::verbs::assert_fails;

pub(super) async fn a_body_that_is_too_large_is_refused(case: Case) {
    let answer = case.ask(Ask::new("POST", &case.core("configmaps")).json(&large("a", 3 << 20))).await;
    assert_fails(&answer, 413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728");
    assert_eq!(case.get(&format!("{}/a", case.core("configmaps"))).await.code, 404);
}

pub(super) async fn an_object_that_is_too_large_is_refused(case: Case) {
    let answer = case.ask(Ask::new("POST", &case.core("configmaps")).json(&large("a", 2 << 20))).await;
    assert_fails(&answer, 422, "Invalid", "Too long: may not be more than 1048576 bytes");
}
