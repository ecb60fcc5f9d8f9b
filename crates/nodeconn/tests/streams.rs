//! A server and an agent over an in-memory pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use statefuld_nodeconn::{
    ConnectError, Connection, Error, ExitStatus, Frame, MAX_STREAMS, NodeConn, NodeHandler, Nodes, Stream,
    StreamRequest, Target, connect, serve,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

/// Long enough for a busy machine; reaching it fails the test.
const DEADLINE: Duration = Duration::from_secs(60);

/// Plays the agent. The first word of an exec says what to do.
#[derive(Default)]
struct Agent {
    running: AtomicUsize,
    changed: Notify,
}

/// Counts a handler while it runs, also when it is dropped.
struct Running<'a>(&'a Agent);

impl<'a> Running<'a> {
    fn new(agent: &'a Agent) -> Self {
        agent.running.fetch_add(1, Ordering::SeqCst);
        agent.changed.notify_waiters();
        Self(agent)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Agent {
    /// Waits until so many handlers run.
    async fn until_running(&self, count: usize) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if self.running.load(Ordering::SeqCst) == count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("handlers start and end");
    }
}

#[async_trait]
impl NodeHandler for Agent {
    async fn handle(&self, request: StreamRequest, mut stream: Stream) -> Result<(), Error> {
        let _running = Running::new(self);
        let StreamRequest::Exec { command, .. } = request else {
            return Err(Error::NotFound("only commands here".into()));
        };
        match command[0].as_str() {
            "echo" => {
                stream.tx.send(Frame::Stdout(Bytes::new())).await.unwrap();
                while let Some(frame) = stream.rx.recv().await {
                    if let Frame::Stdin(data) = frame {
                        stream.tx.send(Frame::Stdout(data)).await.unwrap();
                    }
                }
                stream.tx.send(Frame::Exit(ExitStatus::Code(7))).await.unwrap();
                Ok(())
            }
            "flood" => {
                let block = Bytes::from(vec![b'x'; 64 * 1024]);
                for _ in 0..command[1].parse::<usize>().unwrap() {
                    if stream.tx.send(Frame::Stdout(block.clone())).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
            "silent" => std::future::pending().await,
            "late" => {
                stream.tx.send(Frame::Stdout("begun".into())).await.unwrap();
                Err(Error::Failed("broke".into()))
            }
            "deaf" => {
                drop(stream.rx);
                stream.tx.send(Frame::Stdout("deaf".into())).await.unwrap();
                std::future::pending().await
            }
            _ => Err(Error::BadRequest("what?".into())),
        }
    }
}

async fn pair() -> (Connection, Arc<Agent>) {
    let agent = Arc::new(Agent::default());
    let (server, client) = tokio::io::duplex(16 * 1024);
    tokio::spawn(serve(client, agent.clone()));
    let (conn, driver) = connect(server).await.unwrap();
    tokio::spawn(driver);
    (conn, agent)
}

fn exec(command: &[&str]) -> StreamRequest {
    StreamRequest::Exec {
        target: Target { namespace: "ns".into(), pod: "p".into(), uid: "u".into(), container: "c".into() },
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: true,
        tty: false,
    }
}

async fn next(stream: &mut Stream) -> Option<Frame> {
    tokio::time::timeout(DEADLINE, stream.rx.recv()).await.expect("frames keep coming")
}

#[tokio::test]
async fn bytes_go_there_and_back_and_half_close_ends_input() {
    let (conn, _) = pair().await;
    let mut stream = conn.open(exec(&["echo"])).await.unwrap();
    let data: Bytes = (0..=255u8).cycle().take(300_000).collect();
    let sender = stream.tx.clone();
    drop(std::mem::replace(&mut stream.tx, tokio::sync::mpsc::channel(1).0));
    let sent = data.clone();
    tokio::spawn(async move { sender.send(Frame::Stdin(sent)).await.unwrap() });
    let mut back = Vec::new();
    let status = loop {
        match next(&mut stream).await {
            Some(Frame::Stdout(data)) => back.extend_from_slice(&data),
            Some(Frame::Exit(status)) => break status,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(back, data);
    assert_eq!(status, ExitStatus::Code(7));
}

#[tokio::test]
async fn a_refusal_answers_the_opening() {
    let (conn, _) = pair().await;
    assert_eq!(conn.open(StreamRequest::Stats).await.unwrap_err(), Error::NotFound("only commands here".into()));
    assert_eq!(conn.open(exec(&["?"])).await.unwrap_err(), Error::BadRequest("what?".into()));
}

#[tokio::test]
async fn a_late_refusal_is_an_exit_with_an_error() {
    let (conn, _) = pair().await;
    let mut stream = conn.open(exec(&["late"])).await.unwrap();
    assert_eq!(next(&mut stream).await, Some(Frame::Stdout("begun".into())));
    assert_eq!(next(&mut stream).await, Some(Frame::Exit(ExitStatus::Error("broke".into()))));
}

#[tokio::test]
async fn a_silent_node_has_opened_the_stream_and_dropping_it_cancels_there() {
    let (conn, agent) = pair().await;
    let stream = conn.open(exec(&["silent"])).await.unwrap();
    agent.until_running(1).await;
    drop(stream);
    agent.until_running(0).await;
}

#[tokio::test]
async fn cancel_reaches_a_handler_that_takes_no_input() {
    let (conn, agent) = pair().await;
    let stream = conn.open(exec(&["deaf"])).await.unwrap();
    drop(stream);
    agent.until_running(0).await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_own_stream_only() {
    let (conn, agent) = pair().await;
    let mut slow = conn.open(exec(&["flood", "200"])).await.unwrap();
    let mut quick = conn.open(exec(&["flood", "200"])).await.unwrap();
    let mut bytes = 0;
    while let Some(Frame::Stdout(data)) = next(&mut quick).await {
        bytes += data.len();
    }
    assert_eq!(bytes, 200 * 64 * 1024);
    // The slow one still runs: its 12 MiB were not taken in.
    agent.until_running(1).await;
    let mut bytes = 0;
    while let Some(Frame::Stdout(data)) = next(&mut slow).await {
        bytes += data.len();
    }
    assert_eq!(bytes, 200 * 64 * 1024);
    agent.until_running(0).await;
}

#[tokio::test]
async fn a_hundred_streams_run_at_once() {
    let (conn, agent) = pair().await;
    let mut streams = Vec::new();
    for index in 0..100u32 {
        let stream = conn.open(exec(&["echo"])).await.unwrap();
        stream.tx.send(Frame::Stdin(index.to_string().into())).await.unwrap();
        streams.push(stream);
    }
    agent.until_running(100).await;
    for (index, stream) in streams.iter_mut().enumerate() {
        assert_eq!(next(stream).await, Some(Frame::Stdout(index.to_string().into())));
    }
    drop(streams);
    agent.until_running(0).await;
}

#[tokio::test]
async fn more_streams_than_the_limit_are_refused_until_some_end() {
    let (conn, agent) = pair().await;
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..MAX_STREAMS {
        let conn = conn.clone();
        opening.spawn(async move { conn.open(exec(&["silent"])).await.unwrap() });
    }
    let streams = opening.join_all().await;
    agent.until_running(MAX_STREAMS as usize).await;
    assert!(matches!(conn.open(exec(&["echo"])).await, Err(Error::Failed(_))));
    drop(streams);
    agent.until_running(0).await;
    let again = async {
        while conn.open(exec(&["echo"])).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, again).await.expect("slots come back");
}

#[tokio::test]
async fn a_lost_connection_is_not_a_clean_end() {
    let agent = Arc::new(Agent::default());
    let (server, client) = tokio::io::duplex(16 * 1024);
    let serving = tokio::spawn(serve(client, agent.clone()));
    let (conn, driver) = connect(server).await.unwrap();
    let driving = tokio::spawn(driver);
    let mut stream = conn.open(exec(&["echo"])).await.unwrap();
    serving.abort();
    assert!(matches!(next(&mut stream).await, Some(Frame::Exit(ExitStatus::Error(_)))));
    tokio::time::timeout(DEADLINE, driving).await.expect("the driver ends").unwrap().ok();
    assert!(matches!(conn.open(exec(&["echo"])).await, Err(Error::Failed(_))));
    agent.until_running(0).await;
}

#[tokio::test]
async fn a_command_that_is_too_long_is_refused() {
    let (conn, _) = pair().await;
    let long = "x".repeat(2 * 1024 * 1024);
    assert!(matches!(conn.open(exec(&["echo", &long])).await, Err(Error::BadRequest(_))));
}

#[tokio::test]
async fn garbage_is_no_agent_and_no_server() {
    let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
    let greeting = tokio::spawn(async move { connect(ours).await.map(|_| ()) });
    theirs.write_all(b"SSH-2.0-OpenSSH_9.9\r\nwhat is this, a protocol? it is none that we know of\r\n").await.unwrap();
    assert!(matches!(greeting.await.unwrap(), Err(ConnectError::Http2(_))));

    let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
    let serving = tokio::spawn(serve(ours, Arc::new(Agent::default())));
    theirs.write_all(b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n").await.unwrap();
    assert!(matches!(serving.await.unwrap(), Err(ConnectError::Http2(_))));
}

#[tokio::test]
async fn another_http2_server_is_not_taken_for_an_agent() {
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    tokio::spawn(async move {
        let mut other = h2::server::handshake(theirs).await.unwrap();
        while let Some(Ok((_, mut answer))) = other.accept().await {
            answer.send_response(http::Response::new(()), true).unwrap();
        }
    });
    assert!(matches!(connect(ours).await.map(|_| ()), Err(ConnectError::NotOurs)));
}

#[tokio::test]
async fn a_peer_that_closes_at_once_is_an_error() {
    let (ours, mut theirs) = tokio::io::duplex(16 * 1024);
    let greeting = tokio::spawn(async move { connect(ours).await.map(|_| ()) });
    let mut preface = [0; 24];
    theirs.read_exact(&mut preface).await.unwrap();
    drop(theirs);
    assert!(greeting.await.unwrap().is_err());
}

#[tokio::test]
async fn an_attached_node_is_open_until_its_agent_goes() {
    let nodes = Nodes::new();
    let (server, client) = tokio::io::duplex(16 * 1024);
    let serving = tokio::spawn(serve(client, Arc::new(Agent::default())));
    let attached = tokio::spawn({
        let nodes = nodes.clone();
        async move { nodes.attach("n1", server).await }
    });
    let connected = async {
        while !nodes.is_connected("n1") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, connected).await.expect("the agent connects");
    assert!(nodes.open("n1", exec(&["echo"])).await.is_ok());
    serving.abort();
    let _ = tokio::time::timeout(DEADLINE, attached).await.expect("it ends").unwrap();
    assert_eq!(nodes.open("n1", exec(&["echo"])).await.unwrap_err(), Error::NotConnected("n1".into()));
}
