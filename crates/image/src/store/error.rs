//! What can go wrong with the store.

use std::io;
use std::path::{Path, PathBuf};

use super::file;
use crate::digest::Digest;
use crate::layer::apply::ApplyError;
use crate::manifest::ManifestError;

/// Something that the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system says no. Look for its space and owner.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the store is not what it should be.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// A document of the image is not taken.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer is not taken.
    #[error("failed to extract layer: {0}")]
    Layer(#[from] ApplyError),
    /// Content is not what it is called.
    #[error("content is {found} and should be {wanted}")]
    Digest {
        /// What it should be.
        wanted: Digest,
        /// What it is.
        found: Digest,
    },
    /// A layer was removed while an image with it was about to be listed. Fetch it again.
    #[error("layer {0} was removed meanwhile")]
    Gone(Digest),
    /// What is in use is not known, so nothing is removed.
    #[error("which images are in use is not known: {0}")]
    Usage(String),
    /// A pod uses the image.
    #[error("image {0} is in use by a pod; delete the pod first")]
    InUse(String),
}

impl StoreError {
    pub(super) fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        match self {
            Self::Io { source, .. } | Self::Layer(ApplyError::Io { source, .. }) => full(source),
            _ => false,
        }
    }
}
