//! For tests alone: images, good and hostile, and places that they come from.
//!
//! ```
//! use statefuld_imagetest::{Image, Layer};
//!
//! let layer = Layer::new().folder("etc", 0o755).file("etc/motd", 0o644, "hello");
//! let image = Image::new([layer]).command(["/bin/cat", "/etc/motd"]).env("LANG", "C").built();
//! assert!(image.digest.starts_with("sha256:"));
//! ```
//!
//! [`Layer`] writes archives byte by byte, so that a test can make what no tool would; [`Image`] puts layers together;
//! [`Built`] is written as a layout folder, an OCI archive or what `docker save` writes, or put into a [`Registry`].
//! Nothing of the program under test is used to make them.

mod image;
mod layer;
mod registry;

pub use image::{Built, Image, index};
pub use layer::{Compression, Entry, Layer};
pub use registry::{Fault, Options, Registry};

/// The digest of some bytes, as images write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
