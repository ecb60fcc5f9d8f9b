//! Images of software: the packages that `cargo xtask install` has unpacked, one layer with what all need below one of the
//! software's own, and on top what maintainers' scripts would have made.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use imagetest::{Compression, Image, Layer};

/// The user and group that all software here runs as.
pub const USER: u32 = 999;

/// Where a piece of software has been unpacked.
pub fn unpacked(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/software").join(name);
    assert!(path.join("installed").exists(), "{} is missing: run `cargo xtask install`", path.display());
    path.join("root")
}

/// What was unpacked, as a layer. Compressing would take longer than it saves.
fn packages(name: &str) -> Layer {
    Layer::new().compressed(Compression::None).tree(&unpacked(name))
}

/// An image of a piece of software, whose user is called so.
pub fn of(name: &str, user: &str, settings: impl FnOnce(Layer) -> Layer) -> Image {
    static BASE: OnceLock<Layer> = OnceLock::new();
    let base = BASE.get_or_init(|| packages("base")).clone();
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
         {user}:x:{USER}:{USER}::/home:/bin/bash\n"
    );
    let group = format!("root:x:0:\nnogroup:x:65534:\n{user}:x:{USER}:\n");
    let own = Layer::new()
        .folder("etc", 0o755)
        .file("etc/passwd", 0o644, passwd)
        .file("etc/group", 0o644, group)
        .folder_of("home", 0o755, USER, USER)
        .folder("run", 0o755)
        .folder("tmp", 0o1777)
        .symlink("usr/bin/awk", "mawk");
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    Image::new([base, packages(name), settings(own)]).env("PATH", path).env("LANG", "C.UTF-8").user(user)
}
