//! What one entry of a layer asks for: pure, so that every trick can be shown to be refused without a file system.
//!
//! Source: OCI image specification, "Image Layer Filesystem Changeset". Names are taken from the image's root, whether they
//! begin with a slash or not; where the layer's links lead is the business of [`super::apply`], to which the
//! image's root is the root of everything.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use crate::tar::{Entry, Kind};

/// Prefix of names that say that something is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The name that says that all that lay in a folder is gone.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are an old file system's own notes, which every runtime passes over.
const NOTES: &[u8] = b".wh..wh.";
/// Longest path; longer ones cannot be opened.
const MAX_PATH: usize = 4095;
/// Longest name of a file.
const MAX_NAME: usize = 255;
/// Most folders one inside another.
pub(super) const MAX_DEPTH: usize = 256;
/// Longest extended attribute's name and value, as the kernel has it.
const MAX_XATTR: (usize, usize) = (255, 64 << 10);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The image's root has these owners and this mode.
    Root(Meta),
    /// Make this, in place of what is there; a folder stays what it was but for its metadata.
    Make {
        /// Where, from the image's root; never empty, without dots.
        path: PathBuf,
        /// What.
        node: Node,
        /// Whose it is.
        meta: Meta,
    },
    /// This is gone, as far as it comes from below.
    Whiteout(PathBuf),
    /// All that lies in this folder is gone, as far as it comes from below.
    Opaque(PathBuf),
    /// Nothing.
    Nothing,
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file; its data follows.
    File,
    /// A folder.
    Folder,
    /// A symbolic link with this text.
    Symlink(PathBuf),
    /// Another name of what lies here.
    HardLink(PathBuf),
    /// A named pipe.
    Fifo,
}

/// Owners, mode, times, attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Extended attributes to be set.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What an entry asks for.
pub fn plan(entry: &Entry) -> Result<Action, Refused> {
    let refused = |why: &str| Refused { path: shown(&entry.path), why: why.to_owned() };
    let path = inside(&entry.path).map_err(&refused)?;
    let Some(name) = path.file_name().map(|n| n.as_encoded_bytes().to_vec()) else {
        if entry.kind != Kind::Folder {
            return Err(refused("the image's root can only be a folder"));
        }
        return Ok(Action::Root(meta(entry).map_err(|why| refused(&why))?));
    };
    let parent = path.parent().unwrap_or(Path::new(""));
    if parent.iter().any(|c| c.as_encoded_bytes().starts_with(WHITEOUT)) {
        return Err(refused("it lies in what only a whiteout is called"));
    }
    if name.starts_with(WHITEOUT) {
        return whiteout(entry, parent, &name).map_err(&refused);
    }
    let node = match &entry.kind {
        Kind::File => Node::File,
        Kind::Folder => Node::Folder,
        Kind::Fifo => Node::Fifo,
        Kind::Symlink(target) if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) => {
            return Err(refused("its link leads nowhere"));
        }
        Kind::Symlink(target) => Node::Symlink(PathBuf::from(OsString::from_vec(target.clone()))),
        Kind::HardLink(target) => {
            let target = inside(target).map_err(|why| refused(&format!("its hard link's target: {why}")))?;
            if target == path || target.as_os_str().is_empty() {
                return Err(refused("its hard link leads to itself or to the root"));
            }
            Node::HardLink(target)
        }
        // A container gets its own /dev on top, so these would never be seen.
        Kind::Device if path.starts_with("dev") => return Ok(Action::Nothing),
        Kind::Device => return Err(refused("it is a device outside of /dev")),
    };
    let meta = meta(entry).map_err(|why| refused(&why))?;
    Ok(Action::Make { path, node, meta })
}

fn whiteout(entry: &Entry, parent: &Path, name: &[u8]) -> Result<Action, &'static str> {
    if name == OPAQUE {
        return Ok(Action::Opaque(parent.to_owned()));
    }
    if name.starts_with(NOTES) {
        return Ok(Action::Nothing);
    }
    if entry.kind != Kind::File || entry.size != 0 {
        return Err("a whiteout is an empty file");
    }
    let gone = &name[WHITEOUT.len()..];
    if matches!(gone, b"" | b"." | b"..") {
        return Err("a whiteout of nothing, or of a folder's parent");
    }
    Ok(Action::Whiteout(parent.join(OsString::from_vec(gone.to_vec()))))
}

/// A name as a path from the image's root, without dots; empty for the root itself.
fn inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.is_empty() {
        return Err("it has no name");
    }
    if name.contains(&0) {
        return Err("its name contains a zero byte");
    }
    if name.len() > MAX_PATH {
        return Err("its name is longer than a path may be");
    }
    let mut path = PathBuf::new();
    for component in Path::new(&OsString::from_vec(name.to_vec())).components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME => return Err("a part of its name is too long"),
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err("its name leads upwards (..)"),
        }
    }
    if path.components().count() > MAX_DEPTH {
        return Err("it lies in too many folders");
    }
    Ok(path)
}

fn meta(entry: &Entry) -> Result<Meta, String> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or("its owner is no user id".to_owned());
    let mut xattrs = Vec::new();
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.contains(&0) || name.len() > MAX_XATTR.0 || value.len() > MAX_XATTR.1 {
            return Err("an extended attribute is malformed or too long".to_owned());
        }
        if keeps(name)? {
            xattrs.push((OsString::from_vec(name.clone()), value.clone()));
        }
    }
    Ok(Meta { uid: id(entry.uid)?, gid: id(entry.gid)?, mode: entry.mode, mtime: entry.mtime, xattrs })
}

