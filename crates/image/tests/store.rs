//! Images from files, unpacked into a store: what comes out is what was put in, and what is hostile stays out.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use ambient::Ambient;
use imagetest::{Built, Compression, Entry, Image, Layer, index};
use statefuld_image::import::{ImportError, import};
use statefuld_image::overlay::Stack;
use statefuld_image::store::StoreError;
use statefuld_image::{Limits, Reference, Step, Store, rootfs};

/// A store in a folder of its own.
struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("images"), Ambient::system()).expect("a store");
        Self { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Imports an image as a layout folder under a name.
    fn import(&self, image: &Built, name: &str) -> Result<statefuld_image::Image, ImportError> {
        let folder = self.path(&format!("layout-{}", image.digest));
        image.write_layout(&folder, name);
        let mut images = import(&self.store, &folder, None, Limits::default(), &|_| {})?;
        Ok(images.remove(0))
    }

    fn layers(&self, image: &statefuld_image::Image) -> Vec<PathBuf> {
        image.layers.iter().map(|chain| self.store.layer_folder(chain)).collect()
    }

    /// What is in the store's folders for layers, staging and trash.
    fn left(&self) -> Vec<PathBuf> {
        let names = ["layers", "staging", "trash"];
        let folders = names.iter().map(|name| self.store.dir().join(name));
        folders.flat_map(|f| fs::read_dir(f).expect("a folder").map(|e| e.expect("an entry").path())).collect()
    }
}

fn name(text: &str) -> Reference {
    Reference::parse(text).expect("a name")
}

/// An image of these layers, imported, and shown as a container sees it.
fn merged(layers: impl IntoIterator<Item = Layer>) -> (Place, Root) {
    let place = Place::new();
    let image = place.import(&Image::new(layers).built(), "test/it:1").expect("imported");
    let root = Root::mount(&place, &image);
    (place, root)
}

/// A stack of layers that can be looked into by path.
struct Root {
    fd: std::os::fd::OwnedFd,
}

impl Root {
    fn mount(place: &Place, image: &statefuld_image::Image) -> Self {
        let mut lower = place.layers(image);
        // A stack that is only read has two layers at least.
        let empty = place.path("empty");
        fs::create_dir_all(&empty).expect("a folder");
        lower.insert(0, empty);
        let fd = Stack { lower: &lower, upper: None }.mount(rustix::mount::MountAttrFlags::empty()).expect("a stack");
        Self { fd }
    }

    fn path(&self, path: &str) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        Path::new("/proc/self/fd").join(self.fd.as_raw_fd().to_string()).join(path)
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn names(&self, path: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }
}

#[test]
fn kinds_owners_modes_times_links_and_attributes_come_out_as_they_went_in() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs =
        vec![("security.capability".to_owned(), capability.to_vec()), ("user.note".to_owned(), b"hello".to_vec())];
    let special = Entry {
        mode: 0o4755,
        uid: 7,
        gid: 4_000_000_000,
        mtime: 12,
        data: b"x".to_vec(),
        xattrs,
        ..Entry::new(b'0', "bin/su")
    };
    let long = format!("{}/file", "long".repeat(40));
    let layer = Layer::new()
        .folder_of(".", 0o751, 5, 6)
        .folder_of("data", 0o2770, 999, 998)
        .file("data/a", 0o600, "abc")
        .hard_link("data/b", "data/a")
        .symlink("data/out", "../../../etc/passwd")
        .entry(&special)
        .file(&long, 0o644, "far")
        .entry(&Entry { mode: 0o622, ..Entry::new(b'6', "pipe") })
        .entry(&Entry::new(b'3', "dev/null"));
    let (_place, root) = merged([layer]);
    let of = |path: &str| {
        let meta = root.meta(path);
        (meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime())
    };
    assert_eq!(of("."), (5, 6, 0o751, 1_700_000_000));
    assert_eq!(of("data"), (999, 998, 0o2770, 1_700_000_000));
    assert_eq!(of("bin/su"), (7, 4_000_000_000, 0o4755, 12));
    assert_eq!(of("bin"), (0, 0, 0o755, root.meta("bin").mtime()));
    assert_eq!(root.meta("data/a").ino(), root.meta("data/b").ino());
    assert_eq!(fs::read_link(root.path("data/out")).expect("a link"), Path::new("../../../etc/passwd"));
    assert_eq!(root.read(&long), "far");
    assert!(root.meta("pipe").file_type().is_fifo());
    assert!(root.names(".").contains("pipe") && !root.names(".").contains("dev"));
    let attribute = |name: &str| {
        let mut value = [0; 64];
        let n = rustix::fs::getxattr(root.path("bin/su"), name, &mut value[..]).expect("an attribute");
        value[..n].to_vec()
    };
    assert_eq!(attribute("security.capability"), capability);
    assert_eq!(attribute("user.note"), b"hello");
}

