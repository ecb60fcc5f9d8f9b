//! `statefuld bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Output, parse_duration};

/// `statefuld bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// What is measured
    #[command(subcommand)]
    pub what: BenchWhat,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum BenchWhat {
    /// From exec to a ready API and ready pods, and memory: the budgets
    Start(BenchStart),
    /// Durable writes, lists, watches, memory and start-up of the API
    Api(BenchApi),
    /// StatefulSets with simulated nodes, against any server: create, update, delete
    Sets(BenchSets),
    /// Pods with real containers: their start step by step, exec, logs, what idle ones take; beside runc and containerd
    ///
    /// Needs root. Starts an instance of its own in the folder for temporary files, and removes it again, also when it
    /// is interrupted. The defaults take about eight minutes.
    Pods(BenchPods),
    /// The same writes and watches against etcd, for comparison
    Etcd(BenchEtcd),
}

/// `statefuld bench start`.
#[derive(Debug, Args)]
pub struct BenchStart {
    /// How many pods the ordered set has
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub pods: u32,

    /// How often each start is measured; the median is shown
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: u32,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How much load.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// For how long each number of writers writes
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_duration)]
    pub duration: Duration,

    /// How many writers at a time; each number is measured
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,16,64,256")]
    pub writers: Vec<usize>,

    /// How many watchers at a time
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub watchers: usize,

    /// How many changes the watchers are told of
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub changes: usize,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld bench api`.
#[derive(Debug, Args)]
pub struct BenchApi {
    /// Any Kubernetes API server (default: one of this program's own, started for it)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// How many pods are listed
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub pods: usize,

    /// With how many objects start-up and memory are measured; own server only
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1000,10000,100000")]
    pub objects: Vec<usize>,

    /// How much load
    #[command(flatten)]
    pub load: Load,
}

/// `statefuld bench sets`.
#[derive(Debug, Args)]
pub struct BenchSets {
    /// Any Kubernetes API server with a StatefulSet controller (default: one of this program's own, started for it)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Sizes of OrderedReady sets that are created and deleted
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "50")]
    pub ordered: Vec<u32>,

    /// Sizes of Parallel sets that are created and deleted
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "100,500")]
    pub parallel: Vec<u32>,

    /// Sizes of sets that are updated from the top, one pod at a time
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "50")]
    pub update: Vec<u32>,

    /// How many sets of 3 are created at once
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub sets: u32,

    /// Numbers of pods, in Parallel sets of 100, with which memory and times are told; 0 for none
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1000")]
    pub grow: Vec<u32>,

    /// How many nodes are simulated
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub nodes: usize,

    /// A process whose memory and processor time are told: the server's; may be repeated
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld bench pods`.
#[derive(Debug, Args)]
pub struct BenchPods {
    /// Sizes of the sets that are started, each OrderedReady and Parallel; 240 at most
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,10,50",
        value_parser = clap::value_parser!(u32).range(1..=240))]
    pub pods: Vec<u32>,

    /// How often each set is started; of the whole the median is shown, of the steps the mean
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,

    /// Give each pod a volume from a claim of its own (default: an emptyDir)
    #[arg(long)]
    pub claims: bool,

    /// How often `true` is run in a container; 0 for not at all
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub execs: u32,

    /// How many lines of 100 bytes a container prints; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(0..=100_000_000))]
    pub log_lines: u64,

    /// With how many idle pods memory and processor time are told; 0 for none, 240 at most
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "50,200",
        value_parser = clap::value_parser!(u32).range(0..=240))]
    pub idle: Vec<u32>,

    /// For how long the processor time of idle pods is counted
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub idle_window: Duration,

    /// What starts the same server besides, in the same numbers
    #[arg(long, value_enum, value_name = "NAME,NAME", value_delimiter = ',', default_value = "runc,containerd")]
    pub reference: Vec<Reference>,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What pods are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reference {
    /// runc, driven by hand
    Runc,
    /// containerd, through its CRI, as a kubelet drives it
    Containerd,
    /// Nothing
    None,
}

/// `statefuld bench etcd`.
#[derive(Debug, Args)]
pub struct BenchEtcd {
    /// The program
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub etcd: PathBuf,

    /// How much load
    #[command(flatten)]
    pub load: Load,
}
