//! Where a balancer outside asks whether this node has endpoints of a service: `healthCheckNodePort`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::services::{self, balance};

/// How long a client may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Longest question.
const QUESTION_MAX: usize = 4096;

/// The ports that are asked.
#[derive(Debug)]
pub(super) struct Health {
    node: String,
    /// By port: the service, and how many endpoints it has here.
    open: BTreeMap<u16, Open>,
}

#[derive(Debug)]
struct Open {
    tell: watch::Sender<(String, usize)>,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Health {
    /// None is open.
    pub(super) fn new(node: &str) -> Self {
        Self { node: node.to_owned(), open: BTreeMap::new() }
    }

    /// Opens, changes and closes what is needed.
    pub(super) fn update(&mut self, cluster: &services::Cluster) {
        let asked = cluster.services.iter().filter_map(|(name, service)| Some((service.health_port?, name)));
        let wanted: BTreeMap<u16, &String> = asked.collect();
        self.open.retain(|port, open| wanted.contains_key(port) && !open.task.is_finished());
        for (port, name) in wanted {
            let now = (name.clone(), balance::local_endpoints(cluster, name, &self.node));
            match self.open.get(&port) {
                Some(open) => _ = open.tell.send_replace(now),
                None => {
                    let (tell, told) = watch::channel(now);
                    self.open.insert(port, Open { tell, task: tokio::spawn(serve(port, told)) });
                }
            }
        }
    }
}

async fn serve(port: u16, told: watch::Receiver<(String, usize)>) {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
        Ok(listener) => listener,
        // Tried again at the next look.
        Err(error) => return tracing::debug!(%error, port, "the health of a service cannot be asked"),
    };
    while let Ok((stream, _)) = listener.accept().await {
        let now = told.borrow().clone();
        // One after the other: a question is short, and its answer too.
        let _ = timeout(ASK_LIMIT, answer(stream, &now)).await;
    }
}

async fn answer(mut stream: TcpStream, (service, count): &(String, usize)) -> std::io::Result<()> {
    let mut question = Vec::new();
    let mut buffer = [0; 512];
    while !question.windows(4).any(|end| end == b"\r\n\r\n") && question.len() < QUESTION_MAX {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => question.extend_from_slice(&buffer[..length]),
        }
    }
    stream.write_all(reply(service, *count).as_bytes()).await?;
    stream.shutdown().await
}

/// In the words of kube-proxy.
fn reply(service: &str, count: usize) -> String {
    let (namespace, name) = service.split_once('/').unwrap_or_default();
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = json!({"service": {"namespace": namespace, "name": name}, "localEndpoints": count,
        "serviceProxyHealthy": true});
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_endpoints_is_not_well() {
        assert!(reply("n/web", 2).starts_with("HTTP/1.1 200 OK\r\n"));
        let none = reply("n/web", 0);
        assert!(none.starts_with("HTTP/1.1 503 "), "{none}");
        assert!(
            none.ends_with(
                r#"{"localEndpoints":0,"service":{"name":"web","namespace":"n"},"serviceProxyHealthy":true}"#
            )
        );
    }
}
