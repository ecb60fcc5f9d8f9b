//! `statefuld`: Kubernetes StatefulSets without Kubernetes. Command line and wiring, nothing else.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | every command and flag |
//! | `backup` | the API's state in a file, and back |
//! | `doctor` | whether the machine is good for pods |
//! | `install` | systemd's and OpenRC's service |
//! | `manual` | manual pages and completions, from the command line's definitions |
//! | `plan` | what applying would lead to |
//! | `why` | what waits, for what, and what would unblock it |
//! | `overview` | one namespace as a person looks at it |
//! | `top` | the overview in a terminal |
//! | `page` | the overview in a browser |
//! | `connect` | the server that a command is about |
//! | `up`, `down`, `server`, `bench` | the commands |
//! | `volume` | claims and their folders |
//! | `images` | `image`: the images of this machine |
//! | `daemon` | the parts, put together; start and stop |
//! | `nodes` | the nodes of one instance |
//! | `ranges` | address and port ranges, as flags give them |
//! | `place` | the data directory and its lock |
//! | `control` | the socket between the commands and the daemon |
//! | `manifest`, `served`, `apply` | files read, sorted by what is served, applied |
//! | `classes` | storage classes that exist nowhere |
//! | `watch` | progress, in sentences |
//! | `say` | what is printed |
//!
//! The same binary is also the helper processes of a node: a shim per pod, node-dns, and the program inside the
//! built-in image. They are told apart by the first argument before anything else runs, and use no threads of ours.

#![allow(unreachable_pub, reason = "in a program, pub says that other modules use it")]

mod apply;
mod backup;
mod bench;
mod classes;
mod cli;
mod connect;
mod control;
mod daemon;
mod doctor;
mod down;
mod images;
mod inside;
mod install;
mod manifest;
mod manual;
mod nodes;
mod overview;
mod page;
mod place;
mod plan;
mod ranges;
mod resolver;
mod say;
mod served;
mod server;
mod top;
mod up;
mod volume;
mod watch;
mod why;

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

/// Objects are trees of small allocations that one thread makes and another frees: about a third of the server's
/// time went into glibc's allocator, which is not made for that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    if let Some(code) = helper_process() {
        return code;
    }
    let cli = Cli::parse();
    start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads can be started: {error}")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(up) => up::run(up).await,
            Command::Down(down) => down::run(down).await,
            Command::Plan(plan) => plan::run(plan).await,
            Command::Why(why) => why::run(why).await,
            Command::Top(top) => top::run(top).await,
            Command::Page(page) => page::run(page).await,
            Command::Image(args) => images::run(args).await,
            Command::Server(server) => server::run(server).await,
            Command::Volume(volume) => volume::run(volume).await,
            Command::Dns(dns) => resolver::run(&dns),
            Command::Bench(bench) => bench::run(bench).await,
            Command::Daemon(daemon) => daemon::run(daemon).await,
            Command::Host(host) => on_host(host).await,
        }
    });
    // What still runs belongs to a daemon that has stopped: nothing worth waiting for.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Commands about the machine itself.
async fn on_host(command: cli::Host) -> anyhow::Result<ExitCode> {
    match command {
        cli::Host::Doctor(doctor) => doctor::run(doctor).await,
        cli::Host::Install(args) => install::install(&args),
        cli::Host::Uninstall(args) => install::undo(args).await,
        cli::Host::ServiceStop(stop) => install::stop(stop).await,
        cli::Host::Backup(args) => backup::run(args).await,
        cli::Host::Restore(args) => backup::restore::run(args).await,
        cli::Host::Completions(completions) => manual::completions(&completions),
        cli::Host::Man(man) => manual::pages(man),
    }
}

/// The hidden processes: `shim DIR`, `node-dns DIR`, `sample …`.
fn helper_process() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    match first.to_str()? {
        "shim" => Some(node::shim::main(Path::new(&arguments.next()?))),
        "node-dns" => Some(dns::server::main(Path::new(&arguments.next()?))),
        "sample" => {
            let arguments: Vec<String> = arguments.map(|a| a.to_string_lossy().into_owned()).collect();
            Some(node::sample::main(&arguments))
        }
        _ => None,
    }
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STATEFULD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,kube=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn fail(message: &str) -> ExitCode {
    say::note(format_args!("statefuld: {message}"));
    ExitCode::FAILURE
}
