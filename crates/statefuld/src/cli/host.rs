//! Commands about the machine itself: is it good for pods, does it start statefuld by itself, what helps at a prompt.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Instance, Output, Start, parse_duration};

/// `statefuld doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code: 0 pods can run, 1 something is to be mended first")]
pub struct Doctor {
    /// The instance whose disk is looked at
    #[command(flatten)]
    pub instance: Instance,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What starts and stops services on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Init {
    /// systemd
    Systemd,
    /// OpenRC
    Openrc,
}

/// Where service files go, and whose they are.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// Which service manager (default: the one that runs)
    #[arg(long, value_enum)]
    pub init: Option<Init>,

    /// Write below this folder instead of /, for images of other machines; nothing is started or stopped
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// `statefuld install`.
#[derive(Debug, Args)]
pub struct Install {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// How it is started at boot
    #[command(flatten)]
    pub start: Start,

    /// Where the service file goes
    #[command(flatten)]
    pub target: Target,

    /// Where the program is put, unless it comes from a package
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/statefuld")]
    pub binary: PathBuf,

    /// How long pods may take to stop when the machine is shut down: more than their longest grace periods together
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_duration)]
    pub stop_timeout: Duration,

    /// Write the files only; start nothing, now or at boot
    #[arg(long)]
    pub no_start: bool,
}

/// `statefuld uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Where the service file is
    #[command(flatten)]
    pub target: Target,
}

/// `statefuld service-stop`.
#[derive(Debug, Args)]
pub struct ServiceStop {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// The machine is being shut down (default: what systemd says)
    #[arg(long)]
    pub shutdown: bool,
}

/// `statefuld backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// The file to write; it holds secrets and is made readable for its owner alone
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// What is backed up, running or not
    #[command(flatten)]
    pub instance: Instance,
}

/// `statefuld restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// A file that `backup` has written
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Where the instance is to live
    #[command(flatten)]
    pub instance: Instance,

    /// Put a store that is there already aside, and take the backup's place in it
    #[arg(long)]
    pub replace: bool,

    /// Leave volume folders that the backup does not know where they are, so that claims of their names find their data
    #[arg(long)]
    pub adopt: bool,
}

/// `statefuld completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// For which shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `statefuld man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this folder (default: print the page of statefuld itself)
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// The commands of this module.
#[derive(Debug, Subcommand)]
pub enum Host {
    /// Look whether this machine is good for pods; a line per check, with the remedy
    Doctor(Doctor),
    /// Start statefuld with this machine, by systemd or OpenRC
    Install(Box<Install>),
    /// Undo `install`; data stays
    Uninstall(Uninstall),
    /// Stop as a service manager asks: pods go on unless the machine is shut down
    #[command(hide = true)]
    ServiceStop(ServiceStop),
    /// Write the state of the API into a file, also while it runs; volumes are not in it
    Backup(Backup),
    /// Begin from a backup, on this machine or a new one; volumes are never deleted
    Restore(Restore),
    /// Print what completes commands at a shell's prompt
    Completions(Completions),
    /// Print the manual page, or write all of them
    Man(Man),
}
