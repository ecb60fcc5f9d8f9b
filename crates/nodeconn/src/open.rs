//! The API server's end: opens streams on the connection that an agent brought.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::frame::{MAX_PAYLOAD, Wire};
use crate::pump::{In, Out, keep_alive};
use crate::{
    CONNECTION_WINDOW, ConnectError, Error, ExitStatus, Frame, MAGIC, MAX_STREAMS, NodeConn, QUEUE_FRAMES,
    STREAM_WINDOW, Stream, StreamRequest, VERSION,
};

/// How long the peer may take to greet.
const GREET_WITHIN: Duration = Duration::from_secs(10);

/// A node that has neither refused nor sent anything for so long has opened the stream: a shell that waits for
/// input is silent. What it refuses later arrives as [`Frame::Exit`] with an error.
const SILENCE_IS_CONSENT: Duration = Duration::from_millis(250);

/// How long a node may take to accept a stream at all.
const ACCEPT_WITHIN: Duration = Duration::from_secs(30);

/// A connection to one node's agent.
#[derive(Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    slots: Arc<Semaphore>,
}

/// Greets the agent at the other end of `io`. The second value drives the connection: nothing moves unless it is
/// polled, and it ends with the connection.
pub async fn connect<T>(
    io: T,
) -> Result<(Connection, impl Future<Output = Result<(), ConnectError>> + Send + 'static), ConnectError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
    let greet = async {
        let (requests, mut driver) = builder.handshake::<_, Bytes>(io).await?;
        let pings = driver.ping_pong();
        let greeted = tokio::select! {
            greeted = greet(requests.clone()) => greeted,
            ended = &mut driver => Err(ended.err().map_or(ConnectError::NotOurs, ConnectError::Http2)),
        };
        greeted.map(|()| (requests, driver, pings))
    };
    let (requests, driver, pings) =
        tokio::time::timeout(GREET_WITHIN, greet).await.map_err(|_| ConnectError::Silent)??;
    let driver = async move {
        let alive = async move {
            match pings {
                Some(pings) => keep_alive(pings).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = driver => ended.map_err(ConnectError::Http2),
            () = alive => Err(ConnectError::Silent),
        }
    };
    Ok((Connection { requests, slots: Arc::new(Semaphore::new(MAX_STREAMS as usize)) }, driver))
}

/// One round trip that makes sure of magic and version on both sides.
async fn greet(requests: SendRequest<Bytes>) -> Result<(), ConnectError> {
    let mut requests = requests.ready().await?;
    let (answer, _) = requests.send_request(head("/hello"), true)?;
    let answer = answer.await?;
    let version = answer.headers().get(MAGIC).and_then(|value| value.to_str().ok());
    match (answer.status(), version) {
        (StatusCode::OK, Some(VERSION)) => Ok(()),
        (_, Some(other)) => Err(ConnectError::Version(other.to_owned())),
        (_, None) => Err(ConnectError::NotOurs),
    }
}

fn head(path: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://node{path}"))
        .header(MAGIC, VERSION)
        .body(())
        .expect("constant parts")
}

#[async_trait]
impl NodeConn for Connection {
    async fn open(&self, request: StreamRequest) -> Result<Stream, Error> {
        let slot =
            self.slots.clone().try_acquire_owned().map_err(|_| {
                Error::Failed(format!("{MAX_STREAMS} streams to this node are open already; close some"))
            })?;
        let request = Wire::Request(Box::new(request));
        if request.encode().iter().map(Bytes::len).sum::<usize>() > MAX_PAYLOAD {
            return Err(Error::BadRequest("the command is too long".to_owned()));
        }
        let accept = async {
            let mut requests = self.requests.clone().ready().await.map_err(|e| lost(&e))?;
            let (answer, stream) = requests.send_request(head("/stream"), false).map_err(|e| lost(&e))?;
            let mut out = Out::new(stream);
            out.send(&request).await.map_err(|e| lost(&e))?;
            let answer = answer.await.map_err(|e| lost(&e))?;
            if answer.status() != StatusCode::OK {
                return Err(Error::Failed(format!("the node answers {}", answer.status())));
            }
            Ok((In::new(answer.into_body()), out))
        };
        let (input, out) = tokio::time::timeout(ACCEPT_WITHIN, accept)
            .await
            .map_err(|_| Error::Failed("the node does not answer".to_owned()))??;
        let (input, out, first) = first_frame(input, out).await?;
        Ok(start(input, out, first, slot))
    }
}

/// What the node said first, if anything.
enum First {
    /// Nothing worth telling.
    Silent,
    /// This.
    Frame(Frame),
    /// That it is done.
    End,
}

/// Waits for the node's first word.
async fn first_frame(mut input: In, out: Out) -> Result<(In, Out, First), Error> {
    let first = match tokio::time::timeout(SILENCE_IS_CONSENT, input.next()).await {
        // `In::next` keeps what it has read in the decoder, so giving up the wait loses nothing.
        Err(_) => First::Silent,
        Ok(Ok(Some(Wire::Refused(error)))) => return Err(error),
        Ok(Ok(Some(Wire::Frame(Frame::Stdout(data))))) if data.is_empty() => First::Silent,
        Ok(Ok(Some(Wire::Frame(frame)))) => First::Frame(frame),
        Ok(Ok(Some(Wire::Request(_)))) => return Err(Error::Failed("the node breaks the protocol".to_owned())),
        Ok(Ok(None)) => First::End,
        Ok(Err(error)) => return Err(lost(&error)),
    };
    Ok((input, out, first))
}

fn lost(error: &dyn std::error::Error) -> Error {
    Error::Failed(format!("the connection to the node was lost: {error}"))
}

/// Gives the stream its two background halves.
fn start(input: In, out: Out, first: First, slot: OwnedSemaphorePermit) -> Stream {
    let (to_node, from_user) = mpsc::channel(QUEUE_FRAMES);
    let (to_user, from_node) = mpsc::channel(QUEUE_FRAMES);
    tokio::spawn(async move {
        run(input, out, first, from_user, to_user).await;
        drop(slot);
    });
    Stream { tx: to_node, rx: from_node }
}

/// Moves frames both ways until the node is done or the user has dropped the stream.
async fn run(
    mut input: In,
    mut out: Out,
    first: First,
    mut from_user: mpsc::Receiver<Frame>,
    to_user: mpsc::Sender<Frame>,
) {
    match first {
        First::Silent => {}
        First::Frame(frame) => {
            // The queue is empty and was just made.
            let _ = to_user.try_send(frame);
        }
        First::End => {
            out.reset(h2::Reason::NO_ERROR);
            return;
        }
    }
    let receive = receive(&mut input, &to_user);
    let send = async {
        while let Some(frame) = from_user.recv().await {
            if out.send(&Wire::Frame(frame)).await.is_err() {
                break;
            }
        }
        out.finish();
        // The node decides when the stream is over.
        std::future::pending::<()>().await;
    };
    let reason = tokio::select! {
        () = receive => h2::Reason::NO_ERROR,
        () = to_user.closed() => h2::Reason::CANCEL,
        () = send => h2::Reason::CANCEL,
    };
    out.reset(reason);
}

/// Frames from the node to the user. A stream that breaks ends with an error, so that a lost command never looks
/// like one that succeeded.
async fn receive(input: &mut In, to_user: &mpsc::Sender<Frame>) {
    loop {
        let frame = match input.next().await {
            Ok(Some(Wire::Frame(Frame::Stdout(data)))) if data.is_empty() => continue,
            Ok(Some(Wire::Frame(frame))) => frame,
            Ok(Some(Wire::Refused(error))) => Frame::Exit(ExitStatus::Error(error.to_string())),
            Ok(Some(Wire::Request(_))) => Frame::Exit(ExitStatus::Error("the node breaks the protocol".to_owned())),
            Ok(None) => return,
            Err(error) => Frame::Exit(ExitStatus::Error(lost(&error).to_string())),
        };
        let last = matches!(frame, Frame::Exit(_));
        if to_user.send(frame).await.is_err() || last {
            return;
        }
    }
}
