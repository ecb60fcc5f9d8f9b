//! One instance: all parts put together in one process, started in order and stopped in order.
//!
//! ```text
//!  start: lock ─▶ nodes' choices ─▶ store ─▶ API ─▶ listener ─▶ controllers ─▶ agents ─▶ control socket
//!  stop:  controllers settle ─▶ pods stop from the top ordinal (unless kept) ─▶ agents ─▶ listener ─▶ store
//! ```
//!
//! Nothing here is global: several instances can live in one process, and many on one machine. `statefuld server` is the
//! same without agent and pods.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use apiserver::ApiServer;
use apiserver::audit;
use apiserver::auth::Identity;
use apiserver::auth::service_account::Issuer;
use apiserver::auth::tokens::StaticTokens;
use apiserver::listen::{ListenOptions, serve};
use apiserver::tls;
use controllers::Term;
use controllers::roster::{self, Account, Selection};
use kube::Client;
use store::embedded::Embedded;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backup;
use crate::cli;
use crate::control::{self, Answer, Call, Request};
use crate::inside::{self, Inside};
use crate::install::notify;
use crate::nodes::{self, Nodes};
use crate::page::Page;
use crate::place::{DataDir, Lock};
use crate::say;

/// How long controllers may take to settle their last requests.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// Size of the pipe between API server and agent in one process.
const PIPE_BYTES: usize = 256 * 1024;

/// A running instance.
pub struct Daemon {
    data: DataDir,
    ambient: Ambient,
    api: Arc<ApiServer>,
    store: Arc<Embedded>,
    address: SocketAddr,
    /// Ends the controllers.
    term: Term,
    controllers: JoinSet<Result<(), String>>,
    /// The nodes of this machine; none where it is only a server.
    agents: Vec<Agent>,
    /// Ends the listener.
    listener_token: CancellationToken,
    calls: mpsc::Receiver<Call>,
    caller: mpsc::Sender<Call>,
    /// Where the store says that it failed for good.
    fatal: oneshot::Receiver<String>,
    /// Last, so that the directory is free only when everything else is gone.
    _lock: Lock,
}

/// What runs.
pub struct Parts<'a> {
    /// Where the instance lives.
    pub instance: &'a cli::Instance,
    /// How its API serves.
    pub api: &'a cli::Api,
    /// Its controllers.
    pub controllers: Selection,
    /// Its node agents, if this machine is to be a node, or several.
    pub node: Option<&'a cli::Node>,
}

impl<'a> Parts<'a> {
    /// Everything.
    pub fn all(instance: &'a cli::Instance, start: &'a cli::Start) -> Self {
        Self { instance, api: &start.api, controllers: Selection::all(), node: Some(&start.node) }
    }
}

impl Daemon {
    /// Starts the parts; the API serves when this returns.
    pub async fn start(parts: Parts<'_>, ambient: Ambient) -> Result<Self> {
        if parts.node.is_some() {
            require_root()?;
            require_cgroups()?;
        }
        let data = DataDir::new(&parts.instance.data_dir)?;
        let lock = data.lock()?;
        let chosen = parts.node.map(|node| nodes::choose(&data, node)).transpose()?;
        let Nodes { configs, dropped } = chosen.unwrap_or_else(|| Nodes { configs: Vec::new(), dropped: Vec::new() });
        let listen_on = parts.api.listen;
        let listener = TcpListener::bind(listen_on).await.with_context(|| cannot_listen(listen_on))?;
        let address = listener.local_addr().context("the listener has no address")?;
        let (store, fatal) = open_store(&data, &ambient).await?;
        let authority = tls::Authority::load_or_create(&data.pki(), ambient.clone())?;
        let issuer = Issuer::load_or_create(&data.pki(), ambient.clone())?;
        let options = api_options(parts.api, &store, &ambient, issuer.clone())?;
        let audit = options.audit.clone().map(|log| (log, ambient.clone()));
        let api = ApiServer::start(options).await?;
        let listener_token = CancellationToken::new();
        nodes::forget(&in_process(&api, Identity::user("kubernetes-admin", &["system:masters"])), &dropped).await?;
        let inside = open_inside(configs.first(), address, &api).await;
        let gateways = configs.iter().map(|node| node.gateway).collect();
        let serving = Serving { address, gateways, audit };
        listen(&data, &authority, &api, listener, serving, inside, &listener_token)?;

        let term = Term::new();
        let trust = trust(&authority, issuer);
        let controllers = start_controllers(&parts.controllers, &api, &term, &ambient, trust);
        let agents = configs.into_iter().map(|node| Agent::start(&api, node, &ambient)).collect();
        let (caller, calls) = control::listen(&data.control_socket())?;
        lock.write_pid()?;
        Ok(Self {
            data,
            ambient,
            api,
            store,
            address,
            term,
            controllers,
            agents,
            listener_token,
            calls,
            caller,
            fatal,
            _lock: lock,
        })
    }

