//! The command line: every command and flag, said once. Help is generated from it.

mod bench;
mod host;
mod volume;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use controllers::roster::Selection;

use crate::place;
use crate::ranges::{Cidr, PortRange};

pub use bench::{Bench, BenchApi, BenchEtcd, BenchPods, BenchSets, BenchStart, BenchWhat, Load, Reference};
pub use host::{Backup, Completions, Doctor, Host, Init, Install, Man, Restore, ServiceStop, Uninstall};
pub use volume::{Volume, VolumeExport, VolumeImport, VolumeInspect, VolumeList, VolumeWhat};

/// Kubernetes StatefulSets without Kubernetes.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine and apply manifests
    Up(Up),
    /// Stop what `up` started; data always stays
    Down(Down),
    /// Say what applying manifests would lead to, step by step; nothing is written
    #[command(after_help = "Exit code: 0 nothing would change, 2 something would, 1 it cannot be said")]
    Plan(Plan),
    /// Say what waits, for what, and what would unblock it
    Why(Why),
    /// Look at one namespace: sets, ordinals, volumes, and what waits for what; act at a key
    #[command(after_help = "Where the output is no terminal, or with -o, it is shown once")]
    Top(Top),
    /// Print the address of the page in a browser, signed in as yourself
    Page(Page),
    /// Images of this machine: pull, import, list, remove, prune
    Image(crate::images::ImageArgs),
    /// Serve the API and run controllers, without being a node
    Server(Serve),
    /// Claims and their folders: look, take data over, give it away
    Volume(Volume),
    /// Let this machine's own programs find pods and services by name, or no longer
    Dns(Dns),
    /// Measure this machine with this program
    Bench(Bench),
    /// About the machine itself
    #[command(flatten)]
    Host(Host),
    /// Serve until told to stop (what `up --detach` runs in the background)
    #[command(hide = true)]
    Daemon(Daemon),
}

/// Where an instance lives.
#[derive(Clone, Debug, Args)]
pub struct Instance {
    /// Everything lies below this directory: state, keys, kubeconfig, volumes
    #[arg(long, value_name = "DIR", default_value = place::DEFAULT, env = "STATEFULD_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// How the API serves.
#[derive(Clone, Debug, Args)]
pub struct Api {
    /// Where the API listens; port 0 picks a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,

    /// Where the cluster IPs of services are taken from
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Cidr,

    /// Where the node ports of services are taken from, first and last
    #[arg(long, value_name = "PORT-PORT", default_value = "30000-32767")]
    pub service_node_port_range: PortRange,

    /// How long events are kept, such as 1h or 90m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_event_ttl)]
    pub event_ttl: Duration,

    /// Who may come in, and what is noted of it
    #[command(flatten)]
    pub access: Access,
}

/// How this machine is a node.
#[derive(Clone, Debug, Args)]
pub struct Node {
    /// The node's name (default: the host's name); fixed at the first start
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// How many nodes run on this machine, each with its own name, addresses and volumes (default: as many as before, at
    /// first one)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=crate::nodes::MOST))]
    pub nodes: Option<u32>,

    /// Let other machines reach pods and services at their own addresses, if they route these to this machine; node
    /// ports, host ports and balancers are open to them anyway
    #[arg(long)]
    pub expose_lan: bool,

    /// How services reach their endpoints
    #[arg(long, value_enum, default_value_t = Services::Auto)]
    pub services: Services,

    /// Most pods that a node takes
    #[arg(long, value_name = "N", default_value_t = 110)]
    pub max_pods: u32,

    /// Most processes and threads of one pod (default: as many as the machine has)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub pod_max_pids: Option<u64>,

    /// Kernel settings beyond the safe ones that pods may change, such as kernel.msg* or net.core.somaxconn
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
}

impl Node {
    /// The same as arguments.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = self.node_name.iter().map(|name| format!("--node-name={name}")).collect();
        arguments.extend(self.nodes.iter().map(|count| format!("--nodes={count}")));
        arguments.extend(self.expose_lan.then(|| "--expose-lan".to_owned()));
        let services = self.services.to_possible_value();
        arguments.extend(services.map(|value| format!("--services={}", value.get_name())));
        arguments.push(format!("--max-pods={}", self.max_pods));
        arguments.extend(self.pod_max_pids.iter().map(|most| format!("--pod-max-pids={most}")));
        arguments.extend(self.allowed_unsafe_sysctls.iter().map(|name| format!("--allowed-unsafe-sysctls={name}")));
        arguments
    }
}