#[test]
fn upper_layers_hide_replace_and_keep_what_lower_ones_have() {
    let lower = Layer::new()
        .folder("tmp", 0o1777)
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .file("usr/lib/a", 0o644, "a")
        .symlink("lib", "usr/lib")
        .folder("full", 0o700)
        .file("full/one", 0o644, "1")
        .file("full/deep/two", 0o644, "2")
        .file("gone", 0o644, "x")
        .file("folder/x", 0o644, "x")
        .file("linked", 0o644, "same");
    let upper = Layer::new()
        .compressed(Compression::Zstd)
        .whiteout("gone")
        .whiteout("never-there")
        // The folders around it come from below, with their modes, and links among them are followed.
        .file("tmp/new", 0o644, "n")
        .file("lib/b", 0o644, "b")
        .file("full/three", 0o644, "3")
        .opaque("full")
        .hard_link("other", "linked")
        .file("folder", 0o644, "a file now");
    let top = Layer::new().compressed(Compression::None).whiteout("tmp/new").file("tmp/last", 0o644, "l");
    let (_place, root) = merged([lower, upper, top]);
    assert!(!root.names(".").contains("gone"));
    assert_eq!((root.meta("tmp").mode() & 0o7777, root.names("tmp")), (0o1777, ["last".to_owned()].into()));
    assert_eq!(
        (root.read("usr/lib/a"), root.read("usr/lib/b"), root.read("lib/b")),
        ("a".into(), "b".into(), "b".into())
    );
    assert_eq!((root.names("full"), root.meta("full").mode() & 0o7777), (["three".to_owned()].into(), 0o700));
    assert_eq!((root.read("other"), root.read("linked")), ("same".into(), "same".into()));
    assert_eq!(root.read("folder"), "a file now");
}

#[test]
fn a_whiteout_does_not_concern_what_its_own_layer_made() {
    let lower = Layer::new().file("d/old", 0o644, "").file("e", 0o644, "old");
    let upper = Layer::new().file("d/new", 0o644, "").file("e", 0o644, "new").whiteout("d").whiteout("e");
    let (_place, root) = merged([lower, upper]);
    assert_eq!(root.names("d"), ["new".to_owned()].into());
    assert_eq!(root.read("e"), "new");
}

#[test]
fn many_layers_are_stacked() {
    let layers: Vec<Layer> = (0..130).map(|n| Layer::new().file(&format!("f{n}"), 0o644, n.to_string())).collect();
    let (_place, root) = merged(layers);
    assert_eq!(root.names(".").len(), 130);
    assert_eq!(root.read("f129"), "129");
}

#[test]
fn a_hostile_layer_is_refused_and_leaves_nothing() {
    let outside = tempfile::tempdir().expect("a folder");
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").expect("written");
    let up = "../".repeat(20);
    let hostile: [(&str, Layer); 11] = [
        ("a name that leads up", Layer::new().file(&format!("a/{up}{}", victim.display()), 0o644, "bad")),
        ("a hard link out", Layer::new().hard_link("x", &format!("{up}{}", victim.display()))),
        ("a device", Layer::new().entry(&Entry::new(b'4', "disk"))),
        ("the kernel's own mark of a whiteout", Layer::new().entry(&Entry::new(b'3', "usr/x"))),
        ("an attribute of overlayfs", {
            let xattrs = vec![("trusted.overlay.redirect".to_owned(), b"/etc".to_vec())];
            Layer::new().entry(&Entry { xattrs, ..Entry::new(b'5', "d") })
        }),
        ("a whiteout of the parent", Layer::new().file("a/.wh...", 0o644, "")),
        ("a hard link to nothing", Layer::new().hard_link("x", "y")),
        ("a file in place of a folder above", Layer::new().file("a", 0o644, "").file("a/b", 0o644, "")),
        ("a link to nowhere in place of a folder above", Layer::new().symlink("a", "nowhere").file("a/b", 0o644, "")),
        ("folders without end, through links", {
            let deep = "d/".repeat(200);
            Layer::new().folder(&deep, 0o755).symlink("l", &deep).folder(&format!("l/{deep}"), 0o755)
        }),
        ("an unknown type", Layer::new().entry(&Entry::new(b'V', "x"))),
    ];
    for (what, layer) in hostile {
        let place = Place::new();
        let refused = place.import(&Image::new([layer]).built(), "hostile/it:1");
        assert!(matches!(refused, Err(ImportError::Store(StoreError::Layer(_)))), "{what}: {refused:?}");
        assert_eq!(place.left(), Vec::<PathBuf>::new(), "{what}");
    }
    assert_eq!(fs::read_to_string(&victim).expect("it is there"), "untouched");
}

