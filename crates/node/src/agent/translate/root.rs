//! What each container sees as `/`, and the command that follows from it.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::Refusal;
use crate::shim::spec::Root;

/// The image that is always there: this program.
pub const SAMPLE_IMAGE: &str = "statefuld.local/sample";
/// The runtime class whose pods have the machine's own root underneath.
pub const HOST_CLASS: &str = "host";

pub(super) fn root_and_argv(
    spec: &PodSpec,
    container: &Container,
    expand: impl Fn(&str) -> String,
) -> Result<(Root, Vec<String>), Refusal> {
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|w| expand(w)).collect::<Vec<_>>();
    let (command, args) = (words(&container.command), words(&container.args));
    let image = container.image.as_deref().unwrap_or_default();
    let (root, entrypoint) = if on_host_root(spec) {
        (Root::Host, Vec::new())
    } else if is_sample(image) {
        (Root::Sample, vec!["/statefuld".to_owned(), "sample".to_owned()])
    } else {
        return Err(no_image(container, image));
    };
    let mut argv = if command.is_empty() { entrypoint } else { command };
    argv.extend(args);
    if argv.is_empty() {
        return Err(Refusal {
            container: container.name.clone(),
            reason: "CreateContainerError",
            message: "no command specified: a container of runtime class host has no image to take one from".to_owned(),
        });
    }
    Ok((root, argv))
}

/// Whether it runs on the machine's own root.
pub fn on_host_root(spec: &PodSpec) -> bool {
    spec.runtime_class_name.as_deref() == Some(HOST_CLASS)
}

fn no_image(container: &Container, image: &str) -> Refusal {
    let (reason, message) = if container.image_pull_policy.as_deref() == Some("Never") {
        ("ErrImageNeverPull", format!("Container image \"{image}\" is not present with pull policy of Never"))
    } else {
        let known = format!("this version has {SAMPLE_IMAGE}, and any name under runtimeClassName: {HOST_CLASS}");
        ("ErrImagePull", format!("failed to pull image \"{image}\": pulling is not supported; {known}"))
    };
    Refusal { container: container.name.clone(), reason, message }
}

fn is_sample(image: &str) -> bool {
    image == SAMPLE_IMAGE || image.strip_prefix(SAMPLE_IMAGE).is_some_and(|tag| tag.starts_with([':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_matched_whole() {
        assert!(is_sample("statefuld.local/sample") && is_sample("statefuld.local/sample:latest"));
        assert!(!is_sample("statefuld.local/sampler") && !is_sample("x/statefuld.local/sample"));
    }
}
