//! Variables that a pod's own containers write for others: files of an emptyDir that `fileKeyRef` names.
//!
//! The format is a part of what a POSIX shell reads, as KEP-3721 has it: `NAME='value'`, where everything between the
//! quotes is the value, line ends too; blank lines and comments (`#`) between. A name that comes twice has its last
//! value. What is wrong in a file is told by its line, never by its words: they may be secrets.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::volume::empty_dir;

/// Longest file, bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Files by volume and path: their variables, none where there is no such file, or why they cannot be read.
pub type Files = BTreeMap<(String, String), Result<Option<BTreeMap<String, String>>, String>>;

/// Whether a container has variables that are not known before it starts.
pub fn are_used(container: &Container) -> bool {
    references(container).next().is_some()
}

/// Reads the files that a container's variables come from. Blocks.
pub fn read(pod_dir: &Path, pod: &Pod, container: &Container) -> Files {
    let one = |(volume, path): (&str, &str)| {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let is_own = volumes.filter(|v| v.name == volume).any(|v| v.empty_dir.is_some());
        let read = match is_own {
            true => read_one(&empty_dir(pod_dir, volume), path),
            false => Err(format!("volume {volume:?} is not an emptyDir of the pod")),
        };
        ((volume.to_owned(), path.to_owned()), read)
    };
    references(container).map(one).collect()
}

fn references(container: &Container) -> impl Iterator<Item = (&str, &str)> {
    let sources = container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()?.file_key_ref.as_ref());
    sources.map(|file| (file.volume_name.as_str(), file.path.as_str()))
}

/// The volume is full of somebody else's links: they may lead to places inside of it, and nowhere else.
fn read_one(volume: &Path, path: &str) -> Result<Option<BTreeMap<String, String>>, String> {
    let failed = |error: io::Error| format!("cannot read the file {path:?} of variables: {error}");
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|e| failed(e.into()))?;
    let look = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A pipe would keep whoever opens it waiting.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(&root, path, flags, Mode::empty(), look) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(format!("cannot read the file {path:?} of variables: it is not a file"));
    }
    let mut bytes = Vec::new();
    File::from(file).take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("the file {path:?} of variables is longer than {MAX_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("the file {path:?} of variables is not text"))?;
    parse(&text).map(Some).map_err(|why| format!("the file {path:?} of variables: {why}"))
}

/// The variables of a file's text.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    let (mut rest, mut line) = (text, 1);
    loop {
        let blank = rest.len() - rest.trim_start().len();
        line += rest[..blank].matches('\n').count();
        rest = &rest[blank..];
        if rest.is_empty() {
            return Ok(found);
        }
        if rest.starts_with('#') {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
            continue;
        }
        let wrong = |what: &str| format!("line {line}: {what}");
        let (name, after) = rest.split_once("='").ok_or_else(|| wrong("it is not NAME='value'"))?;
        let plain = |c: char| c.is_ascii_graphic() && c != '=' && c != '\'';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(wrong("it is not NAME='value'"));
        }
        let (value, after) = after.split_once('\'').ok_or_else(|| wrong("the value has no second quote"))?;
        if value.contains('\0') {
            return Err(wrong("the value holds a zero byte"));
        }
        found.insert(name.to_owned(), value.to_owned());
        let (tail, next) = after.split_at(after.find('\n').unwrap_or(after.len()));
        let comment = tail.starts_with([' ', '\t']) && tail.trim_start().starts_with('#');
        if !comment && !tail.trim().is_empty() {
            return Err(wrong("something follows the value"));
        }
        line += value.matches('\n').count();
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).expect("parsed").into_iter().collect()
    }

    #[test]
    fn what_a_shell_would_take_is_taken() {
        let text =
            "# a comment\n\nA='1'\n  B=' two  spaces '   # why\nC='first\nsecond # no comment\n\\n $HOME \"'\nA='last'";
        let expected = [("A", "last"), ("B", " two  spaces "), ("C", "first\nsecond # no comment\n\\n $HOME \"")];
        assert_eq!(pairs(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(pairs(""), []);
        assert_eq!(pairs("E=''"), [("E".to_owned(), String::new())]);
    }

    #[test]
    fn what_it_would_take_otherwise_is_refused_by_its_line_and_without_its_words() {
        for (text, line) in [
            ("SECRET=plain", "line 1"),
            ("A='1'\nSECRET=\"x\"", "line 2"),
            ("A ='1'", "line 1"),
            ("A= '1'", "line 1"),
            ("='1'", "line 1"),
            ("export A='1'", "line 1"),
            ("A='1\n2'\nB='3'SECRET", "line 3"),
            ("A='1'# close", "line 1"),
            ("\n\nA='SECRET", "line 3"),
            ("SECRET", "line 1"),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.starts_with(line) && !why.contains("SECRET"), "{text:?}: {why}");
        }
    }

    #[test]
    fn files_lie_in_volumes_of_the_pod_and_links_lead_nowhere_else() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let volume = dir.path().join("volumes/v");
        std::fs::create_dir_all(&volume).expect("a folder");
        std::fs::write(dir.path().join("outside"), "A='outside'").expect("written");
        std::fs::write(volume.join("good"), "A='1'").expect("written");
        std::fs::write(volume.join("long"), "#".repeat(70_000)).expect("written");
        std::os::unix::fs::symlink("../../outside", volume.join("away")).expect("a link");
        std::os::unix::fs::symlink("good", volume.join("inside")).expect("a link");
        let variable = |path: &str| {
            let file = serde_json::json!({"volumeName": "v", "path": path, "key": "A"});
            serde_json::json!({"name": "A", "valueFrom": {"fileKeyRef": file}})
        };
        let env = ["good", "none", "away", "inside", "long", "."].map(variable);
        let container = serde_json::json!({"name": "c", "env": env});
        let container: Container = serde_json::from_value(container).expect("a container");
        let pod = |volume: serde_json::Value| {
            serde_json::from_value::<Pod>(serde_json::json!({"spec": {"containers": [], "volumes": [volume]}}))
                .expect("a pod")
        };
        let files = read(dir.path(), &pod(serde_json::json!({"name": "v", "emptyDir": {}})), &container);
        let of = |path: &str| files[&("v".to_owned(), path.to_owned())].clone();
        let one = Ok(Some(BTreeMap::from([("A".to_owned(), "1".to_owned())])));
        assert_eq!((of("good"), of("inside")), (one.clone(), one));
        assert_eq!((of("none"), of("away")), (Ok(None), Ok(None)));
        assert!(of("long").expect_err("refused").contains("longer than"));
        assert!(of(".").is_err());
        let other = read(dir.path(), &pod(serde_json::json!({"name": "v", "hostPath": {"path": "/"}})), &container);
        assert!(other.values().all(Result::is_err));
        assert!(are_used(&container));
    }

    proptest! {
        #[test]
        fn values_come_through_as_they_are(value in "[^'\0]{0,60}", more in "[^']{0,40}") {
            let text = format!("#{}\nNAME='{value}'\n", more.replace('\n', " "));
            prop_assert_eq!(pairs(&text), [("NAME".to_owned(), value)]);
        }

        #[test]
        fn garbage_never_panics(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
