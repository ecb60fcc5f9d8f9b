//! What a real StatefulSet controller did in scripted scenarios, played again before the server under test.
//!
//! `scenarios/*.json` hold the steps and the trace that Kubernetes 1.20.2 left: the order of creations and deletions,
//! revisions, status, events. The suite plays user, scheduler and kubelet; the server brings the API, the StatefulSet
//! controller, the garbage collector and the protection of claims. What newer releases do otherwise is forgiven by a
//! named rule (`compare`), or stands in the scenario as a further trace that is right, each with its reason.
//!
//! | module | holds |
//! |---|---|
//! | `play` | the steps of one scenario |
//! | `compare` | traces side by side |

mod compare;
mod play;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::runner::{Body, Named};
use crate::target::Running;

/// One case per scenario.
pub(crate) fn cases() -> Vec<Named> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/behaviour/scenarios");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = files.map(|file| file.expect("the folder can be read").path());
    let mut cases: Vec<_> = files.filter(|file| file.extension().is_some_and(|e| e == "json")).map(case).collect();
    for (name, check) in [
        ("order_counts", compare::check::order_counts as fn()),
        ("rules_forgive_no_more_than_they_name", compare::check::rules_forgive_no_more_than_they_name),
    ] {
        let body: Body = Box::new(move |_| {
            Box::pin(async move {
                check();
                Ok(())
            })
        });
        cases.push(Named { name: format!("behaviour::comparison::{name}"), running: Running::Sets, body });
    }
    cases
}

fn case(file: PathBuf) -> Named {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let body: Body = Box::new(move |case| {
        Box::pin(async move {
            let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let scenario: Value = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", file.display()))?;
            let trace = play::play(&case, &scenario).await?;
            compare::compare(&scenario, &trace).map_or(Ok(()), Err)
        })
    });
    Named { name: format!("behaviour::{name}"), running: Running::Sets, body }
}
