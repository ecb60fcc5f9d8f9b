//! Documents that the program around the server answers itself, because they need what this crate does not know.

use async_trait::async_trait;
use http::{Method, Response};

use crate::auth::Identity;
use crate::body::Body;
use crate::query::Query;
use crate::service::InProcess;

/// Answers paths outside of the objects that no document of the server lies at.
#[async_trait]
pub trait Annex: Send + Sync + 'static {
    /// The answer, or `None` where nothing lies at the path. Asked only once the authorizer has allowed it.
    async fn answer(&self, request: AnnexRequest) -> Option<Response<Body>>;

    /// Where a person is led who opens the server's own address in a browser.
    fn home(&self) -> &'static str;
}

/// A request to an annex.
pub struct AnnexRequest {
    /// How.
    pub method: Method,
    /// For what; no slash at the end.
    pub path: String,
    /// By whom.
    pub identity: Identity,
    /// The API as who asks sees it: whatever an answer is made of is read by their own right.
    pub client: InProcess,
    pub(crate) query: Query,
}

impl AnnexRequest {
    /// A parameter of the query; empty where it was not given.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.text(name)
    }
}