#[test]
fn links_of_a_layer_lead_to_places_inside_only() {
    let outside = tempfile::tempdir().expect("a folder");
    let lower =
        Layer::new().symlink("abs", outside.path().to_str().expect("UTF-8")).symlink("up", "../../../../../../tmp");
    let target = outside.path().to_str().expect("UTF-8").trim_start_matches('/');
    let lower = lower.folder(target, 0o755).folder("tmp", 0o1777);
    let upper = Layer::new().file("abs/x", 0o644, "x").file("up/y", 0o644, "y").file("secret", 0o644, "");
    let (place, root) = merged([lower, upper]);
    assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 0);
    assert_eq!((root.read(&format!("{target}/x")), root.read("tmp/y")), ("x".into(), "y".into()));
    // Reading follows the image's links as the image means them.
    let image = place.store.images().expect("images").remove(0);
    let layers = place.layers(&image);
    assert_eq!(rootfs::read_file(&layers, "abs/x", 10).expect("readable"), Some(b"x".to_vec()));
    assert!(rootfs::read_file(&layers, "tmp", 10).is_err());
    assert_eq!(rootfs::read_file(&layers, "none/x", 10).expect("readable"), None);
}

#[test]
fn bombs_and_floods_are_refused() {
    let place = Place::new();
    let zeros = Image::new([Layer::new().file("zeros", 0o644, vec![0; 8 << 20])]).built();
    let files = (0..100).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), 0o644, ""));
    let files = Image::new([files]).built();
    let small = Limits { bytes: 1 << 20, ..Limits::default() };
    let ratio = Limits { ratio_from: 1 << 20, ratio: 50, ..Limits::default() };
    let few = Limits { entries: 99, ..Limits::default() };
    for (image, limits) in [(&zeros, small), (&zeros, ratio), (&files, few)] {
        let folder = place.path(&image.digest);
        image.write_layout(&folder, "test/bomb:1");
        assert!(import(&place.store, &folder, None, limits, &|_| {}).is_err(), "{limits:?}");
        assert_eq!(place.left(), Vec::<PathBuf>::new());
    }
}

#[test]
fn every_form_of_an_image_is_imported_and_layers_are_shared() {
    let place = Place::new();
    let base = Layer::new().file("base", 0o644, "base");
    let image = Image::new([base.clone(), base.clone(), Layer::new().file("top", 0o644, "t")]).built();
    let docker = place.path("docker.tar");
    image.write_docker_archive(&docker, &["web:1", "web:2"], Compression::None);
    let packed = place.path("docker.tar.gz");
    image.write_docker_archive(&packed, &["web:3"], Compression::Gzip);
    let archive = place.path("oci.tar");
    image.write_archive(&archive, "registry.test/web:4");
    let steps = std::sync::Mutex::new(Vec::new());
    let watch = |step: &Step| steps.lock().expect("nobody panics").push(step.clone());
    for path in [&docker, &packed, &archive] {
        import(&place.store, path, None, Limits::default(), &watch).expect("imported");
    }
    let unpacked = steps.lock().expect("nobody panics").iter().filter(|s| matches!(s, Step::Unpacked(_))).count();
    assert_eq!(unpacked, 3, "each layer was unpacked once");
    for text in ["web:1", "web:2", "web:3", "registry.test/web:4", &format!("registry.test/web@{}", image.digest)] {
        let found = place.store.find(&name(text)).expect("readable").unwrap_or_else(|| panic!("{text}"));
        let config = place.store.config(&found).expect("a configuration");
        assert_eq!(config.rootfs.diff_ids.len(), 3);
    }
    assert_eq!(place.store.find(&name("web:5")).expect("readable"), None);
}