    /// A client in process, as the administrator.
    pub fn client(&self) -> Client {
        in_process(&self.api, Identity::user("kubernetes-admin", &["system:masters"]))
    }

    /// The API's URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its data directory.
    pub fn data(&self) -> &DataDir {
        &self.data
    }

    /// What can be asked of it while it serves, from within the process.
    pub fn caller(&self) -> mpsc::Sender<Call> {
        self.caller.clone()
    }

    /// Serves until `down` is asked for or a signal comes; then stops accordingly.
    pub async fn serve(mut self, mut signals: Signals, stopping: impl Fn()) -> Result<()> {
        loop {
            tokio::select! {
                call = self.calls.recv() => match call {
                    Some(Call { request: Request::Ready, answers }) => {
                        Call::finish(&answers, Answer::Done).await;
                    }
                    Some(Call { request: Request::Backup { file }, answers }) => {
                        tokio::spawn(self.back_up(file, answers));
                    }
                    Some(Call { request: Request::Down { keep_pods }, answers }) => {
                        let result = self.stop(keep_pods, &mut signals).await;
                        let last = match &result {
                            Ok(()) => Answer::Done,
                            Err(error) => Answer::Failed(format!("{error:#}")),
                        };
                        Call::finish(&answers, last).await;
                        return result;
                    }
                    None => bail!("the control socket failed"),
                },
                signal = signals.next() => {
                    let keep_pods = signal == Signal::Leave;
                    if !keep_pods {
                        stopping();
                    }
                    return self.stop(keep_pods, &mut signals).await;
                }
                why = &mut self.fatal => {
                    let why = why.unwrap_or_else(|_| "its writer ended".to_owned());
                    bail!("the store failed: {why}; pods go on running, start statefuld again to recover");
                }
            }
        }
    }

    /// Writes a backup while everything goes on.
    fn back_up(&self, file: PathBuf, answers: mpsc::Sender<Answer>) -> impl Future<Output = ()> + Send + 'static {
        let (store, data, ambient) = (self.store.clone(), self.data.clone(), self.ambient.clone());
        async move {
            let last = match backup::take(store, data, &ambient, file).await {
                Ok(said) => {
                    // Whoever asked may have gone; the backup is there all the same.
                    let _ = answers.send(Answer::Progress(said)).await;
                    Answer::Done
                }
                Err(error) => Answer::Failed(format!("{error:#}")),
            };
            Call::finish(&answers, last).await;
        }
    }

    /// Stops in order. A second interrupt while pods stop leaves the rest of them running.
    async fn stop(mut self, keep_pods: bool, signals: &mut Signals) -> Result<()> {
        notify::stopping();
        self.term.end();
        let settled = async { while self.controllers.join_next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_LIMIT, settled).await.is_err() {
            tracing::warn!("controllers did not settle in time; they are dropped");
            self.controllers.shutdown().await;
        }
        let mut stopped = Ok(());
        let configs: Vec<node::Config> = self.agents.iter().map(|agent| agent.config.clone()).collect();
        if !configs.is_empty() && !keep_pods {
            tokio::select! {
                result = node::agent::stop_nodes(&configs, None, &self.ambient) => {
                    stopped = result.context("not all pods could be stopped");
                }
                _ = signals.next() => {
                    say::note(format_args!(
                        "pods that had not stopped yet go on running; return to them with `statefuld up --data-dir {}`",
                        self.data.path().display()
                    ));
                }
            }
        }
        for agent in self.agents {
            agent.stop().await;
        }
        self.listener_token.cancel();
        // Ends its watch, so that it does not mourn the store.
        drop(self.api);
        self.store.close().await;
        let _ = std::fs::remove_file(self.data.control_socket());
        stopped
    }
}

