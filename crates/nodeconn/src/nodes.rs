//! Which nodes are connected now.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{ConnectError, Error, NodeConn, Stream, StreamRequest, connect};

/// The connected nodes by name. A newer connection of a node takes the place of its older one: an agent that
/// restarted is the one to ask, even where the old connection has not noticed yet.
#[derive(Default)]
pub struct Nodes {
    by_name: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    map: HashMap<String, Entry>,
    next: u64,
}

struct Entry {
    ticket: u64,
    conn: Arc<dyn NodeConn>,
}

impl Nodes {
    /// No node is connected.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Makes the connection the node's, until the registration is dropped or a newer one replaces it.
    pub fn register(self: &Arc<Self>, node: &str, conn: Arc<dyn NodeConn>) -> Registration {
        let mut entries = self.lock();
        entries.next += 1;
        let ticket = entries.next;
        entries.map.insert(node.to_owned(), Entry { ticket, conn });
        Registration { nodes: self.clone(), node: node.to_owned(), ticket }
    }

    /// Takes the node out, whichever connection it has.
    pub fn remove(&self, node: &str) {
        self.lock().map.remove(node);
    }

    /// Greets the agent at the other end of `io`, registers it, and drives the connection until it ends.
    /// The caller has made sure that it is that node (a client certificate, or a pipe of its own making).
    pub async fn attach<T>(self: &Arc<Self>, node: &str, io: T) -> Result<(), ConnectError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (conn, driver) = connect(io).await?;
        let _registered = self.register(node, Arc::new(conn));
        driver.await
    }

    /// Opens a stream to a node.
    pub async fn open(&self, node: &str, request: StreamRequest) -> Result<Stream, Error> {
        let conn = self.lock().map.get(node).map(|entry| entry.conn.clone());
        match conn {
            Some(conn) => conn.open(request).await,
            None => Err(Error::NotConnected(node.to_owned())),
        }
    }

    /// Whether the node has a connection.
    pub fn is_connected(&self, node: &str) -> bool {
        self.lock().map.contains_key(node)
    }

    /// The names of the connected nodes, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().map.keys().cloned().collect();
        names.sort();
        names
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// Keeps a node registered; dropping it takes out this connection and no newer one.
#[must_use = "dropping it unregisters the node"]
#[derive(Debug)]
pub struct Registration {
    nodes: Arc<Nodes>,
    node: String,
    ticket: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.nodes.lock();
        if entries.map.get(&self.node).is_some_and(|entry| entry.ticket == self.ticket) {
            entries.map.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    #[async_trait::async_trait]
    impl NodeConn for Named {
        async fn open(&self, _: StreamRequest) -> Result<Stream, Error> {
            Err(Error::Failed(self.0.to_owned()))
        }
    }

    async fn who(nodes: &Nodes) -> String {
        nodes.open("n1", StreamRequest::Stats).await.expect_err("these never open").to_string()
    }

    #[tokio::test]
    async fn an_unknown_node_is_not_connected() {
        assert_eq!(who(&Nodes::new()).await, "node n1 is not connected");
    }

    #[tokio::test]
    async fn a_newer_connection_replaces_and_outlives_the_older_registration() {
        let nodes = Nodes::new();
        let old = nodes.register("n1", Arc::new(Named("old")));
        assert_eq!(who(&nodes).await, "old");
        let new = nodes.register("n1", Arc::new(Named("new")));
        drop(old);
        assert_eq!(who(&nodes).await, "new");
        drop(new);
        assert!(!nodes.is_connected("n1"));
    }
}
