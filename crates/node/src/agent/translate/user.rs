//! Whom each container runs as.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};

use super::{Refusal, config_error, on_host_root};
use crate::shim::spec::User;

pub(super) fn of(pod: &Pod, spec: &PodSpec, container: &Container, own: &SecurityContext) -> Result<User, Refusal> {
    let shared = spec.security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>| value.and_then(|v| u32::try_from(v).ok());
    let uid = id(own.run_as_user.or(shared.run_as_user)).unwrap_or(0);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) && uid == 0 {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let message = format!(
            "container has runAsNonRoot and image will run as root (pod: \"{name}\", container: {})",
            container.name
        );
        return Err(config_error(&container.name, message));
    }
    let on_host = on_host_root(spec);
    let passwd = if on_host { std::fs::read_to_string("/etc/passwd").unwrap_or_default() } else { String::new() };
    let group = if on_host { std::fs::read_to_string("/etc/group").unwrap_or_default() } else { String::new() };
    let known = account(&passwd, uid);
    let gid = id(own.run_as_group.or(shared.run_as_group)).or(known.as_ref().map(|(_, gid)| *gid)).unwrap_or(0);
    let mut groups: Vec<u32> = shared.supplemental_groups.iter().flatten().filter_map(|g| id(Some(*g))).collect();
    groups.extend(id(shared.fs_group));
    if shared.supplemental_groups_policy.as_deref() != Some("Strict") {
        groups.extend(known.iter().flat_map(|(name, _)| memberships(&group, name)));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups })
}

/// Name and primary group of a user, from the text of a passwd file.
fn account(passwd: &str, uid: u32) -> Option<(String, u32)> {
    passwd.lines().find_map(|line| {
        let mut columns = line.split(':');
        let name = columns.next()?;
        let found: u32 = columns.nth(1)?.parse().ok()?;
        let gid = columns.next()?.parse().ok()?;
        (found == uid).then(|| (name.to_owned(), gid))
    })
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
    fn users_bring_their_groups_from_the_machine() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:105:113::/var/lib/postgresql:/bin/bash\n";
        let group = "ssl-cert:x:112:postgres,other\npostgres:x:113:\n";
        assert_eq!(account(passwd, 105), Some(("postgres".to_owned(), 113)));
        assert_eq!(account(passwd, 7), None);
        assert_eq!(memberships(group, "postgres"), [112]);
    }
}