/// `statefuld daemon`.
pub async fn run(args: cli::Daemon) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let daemon = Daemon::start(Parts::all(&args.instance, &args.start), Ambient::system()).await?;
    notify::ready(&daemon.url());
    daemon.serve(signals, || {}).await?;
    Ok(ExitCode::SUCCESS)
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, SIGTERM: stop, pods included.
    Stop,
    /// SIGHUP's place is taken by terminals; SIGQUIT: stop, leave the pods running.
    Leave,
}

/// The signals that this process was sent.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes over from the default actions.
    pub fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let take = |kind| signal(kind).context("signals cannot be received");
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            quit: take(SignalKind::quit())?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.quit.recv() => Signal::Leave,
        }
    }
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("running pods needs root; start it with sudo");
    }
    Ok(())
}

fn require_cgroups() -> Result<()> {
    let layout = node::cgroup::Layout::detect().context("the machine's control groups cannot be read")?;
    if layout.kind() == node::cgroup::Kind::None {
        bail!(
            "no control groups are mounted, and pods cannot be limited or ended without; mount them (mount -t cgroup2 cgroup2 /sys/fs/cgroup)"
        );
    }
    Ok(())
}

fn api_options(
    api: &cli::Api,
    store: &Arc<Embedded>,
    ambient: &Ambient,
    issuer: Arc<Issuer>,
) -> Result<apiserver::Options> {
    let mut options = apiserver::Options::new(store.clone(), ambient.clone());
    options.service_cidr = (api.service_cidr.network, api.service_cidr.prefix);
    options.node_ports = api.service_node_port_range.0.clone();
    options.event_ttl = api.event_ttl;
    options.issuer = Some(issuer);
    options.annex = Some(Arc::new(Page::new(ambient.clone())));
    options.tokens = read_tokens(&api.access)?;
    options.audit = open_audit_log(&api.access, ambient)?;
    options.limits.reads = api.access.max_requests_inflight as usize;
    options.limits.writes = api.access.max_mutating_requests_inflight as usize;
    options.limits.watches = api.access.max_watches as usize;
    options.limits.watch_buffer = api.access.max_watch_backlog as usize;
    options.limits.answers_kib = (api.access.max_answers_size as usize) << 10;
    Ok(options)
}

/// The log of `--audit-log-path`.
fn open_audit_log(access: &cli::Access, ambient: &Ambient) -> Result<Option<Arc<audit::Log>>> {
    let Some(path) = access.audit_log_path.clone() else { return Ok(None) };
    let max_bytes = u64::from(access.audit_log_maxsize) << 20;
    let options = audit::Options { path: path.clone(), max_bytes, max_backups: access.audit_log_maxbackup as usize };
    let log = audit::Log::open(options, ambient.clone());
    Ok(Some(log.with_context(|| format!("{} cannot be written", path.display()))?))
}

