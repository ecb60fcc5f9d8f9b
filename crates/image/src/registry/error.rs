//! What can go wrong with a request to a registry.

use std::io;
use std::path::Path;
use std::time::Duration;

use hyper::StatusCode;

use crate::digest::Digest;

/// A request that led to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What the operator said of the registry cannot be used.
    #[error("the registry's settings: {source}")]
    Settings {
        /// What is wrong.
        source: io::Error,
    },
    /// Nobody is reached there.
    #[error("failed to do request: Get \"{url}\": {source}")]
    Connection {
        /// What was asked for.
        url: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The connection broke in the middle.
    #[error("reading {url}: {source}")]
    Cut {
        /// What was asked for.
        url: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The registry says no.
    #[error("unexpected status from GET request to {url}: {status}{}", separated(message))]
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: StatusCode,
        /// Its words.
        message: String,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// More came than there should be.
    #[error("{url} is longer than {max} bytes")]
    TooLong {
        /// What was asked for.
        url: String,
        /// The most that is taken.
        max: u64,
    },
    /// A layer is longer than its manifest says.
    #[error("{digest} is longer than the {wanted} bytes that its manifest says")]
    Size {
        /// The layer.
        digest: Digest,
        /// Its length.
        wanted: u64,
    },
    /// What came is not what was asked for.
    #[error("failed commit on ref: unexpected commit digest {found}, expected {wanted}: failed precondition")]
    Digest {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// It leads to a place without TLS.
    #[error("{url} is not encrypted, and plainHttp is not set for this registry")]
    Insecure {
        /// Where.
        url: String,
    },
    /// Something is no URL.
    #[error("{0:?} is no URL")]
    Url(String),
    /// It leads on and on.
    #[error("it leads elsewhere again and again, at last to {url}")]
    Redirects {
        /// Where.
        url: String,
    },
    /// The server that gives tokens gave none.
    #[error("failed to fetch a token from {realm}: its answer holds none")]
    Token {
        /// Which server.
        realm: String,
    },
    /// The disk says no.
    #[error("{path}: {source}")]
    Disk {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

fn separated(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl ClientError {
    pub(super) fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Disk { path: path.display().to_string(), source }
    }

    /// Whether the same request may lead to something the next time.
    pub(super) fn may_work_later(&self) -> bool {
        match self {
            Self::Connection { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Cut { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            _ => false,
        }
    }

    /// Whether somebody else may be let in.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. })
    }
}
