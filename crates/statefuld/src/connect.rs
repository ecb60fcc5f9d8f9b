//! A client for the server that a command is about: an instance on this machine, or any kubeconfig.

use std::path::Path;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::cli::Server;
use crate::place::{self, DataDir};

/// Connects as `--kubeconfig` says, else to the instance in `--data-dir`, else as `KUBECONFIG` says, else to the
/// instance in the default directory.
pub async fn client(server: &Server) -> Result<kube::Client> {
    to(server).await.map(|(client, _)| client)
}

/// The same, with the server's address.
pub async fn to(server: &Server) -> Result<(kube::Client, String)> {
    let options = KubeConfigOptions { context: server.context.clone(), ..KubeConfigOptions::default() };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig(server)?, &options).await?;
    let address = config.cluster_url.to_string();
    Ok((kube::Client::try_from(config)?, address))
}

fn kubeconfig(server: &Server) -> Result<Kubeconfig> {
    if let Some(path) = &server.kubeconfig {
        return read(path);
    }
    if server.data_dir.is_none()
        && let Some(merged) = Kubeconfig::from_env().context("KUBECONFIG names a file that cannot be used")?
    {
        return Ok(merged);
    }
    let data = server.data_dir.as_deref().unwrap_or(Path::new(place::DEFAULT));
    read(&DataDir::new(data)?.kubeconfig())
}

fn read(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).with_context(|| {
        format!("{} cannot be used; name an instance with --data-dir, or any server with --kubeconfig", path.display())
    })
}