/// Whether an attribute is set. Those by which overlayfs tells layers apart would change what a container sees of others.
fn keeps(name: &[u8]) -> Result<bool, String> {
    if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
        return Err(format!("the attribute {} is the kernel's own", shown(name)));
    }
    // Labels of other security modules mean nothing here.
    Ok(name == b"security.capability" || name.starts_with(b"user."))
}

/// Bytes as people can read them, not too many.
pub(crate) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).escape_debug().to_string()
}

/// An entry that is not taken; with it the whole layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {path:?}: {why}")]
pub struct Refused {
    /// Its name.
    pub path: String,
    /// One sentence.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        let path = path.as_bytes().to_vec();
        Entry { path, kind, mode: 0o644, uid: 1, gid: 2, mtime: (3, 4), size: 0, xattrs: Vec::new() }
    }

    fn made(path: &str) -> Option<PathBuf> {
        match plan(&entry(path, Kind::File)) {
            Ok(Action::Make { path, .. }) => Some(path),
            _ => None,
        }
    }

    #[test]
    fn names_are_taken_from_the_images_root() {
        for name in ["etc/passwd", "./etc/passwd", "/etc/passwd", "//etc/./passwd"] {
            assert_eq!(made(name), Some("etc/passwd".into()), "{name}");
        }
        assert!(matches!(plan(&entry("./", Kind::Folder)), Ok(Action::Root(_))));
        assert!(plan(&entry("/", Kind::Symlink(b"x".to_vec()))).is_err());
    }

    #[test]
    fn names_that_lead_out_or_cannot_be_are_refused() {
        let deep = "d/".repeat(300);
        let long = "n".repeat(256);
        for name in ["..", "../x", "a/../../x", "/..", "a/..", "", "a\0b", &deep, &long, &"a/".repeat(3000)] {
            assert!(plan(&entry(name, Kind::File)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn hard_links_stay_inside_and_lead_elsewhere() {
        let link = |to: &str| plan(&entry("a/b", Kind::HardLink(to.as_bytes().to_vec())));
        assert!(
            matches!(link("/bin/sh"), Ok(Action::Make { node: Node::HardLink(target), .. }) if target == Path::new("bin/sh"))
        );
        for target in ["../../etc/shadow", "a/b", "./a/b", "/", ""] {
            assert!(link(target).is_err(), "{target:?}");
        }
    }

    #[test]
    fn whiteouts_say_what_is_gone_and_tricks_with_them_are_refused() {
        let file = |path: &str| plan(&entry(path, Kind::File));
        assert_eq!(file("a/.wh.b"), Ok(Action::Whiteout("a/b".into())));
        assert_eq!(file(".wh.b"), Ok(Action::Whiteout("b".into())));
        assert_eq!(file("a/.wh..wh..opq"), Ok(Action::Opaque("a".into())));
        assert_eq!(file(".wh..wh.plnk"), Ok(Action::Nothing));
        for name in [".wh.", "a/.wh..", "a/.wh...", ".wh.a/b"] {
            assert!(file(name).is_err(), "{name}");
        }
        assert!(plan(&entry(".wh.b", Kind::Folder)).is_err());
        assert!(plan(&Entry { size: 9, ..entry(".wh.b", Kind::File) }).is_err());
    }

    #[test]
    fn devices_are_passed_over_in_dev_and_refused_elsewhere() {
        assert_eq!(plan(&entry("dev/sda", Kind::Device)), Ok(Action::Nothing));
        assert!(plan(&entry("device", Kind::Device)).is_err());
        assert!(plan(&entry("var/dev/null", Kind::Device)).is_err());
    }

    #[test]
    fn attributes_of_the_kernel_are_refused_and_foreign_labels_passed_over() {
        let with = |name: &str| {
            let xattrs = vec![(name.as_bytes().to_vec(), b"v".to_vec())];
            match plan(&Entry { xattrs, ..entry("a", Kind::File) }) {
                Ok(Action::Make { meta, .. }) => Some(meta.xattrs.len()),
                _ => None,
            }
        };
        assert_eq!(with("security.capability"), Some(1));
        assert_eq!(with("user.note"), Some(1));
        assert_eq!(with("security.selinux"), Some(0));
        for name in ["trusted.overlay.redirect", "trusted.x", "user.overlay.opaque", ""] {
            assert_eq!(with(name), None, "{name}");
        }
    }

    #[test]
    fn owners_that_are_none_are_refused() {
        assert!(plan(&Entry { uid: u64::from(u32::MAX), ..entry("a", Kind::File) }).is_err());
        assert!(plan(&Entry { gid: 1 << 40, ..entry("a", Kind::File) }).is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_made_lies_inside(name in proptest::collection::vec(0u8.., 0..40)) {
            let odd = Entry { path: name.clone(), ..entry("x", Kind::HardLink(name)) };
            for kind in [Kind::File, odd.kind.clone()] {
                if let Ok(Action::Make { path, .. } | Action::Whiteout(path) | Action::Opaque(path)) =
                    plan(&Entry { kind, ..odd.clone() })
                {
                    proptest::prop_assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
                }
            }
        }
    }
}
