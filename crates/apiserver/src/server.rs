//! One API server: what it is made of, and its start.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use api::resource::Registry;
use store::Store;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::annex::Annex;
use crate::audit;
use crate::auth::service_account::{Issuer, Verifier};
use crate::auth::sessions::Sessions;
use crate::auth::tokens::{StaticTokens, TokenAuthenticator, Tokens};
use crate::auth::{Attributes, Authorizer, Decision, Identity, Standard};
use crate::bootstrap;
use crate::cache::Cache;
use crate::crd::{self, Kinds, Live};
use crate::documents::Documents;
use crate::errors::Error;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::published::{self, Published};
use crate::service::{ApiService, InProcess};
use crate::sub::token::Stored;

/// A running API server. Dropping the last handle ends its watch on the store.
pub struct ApiServer {
    shared: Arc<Shared>,
    /// Ends what runs for the server.
    end: DropGuard,
}

/// What a server is told when it starts. [`Options::new`] fills in what is usual.
pub struct Options {
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// Clock and entropy.
    pub ambient: Ambient,
    /// The kinds that are served.
    pub registry: Arc<Registry>,
    /// Who may do what.
    pub authorizer: AuthorizerChoice,
    /// Signs the tokens of service accounts; `None` for a key that ends with this server.
    pub issuer: Option<Arc<Issuer>>,
    /// Tokens that are good besides those of service accounts.
    pub tokens: StaticTokens,
    /// The connections to node agents.
    pub nodes: Arc<nodeconn::Nodes>,
    /// Where cluster IPs of services are taken from: network address and prefix length.
    pub service_cidr: (Ipv4Addr, u8),
    /// Where node ports of services are taken from.
    pub node_ports: RangeInclusive<u16>,
    /// How much clients may take.
    pub limits: Limits,
    /// Where requests are noted; `None` for nowhere.
    pub audit: Option<Arc<audit::Log>>,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// How often an idle watch that asked for bookmarks gets one.
    pub bookmark_interval: Duration,
    /// Who answers what is no part of Kubernetes' API.
    pub annex: Option<Arc<dyn Annex>>,
}

impl Options {
    /// The built-in kinds, RBAC, and the usual ranges and limits.
    pub fn new(store: Arc<dyn Store>, ambient: Ambient) -> Self {
        Self {
            store,
            ambient,
            registry: Registry::builtin(),
            authorizer: AuthorizerChoice::Standard,
            issuer: None,
            tokens: StaticTokens::new(),
            nodes: Arc::default(),
            service_cidr: (Ipv4Addr::new(10, 96, 0, 0), 16),
            node_ports: 30000..=32767,
            limits: Limits::default(),
            audit: None,
            event_ttl: Duration::from_secs(3600),
            bookmark_interval: Duration::from_secs(60),
            annex: None,
        }
    }
}

/// Who decides on requests.
#[derive(Clone)]
pub enum AuthorizerChoice {
    /// Nodes' own rules, then roles and bindings, as they are stored.
    Standard,
    /// Everybody may do everything; for tests.
    AllowAll,
    /// Somebody else.
    Custom(Arc<dyn Authorizer>),
}

/// How much clients may take before they are asked to come back later.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of a request's body.
    pub body_bytes: usize,
    /// GET requests at once, not counting watches that are under way. One client gets at most half of these, of
    /// `writes`, `watches` and `answers_kib`; the last tenth is for nodes and the system's own controllers.
    pub reads: usize,
    /// Other requests at once.
    pub writes: usize,
    /// Watches at once.
    pub watches: usize,
    /// How long a request may take, watches and streams not counted.
    pub request_timeout: Duration,
    /// Room for large answers that are being sent, in KiB.
    pub answers_kib: usize,
    /// Events that wait for one watcher before it is dropped.
    pub watch_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 3 << 20,
            reads: 400,
            writes: 200,
            watches: 20_000,
            watch_buffer: 1024,
            request_timeout: Duration::from_secs(60),
            answers_kib: 512 << 10,
        }
    }
}

/// What all requests of a server share.
pub(crate) struct Shared {
    /// Where objects are kept.
    pub(crate) store: Arc<dyn Store>,
    /// Clock and entropy.
    pub(crate) ambient: Ambient,
    /// The kinds that are served.
    pub(crate) registry: Live,
    /// Who may do what.
    pub(crate) authorizer: Arc<dyn Authorizer>,
    /// The same, where it is roles and bindings: for escalation checks and reviews.
    pub(crate) standard: Option<Arc<Standard>>,
    /// Signs the tokens of service accounts.
    pub(crate) issuer: Arc<Issuer>,
    /// Whose bearer tokens are good.
    pub(crate) tokens: Arc<dyn TokenAuthenticator>,
    /// Browsers that are signed in.
    pub(crate) sessions: Arc<Sessions>,
    /// Who answers what is no part of Kubernetes' API.
    pub(crate) annex: Option<Arc<dyn Annex>>,
    /// The connections to node agents.
    pub(crate) nodes: Arc<nodeconn::Nodes>,
    /// The newest state and the recent changes.
    pub(crate) cache: Arc<Cache>,
    /// How much clients may take.
    pub(crate) limits: Limits,
    /// Permits for GET requests.
    pub(crate) reads: Arc<Gate>,
    /// Permits for other requests.
    pub(crate) writes: Arc<Gate>,
    /// Taken by who charges the quotas of a namespace; several namespaces may share one.
    pub(crate) quota_turns: Vec<tokio::sync::Mutex<()>>,
    /// Permits for watches under way.
    pub(crate) watches: Arc<Gate>,
    /// Room for large answers.
    pub(crate) answers: Arc<Gate>,
    /// Where requests are noted.
    pub(crate) audit: Option<Arc<audit::Log>>,
    /// Counters.
    pub(crate) metrics: Metrics,
    /// The OpenAPI documents.
    pub(crate) documents: Documents,
    /// Where cluster IPs are taken from.
    pub(crate) service_cidr: (Ipv4Addr, u8),
    /// Where node ports are taken from.
    pub(crate) node_ports: RangeInclusive<u16>,
    /// How long events are kept.
    pub(crate) event_ttl: Duration,
    /// How often an idle watch gets a bookmark.
    pub(crate) bookmark_interval: Duration,
}

