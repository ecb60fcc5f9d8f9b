//! `statefuld down`: stop an instance, with or without its daemon's help.

use std::process::ExitCode;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::control::{self, Request};
use crate::place::DataDir;
use crate::say;
use crate::{cli, nodes};

/// How long the daemon's process may take to end after its last answer.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Runs the command.
pub async fn run(args: cli::Down) -> Result<ExitCode> {
    let data = DataDir::new(&args.instance.data_dir)?;
    if !data.path().exists() {
        say::note(format_args!("nothing was ever started in {}", data.path().display()));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(pid) = data.owner() {
        let ended = process_end(pid);
        let request = Request::Down { keep_pods: args.keep_pods };
        control::ask(&data.control_socket(), request, |text| say::note(text)).await?;
        ended.await;
        said(&data, args.keep_pods);
        return Ok(ExitCode::SUCCESS);
    }
    // The daemon is dead; its pods may live.
    let _lock = data.lock()?;
    let configs = nodes::recorded(&data)?;
    if !configs.is_empty() && !args.keep_pods {
        node::agent::stop_nodes(&configs, None, &Ambient::system()).await.context("not all pods could be stopped")?;
    }
    said(&data, args.keep_pods);
    Ok(ExitCode::SUCCESS)
}

/// Becomes ready when the process has ended; the next command may want its directory at once. A process that
/// does not end in time is left to itself: it has answered that all is stopped.
fn process_end(pid: i32) -> impl Future<Output = ()> {
    let handle = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    async move {
        let Some(handle) = handle else { return };
        let limit = Timespec::try_from(END_LIMIT).expect("a few seconds");
        let wait = move || poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
        let _ = tokio::task::spawn_blocking(wait).await;
    }
}

fn said(data: &DataDir, keep_pods: bool) {
    let what = if keep_pods { "stopped; the pods go on running" } else { "stopped; all data is kept" };
    say::note(format_args!("{what}. `statefuld up --data-dir {}` returns to it.", data.path().display()));
}
