//! Rollouts that meet pods which cannot work, told by kubelet and scheduler in their own words.

use serde_json::{Value, json};

use super::cluster::{Cluster, eventually, web};

/// How pods of an image are, by the image's tag.
const SICK: [&str; 4] = ["crash-looping", "image-less", "unschedulable", "slow"];

fn image(tag: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": format!("sample:{tag}")}]}}}})
}

fn named(name: &str) -> Value {
    let mut set = web(2);
    set["metadata"]["name"] = name.into();
    set["metadata"]["annotations"] = json!({"statefuld.io/rollout-recovery": "replace-broken"});
    set["spec"]["selector"]["matchLabels"]["app"] = name.into();
    set["spec"]["template"]["metadata"]["labels"]["app"] = name.into();
    set
}

/// Image and uid of the upper pod, if it is there.
async fn upper(cluster: &Cluster, set: &str) -> Option<(String, String)> {
    let pod = cluster.pods().get_opt(&format!("{set}-1")).await.expect("the API answers")?;
    let image = pod.spec?.containers.pop()?.image?;
    Some((image, pod.metadata.uid?))
}

#[tokio::test]
async fn replace_broken_frees_rollouts_from_pods_that_crash_lack_images_or_nodes_and_spares_slow_ones() {
    let cluster = Cluster::start().await;
    for sick in SICK {
        cluster.create(named(sick)).await;
        cluster.settled(sick).await;
        cluster.patch(sick, image(sick)).await;
        eventually("the upper pod is of the broken template, and told so", async || {
            let pod = cluster.pods().get_opt(&format!("{sick}-1")).await.expect("the API answers");
            let told = pod.as_ref().and_then(|p| p.status.as_ref()).is_some_and(|s| s.message.as_deref() == Some(sick));
            told && upper(&cluster, sick).await.is_some_and(|(image, _)| image == format!("sample:{sick}"))
        })
        .await;
    }
    let slow = upper(&cluster, "slow").await.expect("it is there");
    for sick in SICK {
        cluster.patch(sick, image("2")).await;
    }
    for sick in SICK.iter().filter(|sick| **sick != "slow") {
        cluster.settled(sick).await;
        assert_eq!(upper(&cluster, sick).await.expect("it is there").0, "sample:2", "{sick}");
    }
    eventually("the controller has looked at the slow one", async || {
        let set = cluster.set("slow").await;
        set.status.is_some_and(|s| s.observed_generation == set.metadata.generation)
    })
    .await;
    assert_eq!(upper(&cluster, "slow").await.as_ref(), Some(&slow), "it may yet become ready");
    // Past a deadline it counts as broken too.
    let deadline = json!({"metadata": {"annotations": {"statefuld.io/progress-deadline-seconds": "1"}}});
    cluster.patch("slow", deadline).await;
    cluster.settled("slow").await;
    assert_eq!(upper(&cluster, "slow").await.expect("it is there").0, "sample:2");
}