impl ApiServer {
    /// Reads the store into memory, follows it, and writes the objects that every cluster has.
    pub async fn start(options: Options) -> Result<Arc<Self>, Error> {
        let (_, prefix) = options.service_cidr;
        if !(8..=30).contains(&prefix) {
            return Err(Error::Option { option: "service_cidr", why: format!("/{prefix} is not within /8 to /30") });
        }
        let token = CancellationToken::new();
        let (authorizer, standard): (Arc<dyn Authorizer>, _) = match options.authorizer {
            AuthorizerChoice::Standard => {
                let standard = Standard::new();
                (standard.clone(), Some(standard))
            }
            AuthorizerChoice::AllowAll => (Arc::new(AllowAll), None),
            AuthorizerChoice::Custom(authorizer) => (authorizer, None),
        };
        let builtin = options.registry;
        let definitions = match builtin.find(api::crd::GROUP, "v1", api::crd::PLURAL) {
            Some(resource) => crd::stored(&*options.store, &resource).await?,
            None => Vec::new(),
        };
        let kinds = Kinds::established(&definitions);
        let resources = builtin.all().into_iter().chain(kinds.stored().cloned()).collect();
        let cache = Cache::start(options.store.clone(), resources, standard.clone(), token.clone()).await?;
        let issuer = match options.issuer {
            Some(issuer) => issuer,
            None => Issuer::ephemeral(options.ambient.clone())?,
        };
        let accounts = Verifier::new(issuer.clone(), Arc::new(Stored(cache.clone())));
        let sessions = Arc::new(Sessions::new(options.ambient.clone()));
        let tokens = Arc::new(Tokens(vec![Arc::new(options.tokens), Arc::new(accounts), sessions.clone()]));
        let limits = options.limits;
        let metrics = Metrics::new(&options.ambient);
        let shared = Arc::new(Shared {
            store: options.store,
            ambient: options.ambient,
            registry: Live::new(Arc::new(kinds.registry(&builtin))),
            authorizer,
            standard,
            issuer,
            tokens,
            sessions,
            annex: options.annex,
            nodes: options.nodes,
            cache,
            limits,
            quota_turns: std::iter::repeat_with(Default::default).take(crate::admission::quota::TURNS).collect(),
            reads: Gate::new(limits.reads),
            writes: Gate::new(limits.writes),
            watches: Gate::new(limits.watches),
            answers: Gate::hard(limits.answers_kib),
            audit: options.audit,
            metrics,
            documents: Documents::default(),
            service_cidr: options.service_cidr,
            node_ports: options.node_ports,
            event_ttl: options.event_ttl,
            bookmark_interval: options.bookmark_interval,
        });
        bootstrap::run(&shared).await?;
        tokio::spawn(crd::run(Arc::downgrade(&shared), builtin, kinds, token.clone()));
        Ok(Arc::new(Self { shared, end: token.drop_guard() }))
    }

    /// The address of the service `default/kubernetes`: the first of the service range.
    pub fn service_address(&self) -> Ipv4Addr {
        published::address(self.shared.service_cidr)
    }

    /// Keeps the service `default/kubernetes`, so that pods find the server, until this server ends. Call it once it
    /// can be reached there.
    pub fn publish(&self, published: Published) {
        let token = self.end.token().clone();
        tokio::spawn(published::keep(self.shared.clone(), published, token));
    }

    /// The API, for a listener: requests carry their identity as an http extension.
    pub fn service(&self) -> ApiService {
        ApiService::new(self.shared.clone())
    }

    /// The API for a client in this process that is always `identity`. Give it to `kube::Client::new`.
    pub fn client(&self, identity: Identity) -> InProcess {
        InProcess::new(self.service(), identity)
    }

    /// Whose bearer tokens are good, for a listener.
    pub fn tokens(&self) -> Arc<dyn TokenAuthenticator> {
        self.shared.tokens.clone()
    }

    /// The connections to node agents.
    pub fn nodes(&self) -> &Arc<nodeconn::Nodes> {
        &self.shared.nodes
    }
}

/// Allows everything.
struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize(&self, _: &Attributes) -> Decision {
        Decision::Allow
    }
}
