//! What starting a server can fail with, and the shape in which requests fail.

use api::status::Status;

/// How a request fails: with the Status that is its answer. Boxed, because it is large and rare.
pub(crate) type Fail = Box<Status>;

/// The outcome of a step of a request.
pub(crate) type Outcome<T> = Result<T, Fail>;

/// What a failed store operation is answered with.
pub(crate) fn from_store(error: store::Error) -> Fail {
    Box::new(match error {
        store::Error::Compacted { .. } => Status::expired("The resourceVersion for the provided watch is too old."),
        store::Error::TooLarge { what, is, limit } => {
            Status::too_large(format!("the object's {what} has {is} bytes, the limit is {limit}"))
        }
        store::Error::Full(path) => Status::internal(format!("the disk that holds the store is full: {path}")),
        store::Error::Closed(why) => Status::service_unavailable(format!("the store is closed: {why}")),
        other => Status::internal(other),
    })
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store did not answer. Its own message says what to do.
    #[error("the store cannot be read: {0}")]
    Store(#[from] store::Error),
    /// An object that every server needs could not be written. The message names it.
    #[error("cannot create {what}: {why}")]
    Bootstrap {
        /// Kind and name.
        what: String,
        /// The API's own sentence.
        why: String,
    },
    /// No key for the tokens of service accounts could be made. Its own message says what to do.
    #[error("no key to sign tokens with: {0}")]
    Key(#[from] crate::tls::Error),
    /// An option makes no sense. The message names it.
    #[error("option {option}: {why}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong.
        why: String,
    },
}
