//! What both ends do with a stream: frames out as DATA, DATA in as frames, and pings in between.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong, RecvStream, SendStream};

use crate::frame::{Decoder, Garbled, Wire};

/// How often an idle connection is probed.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How long an answer to a ping may take before the peer is given up: longer than a busy machine's pause.
const PONG_WITHIN: Duration = Duration::from_secs(30);

/// The sending half of a stream.
pub(crate) struct Out {
    stream: SendStream<Bytes>,
}

impl Out {
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream }
    }

    /// Sends one frame; waits while the receiver has no room.
    pub(crate) async fn send(&mut self, wire: &Wire) -> Result<(), h2::Error> {
        for piece in wire.encode() {
            self.send_bytes(piece).await?;
        }
        Ok(())
    }

    async fn send_bytes(&mut self, mut data: Bytes) -> Result<(), h2::Error> {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let room = match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                Some(room) => room?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            let piece = data.split_to(room.min(data.len()));
            if !piece.is_empty() {
                self.stream.send_data(piece, false)?;
            }
        }
        Ok(())
    }

    /// No more frames from this side.
    pub(crate) fn finish(&mut self) {
        // Fails only where the stream is gone already.
        let _ = self.stream.send_data(Bytes::new(), true);
    }

    /// Gives the stream up in both directions.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    /// Waits until the other side gives the stream up, or the connection is gone.
    pub(crate) async fn given_up(&mut self) {
        let _ = poll_fn(|cx| self.stream.poll_reset(cx)).await;
    }
}

/// The receiving half of a stream.
pub(crate) struct In {
    stream: RecvStream,
    decoder: Decoder,
    /// Bytes decoded whose window has not been given back: the reader has not taken them yet.
    held: usize,
}

impl In {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::default(), held: 0 }
    }

    /// The next frame; `None` at the peer's end of the stream. Being asked means that all earlier frames were
    /// taken, so only then does the peer get room for more.
    pub(crate) async fn next(&mut self) -> Result<Option<Wire>, Lost> {
        loop {
            if let Some(wire) = self.decoder.next()? {
                return Ok(Some(wire));
            }
            if self.held > 0 {
                self.stream.flow_control().release_capacity(self.held)?;
                self.held = 0;
            }
            match self.stream.data().await {
                Some(Ok(data)) => {
                    self.held += data.len();
                    self.decoder.push(&data);
                }
                // The node has said everything and wants no more input.
                Some(Err(error)) if error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(error.into()),
                None if self.decoder.is_empty() => return Ok(None),
                None => return Err(Lost::Cut),
            }
        }
    }
}

/// Ends when the peer no longer answers pings.
pub(crate) async fn keep_alive(mut pings: PingPong) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match tokio::time::timeout(PONG_WITHIN, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Why a stream ended without its proper end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// Reset by the peer, or the connection is gone.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The peer sends what is no frame.
    #[error(transparent)]
    Garbled(#[from] Garbled),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Cut,
}
