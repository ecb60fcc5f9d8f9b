//! The node agent: makes the pods that are bound to its node run, and says how they are.
//!
//! ```text
//!   API ── watch pods of this node ──▶ agent ── one task per pod ──▶ [`worker`] ──▶ shim, network, volumes
//!    ▲                                   │                              │
//!    │◀── node object, lease ── [`register`]                            │ states, probe reports
//!    │◀── status of each pod ── [`report`] ◀── [`status`] (pure) ◀──────┘
//!    │◀── events ────────────── [`events`]
//!    └─── services, slices ───▶ `known` ──▶ `names` ──▶ node-dns
//!                                    └────▶ `balance` ──▶ the kernel's packet filter
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`worker`], `prepare`, `follow`, `leave` | a pod's life, from seen to gone |
//! | `renew`, `live`, [`tokens`] | files of running pods that follow their sources; tokens, replaced before they end |
//! | `again` | containers that start again from an image that may be another |
//! | `limits` | what ends a running pod for good: its deadline, emptyDirs that grew too large |
//! | [`api_server`] | where pods reach the API server |
//! | `held` | pods that are gone and were not reported gone |
//! | [`translate`], [`env`], [`env_file`], [`services`], [`fields`], [`sources`] | from a pod's manifest to what its shim is told |
//! | [`images`] | what containers run from: found, fetched, in use |
//! | [`status`], [`report`], [`events`] | what the API is told |
//! | [`timeline`], [`metrics`] | how long the steps of a pod's start take |
//! | [`register`], [`machine`], [`pressure`] | the node itself |
//! | [`handler`], [`logs`] | what the API server asks: logs, exec, ports |
//! | `known`, `names`, `balance`, `health` | services and their endpoints; the name server; what leads to services |
//! | `reclaim` | data of released volumes |
//! | [`admit`], [`fits`], [`ledger`], [`storage`] | pods that may not run here; what they have of the node; what a pod writes and may write |
//! | [`resize`] | changes of a running pod's resources |
//! | [`stop`] | stopping a node while its objects stay |
//!
//! The agent may die at any moment. What it needs afterwards is on disk before it acts (addresses, pod
//! folders) or in the API; what runs goes on in the shims.

pub mod admit;
mod again;
pub mod api_server;
mod balance;
pub mod env;
pub mod env_file;
mod ephemeral;
pub mod events;
pub mod fields;
mod fill;
pub mod fits;
mod follow;
pub mod handler;
mod health;
mod held;
pub mod images;
mod known;
mod leave;
pub mod ledger;
mod limits;
mod live;
pub mod logs;
pub mod machine;
pub mod metrics;
mod names;
mod prepare;
pub mod pressure;
pub mod quantity;
mod raise;
mod reclaim;
pub mod register;
mod renew;
pub mod report;
pub mod resize;
pub mod services;
mod single;
pub mod sources;
pub mod status;
pub mod stop;
pub mod storage;
pub mod timeline;
pub mod tokens;
pub mod translate;
pub mod usage;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OnceCell, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::network::{self, Addresses, Network, addresses};
use crate::shim::SealedExe;
use crate::users::{self, UserRanges};
use crate::volume::LocalVolumes;
use events::Events;
pub use stop::{running_pods, stop_nodes, stop_pods};
use worker::{Identity, Worker};

/// Pause between tries to register while the API is not there yet.
const REGISTER_RETRY: Duration = Duration::from_millis(200);

/// How many uids that are gone are remembered.
const MAX_GONE: usize = 4096;

/// Runs the agent of one node until `term` is cancelled. Pods go on running when it returns, and the next agent
/// finds them.
pub async fn run<C>(
    client: kube::Client,
    config: Config,
    conn: C,
    term: CancellationToken,
    ambient: Ambient,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    run_with(client, config, conn, term, ambient, None).await
}

/// [`run`], with the program that shims, the name server and the built-in image are made from; the running one where
/// none is given.
pub async fn run_with<C>(
    client: kube::Client,
    config: Config,
    conn: C,
    term: CancellationToken,
    ambient: Ambient,
    program: Option<PathBuf>,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // A token of our own: workers end when this function does, for whatever reason.
    let term = term.child_token();
    let _end = term.clone().drop_guard();
    let shared = Shared::new(client, config, ambient, term, program).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(warm_up(shared.clone()));
    let (tell, known) = watch::channel(known::Known::nothing());
    tasks.spawn(known::run(shared.clone(), tell));
    tasks.spawn(names::run(shared.clone(), known.clone()));
    tasks.spawn(balance::run(shared.clone(), known));
    tasks.spawn(reclaim::run(shared.clone()));
    tasks.spawn(images::gc::run(shared.clone()));
    tasks.spawn(register_and_keep(shared.clone()));
    tasks.spawn(serve(shared.clone(), conn));
    let config = shared.config.clone();
    Pods::new(shared).run().await;
    while tasks.join_next().await.is_some() {}
    stop::sweep(&config).await;
    Ok(())
}

