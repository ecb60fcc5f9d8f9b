//! What the recordings do not hold: the verbs' rules of the newest Kubernetes, case by case.

use crate::runner::Named;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    Vec::new()
}