#[test]
fn of_a_layout_for_several_machines_this_one_is_taken_and_names_can_be_given() {
    let place = Place::new();
    let (ours, theirs) = (Image::new([Layer::new().file("ours", 0o644, "")]), Image::new([Layer::new()]));
    let both = index(&[&theirs.architecture("riscv64").built(), &ours.built()]);
    let folder = place.path("both");
    both.write_layout(&folder, "");
    let nameless = import(&place.store, &folder, None, Limits::default(), &|_| {});
    assert!(matches!(nameless, Err(ImportError::Nameless)), "{nameless:?}");
    import(&place.store, &folder, Some(&name("given:1")), Limits::default(), &|_| {}).expect("imported");
    let found = place.store.find(&name("given:1")).expect("readable").expect("there");
    assert!(place.layers(&found)[0].join("ours").exists());
    assert_eq!(found.by_digest(&name("given:1")), format!("docker.io/library/given@{}", both.digest));
    let foreign = Image::new([Layer::new()]).architecture("riscv64").built();
    let refused = place.import(&foreign, "foreign:1").expect_err("not for this machine");
    assert!(refused.to_string().contains("no match for platform in manifest"), "{refused}");
}

#[test]
fn content_that_is_not_what_it_is_called_is_refused() {
    let image = Image::new([Layer::new().file("a", 0o644, "a")]).built();
    let layer = image.layer_digests().remove(0);
    let other = Layer::new().file("a", 0o644, "b").blob();
    for (spoilt, bytes) in [(layer, other), (image.digest.clone(), b"{}".to_vec())] {
        let place = Place::new();
        let mut image = image.clone();
        image.blobs.insert(spoilt, bytes);
        let refused = place.import(&image, "spoilt:1");
        assert!(matches!(refused, Err(ImportError::Store(StoreError::Digest { .. }))), "{refused:?}");
        assert_eq!(place.left(), Vec::<PathBuf>::new());
    }
}

#[test]
fn images_in_use_stay_and_shared_layers_go_with_their_last_image() {
    let place = Place::new();
    let base = Layer::new().file("base", 0o644, vec![7; 1000]);
    let one =
        place.import(&Image::new([base.clone(), Layer::new().file("1", 0o644, "1")]).built(), "one:1").expect("one");
    let two = place.import(&Image::new([base, Layer::new().file("2", 0o644, "2")]).built(), "two:1").expect("two");
    let used = || Ok(BTreeSet::from([two.id]));
    assert!(matches!(place.store.remove(&name("two:1"), used), Err(StoreError::InUse(_))));
    let gone = place.store.remove(&name("one:1"), used).expect("removed").expect("it was there");
    assert_eq!((gone.images, gone.bytes), (vec!["docker.io/library/one:1".to_owned()], 1));
    assert!(!place.store.is_there(&one.id).expect("readable") && place.store.is_there(&two.id).expect("readable"));
    assert_eq!(place.left().len(), 2);
    assert_eq!(place.store.remove(&name("one:1"), used).expect("nothing"), None);
    let all = |images: &[statefuld_image::Image], _: &BTreeSet<_>| images.iter().map(|i| i.id).collect();
    assert_eq!(place.store.prune(used, all).expect("pruned").images, Vec::<String>::new());
    assert_eq!(place.store.prune(|| Ok(BTreeSet::new()), all).expect("pruned").bytes, 1001);
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn what_a_crash_left_is_removed_and_a_layer_without_its_name_is_never_used() {
    let place = Place::new();
    let half = place.store.dir().join("staging/half");
    fs::create_dir_all(half.join("fs/etc")).expect("folders");
    fs::create_dir_all(place.store.dir().join("trash/old/layer")).expect("folders");
    let busy = place.store.scratch().expect("a folder of somebody who lives");
    place.store.clear_leftovers().expect("cleared");
    assert!(!half.exists() && busy.path.exists());
    assert_eq!(fs::read_dir(place.store.dir().join("trash")).expect("a folder").count(), 0);
    let image = place.import(&Image::new([Layer::new().file("a", 0o644, "a")]).built(), "it:1").expect("imported");
    // As if the disk had lost it.
    fs::remove_dir_all(place.store.dir().join("layers").join(image.layers[0].hex())).expect("removed");
    assert_eq!(place.store.find(&name("it:1")).expect("readable"), None);
}

#[test]
fn a_tag_moves_to_the_newest_image() {
    let place = Place::new();
    let old = place.import(&Image::new([Layer::new().file("1", 0o644, "1")]).built(), "app:1").expect("old");
    let new = place.import(&Image::new([Layer::new().file("2", 0o644, "2")]).built(), "app:1").expect("new");
    assert_eq!(place.store.find(&name("app:1")).expect("readable").map(|i| i.id), Some(new.id));
    let images = place.store.images().expect("images");
    let left = images.iter().find(|i| i.id == old.id).expect("it is still there by its digest");
    assert_eq!(left.tag(), None);
}
