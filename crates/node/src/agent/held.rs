//! Pods that this node is said to hold, and that are no more: their names are held until the node says so.
//!
//! The agent that cleared a pod away may have died before its word, or never have seen a pod that was bound and
//! removed by force while it was away. Nothing on disk tells of these; the server's holder records do. And a pod's
//! folder says from its first moment whose it is, so that it is reported when it is cleared away.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde::Deserialize;

use super::Shared;
use super::worker::Identity;
use crate::shim::file::{self, FileError, Format};
use crate::shim::spec::ShimSpec;

/// In a pod's folder: whose it is. Written before anything else in it.
const IDENTITY_FILE: &str = "identity.json";
/// The file's format.
const FORMAT: Format = Format { magic: "statefuld-pod-identity", version: 1 };
/// Pause after a question that was not answered.
const RETRY: Duration = Duration::from_secs(2);

/// The server's list of holder records.
#[derive(Deserialize)]
struct Holders {
    items: Vec<Holder>,
}

/// One of them.
#[derive(Deserialize)]
struct Holder {
    metadata: Name,
    uid: String,
    node: String,
}

/// Whose name it is.
#[derive(Deserialize)]
struct Name {
    namespace: String,
    name: String,
}

/// Pods that hold a name on this node although their objects are gone. Asks until it is answered; nothing where the
/// agent ends first.
pub(super) async fn gone_holders(shared: Arc<Shared>) -> Vec<Identity> {
    loop {
        match ask(&shared).await {
            Ok(gone) => return gone,
            Err(error) => tracing::warn!(%error, "who holds names on this node is not known; asking again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shared.term.cancelled() => return Vec::new(),
        }
    }
}

async fn ask(shared: &Shared) -> Result<Vec<Identity>, kube::Error> {
    let request = http::Request::get("/apis/statefuld.io/v1/holders").body(Vec::new());
    let held: Holders = shared.client.request(request.map_err(kube::Error::HttpError)?).await?;
    // Listed after the records, so that a pod that was bound before they were read is among them, unless its object is
    // gone; and a uid that is gone does not come back.
    let node = &shared.config.node_name;
    let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let pods = Api::<Pod>::all(shared.client.clone()).list(&params).await?;
    let there: BTreeSet<String> = pods.items.iter().filter_map(|p| p.uid()).collect();
    let gone = held.items.into_iter().filter(|h| h.node == *node && !there.contains(&h.uid));
    let identity = |h: Holder| Identity { namespace: h.metadata.namespace, name: h.metadata.name, uid: h.uid };
    Ok(gone.map(identity).collect())
}

/// Records whose the folder is, before anything else is put into it.
pub(super) fn sign(dir: &Path, id: &Identity) -> Result<(), FileError> {
    file::write(&dir.join(IDENTITY_FILE), FORMAT, id)
}

/// Whose a folder is, where it says so.
pub(super) fn signed(dir: &Path) -> Option<Identity> {
    if let Ok(spec) = ShimSpec::read(dir) {
        return Some(Identity { namespace: spec.namespace, name: spec.name, uid: spec.uid });
    }
    file::read(&dir.join(IDENTITY_FILE), FORMAT).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_says_whose_it_is() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(signed(dir.path()), None);
        let id = Identity { namespace: "n".into(), name: "web-0".into(), uid: "u".into() };
        sign(dir.path(), &id).expect("written");
        assert_eq!(signed(dir.path()), Some(id));
    }
}