/// What all tasks of one agent share.
pub struct Shared {
    pub(crate) client: kube::Client,
    pub(crate) config: Config,
    pub(crate) ambient: Ambient,
    pub(crate) term: CancellationToken,
    pub(crate) network: Network,
    pub(crate) addresses: Arc<Mutex<Addresses>>,
    /// Who of the machine's users are which pod's.
    pub(crate) users: Arc<Mutex<UserRanges>>,
    pub(crate) local: LocalVolumes,
    pub(crate) events: Events,
    /// What running pods have files of.
    pub(crate) configs: live::Configs,
    pub(crate) images: Arc<image::Store>,
    pub(crate) puller: image::registry::Puller,
    /// An image did not fit on the disk.
    pub(crate) disk_full: tokio::sync::Notify,
    /// What its pods have.
    pub(crate) ledger: ledger::Ledger,
    /// What it counts.
    pub(crate) metrics: Arc<metrics::Metrics>,
    /// The machine's own address.
    pub(crate) host: Ipv4Addr,
    /// Turns true when services lead to their endpoints.
    pub(crate) balanced: watch::Sender<bool>,
    program: Option<PathBuf>,
    exe: OnceCell<SealedExe>,
    /// Identity of the built-in image; empty until its digest is known.
    pub(crate) sample_id: watch::Sender<String>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    async fn new(
        client: kube::Client,
        config: Config,
        ambient: Ambient,
        term: CancellationToken,
        program: Option<PathBuf>,
    ) -> Result<Arc<Self>, Error> {
        for dir in [config.pods_dir(), config.node_dir().join("logs")] {
            std::fs::create_dir_all(&dir).map_err(|source| Error::Folder { path: dir.clone(), source })?;
        }
        stop::clear(&config);
        let addresses = Addresses::open(&config.node_dir().join("addresses"), config.pod_cidr)?;
        let users = UserRanges::open(&config)?;
        let images = images::open(&config, &ambient)?;
        let network = Network::ensure(&config).await?;
        Ok(Arc::new(Self {
            events: Events::start(client.clone(), &config.node_name, ambient.clone()),
            ledger: ledger::Ledger::default(),
            metrics: Arc::default(),
            local: LocalVolumes::new(config.volumes_dir()),
            host: machine::address().unwrap_or(config.gateway),
            balanced: watch::Sender::new(false),
            addresses: Arc::new(Mutex::new(addresses)),
            users: Arc::new(Mutex::new(users)),
            exe: OnceCell::new(),
            sample_id: watch::Sender::new(String::new()),
            configs: live::Configs::new(client.clone()),
            puller: images::puller(&images, &config, &ambient),
            disk_full: tokio::sync::Notify::new(),
            images,
            client,
            config,
            ambient,
            term,
            network,
            program,
        }))
    }

    /// The sealed copy of the program; made at the first call.
    pub(crate) async fn exe(&self) -> Result<&SealedExe, std::io::Error> {
        let make = || async {
            let program = self.program.clone();
            let job = move || match program {
                Some(path) => SealedExe::from_path(&path),
                None => SealedExe::from_self(),
            };
            tokio::task::spawn_blocking(job).await.expect("copying does not panic")
        };
        self.exe.get_or_try_init(make).await
    }
}

/// What the first pod would have to wait for: the copy of the program. Its digest is for statuses alone, and comes after.
async fn warm_up(shared: Arc<Shared>) {
    let exe = match shared.exe().await {
        Ok(exe) => exe.clone(),
        Err(error) => return tracing::warn!(%error, "the program is not copied yet"),
    };
    let digest = tokio::task::spawn_blocking(move || exe.sha256().map(str::to_owned)).await;
    match digest.expect("hashing does not panic") {
        Ok(digest) => _ = shared.sample_id.send_replace(format!("{}@sha256:{digest}", translate::SAMPLE_IMAGE)),
        Err(error) => tracing::warn!(%error, "the built-in image has no digest"),
    }
}

