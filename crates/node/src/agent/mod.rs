//! The node agent.

use std::time::Duration;

use ambient::Ambient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Runs the agent of one node until `term` is cancelled. Pods go on running when it returns.
pub async fn run<C>(
    _client: kube::Client,
    _config: Config,
    _conn: C,
    term: CancellationToken,
    _ambient: Ambient,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    term.cancelled().await;
    Ok(())
}

/// Stops every pod of the node from the top ordinal, each within its grace period; the objects stay.
pub async fn stop_pods(_client: Option<&kube::Client>, _config: &Config, _limit: Option<Duration>, _ambient: &Ambient) -> Result<(), Error> {
    Ok(())
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's network could not be made.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
}