/// How services reach their endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Services {
    /// By the kernel's packet filter, or by sockets where it takes no rules
    Auto,
    /// By the kernel's packet filter alone
    Nftables,
    /// By sockets: endpoints see this machine as their client, and pods reach nothing outside of it
    Sockets,
}

impl From<Services> for node::config::ServiceMode {
    fn from(services: Services) -> Self {
        match services {
            Services::Auto => Self::Auto,
            Services::Nftables => Self::Nftables,
            Services::Sockets => Self::Sockets,
        }
    }
}

/// Who may come in, and what is noted of it.
#[derive(Clone, Debug, Args)]
pub struct Access {
    /// Bearer tokens, as kube-apiserver reads them: lines of token,user,uid,"group1,group2"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,

    /// Note every request here: who, what, and what came of it, as lines of JSON; no bodies, so no secrets
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,

    /// Megabytes after which the audit log is put aside and begun anew
    #[arg(long, value_name = "MB", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub audit_log_maxsize: u32,

    /// How many audit logs put aside are kept; 0 keeps all
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub audit_log_maxbackup: u32,

    /// Reading requests at once, watches not counted; more are asked to come back. One client gets at most half, here and
    /// below
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_requests_inflight: u32,

    /// Writing requests at once; more are asked to come back
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_mutating_requests_inflight: u32,

    /// Watches at once; more are asked to come back
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_watches: u32,

    /// Changes that may wait for one watcher; one that is further behind is dropped, and told so
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_watch_backlog: u32,

    /// Megabytes of large answers that are being sent; who asks for more is asked to come back
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_answers_size: u32,
}

impl Access {
    /// The same as arguments.
    fn arguments(&self) -> Vec<String> {
        let file =
            |flag: &str, path: &Option<PathBuf>| path.as_deref().map(|path| format!("{flag}={}", absolute(path)));
        let files = [file("--token-auth-file", &self.token_auth_file), file("--audit-log-path", &self.audit_log_path)];
        let mut arguments: Vec<String> = files.into_iter().flatten().collect();
        arguments.extend([
            format!("--audit-log-maxsize={}", self.audit_log_maxsize),
            format!("--audit-log-maxbackup={}", self.audit_log_maxbackup),
            format!("--max-requests-inflight={}", self.max_requests_inflight),
            format!("--max-mutating-requests-inflight={}", self.max_mutating_requests_inflight),
            format!("--max-watches={}", self.max_watches),
            format!("--max-watch-backlog={}", self.max_watch_backlog),
            format!("--max-answers-size={}", self.max_answers_size),
        ]);
        arguments
    }
}

/// The path as a process in another directory names it.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// How an instance is started.
#[derive(Clone, Debug, Args)]
pub struct Start {
    /// How its API serves
    #[command(flatten)]
    pub api: Api,

    /// How it is a node
    #[command(flatten)]
    pub node: Node,
}

impl Api {
    /// The same as arguments.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--listen={}", self.listen),
            format!("--service-cidr={}", self.service_cidr),
            format!("--service-node-port-range={}", self.service_node_port_range),
            format!("--event-ttl={}", self.event_ttl.as_secs()),
        ];
        arguments.extend(self.access.arguments());
        arguments
    }
}

impl Start {
    /// The same as arguments, for a daemon in the background.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = self.api.arguments();
        arguments.extend(self.node.arguments());
        arguments
    }
}

/// `statefuld server`.
#[derive(Debug, Args)]
#[command(after_help = format!(
    "Controllers, under kube-controller-manager's names:\n{}",
    controllers::roster::listing()
))]
pub struct Serve {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// How its API serves
    #[command(flatten)]
    pub api: Api,

    /// Which controllers run: names with commas between, * for all others, -NAME for all but this one, or none
    #[arg(long, value_name = "LIST", default_value = "*", allow_hyphen_values = true)]
    pub controllers: Selection,

