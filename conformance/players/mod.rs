//! Everything around a StatefulSet controller, played by the suite: user, scheduler, kubelet, and somebody who watches.
//!
//! | module | holds |
//! |---|---|
//! | `stage` | a namespace with all of them in it |
//! | `world` | what was seen, and the trace that follows from it |
//! | `kubelet` | scheduler and kubelet, by rules |
//! | `objects`, `client` | manifests from short options; calls |

pub(crate) mod client;
pub(crate) mod kubelet;
pub(crate) mod objects;
pub(crate) mod stage;
pub(crate) mod world;
