//! The first ordinal.

use serde_json::{Value, json};

use super::{Act, all_ready, set, traced};
use crate::players::objects::Kind;
use crate::players::stage::Stage;
use crate::runner::Verdict;

pub(super) const CASES: &[(&str, Act)] = &[
    ("set_it", |s| Box::pin(change(s, None, json!({"start": 2}), &["web-2", "web-3", "web-4"]))),
    ("raise_it", |s| Box::pin(change(s, Some(2), json!({"start": 4}), &["web-4", "web-5", "web-6"]))),
    ("lower_it", |s| Box::pin(change(s, Some(3), json!({"start": 2}), &["web-2", "web-3", "web-4"]))),
    ("remove_it", |s| Box::pin(change(s, Some(3), Value::Null, &["web-0", "web-1", "web-2"]))),
    ("empty_ordinals_are_none", |s| Box::pin(change(s, Some(3), json!({"start": null}), &["web-0", "web-1", "web-2"]))),
];

/// "Setting/Increasing/Decreasing/Removing .start.ordinal", and test/integration: "TestStatefulSetStartOrdinal".
async fn change(stage: &Stage, from: Option<u32>, to: Value, wanted: &[&str]) -> Verdict {
    let first = from.unwrap_or(0);
    let spec = from.map_or_else(|| json!({}), |start| json!({"ordinals": {"start": start}}));
    let before: Vec<String> = (first..first + 3).map(|n| format!("web-{n}")).collect();
    let before: Vec<&str> = before.iter().map(String::as_str).collect();
    stage.create(Kind::Sets, &set("web", 3, spec)).await?;
    stage.wait("the first three are ready", |seen| all_ready(seen, &before)).await?;
    if traced(&stage.world.look(), "+") != before {
        return Err("they were created in order".into());
    }
    stage.patch(Kind::Sets, "web", &json!({"spec": {"ordinals": to}})).await?;
    stage.wait("the ordinals are as the spec says now", |seen| all_ready(seen, wanted)).await
}
