//! The StatefulSet decision and its execution, both without I/O.
//!
//! ```text
//!   API objects ──project──▶ Observed ──plan──▶ Plan ──step──▶ Request ──▶ (driver, simulator)
//!                               ▲                       ▲                        │
//!                               └── what was learnt ────┴────── Response ◀───────┘
//! ```
//!
//! [`plan()`] looks at one consistent view of a set and says what to do: calls in order, the status to
//! write, when to look again, and a [`Reason`] for every pod that is not moving. [`step()`] carries a plan
//! out: it takes the answer to a call and gives the next calls, one [`Request`] being one API call. Driver,
//! simulator, model checker and the commands that explain all use these two functions, so what is
//! checked is what runs.
//!
//! Nothing here knows the Kubernetes types: a pod template is an opaque [`Blob`], and everything else is
//! small, `Clone + Eq + Hash + Ord`.
//!
//! - `types`: what is observed.
//! - `names`: names, ordinals and revision hashes.
//! - `revision`: which template is current, which is the target, which history may go.
//! - `claims`: who should own a claim, by retention policy.
//! - `plan`: the order of things. `view`: pods laid out by ordinal. `update`: which pods a rollout takes down.
//! - `recover`: broken pods that a rollout does not wait for. `progress`: whether it stands still.
//! - `leave`: a set that goes, one pod after another. `beyond`: what annotations ask for.
//! - `status`: counters, and whether they are worth a write.
//! - `exec`: the state machine that carries a plan out. `call`: what it asks for and hears.

mod beyond;
mod call;
mod claims;
mod exec;
mod leave;
mod names;
mod plan;
mod progress;
mod reason;
mod recover;
mod revision;
mod status;
mod types;
mod update;
mod view;

pub use beyond::{Beyond, Condition, ConditionKind, Reserved, Trouble, Truth};
pub use call::{Act, Answer, Call, ClaimMark, Event, Failure, FailureKind, Level, LiveSet, Request, Response};
pub use exec::{ExecState, Outcome, Verdict, step};
pub use names::{claim_name, parent_and_ordinal, pod_name, revision_hash, revision_name};
pub use plan::{Hold, Phase, Plan, Prologue, RevisionAct, Task, plan};
pub use reason::{Cause, Reason, Why};
pub use types::{
    Blob, Claim, Management, Member, Millis, Observed, Owner, Phase as PodPhase, Pod, Retention, Revision, Set, Status,
    Strategy, Unavailable,
};
