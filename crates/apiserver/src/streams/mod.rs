//! Logs, exec, attach and port-forward: from an HTTP request to a stream of the pod's node.
//!
//! ```text
//!  kubectl ══ HTTP chunks | WebSocket channels | SPDY streams ══▶ here ══ nodeconn ══▶ agent
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `log` | options and the streamed answer of pods/log |
//! | `remote` | exec and attach: options, and the bridge between a client and a node, whatever carries it |
//! | `channels` | the messages of Kubernetes' WebSocket subprotocols |
//! | `upgrade` | from HTTP to the bare connection, and its orderly end |
//! | `websocket` | exec, attach and port-forward over WebSocket |
//! | `spdy` | the same over SPDY/3.1, on a connection of its own or inside a WebSocket |
//!
//! The node's stream is opened before the client's connection is upgraded, so that what the node refuses is
//! answered with a Status. When the client goes away the node's stream is dropped, which ends the command.

mod channels;
mod log;
mod remote;
mod spdy;
mod upgrade;
mod websocket;

use std::sync::Arc;

use api::status::Status;
use http::Response;
use http::header::UPGRADE;
use http::request::Parts;
use jiff::Timestamp;
use nodeconn::{Nodes, StreamRequest, Target};
use serde_json::Value;

use crate::body::Body;
use crate::errors::{Fail, Outcome};
use crate::query::Query;

/// A stream that is asked for: about which pod, on which node.
struct Call<'a> {
    nodes: &'a Arc<Nodes>,
    /// Wall time, for ages.
    now: Timestamp,
    pod: &'a Value,
    query: Query,
}

/// Serves `pods/log`, `exec`, `attach` or `portforward` of a stored pod. The request is authorized already.
pub(crate) async fn handle(
    nodes: &Arc<Nodes>,
    now: Timestamp,
    pod: &Value,
    subresource: &str,
    parts: Parts,
) -> Outcome<Response<Body>> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let call = Call { nodes, now, pod, query };
    if subresource == "log" {
        return log::serve(&call).await;
    }
    let request = match subresource {
        "exec" => remote::exec(&call)?,
        "attach" => remote::attach(&call)?,
        "portforward" => {
            call.node()?;
            return match upgrade_of(&parts) {
                Some(Upgrade::WebSocket) => websocket::forward(&call, parts).await,
                Some(Upgrade::Spdy) => spdy::answer_forward(&call, parts),
                None => Err(not_upgraded()),
            };
        }
        _ => return Err(Box::new(Status::path_not_found())),
    };
    match upgrade_of(&parts) {
        Some(Upgrade::WebSocket) => websocket::remote(&call, request, parts).await,
        Some(Upgrade::Spdy) => spdy::answer_remote(&call, request, parts).await,
        None => Err(not_upgraded()),
    }
}

/// What a client wants its connection to become.
enum Upgrade {
    WebSocket,
    Spdy,
}

fn upgrade_of(parts: &Parts) -> Option<Upgrade> {
    let wanted = parts.headers.get(UPGRADE)?.to_str().ok()?;
    if wanted.eq_ignore_ascii_case("websocket") {
        Some(Upgrade::WebSocket)
    } else if wanted.eq_ignore_ascii_case("SPDY/3.1") {
        Some(Upgrade::Spdy)
    } else {
        None
    }
}

fn not_upgraded() -> Fail {
    Box::new(Status::bad_request("Upgrade request required"))
}

impl Call<'_> {
    /// The pod's name.
    fn name(&self) -> &str {
        self.pod["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The node that the pod is bound to; empty where there is none yet.
    fn assigned(&self) -> &str {
        self.pod["spec"]["nodeName"].as_str().unwrap_or_default()
    }

    /// The node that the pod is bound to, or the refusal.
    fn node(&self) -> Outcome<&str> {
        match self.assigned() {
            "" => Err(Box::new(Status::bad_request(format!("pod {} does not have a host assigned", self.name())))),
            node => Ok(node),
        }
    }

    /// The container that the query names, or the only one.
    fn container(&self) -> Outcome<String> {
        let names = |list: &str| -> Vec<String> {
            let containers = self.pod["spec"][list].as_array().into_iter().flatten();
            containers.filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
        };
        let (main, init) = (names("containers"), names("initContainers"));
        let refuse = |why: String| Err(Box::new(Status::bad_request(why)));
        match (self.query.text("container"), main.as_slice()) {
            ("", [only]) => Ok(only.clone()),
            ("", _) => {
                let mut why = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    self.name(),
                    main.join(" ")
                );
                if !init.is_empty() {
                    why = format!("{why} or one of the init containers: [{}]", init.join(" "));
                }
                refuse(why)
            }
            (asked, _) => {
                let all = [main.clone(), init, names("ephemeralContainers")].concat();
                if all.iter().any(|name| name == asked) {
                    Ok(asked.to_owned())
                } else {
                    refuse(format!("container {asked} is not valid for pod {}", self.name()))
                }
            }
        }
    }

    /// What the node is asked about.
    fn target(&self, container: String) -> Target {
        let text = |field: &str| self.pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        Target { namespace: text("namespace"), pod: text("name"), uid: text("uid"), container }
    }

    /// Opens the stream at the pod's node.
    async fn open(&self, request: StreamRequest) -> Outcome<nodeconn::Stream> {
        self.nodes.open(self.node()?, request).await.map_err(refusal)
    }
}

/// What a node's refusal is answered with.
fn refusal(error: nodeconn::Error) -> Fail {
    let text = error.to_string();
    Box::new(match error {
        nodeconn::Error::NotConnected(_) => {
            Status::service_unavailable(format!("{text}; try again when its agent is back"))
        }
        nodeconn::Error::NotFound(_) => Status::new(404, "NotFound", text),
        nodeconn::Error::BadRequest(_) => Status::bad_request(text),
        nodeconn::Error::Failed(_) => Status::internal(text),
    })
}

#[cfg(test)]
mod tests;