/// The tokens of `--token-auth-file`.
fn read_tokens(access: &cli::Access) -> Result<StaticTokens> {
    let Some(path) = &access.token_auth_file else { return Ok(StaticTokens::new()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    StaticTokens::parse(&text).with_context(|| format!("{} is not a token file", path.display()))
}

/// What programs in pods are to trust, and who signs for it.
fn trust(authority: &tls::Authority, issuer: Arc<Issuer>) -> roster::Trust {
    let sign =
        move |space: &str, account: &str, uid: &str, secret: &str| issuer.issue_for_secret(space, account, uid, secret);
    roster::Trust { authority: authority.certificate_pem().to_owned(), sign: Arc::new(sign) }
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("{address} cannot be listened on; choose another with --listen ADDRESS:PORT (port 0 picks a free one)")
}

pub async fn open_store(data: &DataDir, ambient: &Ambient) -> Result<(Arc<Embedded>, oneshot::Receiver<String>)> {
    let path = data.store();
    let parent = path.parent().expect("the store lies in a folder");
    std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    let (sender, receiver) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let options = store::embedded::Options {
        on_fatal: Some(Arc::new(move |why: &str| {
            if let Some(sender) = sender.lock().ok().and_then(|mut s| s.take()) {
                // Nobody listens any more when the daemon stops anyway.
                let _ = sender.send(why.to_owned());
            }
        })),
        ..Default::default()
    };
    let ambient = ambient.clone();
    let opened = tokio::task::spawn_blocking(move || Embedded::open(&path, ambient, options)).await;
    Ok((opened.context("opening the store panicked")??, receiver))
}

/// Opens the API to the pods of all nodes, at an address of the first one. Pods run without it, so a failure is said and
/// nothing more.
async fn open_inside(first: Option<&node::Config>, address: SocketAddr, api: &Arc<ApiServer>) -> Option<Inside> {
    let Some(node) = first else { return Some(Inside { published: inside::without_node(address), listener: None }) };
    match Inside::open(node, address).await {
        Ok(inside) => Some(inside),
        Err(error) => {
            tracing::warn!(%error, "pods cannot reach the API at {}", api.service_address());
            None
        }
    }
}

/// What listeners are told.
struct Serving {
    /// Where clients outside of pods find the API.
    address: SocketAddr,
    /// The nodes' own addresses among their pods.
    gateways: Vec<std::net::Ipv4Addr>,
    /// Where refused requests are noted.
    audit: Option<(Arc<audit::Log>, Ambient)>,
}

fn listen(
    data: &DataDir,
    authority: &Arc<tls::Authority>,
    api: &Arc<ApiServer>,
    listener: TcpListener,
    serving: Serving,
    inside: Option<Inside>,
    token: &CancellationToken,
) -> Result<()> {
    let Serving { address, gateways, audit } = serving;
    let mut addresses = vec![reachable(address).ip(), api.service_address().into()];
    addresses.extend(gateways.into_iter().map(std::net::IpAddr::from));
    let mut options = ListenOptions::new(tls::server_config(authority, &[], &addresses)?);
    options.tokens = Some(api.tokens());
    options.audit = audit;
    let kubeconfig = authority.admin_kubeconfig(&format!("https://{}", reachable(address)))?;
    tls::write_private(&data.kubeconfig(), kubeconfig.as_bytes())?;
    tokio::spawn(serve(listener, options.clone(), api.service(), token.clone()));
    if let Some(inside) = inside {
        if let Some(listener) = inside.listener {
            tokio::spawn(serve(listener, options.clone(), api.service(), token.clone()));
        }
        api.publish(inside.published);
    }
    Ok(())
}

/// The address that clients on this machine use.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port())
    } else {
        address
    }
}

fn in_process(api: &Arc<ApiServer>, identity: Identity) -> Client {
    Client::new(api.client(identity), "default")
}

fn start_controllers(
    selection: &Selection,
    api: &Arc<ApiServer>,
    term: &Term,
    ambient: &Ambient,
    trust: roster::Trust,
) -> JoinSet<Result<(), String>> {
    roster::start(selection, term, ambient, Some(trust), &|account| {
        let identity = match account {
            Account::Service(name) => Identity::service_account("kube-system", name),
            Account::User(name) => Identity::user(name, &[]),
        };
        in_process(api, identity)
    })
}

/// The node agent in this process.
struct Agent {
    config: node::Config,
    token: CancellationToken,
    tasks: JoinSet<()>,
}

impl Agent {
    fn start(api: &Arc<ApiServer>, config: node::Config, ambient: &Ambient) -> Self {
        let mut tasks = JoinSet::new();
        let token = CancellationToken::new();
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (nodes, name, conn_token) = (api.nodes().clone(), config.node_name.clone(), token.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = conn_token.cancelled() => {}
                result = nodes.attach(&name, ours) => {
                    if let Err(error) = result {
                        tracing::warn!(%error, "the connection to the agent ended");
                    }
                }
            }
        });
        let client = in_process(api, Identity::node(&config.node_name));
        let running = node::agent::run(client, config.clone(), theirs, token.clone(), ambient.clone());
        tasks.spawn(async move {
            if let Err(error) = running.await {
                tracing::error!(%error, "the node agent ended");
            }
        });
        Self { config, token, tasks }
    }

    async fn stop(mut self) {
        self.token.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}
