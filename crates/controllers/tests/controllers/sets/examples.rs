//! The examples of docs/extensions.md run: the server takes each, and the set becomes what its spec says.

use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use super::cluster::{Cluster, eventually};

const PAGE: &str = include_str!("../../../../../docs/extensions.md");

fn examples() -> Vec<Value> {
    let sets = api::resource::Registry::builtin().find("apps", "v1", "statefulsets").expect("is served");
    let texts = PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let decode = |text: &str| {
        use api::decode::{FieldValidation, MediaType, decode};
        decode(&sets, text.as_bytes(), MediaType::Yaml, FieldValidation::Strict).expect("the example is valid").object
    };
    texts.map(decode).collect()
}

#[tokio::test]
async fn every_example_of_an_annotation_runs() {
    let cluster = Cluster::start().await;
    cluster.start_around("garbagecollector");
    let examples = examples();
    assert!(examples.len() >= 9, "the page has examples");
    for example in &examples {
        cluster.create(example.clone()).await;
    }
    for example in &examples {
        let name = example["metadata"]["name"].as_str().expect("a name");
        cluster.settled(name).await;
    }
    for example in &examples {
        let name = example["metadata"]["name"].as_str().expect("a name");
        if example["metadata"]["annotations"]["statefuld.io/protect"] == "true" {
            cluster.patch(name, json!({"metadata": {"annotations": {"statefuld.io/protect": "false"}}})).await;
        }
        cluster.sets().delete(name, &DeleteParams::background()).await.expect("nothing protects it any more");
        eventually("it is gone", async || cluster.sets().get_opt(name).await.expect("an answer").is_none()).await;
    }
}

#[tokio::test]
async fn fenced_failover_is_refused_with_the_reason() {
    let cluster = Cluster::start().await;
    let mut example = examples().into_iter().find(|e| e["metadata"]["name"] == "waiting").expect("it has an example");
    example["metadata"]["annotations"]["statefuld.io/failover"] = "fenced".into();
    let set = serde_json::from_value(example).expect("a set");
    let refused = cluster.sets().create(&PostParams::default(), &set).await.expect_err("there is one machine");
    assert!(refused.to_string().contains("not on this server yet"), "{refused}");
}
