//! Whom each container runs as.

use image::user as accounts;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};

use super::{Refusal, config_error, on_host_root, own_users};
use crate::agent::images;
use crate::shim::spec::User;
use crate::users::USERS_OF_A_POD;

pub(super) fn of(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    own: &SecurityContext,
    image: Option<&images::Ready>,
) -> Result<User, Refusal> {
    let shared = spec.security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let asked = own.run_as_user.or(shared.run_as_user);
    let of_image = image.map(|image| image.run.user.as_str()).unwrap_or_default();
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        non_root(pod, container, asked, of_image).map_err(|message| config_error(&container.name, message))?;
    }
    let machine =
        |path| if on_host_root(spec) { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let (passwd, group) = match image {
        Some(image) => (image.passwd.clone(), image.group.clone()),
        None => (machine("/etc/passwd"), machine("/etc/group")),
    };
    let known = match id(asked) {
        Some(uid) => accounts::by_uid(&passwd, uid),
        None => accounts::resolve(of_image, &passwd, &group).map_err(|error| Refusal {
            container: container.name.clone(),
            reason: "CreateContainerError",
            message: error.to_string(),
        })?,
    };
    let uid = known.uid;
    let gid = id(own.run_as_group.or(shared.run_as_group)).unwrap_or(known.gid);
    let mut groups: Vec<u32> = shared.supplemental_groups.iter().flatten().filter_map(|g| id(Some(*g))).collect();
    groups.extend(id(shared.fs_group));
    if shared.supplemental_groups_policy.as_deref() != Some("Strict") {
        groups.extend(known.name.iter().flat_map(|name| memberships(&group, name)));
    }
    groups.sort_unstable();
    groups.dedup();
    if own_users(spec) {
        are_own(uid, gid, &groups).map_err(|message| config_error(&container.name, message))?;
    }
    Ok(User { uid, gid, groups })
}

/// Refuses who is not among the users of a pod that has its own.
fn are_own(uid: u32, gid: u32, groups: &[u32]) -> Result<(), String> {
    let mut groups = std::iter::once(gid).chain(groups.iter().copied());
    let stranger = match uid >= USERS_OF_A_POD {
        true => Some(("user", uid)),
        false => groups.find(|group| *group >= USERS_OF_A_POD).map(|group| ("group", group)),
    };
    stranger.map_or(Ok(()), |(what, id)| {
        let last = USERS_OF_A_POD - 1;
        Err(format!("hostUsers: false gives the pod users and groups 0 to {last}: {what} {id} is none of them"))
    })
}

/// Refuses what runs, or may run, as root. In the kubelet's words.
fn non_root(pod: &Pod, container: &Container, asked: Option<i64>, of_image: &str) -> Result<(), String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    let pod = format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid));
    let whose = format!("(pod: \"{pod}\", container: {})", container.name);
    // Whoever wants a group too says it after a colon.
    let user = of_image.split(':').next().unwrap_or_default();
    match (asked, user.parse::<u32>()) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {whose}")),
        (Some(_), _) => Ok(()),
        (None, _) if user.is_empty() => Err(format!("container has runAsNonRoot and image will run as root {whose}")),
        (None, Ok(0)) => Err(format!("container has runAsNonRoot and image will run as root {whose}")),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {whose}"
        )),
    }
}

/// Groups that list a user, from the text of a group file.
fn memberships(group: &str, name: &str) -> Vec<u32> {
    let of_line = |line: &str| {
        let columns: Vec<&str> = line.split(':').collect();
        let listed = columns.get(3)?.split(',').any(|member| member == name);
        columns.get(2)?.parse().ok().filter(|_| listed)
    };
    group.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_bring_their_groups() {
        let group = "ssl-cert:x:112:postgres,other\npostgres:x:113:\n";
        assert_eq!(memberships(group, "postgres"), [112]);
    }

    #[test]
    fn who_is_not_among_the_pods_own_users_is_refused() {
        assert_eq!(are_own(65_535, 65_535, &[0, 5]), Ok(()));
        let said = "hostUsers: false gives the pod users and groups 0 to 65535: user 65536 is none of them";
        assert_eq!(are_own(65_536, 0, &[]), Err(said.to_owned()));
        assert!(are_own(0, 0, &[5, 70_000]).expect_err("refused").ends_with("group 70000 is none of them"));
        assert!(are_own(0, 70_000, &[]).is_err());
    }

    fn user(security: serde_json::Value, of_image: &str) -> Result<User, Refusal> {
        let pod = serde_json::json!({"metadata": {"name": "web-0", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [{"name": "c", "securityContext": security}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let spec = pod.spec.clone().expect("a spec");
        let image = images::Ready {
            run: image::manifest::RunConfig { user: of_image.to_owned(), ..Default::default() },
            passwd: "postgres:x:999:998::/var/lib/postgresql:/bin/sh\n".to_owned(),
            group: "tls:x:101:postgres\n".to_owned(),
            ..images::Ready::default()
        };
        let own = spec.containers[0].security_context.clone().expect("a context");
        of(&pod, &spec, &spec.containers[0], &own, Some(&image))
    }

    #[test]
    fn an_image_says_whom_it_runs_as_unless_the_pod_does() {
        let ids = |security, of_image| user(security, of_image).map(|u| (u.uid, u.gid, u.groups)).expect("a user");
        assert_eq!(ids(serde_json::json!({}), ""), (0, 0, vec![]));
        assert_eq!(ids(serde_json::json!({}), "postgres"), (999, 998, vec![101]));
        assert_eq!(ids(serde_json::json!({}), "999:tls"), (999, 101, vec![101]));
        assert_eq!(ids(serde_json::json!({"runAsUser": 7}), "postgres"), (7, 0, vec![]));
        assert_eq!(ids(serde_json::json!({"runAsUser": 999, "runAsGroup": 5}), ""), (999, 5, vec![101]));
        let unknown = user(serde_json::json!({}), "nobody").expect_err("unknown");
        assert_eq!(unknown.message, "unable to find user nobody: no matching entries in passwd file");
    }

    #[test]
    fn root_is_refused_where_it_must_not_be_in_upstreams_words() {
        let whose = "(pod: \"web-0_n(u)\", container: c)";
        let refused = |security, of_image| user(security, of_image).map_err(|r| (r.reason, r.message));
        let only = || serde_json::json!({"runAsNonRoot": true});
        for (security, of_image, why) in [
            (only(), "", "container has runAsNonRoot and image will run as root"),
            (only(), "0:0", "container has runAsNonRoot and image will run as root"),
            (
                only(),
                "postgres",
                "container has runAsNonRoot and image has non-numeric user (postgres), cannot verify user is non-root",
            ),
            (
                serde_json::json!({"runAsNonRoot": true, "runAsUser": 0}),
                "999",
                "container's runAsUser breaks non-root policy",
            ),
        ] {
            let expected = ("CreateContainerConfigError", format!("{why} {whose}"));
            assert_eq!(refused(security, of_image), Err(expected));
        }
        assert!(refused(only(), "999").is_ok());
        assert!(refused(serde_json::json!({"runAsNonRoot": true, "runAsUser": 7}), "postgres").is_ok());
    }
}
