//! The feed's protocol: a hello of magic and version from both ends, then frames of JSON, each with its length before it.

use std::io;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::records::{Cluster, EndpointSlice, Service};

/// Version of the protocol. A daemon of the next version speaks to a node-dns of this one, or replaces it.
pub(crate) const VERSION: u32 = 1;
/// What both ends begin with.
const MAGIC: &[u8; 8] = b"SFDNSFED";
/// Longest frame. Far above the state of the largest node we design for; a stray length is refused.
const FRAME_MAX: u32 = 256 << 20;

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    /// This is all.
    Full(Cluster),
    /// This changed since the state with the serial `base`.
    Delta(Delta),
    /// Stop.
    Shutdown,
}

/// To the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Reply {
    /// After the hello.
    Welcome {
        /// Process id.
        pid: u32,
        /// Where queries are answered.
        listen: Vec<SocketAddr>,
    },
    /// Queries are answered from this state now.
    Applied {
        /// Serial of the state.
        serial: u32,
        /// Whether it is on disk too.
        persisted: bool,
    },
    /// The base of a delta is not what is answered from: push everything.
    WrongBase,
    /// Understood; the connection ends once everything is stopped.
    Stopping,
}

/// What changed between two states.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Delta {
    /// Serial of the state before.
    pub base: u32,
    /// Services that are new or different, by key.
    pub services: Vec<(String, Service)>,
    /// Services that are gone.
    pub gone_services: Vec<String>,
    /// Slices that are new or different, by key.
    pub slices: Vec<(String, EndpointSlice)>,
    /// Slices that are gone.
    pub gone_slices: Vec<String>,
}

impl Delta {
    /// What leads from one state to another.
    pub(crate) fn between(base: u32, old: &Cluster, new: &Cluster) -> Self {
        let services = new.services.iter().filter(|(key, value)| old.services.get(*key) != Some(value));
        let slices = new.slices.iter().filter(|(key, value)| old.slices.get(*key) != Some(value));
        Self {
            base,
            services: services.map(|(key, value)| (key.clone(), value.clone())).collect(),
            gone_services: old.services.keys().filter(|key| !new.services.contains_key(*key)).cloned().collect(),
            slices: slices.map(|(key, value)| (key.clone(), value.clone())).collect(),
            gone_slices: old.slices.keys().filter(|key| !new.slices.contains_key(*key)).cloned().collect(),
        }
    }

    /// Carries the change out.
    pub(crate) fn apply(self, cluster: &mut Cluster) {
        for key in &self.gone_services {
            cluster.services.remove(key);
        }
        for key in &self.gone_slices {
            cluster.slices.remove(key);
        }
        cluster.services.extend(self.services);
        cluster.slices.extend(self.slices);
    }
}

/// Sends our magic and version.
pub(crate) async fn send_hello(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut hello = MAGIC.to_vec();
    hello.extend(VERSION.to_be_bytes());
    stream.write_all(&hello).await
}

/// Reads the other end's version.
pub(crate) async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u32> {
    let mut hello = [0; 12];
    stream.read_exact(&mut hello).await?;
    let (magic, version) = hello.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the other end does not speak the feed's protocol"));
    }
    Ok(version.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// Sends one frame.
pub(crate) async fn send<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= FRAME_MAX);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the state is too large for a frame"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await
}

/// Reads one frame.
pub(crate) async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
    }
    // Grows with what arrives, so that a stray length takes no memory.
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body).await?;
    if body.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_leads_from_one_state_to_the_other() {
        let service =
            |name: &str, headless| Service { namespace: "n".into(), name: name.into(), headless, ..Service::default() };
        let state = |services: &[Service], slices: &[&str]| Cluster {
            services: services.iter().map(|s| (s.key(), s.clone())).collect(),
            slices: slices.iter().map(|s| ((*s).to_owned(), EndpointSlice::default())).collect(),
        };
        let old = state(&[service("a", true), service("b", true)], &["x"]);
        let new = state(&[service("b", false), service("c", true)], &["y"]);
        let delta = Delta::between(1, &old, &new);
        assert_eq!(delta.services.len(), 2);
        let mut moved = old.clone();
        delta.apply(&mut moved);
        assert_eq!(moved, new);
        assert_eq!(Delta::between(1, &new, &new), Delta { base: 1, ..Delta::default() });
    }

    #[tokio::test]
    async fn an_endless_frame_is_refused() {
        let bytes = u32::MAX.to_be_bytes();
        let error = read::<Reply>(&mut &bytes[..]).await.expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
