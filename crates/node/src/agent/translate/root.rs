//! What each container sees as `/`, and the command that follows from it.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::Refusal;
use crate::agent::images;
use crate::shim::spec::Root;

/// The image that is always there: this program.
pub const SAMPLE_IMAGE: &str = "statefuld.local/sample";
/// The runtime class whose pods have the machine's own root underneath.
pub const HOST_CLASS: &str = "host";

pub(super) fn root_and_argv(
    spec: &PodSpec,
    container: &Container,
    image: Option<&images::Ready>,
    expand: impl Fn(&str) -> String,
) -> Result<(Root, Vec<String>), Refusal> {
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|w| expand(w)).collect::<Vec<_>>();
    let (command, args) = (words(&container.command), words(&container.args));
    let name = container.image.as_deref().unwrap_or_default();
    let refuse = |reason, message: String| Refusal { container: container.name.clone(), reason, message };
    let (root, entrypoint, cmd) = if on_host_root(spec) {
        (Root::Host, Vec::new(), Vec::new())
    } else if is_sample(name) {
        (Root::Sample, vec!["/statefuld".to_owned(), "sample".to_owned()], Vec::new())
    } else if let Some(image) = image {
        (image.root(), image.run.entrypoint.clone(), image.run.cmd.clone())
    } else {
        return Err(refuse("ErrImagePull", format!("the image \"{name}\" is not there yet")));
    };
    let argv = argv(command, args, entrypoint, cmd);
    if argv.is_empty() {
        let message = "no command specified: neither the container nor its image says what to run".to_owned();
        return Err(refuse("CreateContainerError", message));
    }
    Ok((root, argv))
}

/// A command replaces the image's entrypoint and its arguments, arguments replace the image's arguments alone.
fn argv(command: Vec<String>, args: Vec<String>, entrypoint: Vec<String>, cmd: Vec<String>) -> Vec<String> {
    match (command.is_empty(), args.is_empty()) {
        (false, _) => [command, args].concat(),
        (true, false) => [entrypoint, args].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    }
}

/// Where the program starts: as the container says, else its image.
pub(super) fn working_directory(container: &Container, image: Option<&images::Ready>) -> String {
    let own = container.working_dir.clone().filter(|dir| !dir.is_empty());
    own.or_else(|| image.map(|image| image.run.working_dir.clone())).unwrap_or_default()
}

/// Whether it runs on the machine's own root.
pub fn on_host_root(spec: &PodSpec) -> bool {
    spec.runtime_class_name.as_deref() == Some(HOST_CLASS)
}

/// Whether it names the built-in image.
pub fn is_sample(image: &str) -> bool {
    image == SAMPLE_IMAGE || image.strip_prefix(SAMPLE_IMAGE).is_some_and(|tag| tag.starts_with([':', '@']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_replaces_all_of_the_images_and_arguments_only_its_arguments() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let of = |command, args| argv(words(command), words(args), words("entry -e"), words("cmd")).join(" ");
        assert_eq!(of("", ""), "entry -e cmd");
        assert_eq!(of("", "arg"), "entry -e arg");
        assert_eq!(of("own", ""), "own");
        assert_eq!(of("own", "arg"), "own arg");
    }

    #[test]
    fn sample_is_matched_whole() {
        assert!(is_sample("statefuld.local/sample") && is_sample("statefuld.local/sample:latest"));
        assert!(!is_sample("statefuld.local/sampler") && !is_sample("x/statefuld.local/sample"));
    }
}
