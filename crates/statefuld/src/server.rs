//! `statefuld server`: the API and chosen controllers in the foreground, without a node.
//!
//! For whoever tests or compares the API or one controller, or brings nodes of their own.

use std::path::PathBuf;
use std::process::ExitCode;

use ambient::Ambient;
use anyhow::Result;
use controllers::roster::Controller;
use serde::Serialize;

use crate::cli::{self, Output};
use crate::daemon::{Daemon, Parts, Signals};
use crate::say;

/// What `-o json` prints, as one line, once the API serves.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    server: String,
    kubeconfig: PathBuf,
    data_dir: PathBuf,
    pid: u32,
    controllers: Vec<&'static str>,
}

/// Runs the command.
pub async fn run(args: cli::Serve) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let controllers = args.controllers.controllers().map(Controller::short).collect();
    let parts = Parts { instance: &args.instance, api: &args.api, controllers: args.controllers.clone(), node: None };
    let daemon = Daemon::start(parts, Ambient::system()).await?;
    let ready = Ready {
        server: daemon.url(),
        kubeconfig: daemon.data().kubeconfig(),
        data_dir: daemon.data().path().to_owned(),
        pid: std::process::id(),
        controllers,
    };
    match args.output {
        Output::Json => say::print(serde_json::to_string(&ready)?),
        Output::Table => {
            let running = if ready.controllers.is_empty() { "none".to_owned() } else { ready.controllers.join(", ") };
            say::note(format_args!("API ready at {}; controllers: {running}", ready.server));
            say::print(format_args!("export KUBECONFIG={}", ready.kubeconfig.display()));
        }
    }
    daemon.serve(signals, || {}).await?;
    Ok(ExitCode::SUCCESS)
}
