//! `statefuld down`: stop an instance, with or without its daemon's help.

use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Context as _, Result};

use crate::cli;
use crate::control::{self, Request};
use crate::place::DataDir;

/// Runs the command.
pub async fn run(args: cli::Down) -> Result<ExitCode> {
    let data = DataDir::new(&args.instance.data_dir)?;
    if !data.path().exists() {
        eprintln!("nothing was ever started in {}", data.path().display());
        return Ok(ExitCode::SUCCESS);
    }
    if data.owner().is_some() {
        let request = Request::Down { keep_pods: args.keep_pods };
        control::ask(&data.control_socket(), request, |text| eprintln!("{text}")).await?;
        wait_until_free(&data).await;
        said(&data, args.keep_pods);
        return Ok(ExitCode::SUCCESS);
    }
    // The daemon is dead; its pods may live.
    let _lock = data.lock()?;
    if let Some(config) = node::Config::load(data.path())?
        && !args.keep_pods
    {
        node::agent::stop_pods(&config, None, &Ambient::system())
            .await
            .context("not all pods could be stopped")?;
    }
    said(&data, args.keep_pods);
    Ok(ExitCode::SUCCESS)
}

/// The daemon has answered and is about to end; the next command may want the directory at once.
async fn wait_until_free(data: &DataDir) {
    while data.owner().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn said(data: &DataDir, keep_pods: bool) {
    let what = if keep_pods { "stopped; the pods go on running" } else { "stopped; all data is kept" };
    eprintln!("{what}. `statefuld up --data-dir {}` returns to it.", data.path().display());
}
