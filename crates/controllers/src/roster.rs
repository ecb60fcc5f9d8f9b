//! Every controller by its name, and which of them a process runs.
//!
//! Names are those of kube-controller-manager, the newer long ones (`garbage-collector-controller`) and the older short
//! ones (`garbagecollector`); the scheduler, a program of its own in Kubernetes, is one among them here.

use std::str::FromStr;
use std::sync::OnceLock;

use ambient::Ambient;
use futures::future::BoxFuture;
use kube::Client;
use tokio::task::JoinSet;

use crate::informers::Informers;
use crate::{
    Term, aggregation, balancers, disruption, endpoints, gc, governing, nodes, quota, root_ca, scheduler, statefulset,
    taint_eviction, tokens, volumes, workloads,
};

/// One controller.
pub struct Controller {
    /// Its name.
    pub name: &'static str,
    /// Its shorter, older name; empty where there is none.
    pub alias: &'static str,
    /// What it does, in a few words.
    pub does: &'static str,
    /// As whom it asks the API.
    account: Account,
    run: fn(Client, &Parts) -> BoxFuture<'static, Result<(), String>>,
}

/// As whom a controller asks the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// A service account of this name in `kube-system`.
    Service(&'static str),
    /// A user.
    User(&'static str),
}

/// What the shared informers ask as.
const MANAGER: Account = Account::User("system:kube-controller-manager");

/// All of them, in the order of their names.
pub static CONTROLLERS: &[Controller] = &[
    Controller {
        name: "clusterrole-aggregation-controller",
        alias: "clusterrole-aggregation",
        does: "shows in ClusterRoles what they gather from others",
        account: Account::Service("clusterrole-aggregation-controller"),
        run: |client, p| boxed(aggregation::run(client, p.term(), p.ambient())),
    },
    Controller {
        name: "cronjob-controller",
        alias: "cronjob",
        does: "CronJobs",
        account: Account::Service("cronjob-controller"),
        run: |client, p| boxed(workloads::cron_job::run(client, p.term(), p.ambient(), p.workloads())),
    },
    Controller {
        name: "deployment-controller",
        alias: "deployment",
        does: "Deployments",
        account: Account::Service("deployment-controller"),
        run: |client, p| boxed(workloads::deployment::run(client, p.term(), p.ambient(), p.workloads())),
    },
    Controller {
        name: "disruption-controller",
        alias: "disruption",
        does: "counts how many pods of disruption budgets may be disturbed",
        account: Account::Service("disruption-controller"),
        run: |client, p| boxed(disruption::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "endpoints-controller",
        alias: "endpoint",
        does: "Endpoints of services",
        account: Account::Service("endpoint-controller"),
        run: |client, p| boxed(endpoints::run_legacy(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "endpointslice-controller",
        alias: "endpointslice",
        does: "EndpointSlices of services",
        account: Account::Service("endpointslice-controller"),
        run: |client, p| boxed(endpoints::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "endpointslice-mirroring-controller",
        alias: "endpointslicemirroring",
        does: "EndpointSlices of Endpoints written by hand",
        account: Account::Service("endpointslicemirroring-controller"),
        run: |client, p| boxed(endpoints::run_mirror(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "ephemeral-volume-controller",
        alias: "ephemeral-volume",
        does: "claims of pods' ephemeral volumes",
        account: Account::Service("ephemeral-volume-controller"),
        run: |client, p| boxed(volumes::ephemeral::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "garbage-collector-controller",
        alias: "garbagecollector",
        does: "deletes what its owners leave behind",
        account: Account::Service("generic-garbage-collector"),
        run: |client, p| boxed(gc::run(client, p.term(), p.ambient())),
    },
    Controller {
        name: "governing-service-controller",
        alias: "governing-service",
        does: "tells sets whose service is missing or not headless",
        account: Account::Service("statefulset-controller"),
        run: |client, p| boxed(governing::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "job-controller",
        alias: "job",
        does: "Jobs",
        account: Account::Service("job-controller"),
        run: |client, p| boxed(workloads::job::run(client, p.term(), p.ambient(), p.workloads())),
    },
    Controller {
        name: "namespace-controller",
        alias: "namespace",
        does: "empties namespaces that are deleted",
        account: Account::Service("namespace-controller"),
        run: |client, p| boxed(gc::namespaces::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "node-lifecycle-controller",
        alias: "nodelifecycle",
        does: "taints nodes that are not ready",
        account: Account::Service("node-controller"),
        run: |client, p| boxed(nodes::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "persistentvolume-binder-controller",
        alias: "persistentvolume-binder",
        does: "makes volumes and binds claims to them",
        account: Account::Service("persistent-volume-binder"),
        run: |client, p| boxed(volumes::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "persistentvolume-protection-controller",
        alias: "pv-protection",
        does: "keeps volumes that claims have",
        account: Account::Service("pv-protection-controller"),
        run: |client, p| boxed(volumes::protection::run_volumes(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "persistentvolumeclaim-protection-controller",
        alias: "pvc-protection",
        does: "keeps claims that pods use",
        account: Account::Service("pvc-protection-controller"),
        run: |client, p| boxed(volumes::protection::run_claims(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "replicaset-controller",
        alias: "replicaset",
        does: "ReplicaSets",
        account: Account::Service("replicaset-controller"),
        run: |client, p| boxed(workloads::replica_set::run(client, p.term(), p.ambient(), p.workloads())),
    },
    Controller {
        name: "resourcequota-controller",
        alias: "resourcequota",
        does: "counts what is used of quotas",
        account: Account::Service("resourcequota-controller"),
        run: |client, p| boxed(quota::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "root-ca-certificate-publisher-controller",
        alias: "root-ca-cert-publisher",
        does: "the config map kube-root-ca.crt in every namespace",
        account: Account::Service("root-ca-cert-publisher"),
        run: |client, p| match p.trust {
            Some(trust) => boxed(root_ca::run(client, p.term(), p.ambient(), p.informers(), trust.authority.clone())),
            None => idle(),
        },
    },
    Controller {
        name: "scheduler",
        alias: "",
        does: "finds pods a node",
        account: Account::User("system:kube-scheduler"),
        run: |client, p| boxed(scheduler::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "service-lb-controller",
        alias: "service",
        does: "addresses of services of type LoadBalancer: the machines' own",
        account: Account::Service("service-controller"),
        run: |client, p| boxed(balancers::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "serviceaccount-controller",
        alias: "serviceaccount",
        does: "a service account default in every namespace",
        account: Account::Service("service-account-controller"),
        run: |client, p| boxed(gc::accounts::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "serviceaccount-token-controller",
        alias: "serviceaccount-token",
        does: "tokens in secrets made for them",
        account: Account::Service("tokens-controller"),
        run: |client, p| match p.trust {
            Some(trust) => boxed(tokens::run(client, p.term(), p.ambient(), trust.clone())),
            None => idle(),
        },
    },
    Controller {
        name: "statefulset-controller",
        alias: "statefulset",
        does: "StatefulSets",
        account: Account::Service("statefulset-controller"),
        run: |client, p| boxed(statefulset::run(client, p.term(), p.ambient(), statefulset::Options::default())),
    },
    Controller {
        name: "taint-eviction-controller",
        alias: "",
        does: "takes pods off nodes whose taints they do not bear",
        account: Account::Service("taint-eviction-controller"),
        run: |client, p| boxed(taint_eviction::run(client, p.term(), p.ambient(), p.informers())),
    },
    Controller {
        name: "ttl-after-finished-controller",
        alias: "ttl-after-finished",
        does: "deletes jobs some time after they finished",
        account: Account::Service("ttl-after-finished-controller"),
        run: |client, p| boxed(workloads::ttl::run(client, p.term(), p.ambient(), p.workloads())),
    },
];

impl Controller {
    /// The controller of this name, long or short.
    pub fn named(name: &str) -> Option<&'static Self> {
        CONTROLLERS.iter().find(|c| name == c.name || (!c.alias.is_empty() && name == c.alias))
    }

    /// The name that people type.
    pub fn short(&self) -> &'static str {
        if self.alias.is_empty() { self.name } else { self.alias }
    }
}

/// What controllers are given. The shared informers start with the first controller that asks for them.
struct Parts<'a> {
    term: &'a Term,
    ambient: &'a Ambient,
    client: &'a (dyn Fn(Account) -> Client + Sync),
    trust: Option<&'a Trust>,
    informers: OnceLock<Informers>,
    workloads: OnceLock<workloads::Informers>,
}

/// What only the server's own process has, for the controllers that hand it out; without it these do nothing.
#[derive(Clone)]
pub struct Trust {
    /// The certificate of the API server's authority, PEM.
    pub authority: String,
    /// Signs the tokens of secrets.
    pub sign: tokens::Sign,
}

impl Parts<'_> {
    fn term(&self) -> Term {
        self.term.clone()
    }

    fn ambient(&self) -> Ambient {
        self.ambient.clone()
    }

    fn workloads(&self) -> workloads::Informers {
        let start = || workloads::Informers::start(&(self.client)(MANAGER), self.term, self.ambient);
        self.workloads.get_or_init(start).clone()
    }

    fn informers(&self) -> Informers {
        self.informers.get_or_init(|| Informers::start(&(self.client)(MANAGER), self.term, self.ambient)).clone()
    }
}

/// Starts those that are selected, each under an identity of its own. The tasks end, settled, when the term does.
pub fn start(
    selection: &Selection,
    term: &Term,
    ambient: &Ambient,
    trust: Option<Trust>,
    client: &(dyn Fn(Account) -> Client + Sync),
) -> JoinSet<Result<(), String>> {
    let parts =
        Parts { term, ambient, client, trust: trust.as_ref(), informers: OnceLock::new(), workloads: OnceLock::new() };
    let mut tasks = JoinSet::new();
    for controller in selection.controllers() {
        let running = (controller.run)(client(controller.account), &parts);
        tasks.spawn(async move {
            let ended = running.await;
            if let Err(error) = &ended {
                tracing::error!(controller = controller.name, %error, "the controller ended");
            }
            ended
        });
    }
    tasks
}

/// For a controller that lacks what it would hand out.
fn idle() -> BoxFuture<'static, Result<(), String>> {
    Box::pin(std::future::ready(Ok(())))
}

fn boxed<E: std::fmt::Display>(
    running: impl Future<Output = Result<(), E>> + Send + 'static,
) -> BoxFuture<'static, Result<(), String>> {
    Box::pin(async move { running.await.map_err(|error| error.to_string()) })
}

/// Which controllers run: `*`, `statefulset,garbagecollector`, `*,-scheduler`, or `none`.
///
/// As in kube-controller-manager: the first mention of a name counts, and `*` stands for all that are not mentioned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<&'static str>);

impl Selection {
    /// Every controller.
    pub fn all() -> Self {
        Self(CONTROLLERS.iter().map(|c| c.name).collect())
    }

    /// Those selected, in the order of their names.
    pub fn controllers(&self) -> impl Iterator<Item = &'static Controller> {
        CONTROLLERS.iter().filter(|c| self.0.contains(&c.name))
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        if words == ["none"] {
            return Ok(Self(Vec::new()));
        }
        let mut said: Vec<(&str, bool)> = Vec::new();
        for word in words.iter().filter(|word| **word != "*") {
            let (name, on) = word.strip_prefix('-').map_or((*word, true), |name| (name, false));
            if name == "none" || name.is_empty() || name == "*" {
                return Err(SelectionError::Shape { word: (*word).to_owned() });
            }
            let controller = Controller::named(name).ok_or_else(|| SelectionError::unknown(name))?;
            said.push((controller.name, on));
        }
        let others = words.contains(&"*");
        let chosen = |name: &str| said.iter().find(|(said, _)| *said == name).map_or(others, |(_, on)| *on);
        Ok(Self(CONTROLLERS.iter().map(|c| c.name).filter(|name| chosen(name)).collect()))
    }
}

/// The names and what they stand for, one a line: for help.
pub fn listing() -> String {
    let line = |c: &Controller| {
        let also = if c.alias.is_empty() { String::new() } else { format!(" (also {})", c.name) };
        format!("  {:<24} {}{also}", c.short(), c.does)
    };
    CONTROLLERS.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Letters inserted, dropped or exchanged to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let cost = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Why a list of controllers was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// There is no such controller. Take one of the list.
    #[error("there is no controller {name:?}; did you mean {nearest:?}? There are: {}", known())]
    Unknown {
        /// What was asked for.
        name: String,
        /// The right name that is most like it.
        nearest: &'static str,
    },
    /// A word that stands for nothing here.
    #[error(
        "{word:?} is not a controller's name; write names, -names and * with commas between, or none alone. There are: {}",
        known()
    )]
    Shape {
        /// The word.
        word: String,
    },
}

impl SelectionError {
    fn unknown(name: &str) -> Self {
        let names = CONTROLLERS.iter().flat_map(|c| [c.short(), c.name]);
        let nearest = names.min_by_key(|known| distance(name, known)).expect("there are controllers");
        Self::Unknown { name: name.to_owned(), nearest }
    }
}

fn known() -> String {
    CONTROLLERS.iter().map(Controller::short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&'static str> {
        let selection: Selection = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        selection.controllers().map(Controller::short).collect()
    }

    #[test]
    fn names_are_unique_and_in_order() {
        let mut all: Vec<_> = CONTROLLERS.iter().map(|c| c.name).collect();
        assert!(all.is_sorted());
        all.extend(CONTROLLERS.iter().map(|c| c.alias).filter(|alias| !alias.is_empty()));
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }

    #[test]
    fn selections_are_read_as_kube_controller_manager_reads_them() {
        assert_eq!(names("*").len(), CONTROLLERS.len());
        assert_eq!(names("none"), [""; 0]);
        assert_eq!(names("statefulset, garbage-collector-controller"), ["garbagecollector", "statefulset"]);
        assert!(!names("*,-scheduler").contains(&"scheduler"));
        assert_eq!(names("*,-scheduler").len(), CONTROLLERS.len() - 1);
        assert_eq!(names("-scheduler"), [""; 0], "without a star nothing else runs");
        assert_eq!(names("-scheduler,scheduler"), [""; 0], "the first mention counts");
        assert_eq!(names("-statefulset,statefulset-controller,*").len(), CONTROLLERS.len() - 1);
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest_name_and_the_list() {
        let refused = |text: &str| text.parse::<Selection>().expect_err(text).to_string();
        for (text, nearest) in [
            ("statefulsets", "statefulset"),
            ("*,-shceduler", "scheduler"),
            ("garbage-collector", "garbagecollector"),
            ("pvc_protection", "pvc-protection"),
            ("endpointslices-controller", "endpointslice-controller"),
        ] {
            let said = refused(text);
            assert!(said.contains(&format!("did you mean {nearest:?}")), "{text}: {said}");
            assert!(said.contains("nodelifecycle, persistentvolume-binder, pv-protection"), "{said}");
        }
        for text in ["none,statefulset", "", "statefulset,", "-", "-*"] {
            assert!(refused(text).contains("none alone"), "{text}");
        }
    }
}
