//! The agent's end: answers the streams that the API server opens.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::frame::Wire;
use crate::pump::{In, Out, keep_alive};
use crate::{
    CONNECTION_WINDOW, ConnectError, Error, Frame, MAGIC, MAX_STREAMS, NodeHandler, QUEUE_FRAMES, STREAM_WINDOW,
    Stream, VERSION,
};

/// How long the server may take to begin HTTP/2.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long a stream's request may take to arrive.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Serves streams on `io` until the connection ends. Dropping the future drops every handler.
pub async fn serve<T>(io: T, handler: Arc<dyn NodeHandler>) -> Result<(), ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS);
    let mut connection = tokio::time::timeout(HANDSHAKE_WITHIN, builder.handshake::<_, Bytes>(io))
        .await
        .map_err(|_| ConnectError::Silent)??;
    let pings = connection.ping_pong();
    let mut streams = JoinSet::new();
    let accept = async {
        loop {
            tokio::select! {
                next = connection.accept() => match next {
                    Some(Ok((request, answer))) => { streams.spawn(answer_one(request, answer, handler.clone())); }
                    Some(Err(error)) => return Err(ConnectError::Http2(error)),
                    None => return Ok(()),
                },
                Some(_) = streams.join_next() => {}
            }
        }
    };
    let alive = async {
        match pings {
            Some(pings) => keep_alive(pings).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = accept => ended,
        () = alive => Err(ConnectError::Silent),
    }
}

/// Greets, refuses, or serves a stream.
async fn answer_one(request: Request<RecvStream>, mut answer: SendResponse<Bytes>, handler: Arc<dyn NodeHandler>) {
    let status = match (speaks_ours(request.headers()), request.uri().path()) {
        (false, _) => StatusCode::UPGRADE_REQUIRED,
        (true, "/hello" | "/stream") => StatusCode::OK,
        (true, _) => StatusCode::NOT_FOUND,
    };
    let streams = status == StatusCode::OK && request.uri().path() == "/stream";
    let head = Response::builder().status(status).header(MAGIC, VERSION).body(()).expect("constant parts");
    // Fails only where the stream is gone already.
    let Ok(out) = answer.send_response(head, !streams) else { return };
    if streams {
        stream(In::new(request.into_body()), Out::new(out), handler).await;
    }
}

fn speaks_ours(headers: &HeaderMap) -> bool {
    headers.get(MAGIC).is_some_and(|version| version == VERSION)
}

/// Reads the request and runs the handler on it.
async fn stream(mut input: In, mut out: Out, handler: Arc<dyn NodeHandler>) {
    let request = match tokio::time::timeout(REQUEST_WITHIN, input.next()).await {
        Ok(Ok(Some(Wire::Request(request)))) => *request,
        _ => return out.reset(h2::Reason::PROTOCOL_ERROR),
    };
    let (to_server, from_handler) = mpsc::channel(QUEUE_FRAMES);
    let (to_handler, from_server) = mpsc::channel(QUEUE_FRAMES);
    let (done, result) = oneshot::channel();
    let handle = async {
        let _ = done.send(handler.handle(request, Stream { tx: to_server, rx: from_server }).await);
        std::future::pending::<()>().await;
    };
    let receive = async {
        if receive(input, to_handler).await {
            std::future::pending::<()>().await;
        }
    };
    // The handler is dropped when the stream is done, broken or cancelled.
    tokio::select! {
        () = handle => {}
        () = receive => {}
        () = send(out, from_handler, result) => {}
    }
}

/// Frames from the handler to the server, until the handler is done or the server gives the stream up (which is
/// also how a lost connection shows).
async fn send(mut out: Out, mut from_handler: mpsc::Receiver<Frame>, mut result: oneshot::Receiver<Result<(), Error>>) {
    let mut open = true;
    let mut returned = None;
    while open || returned.is_none() {
        tokio::select! {
            // What the handler sent before it returned still goes out; what its strays send later does not.
            done = &mut result, if returned.is_none() => {
                returned = Some(done);
                from_handler.close();
            }
            frame = from_handler.recv(), if open => match frame {
                Some(frame) => if out.send(&Wire::Frame(frame)).await.is_err() { return },
                None => open = false,
            },
            () = out.given_up() => return,
        }
    }
    if let Some(Ok(Err(error))) = returned
        && out.send(&Wire::Refused(error)).await.is_err()
    {
        return;
    }
    out.finish();
}

/// Frames from the server to the handler. True at the server's half-close, false where the stream broke.
async fn receive(mut input: In, to_handler: mpsc::Sender<Frame>) -> bool {
    loop {
        match input.next().await {
            // A handler that takes no input has dropped its end; the rest is read and thrown away.
            Ok(Some(Wire::Frame(frame))) => {
                let _ = to_handler.send(frame).await;
            }
            Ok(Some(_)) | Err(_) => return false,
            Ok(None) => return true,
        }
    }
}