async fn register_and_keep(shared: Arc<Shared>) {
    let host = shared.host.to_string();
    let mut pressures = pressure::Pressures::default();
    let node = loop {
        let held = pressures.observe(&pressure::Facts::look(&shared.config.data_dir), shared.ambient.boottime());
        match register::register(&shared.client, &shared.config, &host, held, &shared.ambient).await {
            Ok(node) => break node,
            Err(error) => tracing::warn!(%error, "the node was not registered; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(REGISTER_RETRY) => {}
            () = shared.term.cancelled() => return,
        }
    };
    let (sent, _) = watch::channel(None);
    let (client, config) = (shared.client.clone(), shared.config.clone());
    let told = register::Told { host, node, pressures };
    register::keep(client, config, told, shared.ambient.clone(), sent, shared.term.clone()).await;
}

/// Answers what the API server asks, until the connection or the agent ends.
async fn serve<C>(shared: Arc<Shared>, conn: C)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handler =
        Arc::new(handler::Handler::new(shared.config.clone(), shared.metrics.clone(), shared.ambient.clone()));
    tokio::select! {
        ended = nodeconn::serve(conn, handler) => match ended {
            Ok(()) => tracing::debug!("the API server closed its connection"),
            Err(error) => tracing::warn!(%error, "the connection to the API server broke"),
        },
        () = shared.term.cancelled() => {}
    }
}

/// The pods of the node, each with its worker.
struct Pods {
    shared: Arc<Shared>,
    workers: JoinSet<String>,
    /// What each worker is told, by uid.
    running: BTreeMap<String, watch::Sender<Option<Arc<Pod>>>>,
    /// The uid that has a name now, by `namespace/name`.
    named: BTreeMap<String, String>,
    /// The question which names are held for pods that are gone, when it is under way.
    asking: JoinSet<Vec<Identity>>,
    /// Folders that do not say whose they are, until that question is answered.
    unsigned: BTreeSet<String>,
    /// Uids whose names were given back: a watch that is late may still tell of them.
    gone: BTreeSet<String>,
}

