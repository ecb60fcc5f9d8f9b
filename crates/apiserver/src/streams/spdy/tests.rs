//! SPDY sessions against a client played here.

use std::collections::BTreeMap;

use super::*;

/// A client's end: bytes to the session, frames from it.
pub(super) struct Client {
    codec: Codec,
    to: mpsc::Sender<Bytes>,
    from: mpsc::Receiver<Bytes>,
    decoder: Decoder,
}

impl Client {
    /// The client, and the session's input and output.
    pub(super) fn new() -> (Self, mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>) {
        let (to, input) = mpsc::channel(64);
        let (out, from) = mpsc::channel(64);
        (Self { codec: Codec::new(), to, from, decoder: Decoder::default() }, input, out)
    }

    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let block = self.codec.encode(headers);
        let length = u32::try_from(10 + block.len()).unwrap();
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&block);
        self.to.send(frame.into()).await.unwrap();
    }

    async fn send(&self, frame: Bytes) {
        self.to.send(frame).await.unwrap();
    }

    /// The next frame.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            self.decoder.push(&self.from.recv().await?);
        }
    }

    /// Data by stream until all of these have ended.
    async fn until_fin(&mut self, mut ids: Vec<u32>) -> BTreeMap<u32, String> {
        let mut said: BTreeMap<u32, String> = BTreeMap::new();
        while !ids.is_empty() {
            match self.next().await.expect("streams end before the connection") {
                Frame::Data { id, fin, data } => {
                    said.entry(id).or_default().push_str(&String::from_utf8_lossy(&data));
                    if fin {
                        ids.retain(|other| *other != id);
                    }
                }
                Frame::Headers(block) => assert_eq!(self.codec.decode(&block).unwrap(), []),
                other => panic!("unexpected {other:?}"),
            }
        }
        said
    }
}

fn bytes(queue: mpsc::Receiver<Bytes>) -> impl Stream<Item = Bytes> {
    futures::stream::unfold(queue, |mut queue| async move { queue.recv().await.map(|data| (data, queue)) })
}

#[tokio::test]
async fn streams_are_opened_answered_and_carry_data_until_their_end() {
    let (mut client, input, out) = Client::new();
    let (mut streams, work) = session(bytes(input), out);
    let work = tokio::spawn(work);
    client.open(1, &[("StreamType", "error")]).await;
    client.open(3, &[("streamtype", "data"), ("port", "80")]).await;
    let first = streams.recv().await.unwrap();
    let mut second = streams.recv().await.unwrap();
    assert_eq!((first.header("streamtype"), second.header("port")), ("error", "80"));
    client.send(frame::data(3, false, b"hi")).await;
    client.send(frame::data(3, true, b"")).await;
    assert_eq!(second.rx.recv().await, Some("hi".into()));
    assert_eq!(second.rx.recv().await, None);
    second.writer().write(b"answer").await.unwrap();
    second.writer().finish().await.unwrap();
    assert_eq!(client.until_fin(vec![3]).await[&3], "answer");
    drop(client);
    assert_eq!(work.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn pings_are_answered_and_strangers_are_cut_off() {
    let (mut client, input, out) = Client::new();
    let (_streams, work) = session(bytes(input), out);
    let work = tokio::spawn(work);
    client.send(frame::ping(7)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(7)));
    client.send("\u{80}GET / HTTP/1.1\r\n\r\n".into()).await;
    client.send(vec![0x80, 9, 0, 1, 0, 0, 0, 0].into()).await;
    drop(client);
    assert!(work.await.unwrap().is_err());
}

#[tokio::test]
async fn an_exec_has_a_stream_per_channel() {
    use crate::streams::remote::Remote;
    let (mut client, input, out) = Client::new();
    let target = nodeconn::Target { namespace: "ns".into(), pod: "p".into(), uid: "u".into(), container: "c".into() };
    let request = nodeconn::StreamRequest::Exec { target, command: vec!["cat".into()], stdin: true, tty: false };
    let (to_node, mut at_node) = mpsc::channel(8);
    let (from_node, rx) = mpsc::channel(8);
    let node = nodeconn::Stream { tx: to_node, rx };
    let remote = Remote { request, stdout: true, stderr: true };
    let serving = tokio::spawn(exec::remote("v4.channel.k8s.io", remote, node, bytes(input), out));
    for (id, channel) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, &[("streamtype", channel)]).await;
    }
    client.send(frame::data(3, false, b"in")).await;
    client.send(frame::data(3, true, b"")).await;
    assert_eq!(at_node.recv().await, Some(nodeconn::Frame::Stdin("in".into())));
    assert_eq!(at_node.recv().await, Some(nodeconn::Frame::StdinEof));
    for frame in [
        nodeconn::Frame::Stdout("out".into()),
        nodeconn::Frame::Stderr("err".into()),
        nodeconn::Frame::Exit(nodeconn::ExitStatus::Code(2)),
    ] {
        from_node.send(frame).await.unwrap();
    }
    let said = client.until_fin(vec![1, 5, 7]).await;
    assert_eq!((said[&5].as_str(), said[&7].as_str()), ("out", "err"));
    let status: serde_json::Value = serde_json::from_str(&said[&1]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "2");
    serving.await.unwrap();
}