    /// What to print once the API serves
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Manifests to apply: files, directories, or - for standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// How it is started
    #[command(flatten)]
    pub start: Start,

    /// Go on in the background; returns when the API is ready, or the manifests' pods are
    #[arg(long, short)]
    pub detach: bool,

    /// Namespace of objects that name none
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Create the namespaces that the manifests name and that do not exist
    #[arg(long)]
    pub create_namespaces: bool,

    /// Have storage classes that exist nowhere stand for class local
    #[arg(long)]
    pub storage_class_fallback: bool,

    /// Refuse kinds that are not served, instead of skipping them
    #[arg(long)]
    pub strict: bool,

    /// How long to wait for the manifests' pods, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub timeout: Duration,

    /// What to print at the end
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld down`.
#[derive(Debug, Args)]
pub struct Down {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// Stop statefuld only; the next `up` takes the running pods over
    #[arg(long)]
    pub keep_pods: bool,
}

/// `statefuld dns`.
#[derive(Debug, Args)]
pub struct Dns {
    /// What to do
    #[command(subcommand)]
    pub command: DnsCommand,
}

/// What is done with the names of pods and services on this machine.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Tell systemd-resolved where these names are known; where there is none, print the line that does it
    Install(Resolver),
    /// Undo it
    Uninstall(Resolver),
}

/// Whose names, and where.
#[derive(Clone, Debug, Args)]
pub struct Resolver {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// The root of the file system whose settings are written; services are not reloaded for another than /
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// Which server a command is about.
#[derive(Clone, Debug, Args)]
pub struct Server {
    /// The instance that lives here (default: what KUBECONFIG names, else /var/lib/statefuld)
    #[arg(long, value_name = "DIR", env = "STATEFULD_DATA_DIR", conflicts_with = "kubeconfig")]
    pub data_dir: Option<PathBuf>,

    /// Any Kubernetes API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// A context of the kubeconfig other than its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// `statefuld plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Manifests: files, directories, or - for standard input
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Where they would be applied
    #[command(flatten)]
    pub server: Server,

    /// Namespace of objects that name none
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Refuse kinds that are not served, instead of skipping them
    #[arg(long)]
    pub strict: bool,

    /// Also say what the same manifests mean otherwise there
    #[arg(long = "for", value_name = "SYSTEM")]
    pub target: Option<Target>,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Where else a manifest may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Plain Kubernetes, which ignores our annotations
    Kubernetes,
}

/// `statefuld why`.
#[derive(Debug, Args)]
pub struct Why {
    /// What is asked about: sts/NAME, deploy/NAME, rs/NAME, job/NAME, cronjob/NAME, pod/NAME or pvc/NAME; without it,
    /// everything in the namespace
    #[arg(value_name = "KIND/NAME")]
    pub object: Option<String>,

    /// Where it is asked
    #[command(flatten)]
    pub server: Server,

    /// Namespace
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Where it is looked
    #[command(flatten)]
    pub server: Server,

    /// Namespace
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Show it once: as a table or as JSON
    #[arg(long, short, value_enum)]
    pub output: Option<Output>,
}

/// `statefuld page`.
#[derive(Debug, Args)]
pub struct Page {
    /// Whose page
    #[command(flatten)]
    pub server: Server,

    /// The namespace that it shows first
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld daemon`.
#[derive(Debug, Args)]
pub struct Daemon {
    /// Where the instance lives
    #[command(flatten)]
    pub instance: Instance,

    /// How it is started
    #[command(flatten)]
    pub start: Start,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and sentences
    Table,
    /// One JSON document
    Json,
}

/// How long events are kept: a second at least.
fn parse_event_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text)?;
    if ttl.is_zero() { Err("events have to be kept for a second at least".to_owned()) } else { Ok(ttl) }
}

/// `90s`, `5m`, `1h30m`, or seconds alone.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write it as 90s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(wrong()),
        };
        let seconds = number.checked_mul(unit).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)?;
    }
    if digits.is_empty() && !text.is_empty() { Ok(total) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "m", "5x", "1m2", "99999999999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
