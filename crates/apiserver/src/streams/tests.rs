//! Streams against a node that is played by a handler, and clients on in-memory sockets.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use nodeconn::{ExitStatus, Frame, NodeHandler, Stream};
use serde_json::json;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::channels::Protocol;
use super::*;

/// Plays a node: `cat` echoes until end of input, `exit N` ends so, `hang` waits until it is dropped.
#[derive(Default)]
struct Node {
    dropped: Mutex<Option<oneshot::Sender<()>>>,
}

/// Tells when it is dropped.
struct Guard(Option<oneshot::Sender<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            let _ = tell.send(());
        }
    }
}

#[async_trait]
impl NodeHandler for Node {
    async fn handle(&self, request: StreamRequest, mut stream: Stream) -> Result<(), nodeconn::Error> {
        let guard = Guard(self.dropped.lock().unwrap().take());
        let out = |data: String| Frame::Stdout(Bytes::from(data));
        match request {
            StreamRequest::Log { tail_lines: Some(0), .. } => {
                Err(nodeconn::Error::BadRequest("container is waiting".into()))
            }
            StreamRequest::Log { target, follow, .. } => {
                stream.tx.send(out(format!("{} {follow}\n", target.container))).await.unwrap();
                Ok(())
            }
            StreamRequest::Exec { command, .. } => {
                stream.tx.send(out(String::new())).await.unwrap();
                match command[0].as_str() {
                    "cat" => {
                        while let Some(Frame::Stdin(data)) = stream.rx.recv().await {
                            stream.tx.send(Frame::Stdout(data)).await.unwrap();
                        }
                        stream.tx.send(Frame::Exit(ExitStatus::Code(0))).await.unwrap();
                    }
                    "exit" => {
                        stream.tx.send(Frame::Stderr("oh".into())).await.unwrap();
                        let code = command[1].parse().unwrap();
                        stream.tx.send(Frame::Exit(ExitStatus::Code(code))).await.unwrap();
                    }
                    "size" => {
                        if let Some(Frame::Resize { width, height }) = stream.rx.recv().await {
                            stream.tx.send(out(format!("{width}x{height}"))).await.unwrap();
                        }
                        stream.tx.send(Frame::Exit(ExitStatus::Code(0))).await.unwrap();
                    }
                    _ => std::future::pending().await,
                }
                drop(guard);
                Ok(())
            }
            StreamRequest::PortForward { port, .. } => {
                stream.tx.send(out(String::new())).await.unwrap();
                while let Some(Frame::Stdin(data)) = stream.rx.recv().await {
                    let text = format!("{port}:{}", String::from_utf8_lossy(&data));
                    stream.tx.send(out(text)).await.unwrap();
                }
                Ok(())
            }
            _ => Err(nodeconn::Error::NotFound("no such thing".into())),
        }
    }
}

async fn nodes_with(node: Node) -> Arc<Nodes> {
    let nodes = Nodes::new();
    let (server, agent) = tokio::io::duplex(1 << 16);
    tokio::spawn(nodeconn::serve(agent, Arc::new(node)));
    let (conn, driver) = nodeconn::connect(server).await.unwrap();
    tokio::spawn(driver);
    std::mem::forget(nodes.register("n1", Arc::new(conn)));
    nodes
}

fn pod() -> Value {
    json!({"metadata": {"namespace": "ns", "name": "p", "uid": "u"},
        "spec": {"nodeName": "n1", "containers": [{"name": "main"}]}})
}

fn parts(query: &str) -> Parts {
    http::Request::get(format!("/x?{query}")).body(()).unwrap().into_parts().0
}

async fn ask(nodes: &Arc<Nodes>, pod: &Value, subresource: &str, query: &str) -> Result<(u16, String), (u16, String)> {
    match handle(nodes, Timestamp::UNIX_EPOCH, pod, subresource, parts(query)).await {
        Ok(answer) => {
            let code = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            Ok((code, String::from_utf8(body.to_vec()).unwrap()))
        }
        Err(status) => Err((status.code, status.message)),
    }
}

#[tokio::test]
async fn a_log_is_streamed_from_the_node() {
    let nodes = nodes_with(Node::default()).await;
    assert_eq!(ask(&nodes, &pod(), "log", "follow=true").await, Ok((200, "main true\n".into())));
}

#[tokio::test]
async fn what_the_node_refuses_is_a_status() {
    let nodes = nodes_with(Node::default()).await;
    assert_eq!(ask(&nodes, &pod(), "log", "tailLines=0").await, Err((400, "container is waiting".into())));
}