impl Pods {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            workers: JoinSet::new(),
            running: BTreeMap::new(),
            named: BTreeMap::new(),
            asking: JoinSet::new(),
            unsigned: BTreeSet::new(),
            gone: BTreeSet::new(),
        }
    }

    /// Follows the pods of the node until the agent ends, then waits for the workers.
    async fn run(mut self) {
        let api: Api<Pod> = Api::all(self.shared.client.clone());
        let only = format!("spec.nodeName={}", self.shared.config.node_name);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default().fields(&only)).default_backoff());
        let term = self.shared.term.clone();
        let mut listed: Option<Vec<Pod>> = None;
        let mut first = true;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(watcher::Event::Init)) => listed = Some(Vec::new()),
                    Some(Ok(watcher::Event::InitApply(pod))) => listed.get_or_insert_default().push(pod),
                    Some(Ok(watcher::Event::InitDone)) => {
                        self.take_list(listed.take().unwrap_or_default(), std::mem::take(&mut first));
                    }
                    Some(Ok(watcher::Event::Apply(pod))) => self.apply(pod, None),
                    Some(Ok(watcher::Event::Delete(pod))) => self.forget(&pod.uid().unwrap_or_default()),
                    Some(Err(error)) => tracing::debug!(%error, "the watch of pods broke; going on"),
                    None => break,
                },
                Some(ended) = self.workers.join_next() => self.ended(ended),
                // An error means that a newer list made the question void.
                Some(Ok(gone)) = self.asking.join_next() => self.give_back(gone),
                () = term.cancelled() => break,
            }
        }
        while let Some(ended) = self.workers.join_next().await {
            self.ended(ended);
        }
    }

    /// A list replaces what was known. Pods of a set are brought up from the lowest ordinal, each after the first try
    /// of the one before it.
    fn take_list(&mut self, mut pods: Vec<Pod>, first: bool) {
        let there: BTreeSet<String> = pods.iter().filter_map(ResourceExt::uid).collect();
        let gone: Vec<String> = self.running.keys().filter(|uid| !there.contains(*uid)).cloned().collect();
        for uid in gone {
            self.forget(&uid);
        }
        pods.sort_by_key(|p| {
            let name = p.name_any();
            let (set, ordinal) = stop::split_ordinal(&name);
            (p.namespace(), set.to_owned(), ordinal)
        });
        let mut previous: Option<((String, String), oneshot::Receiver<()>)> = None;
        for pod in pods {
            let name = pod.name_any();
            let set = (pod.namespace().unwrap_or_default(), stop::split_ordinal(&name).0.to_owned());
            let after = previous.take().filter(|(before, _)| *before == set).map(|(_, tried)| tried);
            let (tell, tried) = oneshot::channel();
            self.apply(pod, Some((after, tell)));
            previous = Some((set, tried));
        }
        if first {
            self.adopt_orphans(&there);
        }
        self.asking.abort_all();
        self.asking.spawn(held::gone_holders(self.shared.clone()));
    }

    /// Tells a pod's worker its newest version; starts one where there is none.
    fn apply(&mut self, pod: Pod, order: Option<(Option<oneshot::Receiver<()>>, oneshot::Sender<()>)>) {
        let (Some(uid), Some(namespace)) = (pod.uid(), pod.namespace()) else { return };
        if self.gone.contains(&uid) {
            return;
        }
        let id = Identity { namespace, name: pod.name_any(), uid: uid.clone() };
        // The name belongs to another uid by now: the old one has to go, although its end was not seen.
        let key = format!("{}/{}", id.namespace, id.name);
        if let Some(before) = self.named.insert(key, uid.clone())
            && before != uid
        {
            self.forget(&before);
        }
        let pod = Arc::new(pod);
        match self.running.get(&uid) {
            Some(tell) => _ = tell.send_replace(Some(pod)),
            None => self.start(id, Some(pod), order),
        }
    }

    fn start(
        &mut self,
        id: Identity,
        pod: Option<Arc<Pod>>,
        order: Option<(Option<oneshot::Receiver<()>>, oneshot::Sender<()>)>,
    ) {
        let (tell, told) = watch::channel(pod);
        let uid = id.uid.clone();
        let mut worker = Worker::new(self.shared.clone(), id, told);
        if let Some((after, before)) = order {
            worker.after = after;
            worker.before = Some(before);
        }
        self.running.insert(uid.clone(), tell);
        self.workers.spawn(async move {
            worker.run().await;
            uid
        });
    }

    /// The object is gone: whatever still runs of it must go too.
    fn forget(&mut self, uid: &str) {
        if let Some(tell) = self.running.get(uid) {
            tell.send_replace(None);
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.running.remove(&uid);
                self.named.retain(|_, named| *named != uid);
            }
            Err(error) => {
                tracing::error!(%error, "a pod's task failed; its pod is looked after again when the agent restarts")
            }
        }
    }

    /// What earlier agents left of pods that are no longer there is stopped and cleared away.
    fn adopt_orphans(&mut self, there: &BTreeSet<String>) {
        for entry in std::fs::read_dir(self.shared.config.pods_dir()).into_iter().flatten().flatten() {
            let Some(uid) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if there.contains(&uid) || self.running.contains_key(&uid) {
                continue;
            }
            match held::signed(&entry.path()) {
                Some(id) => self.start(Identity { uid, ..id }, None, None),
                None => _ = self.unsigned.insert(uid),
            }
        }
    }

    /// Clears away whatever there is of pods that are gone and still hold a name, and gives the names back.
    fn give_back(&mut self, gone: Vec<Identity>) {
        if self.shared.term.is_cancelled() {
            return;
        }
        for id in gone {
            if self.running.contains_key(&id.uid) {
                continue;
            }
            tracing::info!(pod = %format!("{}/{}", id.namespace, id.name), uid = %id.uid, "its object is gone; giving its name back");
            if self.gone.len() >= MAX_GONE {
                self.gone.pop_first();
            }
            self.gone.insert(id.uid.clone());
            self.start(id, None, None);
        }
        for uid in std::mem::take(&mut self.unsigned) {
            // Nobody's name is held for it, so nobody waits for word of it.
            if !self.running.contains_key(&uid) {
                self.start(Identity { namespace: String::new(), name: String::new(), uid }, None, None);
            }
        }
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder of the node cannot be made. Check owner and space.
    #[error("cannot make {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node's network could not be made.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The store of images cannot be used.
    #[error(transparent)]
    Images(#[from] image::store::StoreError),
    /// The record of addresses cannot be used.
    #[error(transparent)]
    Addresses(#[from] addresses::Error),
    /// The record of pods' users cannot be used.
    #[error(transparent)]
    Users(#[from] users::Error),
}
