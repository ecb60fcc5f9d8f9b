//! SPDY/3.1, the client's side, as far as Kubernetes' subprotocols need it: streams, data, and their ends.

use std::collections::BTreeSet;

use flate2::{Compress, Compression, FlushCompress};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::socket::{Connection, Said};
use crate::cluster::PATIENCE;

/// Bytes that pass between the two ends of a tunnel.
const TUNNEL: usize = 64 << 10;
/// Marks the last data of a stream.
const FIN: u8 = 1;

/// Bytes both ways.
trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// A connection.
pub(super) struct Spdy {
    pipe: Box<dyn Pipe>,
    /// All blocks of headers are one stream of compressed bytes. (Without the dictionary, which need not be used.)
    deflate: Compress,
    said: Said,
    finished: BTreeSet<u32>,
}

impl Spdy {
    /// On a connection.
    pub(super) fn over(connection: Connection) -> Self {
        Self::new(Box::new(connection))
    }

    /// In the messages of a WebSocket.
    pub(super) async fn inside(connection: Connection) -> Self {
        let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
        let (ours, theirs) = tokio::io::duplex(TUNNEL);
        let (mut sink, mut messages) = socket.split();
        let (mut read, mut write) = tokio::io::split(theirs);
        tokio::spawn(async move {
            let mut buffer = vec![0; TUNNEL];
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                if sink.send(Message::binary(buffer[..length].to_vec())).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                if let Message::Binary(data) = message
                    && write.write_all(&data).await.is_err()
                {
                    return;
                }
            }
        });
        Self::new(Box::new(ours))
    }

    fn new(pipe: Box<dyn Pipe>) -> Self {
        let deflate = Compress::new(Compression::fast(), true);
        Self { pipe, deflate, said: Said::default(), finished: BTreeSet::new() }
    }

    /// Opens a stream with headers.
    pub(super) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut block = u32::try_from(headers.len()).expect("few").to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 256);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).expect("it is compressed");
        // Version 3, SYN_STREAM; the stream, none that it belongs to, no priority.
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend([0; 6]);
        payload.extend(packed);
        self.frame([0x80, 3, 0, 1], 0, &payload).await;
    }

    /// Sends on a stream; `last` says that no more will be.
    pub(super) async fn write(&mut self, id: u32, data: &[u8], last: bool) {
        self.frame(id.to_be_bytes(), if last { FIN } else { 0 }, data).await;
    }

    async fn frame(&mut self, head: [u8; 4], flags: u8, payload: &[u8]) {
        let [_, length @ ..] = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let frame = [&head[..], &[flags], &length, payload].concat();
        self.pipe.write_all(&frame).await.expect("the server reads");
        self.pipe.flush().await.expect("the server reads");
    }

    /// Reads until the server has nothing more to say on these streams; tells all that it said.
    pub(super) async fn until_finished(&mut self, ids: &[u32]) -> &Said {
        let read = async {
            while !ids.iter().all(|id| self.finished.contains(id)) {
                let mut head = [0; 8];
                self.pipe.read_exact(&mut head).await.expect("the server goes on");
                let [a, b, c, d, flags, length @ ..] = head;
                let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
                let mut payload = vec![0; length as usize];
                self.pipe.read_exact(&mut payload).await.expect("the server goes on");
                // Answers to streams that were opened say nothing that is not known.
                let id = u32::from_be_bytes([a, b, c, d]);
                if id >> 31 == 0 {
                    self.said.add(id, &payload);
                    if flags & FIN != 0 {
                        self.finished.insert(id);
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("the streams end");
        &self.said
    }
}
