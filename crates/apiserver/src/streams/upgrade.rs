//! From an HTTP request to the bare connection underneath, and its orderly end.

use std::future::Future;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt, stream};
use http::request::Parts;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use crate::errors::Outcome;

/// How long the client may take to begin after the answer to its upgrade.
const UPGRADE_WITHIN: Duration = Duration::from_secs(30);

/// How long the last words may take to reach the client, and how long it may take to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Pieces that wait in each direction.
const QUEUE: usize = 8;

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;

/// Takes the means to upgrade out of the request; there are none over HTTP/2.
pub(super) fn take(parts: &mut Parts) -> Outcome<OnUpgrade> {
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    upgrade.ok_or_else(|| Box::new(Status::bad_request("Upgrade request required")))
}

/// Runs `then` on the connection once the client has the answer.
pub(super) fn spawn<F>(upgrade: OnUpgrade, then: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match tokio::time::timeout(UPGRADE_WITHIN, upgrade).await {
            Ok(Ok(io)) => then(TokioIo::new(io)).await,
            Ok(Err(error)) => tracing::debug!(%error, "an upgraded connection did not begin"),
            Err(_) => tracing::debug!("an upgraded connection did not begin in time"),
        }
    });
}

/// Runs the work and the writer; what the work queued before it ended is still written.
pub(super) async fn finish(work: impl Future<Output = ()>, writer: impl Future<Output = ()>) {
    let mut writer = std::pin::pin!(writer);
    let written = {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            () = &mut work => false,
            () = &mut writer => true,
        }
    };
    if !written {
        let _ = tokio::time::timeout(CLOSE_WITHIN, writer).await;
    }
}

/// Reads and forgets until the client has closed: closing on unread bytes would take the last words from it.
pub(super) async fn drain(mut input: impl Stream + Unpin) {
    let _ = tokio::time::timeout(CLOSE_WITHIN, async { while input.next().await.is_some() {} }).await;
}

/// Runs `work` on a connection's bytes: it reads from the first, and what it sends to the second is written.
pub(super) async fn on_bytes<T, F>(io: T, work: impl FnOnce(BoxStream<'static, Bytes>, mpsc::Sender<Bytes>) -> F)
where
    T: AsyncRead + AsyncWrite,
    F: Future<Output = ()>,
{
    let (reader, mut writer) = tokio::io::split(io);
    let (to_work, mut arrived) = mpsc::channel::<Bytes>(QUEUE);
    let (out, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    let read = async move {
        let mut chunks = std::pin::pin!(ReaderStream::with_capacity(reader, CHUNK));
        while let Some(Ok(data)) = chunks.next().await {
            // Once the work is done the rest is read and forgotten.
            let _ = to_work.send(data).await;
        }
    };
    let write = async {
        while let Some(data) = queue.recv().await {
            if writer.write_all(&data).await.is_err() {
                return;
            }
        }
        // Fails where the client is gone already.
        let _ = writer.shutdown().await;
    };
    let input = stream::poll_fn(move |cx| arrived.poll_recv(cx)).boxed();
    let mut read = std::pin::pin!(read.fuse());
    let mut serve = std::pin::pin!(finish(work(input, out), write).fuse());
    loop {
        futures::select_biased! {
            () = serve => break,
            () = read => {}
        }
    }
    // Closing on unread bytes would take the last words from the client.
    let _ = tokio::time::timeout(CLOSE_WITHIN, read).await;
}
