//! Runs the cases, many at once, and tells how each ended.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Duration;

use crate::cluster::{Case, Cluster};
use crate::replay::Differences;
use crate::target::{Running, Target};

/// Cases under way at once at one server: they mostly wait.
const AT_ONCE: usize = 16;
/// How long a case may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a case ended.
pub(crate) type Verdict = Result<(), String>;

/// What a case does.
pub(crate) type Body = Box<dyn FnOnce(Case) -> Pin<Box<dyn Future<Output = Verdict> + Send>> + Send>;

/// One case.
pub(crate) struct Named {
    /// Group, two colons, what it shows.
    pub(crate) name: String,
    /// What else the server runs.
    pub(crate) running: Running,
    /// What it does.
    pub(crate) body: Body,
}

/// Names the functions of modules as cases of a group, for servers that run this.
macro_rules! cases {
    ($of:literal on $running:expr; $($module:ident: $($name:ident)+;)+) => {
        vec![$($({
            let body: $crate::runner::Body = Box::new(|case: $crate::cluster::Case| {
                Box::pin(async move {
                    $module::$name(case).await;
                    Ok(())
                })
            });
            let name = format!(concat!($of, "::{}::{}"), stringify!($module), stringify!($name));
            $crate::runner::Named { name, running: $running, body }
        }),+),+]
    };
}
pub(crate) use cases;

/// Which cases to run. Understands what `cargo test` passes on; what it does not know it leaves alone.
#[derive(Default)]
pub(crate) struct Selection {
    words: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    /// Only names are wanted.
    pub(crate) list: bool,
}

impl Selection {
    /// From the command line.
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Self {
        let mut selection = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => selection.list = true,
                "--exact" => selection.exact = true,
                "--skip" => selection.skipped.extend(args.next()),
                // They have a value, which is no word.
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => drop(args.next()),
                other if other.starts_with('-') => {}
                word => selection.words.push(word.to_owned()),
            }
        }
        selection
    }

    fn wants(&self, name: &str) -> bool {
        let hit = |word: &String| if self.exact { name == word } else { name.contains(word.as_str()) };
        (self.words.is_empty() || self.words.iter().any(hit)) && !self.skipped.iter().any(hit)
    }
}

tokio::task_local! {
    /// The case that a task belongs to.
    static NAME: String;
}

thread_local! {
    /// Where and why this thread panicked last.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs what is selected against the server under test.
pub(crate) async fn run(cases: Vec<Named>, selection: Selection) -> ExitCode {
    let known = cases.len();
    let cases: Vec<Named> = cases.into_iter().filter(|case| selection.wants(&case.name)).collect();
    let everything = cases.len() == known;
    if cases.is_empty() {
        println!("0 passed, 0 failed, 0 ignored");
        return ExitCode::SUCCESS;
    }
    let (cases, skipped): (Vec<Named>, Vec<Named>) =
        cases.into_iter().partition(|case| case.running.own_alone().is_none() || !Target::is_given());
    for case in &skipped {
        println!("test {} ... ignored, {}", case.name, case.running.own_alone().unwrap_or_default());
    }
    let mut targets = BTreeMap::new();
    for running in cases.iter().map(|case| case.running).collect::<BTreeSet<_>>() {
        match Target::start(running).await {
            Ok(target) => drop(targets.insert(running, target)),
            Err(why) => {
                println!("there is no server to test: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if NAME.try_with(|_| ()).is_err() {
            eprintln!("{text}");
        }
        PANIC.with_borrow_mut(|last| *last = text);
    }));
    let (passed, mut failed) = all(cases, &targets).await;
    if everything {
        failed.extend(Differences::shared().unused().map(|why| ("recorded::differences".to_owned(), why)));
    }
    for (name, why) in &failed {
        println!("\n---- {name}\n{why}");
    }
    for target in targets.into_values() {
        target.stop(!failed.is_empty()).await;
    }
    println!("\n{passed} passed, {} failed, {} ignored", failed.len(), skipped.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs cases side by side: how many passed, and why the others did not.
async fn all(cases: Vec<Named>, targets: &BTreeMap<Running, Target>) -> (usize, Vec<(String, String)>) {
    let permits: BTreeMap<Running, _> = targets.keys().map(|key| (*key, Arc::new(Semaphore::new(AT_ONCE)))).collect();
    let mut tasks = JoinSet::new();
    for Named { name, running, body } in cases {
        let (permits, cluster) = (permits[&running].clone(), targets[&running].cluster().clone());
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let verdict = one(&name, body, &cluster).await;
            (name, verdict)
        });
    }
    let (mut passed, mut failed) = (0, Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (name, verdict) = ended.expect("a case's panic is caught within");
        println!("test {name} ... {}", if verdict.is_ok() { "ok" } else { "FAILED" });
        match verdict {
            Ok(()) => passed += 1,
            Err(why) => failed.push((name, why)),
        }
    }
    failed.sort();
    (passed, failed)
}

/// Runs one case in a namespace of its own.
async fn one(name: &str, body: Body, cluster: &Cluster) -> Verdict {
    let case = cluster.case().await?;
    let end = case.clone();
    let work = NAME.scope(name.to_owned(), async move { tokio::time::timeout(PATIENCE, body(case)).await });
    let verdict = match tokio::spawn(CatchPanic(Box::pin(work))).await {
        Ok(Ok(Ok(verdict))) => verdict,
        Ok(Ok(Err(_))) => Err(format!("did not end within {PATIENCE:?}")),
        Ok(Err(panicked)) => Err(panicked),
        Err(error) => Err(error.to_string()),
    };
    end.clean_up().await;
    verdict
}

/// A future whose panic is an error that tells where it was.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        match panic::catch_unwind(panic::AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            // The hook ran on this thread just before.
            Err(_) => std::task::Poll::Ready(Err(PANIC.with_borrow(Clone::clone))),
        }
    }
}
