//! The recordings: requests with the answers that a Kubernetes API server gave, asked again and compared.
//!
//! | module | holds |
//! |---|---|
//! | `scenario` | what a recording looks like, and what a step of it compares |
//! | `run` | one run of one scenario |
//! | `normal` | placeholders for what differs from run to run |
//! | `paths` | finding and removing values by path |
//! | `differences` | comparing, and the list of intended differences |

mod differences;
mod normal;
mod paths;
mod run;
mod scenario;

use std::path::{Path, PathBuf};

pub(crate) use self::differences::Differences;
use self::scenario::Scenario;
use crate::runner::{Body, Named};
use crate::target::Running;

/// Where the suite's files are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

/// One case per recording.
pub(crate) fn cases() -> Vec<Named> {
    let folder = folder().join("recorded");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let files = files.map(|file| file.expect("the folder can be read").path());
    files.filter(|file| file.extension().is_some_and(|e| e == "json")).map(|file| case(&file)).collect()
}

fn case(file: &Path) -> Named {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let file = file.to_owned();
    let body: Body = Box::new(move |case| {
        Box::pin(async move {
            let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let scenario: Scenario = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
            run::replay(scenario, case).await
        })
    });
    Named { running: Running::Housekeeping, name: format!("recorded::{name}"), body }
}
