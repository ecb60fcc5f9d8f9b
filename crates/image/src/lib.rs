//! Images of containers, as OCI and Docker define them: what they are called, what they are made of, how they come to
//! this machine and lie on its disk. Nothing here knows of Kubernetes.
//!
//! | module | holds | I/O |
//! |---|---|---|
//! | [`reference`] | names | none |
//! | [`digest`] | digests | none |
//! | [`manifest`] | manifests, indexes, configurations; the choice of a platform | none |
//! | [`tar`] | archives, read with limits | what it is given |
//! | [`layer`] | what a layer asks for (pure), and unpacking it | below one folder |
//! | [`user`] | users and groups of an image | none |
//! | [`overlay`], [`rootfs`] | layers put together, and looked into | mounts that nobody else sees |
//! | [`store`] | images on disk, shared by processes; which of them go | its folder |
//! | [`import`] | archives and layout folders | files |
//! | [`registry`] | names resolved, layers downloaded, from registries | the network, the store |

pub mod digest;
pub mod import;
pub mod layer;
pub mod manifest;
pub mod overlay;
pub mod reference;
pub mod registry;
pub mod rootfs;
pub mod store;
pub mod tar;
pub mod user;

pub use digest::Digest;
pub use layer::Limits;
pub use reference::Reference;
pub use store::{Image, Store};

/// What happens while an image is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A layer is there already.
    Present(Digest),
    /// So much of a layer has arrived.
    Fetched {
        /// The layer.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is being unpacked.
    Unpacking(Digest),
    /// A layer is unpacked.
    Unpacked(Digest),
}

/// Is told what happens.
pub type Progress<'a> = &'a (dyn Fn(&Step) + Send + Sync);