#[tokio::test]
async fn options_are_checked_as_upstream_does() {
    let nodes = Nodes::new();
    let mut two = pod();
    two["spec"]["containers"] = json!([{"name": "a"}, {"name": "b"}]);
    let mut unbound = pod();
    unbound["spec"]["nodeName"] = json!("");
    for (pod, subresource, query, code, message) in [
        (&two, "log", "", 400, "a container name must be specified for pod p, choose one of: [a b]"),
        (&two, "log", "container=c", 400, "container c is not valid for pod p"),
        (
            &two,
            "log",
            "container=a&sinceSeconds=1&sinceTime=2021-01-01T00:00:00Z",
            422,
            "PodLogOptions \"p\" is invalid: []: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
        ),
        (
            &unbound,
            "log",
            "tailLines=-1",
            422,
            "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        (&unbound, "exec", "command=ls&stdout=true", 400, "pod p does not have a host assigned"),
        (&pod(), "exec", "command=ls", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        (&pod(), "exec", "command=ls&stdout=1", 400, "Upgrade request required"),
        (&pod(), "log", "", 503, "node n1 is not connected; try again when its agent is back"),
    ] {
        assert_eq!(ask(&nodes, pod, subresource, query).await, Err((code, message.into())));
    }
    assert_eq!(ask(&nodes, &unbound, "log", "").await, Ok((204, String::new())));
}

type Client = WebSocketStream<DuplexStream>;

/// A client's socket to a running exec, as it is after the upgrade.
async fn exec(nodes: &Arc<Nodes>, protocol: &str, query: &str) -> Client {
    exec_served(nodes, protocol, query).await.0
}

/// The same, and the task that serves it.
async fn exec_served(nodes: &Arc<Nodes>, protocol: &str, query: &str) -> (Client, JoinHandle<()>) {
    let (server, client) = tokio::io::duplex(1 << 16);
    let protocol = Protocol::choose(&[protocol.to_owned()]).unwrap();
    let pod = pod();
    let call = Call { nodes, now: Timestamp::UNIX_EPOCH, pod: &pod, query: Query::parse(query) };
    let remote = remote::exec(&call).unwrap();
    let node = call.open(remote.request.clone()).await.unwrap();
    let serving = async move { websocket::run_remote(websocket::socket(server).await, protocol, remote, node).await };
    let serving = tokio::spawn(serving);
    (WebSocketStream::from_raw_socket(client, Role::Client, None).await, serving)
}

/// Everything until the server closes, without empty messages.
async fn rest(client: &mut Client) -> Vec<(u8, String)> {
    let mut out = Vec::new();
    while let Some(Ok(message)) = client.next().await {
        if let Message::Binary(data) = message
            && data.len() > 1
        {
            out.push((data[0], String::from_utf8_lossy(&data[1..]).into_owned()));
        }
    }
    out
}

#[tokio::test]
async fn stdin_reaches_the_process_and_its_end_too() {
    let nodes = nodes_with(Node::default()).await;
    let mut client = exec(&nodes, "v5.channel.k8s.io", "command=cat&stdin=true&stdout=true").await;
    client.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    client.send(Message::binary(vec![255, 0])).await.unwrap();
    let success = json!({"metadata": {}, "status": "Success"}).to_string();
    assert_eq!(rest(&mut client).await, [(1, "hello".to_owned()), (3, success)]);
}

#[tokio::test]
async fn an_exit_code_is_a_cause() {
    let nodes = nodes_with(Node::default()).await;
    let mut client = exec(&nodes, "v4.channel.k8s.io", "command=exit&command=3&stdout=true&stderr=true").await;
    let said = rest(&mut client).await;
    assert_eq!(said[0], (2, "oh".to_owned()));
    let status: Value = serde_json::from_str(&said[1].1).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));
}

#[tokio::test]
async fn a_terminal_has_a_size_and_no_stderr() {
    let nodes = nodes_with(Node::default()).await;
    let mut client = exec(&nodes, "v5.channel.k8s.io", "command=size&stdout=true&stderr=true&tty=true").await;
    client.send(Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec())).await.unwrap();
    assert_eq!(rest(&mut client).await[0], (1, "80x24".to_owned()));
    let mut client = exec(&nodes, "v5.channel.k8s.io", "command=exit&command=0&stdout=true&stderr=true&tty=true").await;
    assert!(rest(&mut client).await.iter().all(|(channel, _)| *channel != 2));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_command() {
    let (tell, told) = oneshot::channel();
    let nodes = nodes_with(Node { dropped: Mutex::new(Some(tell)) }).await;
    let query = "command=hang&stdin=true&stdout=true";
    let (mut client, serving) = exec_served(&nodes, "v5.channel.k8s.io", query).await;
    client.next().await.unwrap().unwrap();
    drop(client);
    tokio::time::timeout(std::time::Duration::from_secs(30), told).await.expect("the command is dropped").unwrap();
    serving.await.expect("it ends without a panic");
}

#[tokio::test]
async fn ports_are_forwarded_each_on_its_channels() {
    let nodes = nodes_with(Node::default()).await;
    let pod = pod();
    let call = Call { nodes: &nodes, now: Timestamp::UNIX_EPOCH, pod: &pod, query: Query::default() };
    let mut streams = Vec::new();
    for port in [80u16, 443] {
        let request = StreamRequest::PortForward { target: call.target(String::new()), port };
        streams.push((port, Ok(call.open(request).await.unwrap())));
    }
    streams.push((9, Err("nobody listens".to_owned())));
    let (server, client) = tokio::io::duplex(1 << 16);
    let protocol = Protocol::choose(&["v4.channel.k8s.io".to_owned()]).unwrap();
    tokio::spawn(async move { websocket::run_forward(websocket::socket(server).await, protocol, streams).await });
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let next = async |client: &mut Client| match client.next().await {
        Some(Ok(Message::Binary(data))) => data.to_vec(),
        other => panic!("unexpected {other:?}"),
    };
    for expected in [[0, 80, 0], [1, 80, 0], [2, 187, 1], [3, 187, 1], [4, 9, 0], [5, 9, 0]] {
        assert_eq!(next(&mut client).await, expected);
    }
    assert_eq!(next(&mut client).await, b"\x05nobody listens");
    client.send(Message::binary(b"\x02hi".to_vec())).await.unwrap();
    assert_eq!(next(&mut client).await, b"\x02443:hi");
}
