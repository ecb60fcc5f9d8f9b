//! SPDY/3.1, the server's side: what kubectl before 1.30 speaks for exec, and every kubectl for port-forward.
//!
//! ```text
//!  bytes ─▶ Session ─▶ accept(): SpdyStream { headers, rx, write } ─▶ exec: one stream per channel
//!    ▲         │                                                  └─▶ forward: data and error per connection
//!    └─────────┘ one queue of frames out
//! ```
//!
//! SPDY's own flow control is not used by Kubernetes' clients; back-pressure is the connection's. A stream whose
//! reader is slow therefore holds up the whole connection, as it does upstream.

mod exec;
mod forward;
mod frame;
mod headers;
mod hello;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::mpsc;

use frame::{Decoder, Frame};
use headers::{Codec, Headers};

pub(super) use forward::{Ports, run as run_forward};
pub(super) use hello::{answer_forward, answer_remote, ports};

/// Streams that a client may have open for sending at a time.
const MAX_STREAMS: usize = 512;

/// Frames that wait for the connection, data that waits for a stream's reader, streams that wait to be taken.
const QUEUE: usize = 8;

/// How long a client may take to open all the streams that belong together.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);

/// Status of a reset that says that the stream is refused.
const REFUSED: u32 = 3;

/// A stream that the client opened.
pub(super) struct SpdyStream {
    id: u32,
    headers: Headers,
    /// Bytes from the client; `None` when it has finished or given up.
    rx: mpsc::Receiver<Bytes>,
    out: mpsc::Sender<Bytes>,
}

impl SpdyStream {
    /// A header's value; empty where there is none.
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    /// The sending half alone.
    fn writer(&self) -> Writer {
        Writer { id: self.id, out: self.out.clone() }
    }
}

/// Sends on one stream.
#[derive(Clone)]
struct Writer {
    id: u32,
    out: mpsc::Sender<Bytes>,
}

impl Writer {
    /// Fails where the connection is gone.
    async fn write(&self, data: &[u8]) -> Result<(), Broken> {
        self.send(frame::data(self.id, false, data)).await
    }

    /// Nothing more will be written.
    async fn finish(&self) -> Result<(), Broken> {
        self.send(frame::data(self.id, true, &[])).await
    }

    async fn send(&self, frame: Bytes) -> Result<(), Broken> {
        self.out.send(frame).await.map_err(|_| Broken("the connection is gone"))
    }
}

/// Begins a session on bytes that come from `input`. Gives the streams that the client opens, and the work that
/// moves it all, which ends with the input; frames to the client go to `out`.
fn session(
    input: impl Stream<Item = Bytes>,
    out: mpsc::Sender<Bytes>,
) -> (mpsc::Receiver<SpdyStream>, impl Future<Output = Result<(), Broken>>) {
    let (opened, streams) = mpsc::channel(QUEUE);
    let work = async move {
        let mut input = std::pin::pin!(input);
        let mut session = Session { codec: Codec::new(), readers: HashMap::new(), opened, out };
        let mut decoder = Decoder::default();
        while let Some(data) = input.next().await {
            decoder.push(&data);
            while let Some(frame) = decoder.next()? {
                session.take(frame).await?;
            }
        }
        Ok(())
    };
    (streams, work)
}

struct Session {
    codec: Codec,
    /// Where each stream's data goes, while the client may still send some.
    readers: HashMap<u32, mpsc::Sender<Bytes>>,
    opened: mpsc::Sender<SpdyStream>,
    out: mpsc::Sender<Bytes>,
}

impl Session {
    async fn take(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame {
            Frame::Syn { id, fin, block } => {
                // Also of a stream that will be refused: the compression's state goes on.
                let headers = self.codec.decode(&block)?;
                if id % 2 == 0 || self.readers.contains_key(&id) {
                    return Err(Broken("a stream was opened twice"));
                }
                if self.readers.len() >= MAX_STREAMS {
                    return self.send(frame::reset(id, REFUSED)).await;
                }
                let (tx, rx) = mpsc::channel(QUEUE);
                if !fin {
                    self.readers.insert(id, tx);
                }
                let block = self.codec.encode(&[]);
                self.send(frame::reply(id, &block)).await?;
                let stream = SpdyStream { id, headers, rx, out: self.out.clone() };
                self.opened.send(stream).await.map_err(|_| Broken("no more streams are expected"))?;
            }
            Frame::Headers(block) => {
                self.codec.decode(&block)?;
            }
            Frame::Data { id, fin, data } => {
                if let Some(reader) = self.readers.get(&id)
                    && !data.is_empty()
                {
                    // Whoever has stopped reading misses it.
                    let _ = reader.send(data).await;
                }
                if fin {
                    self.readers.remove(&id);
                }
            }
            Frame::Reset(id) => {
                self.readers.remove(&id);
            }
            Frame::Ping(number) if number % 2 == 1 => self.send(frame::ping(number)).await?,
            Frame::Ping(_) | Frame::GoAway | Frame::Other => {}
        }
        Ok(())
    }

    async fn send(&self, frame: Bytes) -> Result<(), Broken> {
        self.out.send(frame).await.map_err(|_| Broken("the connection is gone"))
    }
}

/// What ends a session early: the client speaks no SPDY/3.1, or is gone. Nobody is left to tell.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(super) struct Broken(&'static str);

#[cfg(test)]
mod tests;
